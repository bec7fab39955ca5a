"""Files and shared memory: what is mapped by whom, where its bytes are, and how they leave memory and come back."""

import errno
from collections.abc import Callable

import numpy as np
import pytest

from numaemu_core import files, fork, madvise, memory, mmap, mprotect
from numaemu_core.errors import BusError, MmError, OutOfMemory, SegmentationFault
from numaemu_core.filemap import resident_pfns
from numaemu_core.lru import isolate_lru_page
from numaemu_core.mm_types import AddressSpace, Task
from numaemu_core.page_flags import PG_DIRTY
from numaemu_core.page_table import PTE_WRITABLE
from numaemu_core.uapi import (
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from numaemu_core.vmscan import putback_lru_pages, swapout_pages

from .conftest import PAGE, Machine

Make = Callable[..., Machine]
RW = PROT_READ | PROT_WRITE
NODES = [{"memory": "1M", "cpus": [0]}, {"memory": "1M", "cpus": [1]}]


def create(m: Machine, kind: str = "tmpfs", pages: int = 8, name: str = "/data") -> AddressSpace:
    return files.create_file(m.k, name, kind, pages * PAGE)


def map_file(
    m: Machine, task: Task, pages: int = 8, flags: int = MAP_SHARED, prot: int = RW, mode: str = "r+", offset: int = 0
) -> int:
    body = mmap.sys_mmap(m.k, task, 0, pages * PAGE, prot, flags, "/data", offset * PAGE, mode)
    return int(m.call(body))


def write(m: Machine, task: Task, addr: int, value: int) -> None:
    m.touch(task, addr)
    m.poke(task, addr, value)
    m.k.c.dirty[m.k.tables.pte_offset(task.mm.pgd, addr // PAGE)] = 1


def read(m: Machine, task: Task, addr: int) -> int:
    m.touch(task, addr, write=False)
    return m.peek(task, addr)


def pageout(m: Machine, task: Task, addr: int, pages: int) -> None:
    m.call(madvise.sys_madvise(m.k, task, addr, pages * PAGE, MADV_PAGEOUT))
    m.performer.run()


@pytest.mark.parametrize("kind", ["tmpfs", "disk"])
def test_a_write_ends_with_its_task(machine: Make, kind: str) -> None:
    """Not a byte gets into a file after its writer has begun to end, wherever the write is just then."""
    kept = set()
    for seed in range(40):
        m = machine(seed=seed)
        file = create(m, kind)
        writer = m.attach(0)
        everything = np.arange(8)
        writing = m.performer.start("write", files.sys_file_write(m.k, writer, "/data", 3, bytes([7]) * (8 * PAGE - 3)))
        for _ in range(seed // 2):
            if not writing.done:
                m.performer.run(until=iter([False, True]).__next__)  # one step
        writer.exiting = True  # as whoever ends it does at once
        pfns = resident_pfns(m.k, file, everything)
        before = m.k.c.frames[pfns[pfns >= 0]].copy()
        m.call(fork.sys_exit(m.k, writer))
        m.performer.run()
        assert (m.k.c.frames[pfns[pfns >= 0]] == before).all(), f"seed {seed}"
        later = resident_pfns(m.k, file, everything[pfns < 0])
        assert not m.k.c.frames[later[later >= 0]].any(), f"seed {seed}"
        kept.add(int(np.count_nonzero(before)))
    assert len(kept) > 1


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "disk"])
def test_what_one_task_writes_the_other_reads(machine: Make, kind: str) -> None:
    """Shared mappings of a file, at other offsets and in other tasks, are one memory."""
    m = machine()
    create(m, kind)
    first, second = m.attach(0), m.attach(1)
    here, there = map_file(m, first), map_file(m, second, 4, offset=3)
    write(m, first, here + 5 * PAGE, 17)
    assert read(m, second, there + 2 * PAGE) == 17
    write(m, second, there + 2 * PAGE, 18)
    assert read(m, first, here + 5 * PAGE) == 18


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "disk"])
def test_a_private_mapping_keeps_what_is_written_to_itself(machine: Make, kind: str) -> None:
    """A private mapping shows the file until it is written to; the file does not change."""
    m = machine()
    create(m, kind)
    owner, other = m.attach(0), m.attach(1)
    m.call(files.sys_file_write(m.k, owner, "/data", 0, b"\x05" * (2 * PAGE)))
    private = map_file(m, other, flags=MAP_PRIVATE)
    assert read(m, other, private) == 5
    write(m, other, private, 6)
    write(m, other, private + PAGE, 7)
    assert m.call(files.sys_file_read(m.k, owner, "/data", PAGE - 1, 2)) == b"\x05\x05"
    assert [read(m, other, private), read(m, other, private + PAGE)] == [6, 7]


def test_a_file_is_written_and_read_without_a_mapping(machine: Make) -> None:
    """Bytes go in and come out at any offset, up to the end of the file; holes read as zeros and take no frame."""
    m = machine()
    file = create(m, pages=4)
    task = m.attach()
    data = bytes(range(256)) * 40
    assert m.call(files.sys_file_write(m.k, task, "/data", 100, data)) == len(data)
    assert m.call(files.sys_file_read(m.k, task, "/data", 100, len(data))) == data
    assert m.call(files.sys_file_write(m.k, task, "/data", 4 * PAGE - 3, b"abcdef")) == 3
    assert m.call(files.sys_file_read(m.k, task, "/data", 4 * PAGE - 4, 100)) == b"\0abc"
    assert m.call(files.sys_file_write(m.k, task, "/data", 4 * PAGE, b"x")) == 0
    assert np.count_nonzero(file.i_pages) == 4
    create(m, pages=4, name="/hole")
    assert m.call(files.sys_file_read(m.k, task, "/hole", 0, 2 * PAGE)) == bytes(2 * PAGE)
    assert not m.k.files["/hole"].i_pages.any()


def test_shared_anonymous_memory_is_the_childs_too_and_ends_with_its_last_mapping(machine: Make) -> None:
    """After a fork both see each other's writes; the last munmap or exit frees the pages, in memory and in swap."""
    m = machine()
    parent = m.attach()
    addr = int(m.call(mmap.sys_mmap(m.k, parent, 0, 4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS)))
    free = m.k.zones[0].nr_free
    write(m, parent, addr, 1)
    child = m.call(fork.sys_fork(m.k, parent))
    assert read(m, child, addr) == 1
    write(m, child, addr + PAGE, 2)
    assert read(m, parent, addr + PAGE) == 2
    m.call(mmap.sys_munmap(m.k, child, addr, PAGE))
    m.call(mmap.sys_munmap(m.k, child, addr + PAGE, 3 * PAGE))
    m.clear_young()
    pageout(m, parent, addr, 1)
    assert m.where(parent, addr, 2) == [-errno.ENOENT, 0]
    m.call(fork.sys_exit(m.k, parent))
    assert m.k.zones[0].nr_free == free
    assert not m.k.c.swap_count.any()
    assert not m.k.address_spaces


def test_the_end_of_the_file_is_a_bus_error(machine: Make) -> None:
    """A touch beyond the last page of the file is SIGBUS, not SIGSEGV; a range is served up to there."""
    m = machine()
    create(m, pages=2)
    task = m.attach()
    addr = map_file(m, task, 4)
    assert m.call(memory.sys_fault(m.k, task, addr, 4 * PAGE, write=True)) == 2 * PAGE
    with pytest.raises(BusError):
        m.touch(task, addr + 2 * PAGE)


def test_pages_in_front_of_the_end_of_the_file_are_served_whatever_they_need(machine: Make) -> None:
    """A write up to the end of a file serves what is swapped out and what is mapped for reading only, too."""
    m = machine()
    create(m, pages=3)
    task = m.attach()
    addr = map_file(m, task, 4, flags=MAP_PRIVATE)
    write(m, task, addr, 5)
    pageout(m, task, addr, 1)
    m.touch(task, addr + PAGE, 2, write=False)
    assert m.call(memory.sys_fault(m.k, task, addr, 4 * PAGE, write=True)) == 3 * PAGE
    assert [m.entry(task, addr + i * PAGE) & 4 for i in range(4)] == [4, 4, 4, 0]
    assert m.peek(task, addr) == 5


#: kind of mapping, rights asked, mode of the file -> errno, 0: granted
OPENED = {
    "shared-read-of-readonly": (MAP_SHARED, PROT_READ, "r", 0),
    "shared-write-of-readonly": (MAP_SHARED, RW, "r", errno.EACCES),
    "private-write-of-readonly": (MAP_PRIVATE, RW, "r", 0),
    "shared-none-of-readonly": (MAP_SHARED, PROT_NONE, "r", 0),
    "shared-write": (MAP_SHARED, RW, "r+", 0),
    "bad-mode": (MAP_SHARED, RW, "w", errno.EINVAL),
}


@pytest.mark.parametrize("case", OPENED)
def test_how_a_file_was_opened_decides(machine: Make, case: str) -> None:
    """A file opened for reading can be mapped shared only for reading, and then does not count as writably mapped."""
    flags, prot, mode, refusal = OPENED[case]
    m = machine()
    file = create(m)
    task = m.attach()
    if refusal:
        with pytest.raises(MmError) as caught:
            map_file(m, task, flags=flags, prot=prot, mode=mode)
        assert caught.value.errno == refusal
        return
    addr = map_file(m, task, flags=flags, prot=prot, mode=mode)
    assert file.i_mmap_writable == (flags == MAP_SHARED and mode == "r+")
    if not prot & PROT_WRITE:
        with pytest.raises(SegmentationFault):
            m.touch(task, addr)


#: call of create_file -> errno
BAD_FILES = {
    "kind": (("/x", "ext4", PAGE), errno.EINVAL),
    "no-name": (("", "tmpfs", PAGE), errno.EINVAL),
    "newline": (("a\nb", "tmpfs", PAGE), errno.EINVAL),
    "twice": (("/data", "tmpfs", PAGE), errno.EEXIST),
    "huge": (("/x", "ramfs", 1 << 60), errno.EFBIG),
    "disk-full": (("/x", "disk", 65 << 20), errno.ENOSPC),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_cannot_be_made(machine: Make, case: str) -> None:
    """What is wrong with a new file is said by its errno, and nothing is left behind."""
    m = machine()
    create(m)
    arguments, refusal = BAD_FILES[case]
    with pytest.raises(MmError) as caught:
        files.create_file(m.k, *arguments)
    assert caught.value.errno == refusal
    assert list(m.k.files) == ["/data"]
    assert len(m.k.address_spaces) == 1


#: profile -> what is left of a written page of each kind after an eviction, and the passes' traces in vmstat
LEAVES = {
    ("swap-v3", "tmpfs"): ("swap", 1),
    ("swap-v3", "ramfs"): ("memory", 0),
    ("swap-v3", "disk"): ("disk", 0),
    ("linux-6.1", "tmpfs"): ("swap", 1),
    ("linux-6.1", "ramfs"): ("memory", 0),
    ("linux-6.1", "disk"): ("disk", 0),
}


@pytest.mark.parametrize(("profile", "kind"), LEAVES)
def test_written_pages_leave_to_where_they_belong(machine: Make, profile: str, kind: str) -> None:
    """Tmpfs goes to swap, a disk file to the disk, ramfs nowhere; the bytes are the same when they are read again."""
    m = machine(profile=profile, swap="1M", node=NODES)
    file = create(m, kind)
    task = m.attach()
    addr = map_file(m, task)
    write(m, task, addr, 42)
    m.clear_young()
    pageout(m, task, addr, 1)
    place, swapped_out = LEAVES[profile, kind]
    entry = int(file.i_pages[0])
    assert {"swap": entry & 16 != 0, "disk": entry == 0, "memory": entry & 1 != 0}[place]
    assert m.k.vmstat["pswpout"] == swapped_out
    if place == "disk":
        assert m.k.c.disk[file.disk_start, 0] == 42
    assert read(m, task, addr) == 42
    assert int(file.i_pages[0]) & 1
    assert not m.k.c.swap_count.any(), "the slot of a tmpfs page is free once it is back"


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "disk"])
def test_pages_that_were_only_read_are_dropped(machine: Make, kind: str) -> None:
    """A clean page of a file leaves memory without being written anywhere."""
    m = machine()
    file = create(m, kind)
    task = m.attach()
    addr = map_file(m, task, prot=PROT_READ)
    m.touch(task, addr, write=False)
    m.clear_young()
    pageout(m, task, addr, 1)
    assert not file.i_pages.any()
    assert m.k.vmstat["pswpout"] == m.k.vmstat["pgpgout"] == 0


def test_a_write_through_a_mapping_that_is_gone_is_not_lost(machine: Make) -> None:
    """The dirty byte of an entry goes to the page when the mapping does."""
    m = machine()
    file = create(m, "disk")
    first, second = m.attach(), m.attach()
    addr, there = map_file(m, first), map_file(m, second)
    m.touch(second, there, write=False)
    write(m, first, addr, 9)
    m.call(mmap.sys_munmap(m.k, first, addr, 8 * PAGE))
    frame = int(file.i_pages[0]) // PAGE
    assert m.k.c.pg_flags[frame] & PG_DIRTY
    m.clear_young()
    pageout(m, second, there, 1)
    assert m.k.c.disk[file.disk_start, 0] == 9


def evict(m: Machine, file: AddressSpace) -> None:
    """The first page of a file leaves memory, whoever maps it; or it stays."""
    pfns = np.array([int(file.i_pages[0]) // PAGE])
    assert isolate_lru_page(m.k, pfns).all()
    left = m.call(swapout_pages(m.k, pfns))
    m.call(putback_lru_pages(m.k, left))
    m.performer.run()


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.1"])
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "disk"])
@pytest.mark.parametrize("writer", [0, 1, 2])
def test_one_of_several_mappers_wrote(machine: Make, profile: str, kind: str, writer: int) -> None:
    """A page leaves with its bytes if any of those who may write to it has, whoever mapped it first."""
    m = machine(profile=profile, swap="1M", node=NODES)
    file = create(m, kind)
    tasks = [m.attach() for _ in range(3)]
    addrs = [map_file(m, task) for task in tasks]
    for task, addr in zip(tasks, addrs, strict=True):
        m.touch(task, addr, write=False)
    write(m, tasks[writer], addrs[writer], 42)
    m.k.c.pg_flags[int(file.i_pages[0]) // PAGE] &= ~np.uint16(PG_DIRTY)  # the entry alone knows
    m.clear_young()
    evict(m, file)
    assert [read(m, task, addr) for task, addr in zip(tasks, addrs, strict=True)] == [42] * 3


@pytest.mark.parametrize("ending", ["stays", "exits", "loses the right"])
@pytest.mark.parametrize("writer", [0, 1])
def test_one_of_several_mappers_writes_in_a_window_that_is_still_open(machine: Make, writer: int, ending: str) -> None:
    """A write whose window was open when the entries were taken away is not lost, whatever becomes of its task."""
    m = machine()
    k = m.k
    file = create(m, "disk")
    tasks = [m.attach() for _ in range(2)]
    others = PROT_READ if ending == "loses the right" else RW
    addrs = [map_file(m, task, prot=RW if i == writer else others) for i, task in enumerate(tasks)]
    for task, addr in zip(tasks, addrs, strict=True):
        m.touch(task, addr, write=False)
    m.clear_young()
    frame = int(file.i_pages[0]) // PAGE
    assert isolate_lru_page(k, np.array([frame])).all()
    for slot, task in enumerate(tasks):
        k.c.window_mm[slot], k.c.window[slot] = task.mm.id + 1, 1
    flat = k.tables.pte_offset(tasks[writer].mm.pgd, addrs[writer] // PAGE)
    if ending == "loses the right":
        span = addrs[writer], PAGE
        m.performer.start("protect", mprotect.sys_mprotect(k, tasks[writer], *span, PROT_READ))
        m.performer.run(until=lambda: not m.entry(tasks[writer], addrs[writer]) & PTE_WRITABLE)
    eviction = m.performer.start("evict", swapout_pages(k, np.array([frame])))
    m.performer.run(until=lambda: not any(m.entry(t, a) for t, a in zip(tasks, addrs, strict=True)))
    k.c.dirty[flat] = 1
    k.c.frames[frame, 0] = 42
    k.c.window[writer] = 2
    if ending == "exits":
        m.call(fork.sys_exit(k, tasks[writer]))
    k.c.window[1 - writer] = 2
    m.performer.run()
    m.call(putback_lru_pages(k, eviction.result))
    k.c.window_mm[:2] = 0
    assert read(m, tasks[1 - writer], addrs[1 - writer]) == 42


def test_reading_one_page_maps_its_neighbours_that_are_in_memory(machine: Make) -> None:
    """Fault-around of today's kernels: a read maps up to 16 resident neighbours, a write none, 2.6.15 none."""
    for profile, expected in (("linux-6.1", [1] * 8), ("swap-v3", [0, 0, 0, 1, 0, 0, 0, 0])):
        m = machine(profile=profile, swap="1M", node=NODES)
        create(m)
        task, other = m.attach(), m.attach()
        m.touch(task, map_file(m, task), 8)
        there = map_file(m, other)
        m.touch(other, there + 3 * PAGE, write=False)
        assert [int(bool(m.entry(other, there + i * PAGE) & 1)) for i in range(8)] == expected
        written = m.attach()
        again = map_file(m, written)
        m.touch(written, again + 3 * PAGE)
        assert [bool(m.entry(written, again + i * PAGE)) for i in range(8)] == [i == 3 for i in range(8)]


def test_a_file_mapped_twice_counts_two_mappings(machine: Make) -> None:
    """One task that maps a page at two addresses has two entries of it; unmapping both at once lets go of both."""
    m = machine()
    file = create(m, pages=1)
    task = m.attach()
    first = map_file(m, task, 1)
    m.call(mmap.sys_mmap(m.k, task, first + PAGE, PAGE, RW, MAP_SHARED | MAP_FIXED, "/data", 0, "r+"))
    m.touch(task, first)
    m.touch(task, first + PAGE)
    frame = int(file.i_pages[0]) // PAGE
    assert m.k.c.mapcount[frame] == 2
    m.call(mmap.sys_munmap(m.k, task, first, 2 * PAGE))
    assert m.k.c.mapcount[frame] == 0


def test_a_fork_counts_each_mapping_of_a_page(machine: Make) -> None:
    """A page that two private mappings show is counted twice more; both have pages of their own, so it is copied."""
    m = machine()
    file = create(m, pages=2)
    task = m.attach()
    for at in (map_file(m, task, 2, flags=MAP_PRIVATE), map_file(m, task, 2, flags=MAP_PRIVATE)):
        write(m, task, at, 7)
        read(m, task, at + PAGE)
    frame = int(file.i_pages[1]) // PAGE
    assert m.k.c.mapcount[frame] == 2
    m.call(fork.sys_fork(m.k, task))
    assert m.k.c.mapcount[frame] == 4


def test_memory_that_is_full_is_out_of_memory(machine: Make) -> None:
    """A file that fills a machine without swap gets as many pages as there are."""
    m = machine(nodes=1, memory="64K", swap="0")
    create(m, "ramfs", pages=64)
    task = m.attach()
    addr = map_file(m, task, 64)
    with pytest.raises(OutOfMemory):
        m.touch(task, addr, 64)
    assert len(m.k.files["/data"].i_pages.nonzero()[0]) == 15
