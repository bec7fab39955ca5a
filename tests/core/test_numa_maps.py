"""numa_maps in the words of each kernel: what a line counts, which numbers it shows, how it names policies."""

from collections.abc import Callable
from typing import Any

import jc
import pytest
from tests.core.conftest import PAGE, Machine

from numaemu_core import fork, mempolicy, mmap, numa_maps
from numaemu_core.mempolicy import get_vma_policy
from numaemu_core.mm_types import AddressSpace, FileKind
from numaemu_core.mpol_str import mpol_to_str
from numaemu_core.nodemask import mask_of
from numaemu_core.numa_maps import NumaMapEntry, words_of_today
from numaemu_core.shared_policy import Mempolicy, SharedPolicy
from numaemu_core.uapi import (
    MAP_FIXED,
    MPOL_BIND,
    MPOL_F_NUMA_BALANCING,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_MF_MOVE,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
    PROT_READ,
)

Make = Callable[..., Machine]

#: What real kernels 6.1 and 6.12 printed behind the location, less the words active and kernelpagesize_kB.
RECORDED = """\
anon=2 dirty=2 N0=2
anon=4 N2=4
anon=4 N0=1 N1=1 N2=1 N3=1
anon=4 dirty=4 mapmax=2 N2=4
anon=4 dirty=4 mapmax=2 N0=2 N1=2
anon=4 swapcache=4 N0=4
anon=8 dirty=4 swapcache=4 N2=8
anon=5 dirty=5 N0=1 N2=3 N3=1
dirty=4 N1=4
dirty=4 mapmax=2 N0=4
dirty=1 mapped=7 N0=7
dirty=1 mapped=2 mapmax=3 N0=2
mapped=8 N2=8
mapped=8 mapmax=2 N2=8
mapped=4 mapmax=2 N0=3 N1=1
anon=4 dirty=8 N0=8
anon=2 dirty=2 mapmax=3 N0=2
anon=4 dirty=4 mapped=8 N2=8
anon=4 dirty=4 mapped=8 mapmax=2 N2=8
anon=6 dirty=6 mapped=8 N2=6 N3=2
anon=2 dirty=6 mapped=8 mapmax=2 N0=6 N2=2
"""


def lines_of(machine: Machine, task: Any) -> list[str]:  # noqa: ANN401 - a task of the core
    """The lines of numa_maps of a task."""
    text: str = machine.call(numa_maps.sys_numa_maps(machine.k, task))
    return text.splitlines()


def entry_of(words: dict[str, int], **more: int) -> NumaMapEntry:
    """The counts that a recorded line stands for."""
    nodes = {int(word[1:]): count for word, count in words.items() if word.startswith("N")}
    pages = sum(nodes.values())
    rest = {name: words.get(name, 0) for name in ("anon", "dirty", "swapcache", "writeback")}
    known = {"pages": pages, "zero_pages": 0, "active": pages, "mapcount_max": words.get("mapmax", 1), **rest, **more}
    return NumaMapEntry(nodes=nodes, **known)


@pytest.mark.parametrize("line", RECORDED.splitlines())
def test_a_recorded_line_comes_from_its_counts(line: str) -> None:
    """Which numbers are shown, and in which order, is as real kernels print them."""
    counts = {name: int(number) for name, number in (word.split("=") for word in line.split())}
    assert words_of_today(entry_of(counts), 4) == [*line.split(), "kernelpagesize_kB=4"]


def test_numbers_that_no_recording_has() -> None:
    """`active` is shown only when some are not, `writeback` only when some are; nothing at all without pages."""
    some = entry_of({"anon": 2, "N1": 3}, active=0, writeback=1)
    assert words_of_today(some, 16) == ["anon=2", "mapped=3", "active=0", "writeback=1", "N1=3", "kernelpagesize_kB=16"]
    assert words_of_today(entry_of({}, zero_pages=7), 4) == []


STATIC, RELATIVE, BALANCING = MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (None, "default"),
        (Mempolicy(MPOL_LOCAL), "local"),
        (Mempolicy(MPOL_PREFERRED), "local"),
        (Mempolicy(MPOL_PREFERRED, preferred=3), "prefer:3"),
        (Mempolicy(MPOL_PREFERRED, preferred=0, flags=STATIC, user_nodes=1), "prefer=static:0"),
        (Mempolicy(MPOL_PREFERRED, preferred=0, flags=RELATIVE), "prefer=relative:0"),
        (Mempolicy(MPOL_BIND, nodes=mask_of([0, 1, 3])), "bind:0-1,3"),
        (Mempolicy(MPOL_BIND, nodes=mask_of([0, 1]), flags=BALANCING), "bind=balancing:0-1"),
        (Mempolicy(MPOL_BIND, nodes=mask_of([0, 1]), flags=STATIC | BALANCING), "bind=static|balancing:0-1"),
        (Mempolicy(MPOL_BIND, nodes=mask_of([2]), flags=RELATIVE), "bind=relative:2"),
        (Mempolicy(MPOL_INTERLEAVE, nodes=mask_of([0, 1, 2, 3])), "interleave:0-3"),
        (Mempolicy(MPOL_PREFERRED_MANY, nodes=mask_of([1, 2])), "prefer (many):1-2"),
        (Mempolicy(MPOL_PREFERRED_MANY, nodes=mask_of([0, 1]), flags=BALANCING), "prefer (many)=balancing:0-1"),
        (Mempolicy(MPOL_WEIGHTED_INTERLEAVE, nodes=mask_of([0, 2])), "weighted interleave:0,2"),
    ],
)
def test_policies_of_today(machine: Make, policy: Mempolicy | None, text: str) -> None:
    """Modes, flags and nodes are spelt as real kernels 6.1 and 6.12 spell them."""
    assert mpol_to_str(machine(profile="linux-6.12", **QUAD).k, policy) == text


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (None, "default"),
        (Mempolicy(MPOL_PREFERRED), "prefer=-1"),
        (Mempolicy(MPOL_PREFERRED, preferred=1), "prefer=1"),
        (Mempolicy(MPOL_INTERLEAVE, nodes=mask_of([0, 2])), "interleave={0,2}"),
        (Mempolicy(MPOL_BIND, nodes=mask_of([0, 2])), "bind={0/Normal,2/Normal}"),
    ],
)
def test_policies_of_2005(machine: Make, policy: Mempolicy | None, text: str) -> None:
    """Sets stand in braces, a BIND names its zones, -1 is the local node."""
    assert mpol_to_str(machine(nodes=4).k, policy) == text


def test_a_long_list_of_nodes_is_cut(machine: Make) -> None:
    """Today's policy has the 63 characters of a buffer."""
    every_other = mask_of(range(0, 64, 2))
    text = mpol_to_str(machine(profile="linux-6.1", **QUAD).k, Mempolicy(MPOL_INTERLEAVE, nodes=every_other))
    assert len(text) == 63
    assert text.startswith("interleave:0,2,4,6,")


QUAD: dict[str, Any] = {
    "page_size": PAGE,
    "swap": "1M",
    "distances": [[10, 15, 20, 25], [16, 10, 21, 30], [20, 24, 10, 17], [28, 30, 17, 10]],
    "node": [{"id": n, "memory": "1M", "cpus": [n]} for n in range(4)],
}

#: By profile: the lines of the steps of `test_the_life_of_a_mapping`.
LIFE = {
    "swap-v3": [
        "10000000000 default MaxRef=0 Pages=0 Mapped=0",
        "10000000000 default MaxRef=1 Pages=3 Mapped=3 N0=3",
        "10000000000 default MaxRef=1 Pages=5 Mapped=5 Anon=3 N0=5",
        "10000000000 default MaxRef=2 Pages=5 Mapped=5 Anon=3 N0=5",
        "10000000000 prefer=2 MaxRef=2 Pages=5 Mapped=5 Anon=3 N0=5",
        "10000000000 bind={1/Normal,3/Normal} MaxRef=2 Pages=6 Mapped=6 Anon=4 N0=5 N1=1",
    ],
    "linux-6.1": [
        "10000000000 default",
        "10000000000 default",
        "10000000000 default anon=3 dirty=3 N0=3 kernelpagesize_kB=4",
        "10000000000 default anon=3 dirty=3 mapmax=2 N0=3 kernelpagesize_kB=4",
        "10000000000 prefer:2 anon=3 dirty=3 mapmax=2 N0=3 kernelpagesize_kB=4",
        "10000000000 bind:1,3 anon=4 dirty=4 mapmax=2 N0=3 N1=1 kernelpagesize_kB=4",
    ],
}


@pytest.mark.parametrize("profile", LIFE)
def test_the_life_of_a_mapping(machine: Make, profile: str) -> None:
    """Untouched, read, written, shared by fork, under a task policy, bound: the line follows in both formats."""
    m = machine(profile=profile, **QUAD)
    task = m.attach(cpu=0)
    addr = m.mmap(task, 8, 0x10000000000, flags=MAP_FIXED)
    seen = lines_of(m, task)
    m.touch(task, addr, 3, write=False)
    seen += lines_of(m, task)
    m.touch(task, addr + 2 * PAGE, 3)
    seen += lines_of(m, task)
    child = m.call(fork.sys_fork(m.k, task))
    seen += lines_of(m, task)
    m.call(mempolicy.sys_set_mempolicy(m.k, task, MPOL_PREFERRED, [mask_of([2])], 65))
    seen += lines_of(m, task)
    m.call(fork.sys_set_cpu(m.k, task, 1))
    m.mbind(task, addr, 8, MPOL_BIND, {1, 3})
    m.touch(task, addr + 7 * PAGE)
    seen += lines_of(m, task)
    assert child is not None
    without_active = [" ".join(word for word in line.split(" ") if not word.startswith("active")) for line in seen]
    assert without_active == LIFE[profile]


def test_swap_cache_and_writeback_are_counted(machine: Make) -> None:
    """A page that has come back from swap and kept its slot counts as swap cache, and as clean until it is written."""
    m = machine()
    task = m.attach()
    addr = m.mmap(task, 4)
    m.touch(task, addr, 4)
    m.mbind(task, addr, 4, MPOL_BIND, {1}, MPOL_MF_MOVE)
    assert lines_of(m, task)[0].endswith("bind={1/Normal} MaxRef=0 Pages=0 Mapped=0")
    m.touch(task, addr, 2, write=False)
    vma = next(iter(task.mm.vmas))
    entry = numa_maps.numa_map_entry(m.k, vma)
    assert (entry.pages, entry.anon, entry.swapcache, entry.dirty, entry.nodes) == (2, 2, 2, 0, {1: 2})


@pytest.mark.parametrize(
    ("kind", "name", "shown"),
    [
        (FileKind.TMPFS, "F0", "/F0"),
        (FileKind.RAMFS, "/r/R0", "/r/R0"),
        (FileKind.TMPFS, "a b=c\td\n", r"/a\040b\075c\011d\012"),
        (FileKind.ANON_SHARED, "", r"/dev/zero\040(deleted)"),
    ],
)
def test_paths_of_files(machine: Make, kind: FileKind, name: str, shown: str) -> None:
    """Today's line names the file, blanks and equal signs as octal numbers; that of 2.6.14 does not."""
    for profile, part in (("linux-6.1", f" default file={shown}"), ("swap-v3", " default MaxRef=0 Pages=0 Mapped=0")):
        m = machine(profile=profile, **QUAD)
        task = m.attach()
        m.mmap(task, 1)
        vma = next(iter(task.mm.vmas))
        vma.vm_file = AddressSpace(1, kind, name)
        assert lines_of(m, task)[0].endswith(part)
        vma.vm_file = None


@pytest.mark.parametrize(("profile", "text"), [("swap-v3", "default"), ("linux-6.1", "prefer:3")])
def test_policies_of_objects(machine: Make, profile: str, text: str) -> None:
    """A tmpfs mapping shows the policy of its object at its start; without one, 2.6.14 shows none, 6.1 the task's."""
    m = machine(profile=profile, **QUAD)
    task = m.attach()
    m.mmap(task, 4)
    vma = next(iter(task.mm.vmas))
    task.policy = Mempolicy(MPOL_PREFERRED, preferred=3)
    shared = SharedPolicy()
    shared.set(8, 10, Mempolicy(MPOL_INTERLEAVE, nodes=2))
    start, vma.vm_pgoff = vma.vm_pgoff, 8
    vma.vm_file, vma.vm_policy = AddressSpace(1, FileKind.TMPFS, "x", policy=shared), Mempolicy(MPOL_BIND, nodes=1)
    assert mpol_to_str(m.k, get_vma_policy(m.k, task, vma, vma.vm_pgoff)) in {"interleave={1}", "interleave:1"}
    vma.vm_pgoff = 7
    assert mpol_to_str(m.k, get_vma_policy(m.k, task, vma, vma.vm_pgoff)) == text
    vma.vm_file.kind = FileKind.RAMFS  # page cache has no policies of its own
    assert mpol_to_str(m.k, get_vma_policy(m.k, task, vma, vma.vm_pgoff)).startswith("bind")
    vma.vm_file = vma.vm_policy = task.policy = None
    vma.vm_pgoff = start


@pytest.mark.parametrize(("profile", "neighbour"), [("linux-6.1", True), ("linux-6.12", False)])
def test_the_heap_has_a_name(machine: Make, profile: str, neighbour: bool) -> None:  # noqa: FBT001 - a table
    """The mapping of brk is the heap; one that begins where it ends is called so by 6.1 alone."""
    m = machine(profile=profile, **QUAD)
    task = m.attach()
    end = m.call(mmap.sys_brk(m.k, task, 0)) + 4 * PAGE
    m.call(mmap.sys_brk(m.k, task, end))
    m.mmap(task, 1, end, PROT_READ, MAP_FIXED)
    m.mmap(task, 1, end + 16 * PAGE, PROT_READ, MAP_FIXED)
    assert [line.endswith(" heap") for line in lines_of(m, task)] == [True, neighbour, False]


@pytest.mark.parametrize("profile", LIFE)
def test_a_foreign_parser_reads_it(machine: Make, profile: str) -> None:
    """jc, which knows /proc/PID/numa_maps, finds address, policy and every count in both formats."""
    m = machine(profile=profile, **QUAD)
    task = m.attach(cpu=2)
    addr = m.mmap(task, 8)
    m.mbind(task, addr, 4, MPOL_INTERLEAVE, {0, 1})
    m.touch(task, addr, 6)
    parsed: Any = jc.parse("proc_pid_numa_maps", "".join(line + "\n" for line in lines_of(m, task)))
    first, second = parsed
    assert first["address"] == f"{addr:08x}"
    assert first["policy"] in {"interleave={0,1}", "interleave:0-1"}
    assert (first["N0"], first["N1"], second["policy"], second["N2"]) == (2, 2, "default", 2)
    assert (first.get("Anon"), second.get("Pages")) == (4, 2) if profile == "swap-v3" else (first["anon"] == 4)
