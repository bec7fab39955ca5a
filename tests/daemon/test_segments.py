"""The machine's memory: who makes what, and that every process sees the same."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import numaemu_core
import numaemu_daemon
from numaemu_core import limits
from numaemu_core.layout import layout_of
from numaemu_core.topology import from_dict
from numaemu_daemon import segments
from numaemu_host import memfd
from numaemu_host.robust import MutexState

DESCRIPTION = {
    "swap": "64K",
    "node": [{"id": 5, "memory": "256K"}, {"id": 1, "memory": "128K", "cpus": [0]}, {"id": 2}],
}
LAYOUT = layout_of(from_dict(DESCRIPTION))
OWNERS = ["kernel", "swap", "node.1", "node.2", "node.5"]


@pytest.fixture
def fds() -> Iterator[dict[str, int]]:
    """All segments of a machine."""
    made: dict[str, int] = {}
    for owner in OWNERS:
        made |= segments.create_owned(LAYOUT, owner)
    yield made
    for fd in made.values():
        os.close(fd)


def test_every_segment_has_one_owner() -> None:
    """The owners together make each segment of the machine exactly once."""
    made = [name for owner in OWNERS for name in segments.owned_names(LAYOUT, owner)]
    assert sorted(made) == sorted(segments.all_names(LAYOUT))
    assert segments.owned_names(LAYOUT, "node.2") == []
    assert segments.owned_names(LAYOUT, "kernel")[-2:] == ["journal", "mmap_sem"]


def test_segments_have_their_sizes_and_only_pools_their_memory(fds: dict[str, int]) -> None:
    """Descriptors are as large as the layout says; what is not sparse has its memory from the start."""
    assert {name: os.fstat(fd).st_size for name, fd in fds.items()} == {
        name: segments.segment_bytes(LAYOUT, name) for name in segments.all_names(LAYOUT)
    }
    allocated = {name: os.fstat(fd).st_blocks * 512 for name, fd in fds.items()}
    assert allocated["pool.1"] == 128 << 10
    assert allocated["pool.5"] == 256 << 10
    assert allocated["journal"] == allocated["ptes"] == allocated["control"] == 0
    assert segments.segment_bytes(LAYOUT, "mmap_sem") >= limits.MAX_MMS
    assert segments.segment_bytes(LAYOUT, "journal") >= 2 * limits.JOURNAL_HALF_BYTES + 64


def test_memory_that_is_taken_when_it_is_touched() -> None:
    """Without preallocation neither pools nor the swap area have memory at the start, and none is asked of the host."""
    layout = layout_of(from_dict({**DESCRIPTION, "preallocate": False}))
    for owner, name in (("node.1", "pool.1"), ("swap", "swap")):
        made = segments.create_owned(layout, owner)
        assert os.fstat(made[name]).st_blocks == 0
        assert os.fstat(made[name]).st_size == layout.segments[name].size
        for fd in made.values():
            os.close(fd)
    taken = segments.allocated_bytes(LAYOUT) - segments.allocated_bytes(layout)
    assert taken == sum(LAYOUT.segments[name].size for name in ("pool.1", "pool.5", "swap"))


def test_mutexes_are_free_when_the_kernel_hands_them_out(fds: dict[str, int]) -> None:
    """Every LRU, zone and swap lock can be taken once and given back."""
    machine = segments.MappedMachine(LAYOUT, fds)
    for index in (0, LAYOUT.zone_mutex + 5, LAYOUT.swap_mutex):
        assert machine.mutexes.trylock(index) is MutexState.ACQUIRED
        machine.mutexes.unlock(index)
    del machine.columns
    machine.close()


def test_frames_of_all_nodes_are_one_array(fds: dict[str, int]) -> None:
    """A pfn is an index: pools lie back to back by ascending node, wherever they were made."""
    machine = segments.MappedMachine(LAYOUT, fds)
    first, end = LAYOUT.node_pfns[5]
    assert LAYOUT.node_pfns == {1: (0, 32), 5: (32, 96)}
    machine.columns.frames[:] = np.arange(LAYOUT.frame_count, dtype=np.uint8)[:, None]
    assert os.pread(fds["pool.5"], 1, 0) == bytes([first])
    assert os.pread(fds["pool.5"], 1, (end - first - 1) * 4096) == bytes([end - 1])
    assert os.pread(fds["pool.1"], 1, 0) == b"\0"
    del machine.columns
    machine.close()


def test_another_process_sees_the_same(fds: dict[str, int]) -> None:
    """A process that maps the descriptors finds the bytes, columns and locks of this one, and the other way round."""
    machine = segments.MappedMachine(LAYOUT, fds, names=["journal"])
    machine.columns.frames[40] = 7
    machine.columns.lru_stamp[95] = 1 << 60
    machine.view("journal")[100] = 9
    assert machine.mutexes.trylock(3) is MutexState.ACQUIRED
    code = """
        import json, sys
        from numaemu_core.layout import layout_of
        from numaemu_core.topology import from_dict
        from numaemu_daemon.segments import MappedMachine
        description, fds = json.loads(sys.argv[1])
        machine = MappedMachine(layout_of(from_dict(description)), fds, names=["journal"])
        c = machine.columns
        print(c.frames[40].sum(), c.lru_stamp[95], machine.view("journal")[100], machine.mutexes.trylock(3).value)
        c.swap[15] = 8
        c.needs_recovery[3] = 1
    """
    roots = [str(Path(str(package.__file__)).parents[1]) for package in (numaemu_core, numaemu_daemon)]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), json.dumps([DESCRIPTION, fds])],
        pass_fds=list(fds.values()),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        stdout=subprocess.PIPE,
        timeout=20,
        check=True,
    )
    assert result.stdout.split() == [b"28672", str(1 << 60).encode(), b"9", b"busy"]
    assert (machine.columns.swap[15] == 8).all()
    assert machine.columns.needs_recovery[3] == 1
    machine.mutexes.unlock(3)
    del machine.columns
    machine.close()


def test_nothing_stays_open_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory runs short half-way, the segments made so far are given back."""
    real = memfd.create
    made: list[int] = []

    def scarce(name: str, size_bytes: int, *, preallocate: bool) -> int:
        if len(made) == 2:
            raise OSError(12, "no memory")
        made.append(real(name, size_bytes, preallocate=preallocate))
        return made[-1]

    monkeypatch.setattr(memfd, "create", scarce)
    with pytest.raises(OSError, match="no memory"):
        segments.create_owned(LAYOUT, "kernel")
    for fd in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
