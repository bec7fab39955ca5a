"""Files of a real machine: made, mapped, shared and seen by several tasks."""

from collections.abc import Callable

import numpy as np
import pytest

import numaemu as nm
from numaemu.cli.reports import parsed_line

Boot = Callable[..., nm.Machine]

PAGE = 4096
KINDS = ("tmpfs", "ramfs", "disk")


@pytest.mark.parametrize("kind", KINDS)
def test_two_tasks_share_a_file(boot: Boot, kind: str) -> None:
    """What one task writes into a shared mapping another reads from its own, and from the file."""
    data = np.random.default_rng(3).integers(0, 255, 5 * PAGE + 17, np.uint8).tobytes()
    machine = boot()
    machine.create_file("data", data, kind)
    with machine.attach(cpu=0) as one, machine.attach(cpu=1) as two:
        first = one.mmap(len(data), file="data", flags=nm.MAP_SHARED)
        second = two.mmap(len(data), file="data", flags=nm.MAP_SHARED)
        assert first[0 : len(data)] == second[0 : len(data)] == data
        first[PAGE : PAGE + 5] = b"hello"
        assert second[PAGE : PAGE + 5] == b"hello"
        assert two.file_read("data", PAGE - 1, 8) == data[PAGE - 1 : PAGE] + b"hello" + data[PAGE + 5 : PAGE + 7]
        two.file_write("data", 0, b"again")
        assert first[0:5] == b"again"
        assert two.file_read("data", len(data) - 3, 100) == data[-3:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_mapping_keeps_its_writes(boot: Boot, kind: str) -> None:
    """A write to a private mapping copies the page to the writer's node; the file stays as it is."""
    machine = boot()
    machine.create_file("data", b"f" * 4 * PAGE, kind)
    with machine.attach(cpu=1) as task:
        private = task.mmap(4 * PAGE, file="data")
        private[PAGE : PAGE + 1] = b"p"
        assert private[0 : 2 * PAGE : 1] == b"f" * PAGE + b"p" + b"f" * (PAGE - 1)
        assert task.file_read("data", PAGE, 1) == b"f"
        assert task.where(private.start, 2 * PAGE).tolist() == [0, 1]


def test_beyond_the_end_of_a_file(boot: Boot) -> None:
    """An access to a mapping beyond the last page of its file is a bus error, which is a kind of segmentation fault."""
    machine = boot()
    machine.create_file("short", b"x" * (PAGE + 1))
    with machine.attach() as task:
        mapping = task.mmap(4 * PAGE, file="short")
        assert mapping[PAGE : 2 * PAGE] == b"x" + bytes(PAGE - 1)
        with pytest.raises(nm.BusError):
            mapping.read(2 * PAGE, 1)
        with pytest.raises(nm.SegmentationFault):
            mapping.read(3 * PAGE, 1)
        with pytest.raises(OSError, match="ends at"):
            task.file_write("short", PAGE, b"beyond")


def test_what_is_refused(boot: Boot) -> None:
    """No such file, one that is there already, a kind that is none, a read-only file in a mapping that writes."""
    machine = boot()
    machine.create_file("data", PAGE)
    with pytest.raises(FileExistsError):
        machine.create_file("data", b"")
    with pytest.raises(OSError, match="kind 'nfs'"):
        machine.create_file("other", b"", "nfs")
    with machine.attach() as task:
        with pytest.raises(FileNotFoundError):
            task.mmap(PAGE, file="nothing")
        with pytest.raises(PermissionError):
            task.mmap(PAGE, file="data", flags=nm.MAP_SHARED, file_mode="r")


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
def test_views_of_files(boot: Boot, profile: str) -> None:
    """numa_maps and meminfo of a running machine tell of shared memory, in the words of its kernel."""
    machine = boot(profile=profile)
    machine.create_file("a file", b"x" * 8 * PAGE)
    with machine.attach(cpu=1) as task:
        shared = task.mmap(8 * PAGE, file="a file", flags=nm.MAP_SHARED)
        shared.touch()
        anonymous = task.mmap(4 * PAGE, flags=nm.MAP_SHARED | nm.MAP_ANONYMOUS)
        anonymous[0:1] = b"x"
        lines = {int(line["start"], 16): line for line in map(parsed_line, task.numa_maps().splitlines())}
        assert lines[shared.start]["N0"] == 8
        assert lines[anonymous.start]["N1"] == 1
        figures = machine.figures("meminfo")
        text = machine.meminfo(0)
    if profile == "swap-v3":
        assert lines[shared.start]["Pages"] == 8
        assert text.startswith("\nNode 0 MemTotal:")
    else:
        assert lines[shared.start]["file"] == r"/a\040file"
        assert lines[anonymous.start]["file"] == r"/dev/zero\040(deleted)"
        assert text.startswith("Node 0 MemTotal: ")
        assert [(node["Shmem"], node["FilePages"], node["Mapped"]) for node in figures] == [(32, 32, 32), (4, 4, 4)]
