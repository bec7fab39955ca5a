"""The call mirror: an address space follows that of a process outside."""

import errno
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu_core import access_process_vm, fork, limits, memory, mempolicy, numa_maps
from numaemu_core.columns import I8
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError, OutOfMemory, SegmentationFault
from numaemu_core.install_page import install_new_pages
from numaemu_core.kernel import Kernel
from numaemu_core.mirror import sys_let_go_shared, sys_mirror, sys_truncate_shared
from numaemu_core.mm_types import Task, VmArea
from numaemu_core.mmzone import LOCAL_NODE, NUMA_HIT
from numaemu_core.page_flags import ALLOCATED, FREE_UNCLEAN, PG_HOSTED
from numaemu_core.topology import uniform
from numaemu_core.uapi import MPOL_BIND, MPOL_INTERLEAVE, MPOL_MF_MOVE, MPOL_PREFERRED

from .conftest import GONE, PAGE, Machine

Pairs = Sequence[tuple[int, int]]
Make = Callable[..., Machine]
AT = 0x7F0000000000
NOT_MAPPED = -errno.EFAULT


def mirror(
    m: Machine,
    task: Task,
    unmapped: Pairs = (),
    areas: Sequence[tuple[int, int, str | None, int, bool]] = (),
    gone: Pairs = (),
    held: Pairs = (),
    read: Pairs = (),
    kept_as: str | None = None,
) -> int:
    """The call, with everything counted in pages from AT."""

    def spans(pairs: Pairs) -> list[tuple[int, int]]:
        return [(AT + first * PAGE, AT + end * PAGE) for first, end in pairs]

    told = [(AT + a * PAGE, AT + b * PAGE, name, at * PAGE, grows, kept_as) for a, b, name, at, grows in areas]
    return int(m.call(sys_mirror(m.k, task, spans(unmapped), told, spans(gone), spans(held), spans(read)))) // PAGE


def where(m: Machine, task: Task, pages: int = 8) -> list[int]:
    return m.where(task, AT, pages)


def test_held_pages_are_placed_by_the_policy_of_the_moment(machine: Make) -> None:
    """Pages told before a policy changes are where the old one puts them, those told later where the new one does."""
    m = machine()
    task = m.attach()
    assert mirror(m, task, areas=[(0, 8, None, 0, False)], held=[(0, 2)]) == 2
    m.call(mempolicy.sys_set_mempolicy(m.k, task, MPOL_BIND, [2], 65))
    assert mirror(m, task, held=[(1, 4)]) == 3
    assert where(m, task) == [0, 0, 1, 1, GONE, GONE, GONE, GONE]


def test_pages_and_mappings_go_as_told(machine: Make) -> None:
    """Dropped pages give their frames back; what is unmapped is no address any more; the rest stays."""
    m = machine()
    task = m.attach()
    free = m.k.zones[0].nr_free
    mirror(m, task, areas=[(0, 8, None, 0, False)], held=[(0, 8)])
    mirror(m, task, unmapped=[(6, 8)], gone=[(1, 3)])
    assert where(m, task) == [0, GONE, GONE, 0, 0, 0, NOT_MAPPED, NOT_MAPPED]
    mirror(m, task, unmapped=[(0, 8)])
    m.performer.run()
    assert m.k.zones[0].nr_free == free


def test_told_twice_is_told_once(machine: Make) -> None:
    """The same call again changes nothing: neither a mapping, nor its policy, nor its pages."""
    m = machine()
    task = m.attach()
    call: dict[str, Any] = {"areas": [(0, 4, None, 0, False), (4, 8, "shared", 0, False)], "held": [(0, 2), (5, 6)]}
    mirror(m, task, **call)
    m.mbind(task, AT, 4, MPOL_BIND, {1})
    before = where(m, task), m.call(numa_maps.sys_numa_maps(m.k, task))
    mirror(m, task, **call)
    assert (where(m, task), m.call(numa_maps.sys_numa_maps(m.k, task))) == before


def starts(task: Task) -> list[tuple[int, int]]:
    return [((vma.vm_start - AT) // PAGE, (vma.vm_end - AT) // PAGE) for vma in task.mm.vmas]


def test_mappings_of_two_areas_are_not_merged(machine: Make) -> None:
    """What the process has as two mappings stays two; the holes of an area belong to what was in it before them."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 2, None, 0, False), (2, 4, None, 0, False), (6, 8, None, 0, False)])
    assert starts(task) == [(0, 2), (2, 4), (6, 8)]
    mirror(m, task, areas=[(0, 12, None, 0, False)], held=[(0, 12)])
    assert starts(task) == [(0, 2), (2, 6), (6, 12)]
    assert where(m, task, 12) == [0] * 12


def test_what_has_a_policy_does_not_grow_into_holes(machine: Make) -> None:
    """New memory beside bound memory has no policy: it belongs to what has none, or becomes a mapping of its own."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(4, 6, None, 0, False), (20, 22, None, 0, False), (24, 26, None, 0, False)])
    for first in (4, 20):
        m.mbind(task, AT + first * PAGE, 2, MPOL_BIND, {1})
    mirror(m, task, areas=[(2, 8, None, 0, False), (20, 26, None, 0, False)], held=[(2, 8), (20, 26)])
    assert starts(task) == [(2, 4), (4, 6), (6, 8), (20, 22), (22, 26)]
    assert where(m, task)[2:] == [0, 0, 1, 1, 0, 0]
    assert m.where(task, AT + 20 * PAGE, 6) == [1, 1, 0, 0, 0, 0]


def test_heaps_and_stacks_grow_with_their_policy(machine: Make) -> None:
    """An area that grows has its policy in its new part, upwards and downwards; another one has none there."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(4, 6, None, 0, True), (20, 22, None, 0, False)])
    m.mbind(task, AT + 4 * PAGE, 2, MPOL_BIND, {1})
    m.mbind(task, AT + 20 * PAGE, 2, MPOL_BIND, {1})
    mirror(m, task, areas=[(2, 8, None, 0, True), (20, 24, None, 0, False)], held=[(2, 8), (20, 24)])
    assert starts(task) == [(2, 8), (20, 22), (22, 24)]
    assert where(m, task)[2:] == [1] * 6
    assert m.where(task, AT + 20 * PAGE, 4) == [1, 1, 0, 0]


def test_objects_with_a_name_are_shared(machine: Make) -> None:
    """Two address spaces that map one name have the same pages, and the policies that one of them set."""
    m = machine()
    one, other = m.attach(), m.attach()
    mirror(m, one, areas=[(0, 8, "0:1 77", 0, False)])
    m.mbind(one, AT, 8, MPOL_INTERLEAVE, {0, 1})
    mirror(m, other, areas=[(0, 4, "0:1 77", 4, False)], held=[(0, 4)])
    used = sum(zone.present_pages - zone.nr_free for zone in m.k.zones.values())
    mirror(m, one, held=[(4, 8)])
    assert where(m, one)[4:] == where(m, other, 4)
    assert sorted(where(m, other, 4)) == [0, 0, 1, 1]
    assert sum(zone.present_pages - zone.nr_free for zone in m.k.zones.values()) == used


@pytest.mark.parametrize("crashed", [False, True])
def test_nobody_copies_bytes_that_are_in_the_host(
    machine: Make, monkeypatch: pytest.MonkeyPatch, *, crashed: bool
) -> None:
    """Pages move, are copied on write and go, shared or not; their frames stay zeros that nobody has to clean."""

    def copies(*_args: object) -> None:
        pytest.fail("bytes are copied")

    for module in ("memory", "performer"):
        monkeypatch.setattr(f"numaemu_core.{module}.copy_rows", copies)
    m = machine(**uniform(2, "1M", "1M", "linux-6.12", PAGE).as_dict())
    task = m.attach()
    mirror(m, task, areas=[(0, 4, None, 0, False), (4, 8, "0:1 77", 0, False)], held=[(0, 4)])
    if crashed:
        m.recover()
        task = m.k.tasks[task.pid]
        assert task.mm.mirrored
    mirror(m, task, held=[(4, 8)])
    m.mbind(task, AT, 8, MPOL_BIND, {1}, MPOL_MF_MOVE)
    assert where(m, task) == [1] * 8
    child = m.call(fork.sys_fork(m.k, task))
    mirror(m, child, held=[(0, 8)])
    assert len(np.unique(m.k.c.pte[m.k.tables.walk(child.mm.pgd, np.arange(AT, AT + 4 * PAGE, PAGE) // PAGE)])) == 4
    for one in (task, child):
        m.call(fork.sys_exit(m.k, one))
    m.performer.run()
    assert not (m.k.c.free_state == FREE_UNCLEAN).any()


def test_bytes_that_somebody_writes_beside_the_host_are_cleaned(machine: Make) -> None:
    """The next user of the frame does not see them."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 1, None, 0, False)], held=[(0, 1)])
    m.call(access_process_vm.sys_write(m.k, task, AT, b"secret"))
    m.call(fork.sys_exit(m.k, task))
    m.performer.run()
    assert (m.k.c.free_state == FREE_UNCLEAN).sum() == 1


def test_pages_of_the_host_move_to_frames_of_zeros(machine: Make) -> None:
    """Also where these have held the bytes of others: fsck looks at the end."""
    m = machine(**uniform(2, "1M", "1M", "linux-6.12", PAGE).as_dict())
    other = m.attach(1)
    at = m.mmap(other, 250)
    m.touch(other, at, 250)
    for page in range(250):
        m.poke(other, at + page * PAGE, 1)
    m.call(fork.sys_exit(m.k, other))
    task = m.attach()
    mirror(m, task, areas=[(0, 100, None, 0, False)], held=[(0, 100)])
    m.mbind(task, AT, 100, MPOL_BIND, {1}, MPOL_MF_MOVE)
    assert where(m, task, 100) == [1] * 100


@pytest.mark.parametrize("name", [None, "0:1 77"])
@pytest.mark.parametrize("way", ["", "crashed", "late"])
def test_pages_of_the_host_are_swapped_without_bytes(
    machine: Make, monkeypatch: pytest.MonkeyPatch, name: str | None, way: str
) -> None:
    """Nothing is written to their slots, whatever was there before, and they come back to frames of zeros.

    Also to frames with the bytes of others, and if nobody has seen in time that it is such a slot.
    """
    if way == "late":
        for module in ("swapin", "shmem"):
            monkeypatch.setattr(f"numaemu_core.{module}.any_is_hosted", lambda *_args: False)
    m = machine(**uniform(1, "1M", "4M", "linux-6.12", PAGE).as_dict())

    def fill_with_bytes() -> None:
        """A client comes, finds in memory and in swap what it wrote, and goes."""
        other = m.attach()
        at = m.mmap(other, 400)
        for page in range(400):
            m.call(access_process_vm.sys_write(m.k, other, at + page * PAGE, b"secret"))
        for page in range(400):
            assert m.call(access_process_vm.sys_read(m.k, other, at + page * PAGE, 6)) == b"secret"
        m.call(fork.sys_exit(m.k, other))
        m.performer.run()

    fill_with_bytes()
    before = m.k.c.swap.copy()
    assert before.any()
    task = m.attach()
    mirror(m, task, areas=[(0, 400, name, 0, False)], held=[(0, 400)])
    m.performer.run()
    assert (m.k.c.swap == before).all()
    fill_with_bytes()
    before = m.k.c.swap.copy()
    assert m.k.c.swap_count.any()
    if way == "crashed":
        m.recover()
        task = m.k.tasks[task.pid]
    for first in (0, 200):
        mirror(m, task, held=[(first, first + 200)])
        m.performer.run()
    assert (m.k.c.swap == before).all()
    allocated = np.flatnonzero(m.k.c.free_state == ALLOCATED)
    assert (m.k.c.pg_flags[allocated] & PG_HOSTED).all()
    assert not m.k.c.frames[allocated].any()
    m.call(fork.sys_exit(m.k, task))
    m.performer.run()
    fill_with_bytes()


def test_memory_is_a_tasks_own_or_that_of_the_host(machine: Make) -> None:
    """Frames of the host's are zeros: who has mappings or a window is not mirrored, who is mirrored maps nothing."""
    m = machine()
    mapped, looking, mirrored = m.attach(), m.attach(), m.attach()
    m.mmap(mapped, 1)
    m.k.c.window_mm[3] = looking.mm.id + 1
    for task in (mapped, looking):
        with pytest.raises(MmError) as refused:
            mirror(m, task, areas=[(0, 1, None, 0, False)])
        assert refused.value.errno == errno.EBUSY
    m.k.c.window_mm[3] = 0
    mirror(m, mirrored, areas=[(0, 1, None, 0, False)])
    with pytest.raises(MmError) as refused:
        m.mmap(mirrored, 1)
    assert refused.value.errno == errno.EACCES


def let_go(m: Machine, task: Task, *names: str) -> list[list[str]]:
    """The call about objects that outlast their mappings no more."""
    return list(m.call(sys_let_go_shared(m.k, task, names)))


@pytest.mark.parametrize("crashed", [False, True])
def test_objects_that_are_kept_have_their_policies_and_pages(machine: Make, *, crashed: bool) -> None:
    """Nobody maps one for a while, in which the daemon may die: who maps it then finds all of it where it was."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 4, "0:1 77", 0, False)], kept_as="/x")
    m.mbind(task, AT, 4, MPOL_BIND, {1})
    mirror(m, task, held=[(0, 2)])
    mirror(m, task, unmapped=[(0, 4)])
    if crashed:
        m.recover()
        task = m.k.tasks[task.pid]
    assert let_go(m, task, "never heard of") == [["0:1 77", "/x"]]
    mirror(m, task, areas=[(8, 12, "0:1 77", 0, False)], held=[(8, 11)])
    assert m.where(task, AT + 8 * PAGE, 4) == [1, 1, 1, GONE]


def test_objects_that_are_kept_no_more_go_with_their_last_mapping(machine: Make) -> None:
    """At once if nobody maps them; a new one of that name begins without a policy and without pages."""
    m = machine()
    task = m.attach()
    free = [zone.nr_free for zone in m.k.zones.values()]
    for mapped in (True, False):
        mirror(m, task, areas=[(0, 4, "0:1 77", 0, False)], kept_as="/x")
        m.mbind(task, AT, 4, MPOL_BIND, {1})
        mirror(m, task, held=[(0, 4)])
        if not mapped:
            mirror(m, task, unmapped=[(0, 4)])
        assert let_go(m, task, "0:1 77") == []
        if mapped:
            assert where(m, task, 4) == [1] * 4
            mirror(m, task, unmapped=[(0, 4)])
        m.performer.run()
        assert m.k.zones[1].nr_free == free[1]
    mirror(m, task, areas=[(0, 4, "0:1 77", 0, False)], held=[(0, 4)])
    assert where(m, task, 4) == [0] * 4


def test_cut_out_pages_of_an_object_are_placed_anew(machine: Make) -> None:
    """Whoever maps them, in memory or in swap; whole pages only, and the policy of the object stays."""
    m = machine(**uniform(2, "1M", "4M", "linux-6.12", PAGE).as_dict())
    one, other = m.attach(), m.attach()
    for task in (one, other):
        mirror(m, task, areas=[(0, 400, "0:1 77", 0, False)])
    m.mbind(one, AT, 400, MPOL_BIND, {1})
    mirror(m, one, held=[(0, 400)])
    mirror(m, other, held=[(0, 8)])
    assert m.k.c.swap_count.any()
    m.mbind(one, AT, 400, MPOL_BIND, {0})
    m.call(sys_truncate_shared(m.k, other, "0:1 77", 4 * PAGE - 1, 400 * PAGE + 1))
    m.call(sys_truncate_shared(m.k, other, "0:1 8", 0, PAGE))
    (mapping,) = (found for found in m.k.address_spaces.values() if found.name == "0:1 77")
    assert mapping.i_pages.astype(bool).tolist() == [True] * 4 + [False] * 396
    mirror(m, one, held=[(0, 8)])
    assert where(m, one, 8) == [1] * 4 + [0] * 4
    assert where(m, other, 4) == [1] * 4


def test_objects_that_are_mapped_elsewhere_live_on(machine: Make) -> None:
    """One call unmaps the only mapping and makes another one: policy and pages are those that were there."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 4, "0:1 77", 0, False)])
    m.mbind(task, AT, 4, MPOL_BIND, {1})
    mirror(m, task, held=[(0, 4)])
    mirror(m, task, unmapped=[(0, 4)], areas=[(8, 16, "0:1 77", 0, False)], held=[(8, 13)])
    assert m.where(task, AT + 8 * PAGE, 5) == [1, 1, 1, 1, 0]
    mirror(m, task, unmapped=[(8, 16)])
    m.performer.run()
    assert len(m.k.address_spaces) == 0


def test_objects_whose_new_mapping_is_refused_are_gone(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are mapped nowhere any more: nobody has their frames."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 4, "0:1 77", 0, False)], held=[(0, 4)])
    monkeypatch.setattr(limits, "MAX_MAP_COUNT", 0)
    with pytest.raises(MmError) as refused:
        mirror(m, task, unmapped=[(0, 4)], areas=[(8, 12, "0:1 77", 0, False)])
    assert refused.value.errno == errno.ENOMEM
    m.performer.run()
    assert len(m.k.address_spaces) == 0


def test_an_object_that_is_kept_may_get_another_path(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no more room than it had."""
    monkeypatch.setattr(limits, "KEPT_OBJECTS_MAX", 1)
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 4, "0:1 77", 0, False)], kept_as="one")
    mirror(m, task, areas=[(4, 8, "0:1 77", 0, False)], kept_as="other")
    assert let_go(m, task) == [["0:1 77", "other"]]


def test_only_so_many_objects_are_kept(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than that go with their last mapping, as all of them must be named in one answer."""
    monkeypatch.setattr(limits, "KEPT_OBJECTS_MAX", 2)
    m = machine()
    task = m.attach()
    for number in range(3):
        mirror(m, task, areas=[(number, number + 1, f"0:1 {number}", 0, False)], kept_as=f"/{number}")
    mirror(m, task, unmapped=[(0, 3)])
    assert let_go(m, task) == [["0:1 0", "/0"], ["0:1 1", "/1"]]
    assert let_go(m, task, "0:1 0", "0:1 1") == []


def test_shared_objects_become_longer(machine: Make) -> None:
    """A part beyond the end of an object, as after ftruncate, makes it longer and leaves its pages."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 2, "memfd", 0, False)], held=[(0, 2)])
    mirror(m, task, areas=[(4, 8, "memfd", 2, False)], held=[(4, 8)])
    assert where(m, task) == [0, 0, NOT_MAPPED, NOT_MAPPED, 0, 0, 0, 0]
    assert len({id(vma.vm_file) for vma in task.mm.vmas}) == 1


def test_shared_objects_have_an_end(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping may be longer than an object may be; its policies hold, and the pages that the object has are held."""
    monkeypatch.setattr(limits, "FILE_PAGES_MAX", 1000)
    m = machine()
    task = m.attach()
    far = limits.FILE_PAGES_MAX - 2
    mirror(m, task, areas=[(0, 8, "memfd", far, False), (8, 16, "memfd", far + 100, False)], held=[(0, 2)])
    m.mbind(task, AT, 16, MPOL_BIND, {1})
    assert len(task.mm.vmas) == 2
    assert where(m, task, 2) == [0, 0]


def test_a_child_has_the_mappings_of_its_parent(machine: Make) -> None:
    """A fork copies what was told, and the child's pages go without the parent's."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 4, None, 0, False)], held=[(0, 4)])
    child = m.call(fork.sys_fork(m.k, task))
    mirror(m, child, gone=[(0, 2)])
    assert (where(m, task, 4), where(m, child, 4)) == ([0] * 4, [GONE, GONE, 0, 0])


def test_pages_that_were_only_read_have_the_page_of_zeros(machine: Make) -> None:
    """They are mapped, take no frame, and get one when they are written to; dropped ones are mapped no more."""
    m = machine()
    task = m.attach()
    assert mirror(m, task, areas=[(0, 4, None, 0, False)], read=[(0, 4)]) == 0
    assert [m.entry(task, AT + page * PAGE) // PAGE for page in range(4)] == [m.k.zero_pfn] * 4
    assert mirror(m, task, gone=[(0, 1)], held=[(1, 2)]) == 1
    entries = [m.entry(task, AT + page * PAGE) // PAGE for page in range(4)]
    assert (entries[0], entries[2:]) == (0, [m.k.zero_pfn] * 2)
    assert entries[1] not in {0, m.k.zero_pfn}


#: Pages of two page tables, in areas with and without a policy, one of them shared.
FIRST, AREAS = 400, [(400, 520, None, 0, False), (520, 600, None, 0, False), (640, 800, "shm", 3, False)]
SOME_PAGES = st.lists(st.tuples(st.integers(400, 799), st.integers(1, 9)), max_size=30).map(
    lambda runs: [(page, min(page + length, 800)) for page, length in runs if not 591 < page < 640]
)


@given(SOME_PAGES, SOME_PAGES, SOME_PAGES, st.sampled_from([1, 7, limits.BATCH_PAGES]))
def test_many_ranges_are_as_one_page_after_the_other(before: Pairs, held: Pairs, read: Pairs, batch: int) -> None:
    """However many are told together, in whatever order, each page is where the task's access would have put it.

    That goes for new pages, for those that a child has in common with its parent, and for those told twice.
    """
    found = []
    for alone in False, True:
        m = Machine(uniform(4, "2M", "1M", "swap-v3", PAGE))
        m.k.batch_pages = batch
        parent = m.attach()
        mirror(m, parent, areas=AREAS, held=before)
        m.mbind(parent, AT + 420 * PAGE, 80, MPOL_INTERLEAVE, {1, 2, 3})
        m.mbind(parent, AT + 700 * PAGE, 40, MPOL_BIND, {3})
        child = m.call(fork.sys_fork(m.k, parent))
        m.call(mempolicy.sys_set_mempolicy(m.k, child, MPOL_PREFERRED, [4], 65))
        mirror(m, child, areas=AREAS)
        if alone:
            for page in sorted({page for run in held for page in range(*run)}):
                mirror(m, child, held=[(page, page + 1)])
            for page in sorted({page for run in read for page in range(*run)}):
                mirror(m, child, read=[(page, page + 1)])
        else:
            mirror(m, child, held=held, read=read)
        places = [m.where(task, AT + FIRST * PAGE, 400) for task in (parent, child)]
        zeros = [m.entry(child, AT + page * PAGE) // PAGE == m.k.zero_pfn for page in range(FIRST, 800)]
        found.append((places, zeros, m.k.c.numastat.tolist(), m.k.vmstat["pgfault"]))
        assert m.fsck() == []
    assert found[0] == found[1]


def test_pages_of_more_tables_than_one_step_may_lock(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are faulted in so many tables at a time."""
    install, together = install_new_pages, []

    def installing(k: Kernel, vma: VmArea, vpns: I8, *rest: Any) -> KernelTask[I8]:  # noqa: ANN401 - handed on
        together.append(len(vpns))
        return install(k, vma, vpns, *rest)

    monkeypatch.setattr(memory, "install_new_pages", installing)
    monkeypatch.setattr(limits, "PTE_LOCK_BATCH", 2)
    m = machine()
    task = m.attach()
    pages = [table * limits.PTRS_PER_TABLE for table in range(7)]
    mirror(m, task, areas=[(0, 4096, None, 0, False)], held=[(page, page + 1) for page in pages])
    assert [m.where(task, AT + page * PAGE, 2) for page in pages] == [[0, GONE]] * 7
    assert together == [2, 2, 2]  # and the last one alone, which is quicker


def test_pages_whose_tables_there_is_room_for_are_there(machine: Make) -> None:
    """Only then memory is said to be out."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 20 * limits.PTRS_PER_TABLE, None, 0, False)])
    m.k.tables.table_count = m.k.tables.in_use + 12
    pages = [table * limits.PTRS_PER_TABLE for table in range(20)]
    with pytest.raises(OutOfMemory, match="page-table page"):
        mirror(m, task, held=[(page, page + 1) for page in pages])
    found = [m.where(task, AT + page * PAGE, 1) for page in pages]
    upper = 12 - found.index([GONE])  # some were needed for the upper levels
    assert 0 < upper < limits.TABLE_LEVELS
    assert found == [[0]] * (12 - upper) + [[GONE]] * (8 + upper)


def test_more_pages_than_memory_has_are_swapped_out_under_any_policy(machine: Make) -> None:
    """No step takes so many frames that none is left to be reclaimed for its last ones."""
    m = machine(node=[{"memory": "4M", "cpus": [nid]} for nid in range(2)], swap="64M")
    task = m.attach()
    mirror(m, task, areas=[(0, 15000, None, 0, False)])
    m.mbind(task, AT, 15000, MPOL_INTERLEAVE, {0, 1})
    mirror(m, task, held=[(page, page + 1) for page in range(0, 15000, 3)])
    assert not task.killed
    assert m.entry(task, AT)  # in a slot


def test_each_page_may_take_as_many_attempts_as_one_alone(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others take the frames that are reclaimed for them."""
    m = machine()
    task = m.attach()
    mirror(m, task, areas=[(0, 8, None, 0, False)])
    attempts = itertools.count(1)

    do_anonymous_page = memory.do_anonymous_page

    def a_page_now_and_then(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8) -> KernelTask[None]:
        if next(attempts) % (limits.FAULT_RETRIES - 10):
            k.c.numastat[0, [NUMA_HIT, LOCAL_NODE]] += 1  # somebody else has got one
            raise OutOfMemory
        yield from do_anonymous_page(k, task, vma, vpns[:1], flats[:1])
        if len(vpns) > 1:
            raise OutOfMemory

    monkeypatch.setattr(memory, "try_anonymous_page", lambda *_: False)
    monkeypatch.setattr(memory, "do_anonymous_page", a_page_now_and_then)
    mirror(m, task, held=[(0, 2), (4, 8)])
    assert where(m, task) == [0, 0, GONE, GONE, 0, 0, 0, 0]


def test_a_page_that_may_not_be_touched_is_no_matter_to_those_before_it(machine: Make) -> None:
    """They have their frames; those behind it have none."""
    m = machine()
    task = m.attach()
    with pytest.raises(SegmentationFault):
        mirror(m, task, areas=[(0, 4, None, 0, False), (6, 8, None, 0, False)], held=[(0, 2), (3, 4), (5, 8)])
    assert where(m, task) == [0, 0, GONE, 0, NOT_MAPPED, NOT_MAPPED, GONE, GONE]


def test_a_full_machine_says_so(machine: Make) -> None:
    """Pages for which there is no frame under the policy are out of memory."""
    m = machine(node=[{"memory": "64K", "cpus": [0]}, {"memory": "64K", "cpus": [1]}], swap=0)
    task = m.attach()
    with pytest.raises(OutOfMemory):
        mirror(m, task, areas=[(0, 64, None, 0, False)], held=[(0, 64)])


@pytest.mark.parametrize(
    "span",
    [(AT + 1, AT + PAGE), (AT, AT), (AT + PAGE, AT), (limits.TASK_SIZE_BYTES, limits.TASK_SIZE_BYTES + PAGE)],
)
@pytest.mark.parametrize("place", [0, 2, 3, 4])
def test_ranges_are_of_whole_pages(machine: Make, place: int, span: tuple[int, int]) -> None:
    """Anything else is EINVAL, before anything changes."""
    m = machine()
    task = m.attach()
    ranges: list[list[tuple[int, int]]] = [[], [], [], [], []]
    ranges[place] = [span]
    with pytest.raises(MmError, match="EINVAL"):
        m.call(sys_mirror(m.k, task, ranges[0], [(AT, AT + PAGE, None, 0, False, None)], *ranges[2:]))
    assert not len(task.mm.vmas)
