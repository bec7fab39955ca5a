"""Slots of the swap area from birth to death, copy on write, and madvise: who gets which page where.

Sources: mm/memory.c, mm/swapfile.c, mm/madvise.c (2.6.15); mm/madvise.c (5.4) for MADV_PAGEOUT.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from numaemu_core import fork, madvise, memory, mlock, mmap, mprotect, node_views
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError, SegmentationFault
from numaemu_core.mm_types import Task
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.uapi import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_WILLNEED,
    MAP_FIXED,
    MPOL_BIND,
    MPOL_DEFAULT,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

Make = Callable[..., "Machine"]

PAGE = 4096
BASE = 0x10000000
GONE = -errno.ENOENT
UNMAPPED = -errno.EFAULT


def outcome(m: Machine, body: KernelTask[object]) -> int:
    """The errno of a call, 0 when it succeeds."""
    try:
        m.call(body)
    except MmError as error:
        return error.errno
    return 0


def advise(m: Machine, task: Task, addr: int, pages: int, advice: int = MADV_PAGEOUT) -> int:
    """The errno of a madvise."""
    return outcome(m, madvise.sys_madvise(m.k, task, addr, pages * PAGE, advice))


def written(m: Machine, task: Task, pages: int, addr: int = BASE) -> int:
    """Fresh pages, page i full of i + 1 at its first byte; gives their address."""
    base = m.mmap(task, pages, addr, flags=MAP_FIXED)
    m.touch(task, base, pages)
    for number in range(pages):
        m.poke(task, base + number * PAGE, number + 1)
    return base


def contents(m: Machine, task: Task, base: int, pages: int) -> list[int]:
    """The first byte of each page; all of them are there."""
    return [m.peek(task, base + number * PAGE) for number in range(pages)]


def child_of(m: Machine, task: Task) -> Task:
    """A fork."""
    child: Task = m.call(fork.sys_fork(m.k, task))
    return child


def pfn_at(m: Machine, task: Task, addr: int) -> int:
    """The frame that is mapped at an address."""
    entry = m.entry(task, addr)
    assert entry & 1
    return entry // PAGE


def slots_used(m: Machine) -> int:
    """Slots that are not free."""
    return m.k.layout.slot_count - m.k.nr_swap_pages


def frames_used(m: Machine) -> list[int]:
    """Frames of each node that are neither free nor the zero page."""
    return [zone.present_pages - zone.nr_free - (zone.nid == 0) for zone in m.k.zones.values()]


# -- how long a slot lives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("swapped", "back"), [(6, 0), (6, 3), (6, 6)], ids=["in swap", "half back", "all back"])
def test_munmap_frees_slots(machine: Make, swapped: int, back: int) -> None:
    """Slots go with the pages, whether these are in the swap area only or in memory, too."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 8)
    assert advise(m, task, base, swapped) == 0
    m.touch(task, base, back)
    assert slots_used(m) == swapped
    assert outcome(m, mmap.sys_munmap(m.k, task, base, 8 * PAGE)) == 0
    assert slots_used(m) == 0
    assert frames_used(m) == [0, 0]
    assert m.where(task, base, 8) == [UNMAPPED] * 8


def test_exit_frees_slots(machine: Make) -> None:
    """The last task of an address space takes everything along; slots that a child shares stay."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 4)
    assert advise(m, task, base, 2) == 0
    child = child_of(m, task)
    m.call(fork.sys_exit(m.k, task))
    assert slots_used(m) == 2
    m.touch(child, base, 4)
    assert contents(m, child, base, 4) == [1, 2, 3, 4]
    m.call(fork.sys_exit(m.k, child))
    assert (slots_used(m), frames_used(m)) == (0, [0, 0])


def test_a_page_comes_back_where_its_policy_now_says(machine: Make) -> None:
    """Swap-in allocates by the policy in force then; on a full node others' pages make room."""
    m = machine(nodes=3, memory="64K")
    task = m.attach()
    base = written(m, task, 3)
    assert advise(m, task, base, 3) == 0
    m.mbind(task, base, 1, MPOL_BIND, {1})
    m.mbind(task, base + PAGE, 1, MPOL_BIND, {2})
    m.call(fork.sys_set_cpu(m.k, task, 1))
    other = m.attach(2)
    m.touch(other, m.mmap(other, 16), 16)
    m.touch(task, base)
    m.touch(task, base + PAGE)
    m.touch(task, base + 2 * PAGE)
    assert m.where(task, base, 3) == [1, 2, 1]
    assert m.k.vmstat["pgsteal_direct"] > 0
    m.call(fork.sys_exit(m.k, other))
    m.touch(task, base + PAGE)
    assert m.where(task, base, 3) == [1, 2, 1]
    assert contents(m, task, base, 3) == [1, 2, 3]


# -- copy on write -----------------------------------------------------------------------------------------------------


def test_a_long_touch_reads_the_next_batch_before_it_maps_the_one_before(machine: Make) -> None:
    """From the swap area one batch more is always under way; all pages come back, and each is read once."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 12)
    assert advise(m, task, base, 12) == 0
    m.k.batch_pages = 4
    steps: list[str] = []
    m.k.reach = steps.append
    m.touch(task, base, 12)
    in_order = [step.removeprefix("swap-in.") for step in steps if step in {"swap-in.in_cache", "swap-in.mapped"}]
    assert in_order == ["in_cache", "in_cache", "mapped", "in_cache", "mapped", "mapped"]
    assert contents(m, task, base, 12) == list(range(1, 13))
    assert node_views.vmstat(m.k)["pswpin"] == 12


def test_a_copy_without_memory_costs_another_its_life(machine: Make) -> None:
    """A copy that gets no frame where its policy wants one has the largest task killed, and leaves the original."""
    m = machine(nodes=2, memory="64K", swap="0")
    task = m.attach()
    base = written(m, task, 2)
    child = child_of(m, task)
    m.mbind(child, base, 2, MPOL_BIND, {1})
    other = m.attach(1)
    m.touch(other, m.mmap(other, 16), 16)
    m.touch(child, base)
    assert (other.killed, m.where(child, base, 2), m.where(task, base, 2)) == (True, [1, 0], [0, 0])
    assert contents(m, child, base, 2) == [1, 2]


# -- madvise -----------------------------------------------------------------------------------------------------------


def test_dontneed_drops_pages_and_slots(machine: Make) -> None:
    """What was there reads as zeros again, comes back by the same policy, and is gone from memory and swap."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 6)
    m.mbind(task, base, 6, MPOL_BIND, {1})
    assert advise(m, task, base, 2) == 0
    m.touch(task, base)
    assert advise(m, task, base, 4, MADV_DONTNEED) == 0
    assert m.where(task, base, 6) == [GONE] * 4 + [0, 0]
    assert (slots_used(m), frames_used(m)) == (0, [2, 0])
    m.touch(task, base, 6)
    assert contents(m, task, base, 6) == [0, 0, 0, 0, 5, 6]
    assert m.where(task, base, 6) == [1] * 4 + [0, 0]
    assert [vma.vm_policy for vma in task.mm.vmas] == [Mempolicy(MPOL_BIND, nodes=2)]


def test_dontneed_leaves_the_other_process_its_pages(machine: Make) -> None:
    """Pages and slots that a child shares stay for the child."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 4)
    assert advise(m, task, base, 2) == 0
    child = child_of(m, task)
    assert advise(m, task, base, 4, MADV_DONTNEED) == 0
    m.touch(child, base, 4)
    assert contents(m, child, base, 4) == [1, 2, 3, 4]


def test_pageout_evicts_the_range_and_comes_back(machine: Make) -> None:
    """Pages of the range leave, others stay; the bytes come back."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 6)
    assert advise(m, task, base + 2 * PAGE, 3) == 0
    assert m.where(task, base, 6) == [0, 0, GONE, GONE, GONE, 0]
    m.touch(task, base, 6, write=False)
    assert contents(m, task, base, 6) == [1, 2, 3, 4, 5, 6]


def test_pageout_leaves_pages_that_are_mapped_twice(machine: Make) -> None:
    """A page that another process maps stays, and that is no error; once it is the caller's alone, it leaves."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 4)
    child = child_of(m, task)
    m.touch(child, base, 2)
    assert advise(m, task, base, 4) == 0
    assert m.where(task, base, 4) == [GONE, GONE, 0, 0]
    m.touch(task, base, 4)
    assert contents(m, task, base, 4) == contents(m, child, base, 4) == [1, 2, 3, 4]


@pytest.mark.parametrize("swap", ["0", "8K"])
def test_pageout_without_room_is_no_error(machine: Make, swap: str) -> None:
    """Pages that get no slot stay; madvise does not tell."""
    m = machine(nodes=2, swap=swap)
    task = m.attach()
    base = written(m, task, 4)
    assert advise(m, task, base, 4) == 0
    there = 0 if swap == "0" else 2
    assert m.where(task, base, 4) == [GONE] * there + [0] * (4 - there)
    m.touch(task, base, 4)
    assert contents(m, task, base, 4) == [1, 2, 3, 4]


#: name → first page, pages, advice; errno, and which of the twelve pages are gone then. Pages [0, 4) and [8, 12) are
#: mapped and touched, of these [10, 12) are locked; [4, 8) is a hole, and so is all from 12 on.
ADVICE_ROWS: dict[str, tuple[int, int, int, int, set[int]]] = {
    "in order": (0, 4, MADV_PAGEOUT, 0, {0, 1, 2, 3}),
    "hole behind": (2, 4, MADV_PAGEOUT, errno.ENOMEM, {2, 3}),
    "hole in front": (6, 3, MADV_PAGEOUT, errno.ENOMEM, {8}),
    "hole between": (3, 6, MADV_PAGEOUT, errno.ENOMEM, {3, 8}),
    "nothing but hole": (5, 2, MADV_PAGEOUT, errno.ENOMEM, set()),
    "above everything": (20, 2, MADV_PAGEOUT, errno.ENOMEM, set()),
    "locked": (10, 2, MADV_PAGEOUT, errno.EINVAL, set()),
    "locked, those in front are done": (8, 4, MADV_PAGEOUT, errno.EINVAL, {8, 9}),
    "locked before hole": (3, 9, MADV_PAGEOUT, errno.EINVAL, {3, 8, 9}),
    "length 0": (0, 0, MADV_PAGEOUT, 0, set()),
    "length 0 in a hole": (5, 0, MADV_PAGEOUT, 0, set()),
    "length 0 at locked pages": (11, 0, MADV_PAGEOUT, 0, set()),
    "unknown advice": (0, 4, 20, errno.EINVAL, set()),
    "DONTNEED": (1, 2, MADV_DONTNEED, 0, {1, 2}),
    "DONTNEED with a hole": (3, 6, MADV_DONTNEED, errno.ENOMEM, {3, 8}),
    "DONTNEED locked": (9, 2, MADV_DONTNEED, errno.EINVAL, {9}),
    "DONTNEED, length 0 at locked pages": (11, 0, MADV_DONTNEED, 0, set()),
    "NORMAL": (0, 4, MADV_NORMAL, 0, set()),
    "WILLNEED on locked pages": (10, 2, MADV_WILLNEED, 0, set()),
    "NORMAL with a hole": (3, 6, MADV_NORMAL, errno.ENOMEM, set()),
}


@pytest.mark.parametrize(("first", "pages", "advice", "expected", "gone"), ADVICE_ROWS.values(), ids=ADVICE_ROWS)
def test_advice(machine: Make, first: int, pages: int, advice: int, expected: int, gone: set[int]) -> None:
    """A hole is ENOMEM with the mapped parts done; a locked mapping is EINVAL with those in front of it done."""
    m = machine(nodes=2)
    task = m.attach()
    written(m, task, 4)
    written(m, task, 4, BASE + 8 * PAGE)
    assert outcome(m, mlock.sys_mlock(m.k, task, BASE + 10 * PAGE, 2 * PAGE)) == 0
    assert advise(m, task, BASE + first * PAGE, pages, advice) == expected
    hole = [UNMAPPED] * 4
    nodes = [GONE if number in gone else 0 for number in range(12)]
    assert m.where(task, BASE, 12) == nodes[:4] + hole + nodes[8:]


@pytest.mark.parametrize(
    ("off", "length"), [(1, PAGE), (0, (1 << 64) - 1), (0, (1 << 64) - 2 * PAGE)], ids=["unaligned", "to 0", "wraps"]
)
def test_advice_about_no_range(machine: Make, off: int, length: int) -> None:
    """EINVAL: an unaligned start, a length that rounds to 0, a range that wraps around."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 2)
    assert outcome(m, madvise.sys_madvise(m.k, task, base + off, length, MADV_PAGEOUT)) == errno.EINVAL
    assert m.where(task, base, 2) == [0, 0]


# -- what a page may be used for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prot", "read", "write"),
    [(PROT_NONE, False, False), (PROT_READ, True, False), (PROT_READ | PROT_WRITE, True, True)],
    ids=["none", "read", "read and write"],
)
def test_a_swapped_page_comes_back_with_its_rights(machine: Make, prot: int, *, read: bool, write: bool) -> None:
    """A page in the swap area obeys the protection of its VMA, and a refused access leaves it there."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 1)
    assert advise(m, task, base, 1) == 0
    assert outcome(m, mprotect.sys_mprotect(m.k, task, base, PAGE, prot)) == 0
    for asked, allowed in ((True, write), (False, read)):
        if not allowed:
            with pytest.raises(SegmentationFault):
                m.call(memory.sys_fault(m.k, task, base, PAGE, write=asked))
    assert m.where(task, base, 1) == [GONE]
    if read:
        m.touch(task, base, write=write)
        assert contents(m, task, base, 1) == [1]


def test_a_reader_in_between_does_not_lose_the_copy(machine: Make) -> None:
    """Swap, fork, write, swap again, read: every process reads what it wrote last."""
    m = machine(nodes=2)
    task = m.attach()
    base = written(m, task, 2)
    assert advise(m, task, base, 2) == 0
    child = child_of(m, task)
    m.touch(child, base)
    m.poke(child, base, 90)
    assert advise(m, child, base, 2) == 0
    m.mbind(task, base, 2, MPOL_BIND, {1})
    m.touch(task, base, 2, write=False)
    m.mbind(child, base, 2, MPOL_DEFAULT, set())
    m.touch(child, base, 2)
    m.poke(child, base + PAGE, 91)
    assert contents(m, task, base, 2) == [1, 2]
    assert contents(m, child, base, 2) == [90, 91]


def test_what_need_not_be_kept_does_not_come_back_as_it_once_was(machine: Make) -> None:
    """MADV_FREE of a page whose slot holds older bytes: what is read later is the last bytes or zeros, never those."""
    m = machine(profile="linux-6.12", swap="1M", swap_device="disk", node=[{"memory": "1M", "cpus": [0]}])
    task = m.attach()
    base = written(m, task, 1)
    m.clear_young()
    advise(m, task, base, 1)
    m.performer.run()
    m.clear_young()
    advise(m, task, base, 1)
    m.touch(task, base, write=False)
    assert slots_used(m) == 1
    m.touch(task, base)
    m.poke(task, base, 77)
    assert advise(m, task, base, 1, MADV_FREE) == 0
    for _ in range(2):
        m.clear_young()
        advise(m, task, base, 1)
        m.performer.run()
    m.touch(task, base, write=False)
    assert m.peek(task, base) in {0, 77}
