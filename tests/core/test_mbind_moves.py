"""MPOL_MF_MOVE: which pages leave, how many passes they need, and where they come back.

Sources: "Swap migration V3: Page Eviction" and "MPOL_MF_MOVE interface"; mm/vmscan.c, mm/rmap.c (2.6.15).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from numaemu_core import check_range, fork, mbind, mlock, vmscan
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.mm_types import AddressSpace, Task, VmArea
from numaemu_core.page_flags import PAGE_MAPPING_FILE, PG_SWAPCACHE
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_PREFERRED,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

Make = Callable[..., "Machine"]

PAGE = 4096
GONE = -errno.ENOENT
STRICT_MOVE = MPOL_MF_STRICT | MPOL_MF_MOVE


def fill(m: Machine, task: Task, pages: int) -> int:
    """Fresh memory on the task's node, every page with bytes of its own; gives its address."""
    base = m.mmap(task, pages)
    m.touch(task, base, pages)
    for number in range(pages):
        m.poke(task, base + number * PAGE, 1 + number % 250)
        m.poke(task, base + number * PAGE + PAGE - 1, 250 - number % 250)
    return base


def intact(m: Machine, task: Task, base: int, pages: int) -> bool:
    """Does every page hold what `fill` wrote? All of them are there."""
    return all(
        m.peek(task, base + number * PAGE) == 1 + number % 250
        and m.peek(task, base + number * PAGE + PAGE - 1) == 250 - number % 250
        for number in range(pages)
    )


def pfn_at(m: Machine, task: Task, addr: int) -> int:
    """The frame that is mapped at an address."""
    entry = m.entry(task, addr)
    assert entry & 1
    return entry // PAGE


def set_young(m: Machine, task: Task, addr: int) -> None:
    """What a client does before it reads: the accessed byte of the entry."""
    m.k.c.accessed[m.k.tables.pte_offset(task.mm.pgd, addr // PAGE)] = 1


def child_of(m: Machine, task: Task) -> Task:
    """A fork."""
    child: Task = m.call(fork.sys_fork(m.k, task))
    return child


def outcome(m: Machine, body: KernelTask[object]) -> int:
    """The errno of a call, 0 when it succeeds."""
    try:
        m.call(body)
    except MmError as error:
        return error.errno
    return 0


def move(m: Machine, task: Task, base: int, pages: int, nodes: set[int], flags: int = STRICT_MOVE) -> int:
    """The errno of an mbind to BIND."""
    return outcome(
        m, mbind.sys_mbind(m.k, task, base, pages * PAGE, MPOL_BIND, [sum(1 << n for n in nodes)], 65, flags)
    )


def slots_used(m: Machine) -> int:
    """Slots of the swap area that are not free."""
    return m.k.layout.slot_count - m.k.nr_swap_pages


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the passes of swapout_pages, as they are made."""
    made: list[int] = []
    real = vars(vmscan)["_one_pass"]

    def counted(k: object, pfns: object, swap_pass: int) -> Any:  # noqa: ANN401 - a generator, handed through
        made.append(swap_pass)
        return real(k, pfns, swap_pass)

    monkeypatch.setattr(vmscan, "_one_pass", counted)
    return made


# -- pages leave and come back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [True, False], ids=["written", "read"])
def test_pages_come_back_on_the_node_of_the_policy(machine: Make, *, write: bool) -> None:
    """MOVE empties the old node at once; the next touch brings each page in on the new one, every byte the same."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 20)
    assert m.where(task, base, 20) == [0] * 20
    assert move(m, task, base, 20, {1}) == 0
    assert m.where(task, base, 20) == [GONE] * 20
    assert m.k.zones[0].nr_free == m.k.zones[0].present_pages - 1
    m.touch(task, base, 20, write=write)
    assert m.where(task, base, 20) == [1] * 20
    assert intact(m, task, base, 20)
    assert slots_used(m) == 20


def test_interleaved_pages_come_back_interleaved(machine: Make) -> None:
    """Without readahead every page comes back where its address belongs."""
    m = machine(nodes=3)
    task = m.attach()
    base = fill(m, task, 30)
    assert m.mbind(task, base, 30, MPOL_INTERLEAVE, {1, 2}, STRICT_MOVE) == 0
    m.touch(task, base, 30)
    assert m.where(task, base, 30) == [1 + (base // PAGE + i) % 2 for i in range(30)]
    assert intact(m, task, base, 30)


@pytest.mark.parametrize("mode", [MPOL_DEFAULT, MPOL_PREFERRED], ids=["DEFAULT", "PREFERRED without nodes"])
def test_a_mask_without_nodes_evicts_every_page(machine: Make, mode: int) -> None:
    """No node is the right one, so that each page leaves, and comes back on the node of the CPU."""
    m = machine(nodes=2)
    task = m.attach()
    base = m.mmap(task, 8)
    assert m.mbind(task, base, 8, MPOL_INTERLEAVE, {0, 1}) == 0
    m.touch(task, base, 8)
    assert sorted(m.where(task, base, 8)) == [0] * 4 + [1] * 4
    assert m.mbind(task, base, 8, mode, set(), MPOL_MF_MOVE) == 0
    assert m.where(task, base, 8) == [GONE] * 8
    m.touch(task, base, 8)
    assert m.where(task, base, 8) == [0] * 8


@pytest.mark.parametrize("mode", [MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED], ids=["BIND", "INTERLEAVE", "PREFERRED"])
def test_pages_on_any_node_of_the_mask_stay(machine: Make, mode: int) -> None:
    """MOVE leaves what is on a node of the mask, also where the policy would have put it on another one."""
    m = machine(nodes=3)
    task = m.attach(1)
    base = fill(m, task, 6)
    before = [pfn_at(m, task, base + i * PAGE) for i in range(6)]
    assert m.mbind(task, base, 6, mode, {0, 1}, STRICT_MOVE) == 0
    assert [pfn_at(m, task, base + i * PAGE) for i in range(6)] == before
    assert slots_used(m) == 0


def test_every_node_of_a_preferred_mask_is_right(machine: Make) -> None:
    """PREFERRED with several nodes allocates on the first, but MOVE leaves pages on any of them."""
    m = machine(nodes=4)
    base = {}
    tasks = [m.attach(cpu) for cpu in range(4)]
    for cpu, task in enumerate(tasks):
        base[cpu] = fill(m, task, 2)
        assert m.mbind(task, base[cpu], 2, MPOL_PREFERRED, {1, 2}, STRICT_MOVE) == 0
    found = [m.where(task, base[cpu], 2) for cpu, task in enumerate(tasks)]
    assert found == [[GONE] * 2, [1] * 2, [2] * 2, [GONE] * 2]
    m.touch(tasks[3], base[3], 2)
    assert m.where(tasks[3], base[3], 2) == [1, 1]


def test_the_zero_page_never_counts(machine: Make) -> None:
    """Pages that were only read are on no node: STRICT does not mind them and MOVE leaves them."""
    m = machine(nodes=2)
    task = m.attach()
    base = m.mmap(task, 4)
    m.touch(task, base, 4, write=False)
    assert move(m, task, base, 4, {1}, MPOL_MF_STRICT) == 0
    assert move(m, task, base, 4, {1}, STRICT_MOVE) == 0
    assert [pfn_at(m, task, base + i * PAGE) for i in range(4)] == [m.k.zero_pfn] * 4
    assert slots_used(m) == 0


def test_only_the_range_moves(machine: Make) -> None:
    """Pages outside of the range stay; the VMA is cut at its ends, and never merged again."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 9)
    assert move(m, task, base + 3 * PAGE, 3, {1}) == 0
    assert m.where(task, base, 9) == [0] * 3 + [GONE] * 3 + [0] * 3
    bind = Mempolicy(MPOL_BIND, nodes=2)
    assert [vma.vm_policy for vma in task.mm.vmas] == [None, bind, None]
    assert m.mbind(task, base, 9, MPOL_DEFAULT, set()) == 0
    assert [vma.vm_policy for vma in task.mm.vmas] == [None] * 3
    assert [(vma.vm_end - vma.vm_start) // PAGE for vma in task.mm.vmas] == [3, 3, 3]
    m.touch(task, base, 9)
    assert intact(m, task, base, 9)


# -- passes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharers", "young", "needed"),
    [(1, 0, 2), (1, 1, 3), (2, 0, 2), (3, 1, 3), (3, 3, 5), (9, 9, 11), (10, 9, 11)],
)
def test_each_young_mapper_costs_a_pass(
    machine: Make, passes: list[int], sharers: int, young: int, needed: int
) -> None:
    """An old page needs two passes; each walk over its mappers stops at a young one, which is old in the next."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 1)
    family = [task, *(child_of(m, task) for _ in range(sharers - 1))]
    m.clear_young()
    for one in family[:young]:
        set_young(m, one, base)
    assert move(m, task, base, 1, {1}) == 0
    assert passes == list(range(needed))
    assert {one.pid: m.where(one, base, 1) for one in family} == {one.pid: [GONE] for one in family}
    for one in family:
        m.touch(one, base, 1, write=False)
        assert m.where(one, base, 1) == [1]
        assert intact(m, one, base, 1)


@pytest.mark.parametrize(("flags", "expected"), [(MPOL_MF_MOVE, 0), (STRICT_MOVE, errno.EIO)], ids=["MOVE", "STRICT"])
def test_ten_young_sharers_keep_a_page(machine: Make, passes: list[int], flags: int, expected: int) -> None:
    """Eleven passes are too few for ten young mappers: the page stays in the swap cache, and is mapped again there."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 1)
    family = [task, *(child_of(m, task) for _ in range(9))]
    old = pfn_at(m, task, base)
    for one in family:
        set_young(m, one, base)
    assert move(m, task, base, 1, {1}, flags) == expected
    assert passes == list(range(11))
    assert slots_used(m) == 1
    reads = m.k.vmstat["pswpin"]
    for one in family:
        m.touch(one, base, 1, write=False)
        assert pfn_at(m, one, base) == old
        assert intact(m, one, base, 1)
    assert m.k.vmstat["pswpin"] == reads


def test_a_clean_page_in_the_swap_cache_needs_no_write(machine: Make, passes: list[int]) -> None:
    """Pages that were only read since they came back leave again without I/O and without new slots."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 8)
    assert move(m, task, base, 8, {1}) == 0
    assert m.k.vmstat["pswpout"] == 8
    m.touch(task, base, 8, write=False)
    passes.clear()
    assert move(m, task, base, 8, {0}) == 0
    assert passes == [0, 1]
    assert (m.k.vmstat["pswpout"], slots_used(m)) == (8, 8)
    m.touch(task, base, 8, write=False)
    m.clear_young()
    passes.clear()
    assert move(m, task, base, 8, {1}) == 0
    assert passes == [0]
    m.touch(task, base, 8)
    assert (m.k.vmstat["pswpout"], m.k.vmstat["pswpin"], slots_used(m)) == (8, 24, 8)
    assert m.where(task, base, 8) == [1] * 8
    assert intact(m, task, base, 8)


def test_a_modified_page_is_written_again_to_its_slot(machine: Make) -> None:
    """Pages that were written since they came back are written out, to the slots that they still have."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 8)
    assert move(m, task, base, 8, {1}) == 0
    m.touch(task, base, 8)
    m.poke(task, base, 99)
    assert move(m, task, base, 8, {0}) == 0
    assert (m.k.vmstat["pswpout"], slots_used(m)) == (16, 8)
    m.touch(task, base, 8, write=False)
    assert m.peek(task, base) == 99
    assert m.where(task, base, 8) == [0] * 8


# -- pages that cannot leave -------------------------------------------------------------------------------------------


def test_move_passes_over_locked_memory(machine: Make) -> None:
    """MOVE alone skips a locked VMA: its policy is set, its pages get no slot."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 4)
    assert outcome(m, mlock.sys_mlock(m.k, task, base, 2 * PAGE)) == 0
    assert move(m, task, base, 4, {1}, MPOL_MF_MOVE) == 0
    assert m.where(task, base, 4) == [0, 0, GONE, GONE]
    assert slots_used(m) == 2
    assert [vma.vm_policy for vma in task.mm.vmas] == [Mempolicy(MPOL_BIND, nodes=2)] * 2


def test_strict_tries_locked_memory_in_vain(machine: Make) -> None:
    """STRICT with MOVE queues pages of a locked VMA, too: EIO, and they keep the slots that they got for nothing."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 4)
    before = [pfn_at(m, task, base + i * PAGE) for i in range(2)]
    assert outcome(m, mlock.sys_mlock(m.k, task, base, 2 * PAGE)) == 0
    assert move(m, task, base, 4, {1}) == errno.EIO
    assert m.where(task, base, 4) == [0, 0, GONE, GONE]
    assert [pfn_at(m, task, base + i * PAGE) for i in range(2)] == before
    assert (m.k.c.pg_flags[before] & PG_SWAPCACHE != 0).all()
    assert m.k.c.swap_count[m.k.c.private[before]].tolist() == [1, 1]
    assert slots_used(m) == 4
    assert m.peek(task, base) == 1


@pytest.mark.parametrize(("flags", "expected"), [(MPOL_MF_MOVE, 0), (STRICT_MOVE, errno.EIO)], ids=["MOVE", "STRICT"])
def test_one_slot_short(machine: Make, flags: int, expected: int) -> None:
    """When the swap area is full all others have moved: the list runs against the addresses, the first page stays."""
    m = machine(nodes=2, swap="28K")
    task = m.attach()
    base = fill(m, task, 8)
    assert move(m, task, base, 8, {1}, flags) == expected
    assert m.where(task, base, 8) == [0] + [GONE] * 7
    assert slots_used(m) == 7
    assert next(iter(task.mm.vmas)).vm_policy == Mempolicy(MPOL_BIND, nodes=2)
    m.touch(task, base, 8)
    assert m.where(task, base, 8) == [0] + [1] * 7
    assert intact(m, task, base, 8)


@pytest.mark.parametrize(("flags", "expected"), [(MPOL_MF_MOVE, 0), (STRICT_MOVE, errno.EIO)], ids=["MOVE", "STRICT"])
def test_no_swap_at_all(machine: Make, passes: list[int], flags: int, expected: int) -> None:
    """Without a swap area nothing leaves: MOVE says nothing about it, STRICT gives EIO with the policy set."""
    m = machine(nodes=2, swap="0")
    task = m.attach()
    base = fill(m, task, 4)
    assert move(m, task, base, 4, {1}, flags) == expected
    assert passes == [0]
    assert m.where(task, base, 4) == [0] * 4
    assert next(iter(task.mm.vmas)).vm_policy == Mempolicy(MPOL_BIND, nodes=2)
    assert intact(m, task, base, 4)


@pytest.mark.parametrize(("flags", "expected"), [(MPOL_MF_MOVE, 0), (STRICT_MOVE, errno.EIO)], ids=["MOVE", "STRICT"])
def test_a_pinned_page_stays(machine: Make, passes: list[int], flags: int, expected: int) -> None:
    """A reference from outside keeps a page in memory: unmapped everywhere, but touched again it is the old frame."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 3)
    old = pfn_at(m, task, base + PAGE)
    m.k.c.pins[5, 0] = old + 1
    m.k.c.pin_count[5] = 1
    assert move(m, task, base, 3, {1}, flags) == expected
    assert passes == list(range(11))
    assert m.k.vmstat["pswpout"] == 2
    assert m.where(task, base, 3) == [GONE] * 3
    m.touch(task, base, 3, write=False)
    assert m.where(task, base, 3) == [1, 0, 1]
    assert pfn_at(m, task, base + PAGE) == old
    m.k.c.pin_count[5] = 0
    assert intact(m, task, base, 3)
    assert move(m, task, base, 3, {1}) == 0
    m.touch(task, base, 3)
    assert m.where(task, base, 3) == [1, 1, 1]
    assert intact(m, task, base, 3)


# -- shared pages ------------------------------------------------------------------------------------------------------


def test_pages_shared_by_fork_move(machine: Make) -> None:
    """Anonymous pages leave although another process maps them; who touches first decides where they come back."""
    m = machine(nodes=3)
    task = m.attach()
    base = fill(m, task, 4)
    child = child_of(m, task)
    assert m.mbind(child, base, 4, MPOL_BIND, {2}) == 0
    assert move(m, task, base, 4, {1}, MPOL_MF_MOVE) == 0
    assert m.where(task, base, 4) == m.where(child, base, 4) == [GONE] * 4
    assert slots_used(m) == 4
    m.touch(task, base, 2, write=False)
    m.touch(child, base, 4, write=False)
    m.touch(task, base, 4, write=False)
    assert m.where(task, base, 4) == m.where(child, base, 4) == [1, 1, 2, 2]
    assert intact(m, task, base, 4)
    assert intact(m, child, base, 4)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [((), errno.EPERM), (("CAP_SYS_NICE", "CAP_SYS_ADMIN"), errno.EPERM), (("CAP_SYS_RESOURCE",), 0)],
    ids=["none", "others", "CAP_SYS_RESOURCE"],
)
def test_move_all_needs_the_capability(machine: Make, capabilities: tuple[str, ...], expected: int) -> None:
    """MPOL_MF_MOVE_ALL is for CAP_SYS_RESOURCE; refused, it does nothing."""
    m = machine(nodes=2)
    task = m.attach(0, *capabilities)
    base = fill(m, task, 2)
    assert move(m, task, base, 2, {1}, MPOL_MF_MOVE_ALL) == expected
    assert m.where(task, base, 2) == [0 if expected else GONE] * 2


# -- pages of files ----------------------------------------------------------------------------------------------------


@contextmanager
def page_of_a_file(m: Machine, pfn: int, mappers: list[VmArea], writable: int) -> Iterator[AddressSpace]:
    """For a while this frame belongs to a file that these VMAs map, `writable` of them shared and writable."""
    mapping = AddressSpace(PAGE_MAPPING_FILE | 7, i_mmap=dict.fromkeys(mappers), i_mmap_writable=writable)
    anonymous = int(m.k.c.mapping[pfn])
    m.k.address_spaces[mapping.id] = mapping
    m.k.c.mapping[pfn] = mapping.id
    yield mapping
    m.k.c.mapping[pfn] = anonymous
    del m.k.address_spaces[mapping.id]


#: name → tasks whose VMA maps the file (0: the caller, 1: its thread's other VMA, 2: another process), VMAs that may
#: write to it, flags; is it one mm's, may it be queued.
FILE_ROWS: dict[str, tuple[tuple[int, ...], int, int, bool, bool]] = {
    "ours alone": ((0,), 0, MPOL_MF_MOVE, True, True),
    "two mappings of ours": ((0, 1), 0, MPOL_MF_MOVE, True, True),
    "another process, too": ((0, 2), 0, MPOL_MF_MOVE, False, False),
    "another process, too, STRICT": ((0, 2), 0, STRICT_MOVE, False, False),
    "another process, somebody may write": ((0, 2), 1, MPOL_MF_MOVE, False, True),
    "another process, MOVE_ALL": ((0, 2), 0, MPOL_MF_MOVE_ALL, False, True),
}


@pytest.mark.parametrize(("mappers", "writable", "flags", "single", "queued"), FILE_ROWS.values(), ids=FILE_ROWS)
def test_which_pages_of_files_are_queued(
    machine: Make, mappers: tuple[int, ...], writable: int, flags: int, *, single: bool, queued: bool
) -> None:
    """MOVE takes pages of files that one mm alone maps, or that somebody may write to; MOVE_ALL takes all."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 1)
    other = m.mmap(task, 1, base + 16 * PAGE)
    child = child_of(m, task)
    vmas = [task.mm.vmas.find_vma(base), task.mm.vmas.find_vma(other), child.mm.vmas.find_vma(base)]
    chosen = [vma for number, vma in enumerate(vmas) if vma is not None and number in mappers]
    pfn = pfn_at(m, task, base)
    pagelist = check_range.PageList()
    with page_of_a_file(m, pfn, chosen, writable) as mapping:
        assert check_range.single_mm_mapping(task.mm, mapping) is single
        assert check_range.mapping_writably_mapped(mapping) is bool(writable)
        check_range.migrate_page_add(m.k, chosen[0], np.array([pfn]), pagelist, flags)
    assert pagelist.pages(lifo=True).tolist() == [pfn] * queued
    m.call(vmscan.putback_lru_pages(m.k, pagelist.pages(lifo=True)))


def test_a_shared_page_of_a_file_is_no_error(machine: Make) -> None:
    """STRICT with MOVE does not mind a page that was skipped because other processes map its file."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 3)
    child = child_of(m, task)
    vmas = [one.mm.vmas.find_vma(base) for one in (task, child)]
    pfn = pfn_at(m, task, base + PAGE)
    with page_of_a_file(m, pfn, [vma for vma in vmas if vma is not None], 0):
        assert move(m, task, base, 3, {1}) == 0
    assert m.where(task, base, 3) == [GONE, 0, GONE]
    assert slots_used(m) == 2


def test_a_page_that_somebody_else_isolated_is_no_error(machine: Make) -> None:
    """A page on no list is not movable now: it is not queued, and STRICT does not mind."""
    m = machine(nodes=2)
    task = m.attach()
    base = fill(m, task, 2)
    pfn = pfn_at(m, task, base)
    mine = check_range.PageList()
    vma = task.mm.vmas.find_vma(base)
    assert vma is not None
    check_range.migrate_page_add(m.k, vma, np.array([pfn]), mine, MPOL_MF_MOVE)
    assert move(m, task, base, 2, {1}) == 0
    assert m.where(task, base, 2) == [0, GONE]
    m.call(vmscan.putback_lru_pages(m.k, mine.pages(lifo=True)))
    assert move(m, task, base, 2, {1}) == 0
    assert m.where(task, base, 2) == [GONE, GONE]
