"""Recovery at rest: a kernel made from columns and journal is the kernel that wrote them."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from numaemu_core import files, fork, madvise, mbind, memory, mempolicy, mlock, mmap, mprotect, mremap
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.fsck import fsck
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task
from numaemu_core.page_flags import ALLOCATED, FREE_UNCLEAN
from numaemu_core.page_table import PTE_MIGRATION, PTE_PRESENT, PTE_READABLE
from numaemu_core.performer import JOURNAL_BYTES, Performer
from numaemu_core.topology import Topology, from_dict
from numaemu_core.uapi import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)

from .conftest import reborn

Draw = Callable[[int], int]

PAGE = 4096
PAGES = 24
BASE = 0x2AAAAAAAB000
RW = PROT_READ | PROT_WRITE
#: What recovery derives, or leaves as it is.
COLUMNS = (
    "pte",
    "mapcount",
    "mapping",
    "index",
    "pg_flags",
    "lru_state",
    "free_state",
    "swap_count",
    "slot_mapping",
    "page_lock_owner",
    "numastat",
    "frames",
)


def a_machine(profile: str) -> Topology:
    nodes = [{"memory": "256K", "cpus": [0]}, {"memory": "256K", "cpus": [1]}]
    return from_dict({"swap": "256K", "disk": "128K", "profile": profile, "min_free_kbytes": 0, "node": nodes})


def map_file(k: Kernel, task: Task, at: int, length: int, draw: Draw) -> KernelTask[Any]:
    """A mapping of a file, or of shared anonymous memory."""
    kind = draw(4)
    if not kind:
        return mmap.sys_mmap(k, task, at, length, RW, MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS)
    flags = MAP_FIXED | (MAP_SHARED if draw(2) else MAP_PRIVATE)
    return mmap.sys_mmap(k, task, at, length, RW, flags, ("/t", "/r", "/d")[kind - 1], 0, "r+")


def map_private(k: Kernel, task: Task, at: int, length: int, _draw: Draw) -> KernelTask[Any]:
    return mmap.sys_mmap(k, task, at, length, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)


def fault(k: Kernel, task: Task, at: int, length: int, draw: Draw) -> KernelTask[Any]:
    return memory.sys_fault(k, task, at, length, write=bool(draw(2)))


def protect(k: Kernel, task: Task, at: int, length: int, draw: Draw) -> KernelTask[Any]:
    return mprotect.sys_mprotect(k, task, at, length, (0, PROT_READ, RW)[draw(3)])


def bind(k: Kernel, task: Task, at: int, length: int, draw: Draw) -> KernelTask[Any]:
    return mbind.sys_mbind(k, task, at, length, (MPOL_BIND, MPOL_INTERLEAVE)[draw(2)], [2], 65, MPOL_MF_MOVE)


def advise(k: Kernel, task: Task, at: int, length: int, draw: Draw) -> KernelTask[Any]:
    return madvise.sys_madvise(k, task, at, length, (MADV_PAGEOUT, MADV_DONTNEED)[draw(2)])


def lock(k: Kernel, task: Task, at: int, _length: int, draw: Draw) -> KernelTask[Any]:
    return (mlock.sys_mlock, mlock.sys_munlock)[draw(2)](k, task, at, PAGE)


def move(k: Kernel, task: Task, at: int, length: int, draw: Draw) -> KernelTask[Any]:
    target = BASE + draw(PAGES) * PAGE
    return mremap.sys_mremap(k, task, at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target)


def fork_or_exit(k: Kernel, task: Task, at: int, length: int, draw: Draw) -> KernelTask[Any]:
    if draw(2) and len(k.tasks) > 1:
        return fork.sys_exit(k, task)
    return fork.sys_fork(k, task) if len(k.tasks) < 4 else fault(k, task, at, length, draw)


def set_policy(k: Kernel, task: Task, _at: int, _length: int, draw: Draw) -> KernelTask[Any]:
    return mempolicy.sys_set_mempolicy(k, task, MPOL_BIND, [1 + draw(3)], 65)


CALLS = (
    *(fault, fault, map_private, map_private, map_file, lambda k, t, at, n, _: mmap.sys_munmap(k, t, at, n)),
    *(protect, bind, advise, advise, lock, move, fork_or_exit, set_policy),
)


def random_call(p: Performer, task: Task) -> KernelTask[Any]:
    """Some call on some pages."""
    at, length = BASE + p.draw(PAGES) * PAGE, (1 + p.draw(8)) * PAGE
    return CALLS[p.draw(len(CALLS))](p.k, task, at, length, p.draw)


def machine_after(seed: int, calls: int, profile: str) -> Performer:
    """A machine that has lived."""
    p = Performer(a_machine(profile))
    p._state = 2 * seed + 1  # noqa: SLF001 - the calls are drawn, the order is not
    for name, kind in (("/t", "tmpfs"), ("/r", "ramfs"), ("/d", "disk")):
        files.create_file(p.k, name, kind, 6 * PAGE)
    fork.attach(p.k, 0, ["CAP_SYS_NICE"], None)
    for _ in range(calls):
        tasks = list(p.k.tasks.values())
        with contextlib.suppress(MmError):
            p.call(random_call(p, tasks[p.draw(len(tasks))]))
    p.run()
    return p


def told_by_objects(k: Kernel) -> list[Any]:
    """What only objects tell: pages of files, slots that are cached, free frames."""
    pages = {mapping.id: mapping.i_pages.tolist() for mapping in k.address_spaces.values()}
    mappers = {mapping.id: mapping.i_mmap_writable for mapping in k.address_spaces.values()}
    anon = {number: len(anon_vma.vmas) for number, anon_vma in k.anon_vmas.items()}
    free = {nid: zone.nr_free for nid, zone in k.zones.items()}
    marks = (k.next_pid, k.next_object, k.anon_objects, k.disk_cursor, k.vma_count)
    users = {mm.id: mm.mm_users for mm in k.mms.values()}
    return [
        pages,
        mappers,
        anon,
        free,
        k.nr_swap_pages,
        k.slot_frame.tolist(),
        k.tables.in_use,
        marks,
        users,
        dict(k.vmstat),
    ]


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.1", "linux-6.12"])
@pytest.mark.parametrize("first", range(0, 60, 20))
def test_a_rebuilt_kernel_is_the_one_that_died(profile: str, first: int) -> None:
    """After random calls, recovery changes no column, finds all objects again, and fsck finds nothing."""
    for seed in range(first, first + 20):
        k = machine_after(seed, 60, profile).k
        assert fsck(k) == [], f"seed {seed}"
        columns = {name: getattr(k.c, name).copy() for name in COLUMNS}
        told, truth = told_by_objects(k), k.truth()
        again = reborn(k)
        assert again.truth() == truth, f"seed {seed}"
        assert again.journal.replay() == truth, f"seed {seed}"
        assert told_by_objects(again) == told, f"seed {seed}"
        for name, before in columns.items():
            assert np.array_equal(getattr(again.c, name), before), f"seed {seed}: {name}"
        assert fsck(again) == [], f"seed {seed}"


Spoil = Callable[[Kernel], None]


def spoil_counts(k: Kernel) -> None:
    k.c.mapcount[:] = 9


def spoil_swap_map(k: Kernel) -> None:
    k.c.swap_count[:] = 3


def spoil_locks(k: Kernel) -> None:
    k.c.page_lock_owner[:] = 17


def spoil_lists(k: Kernel) -> None:
    k.c.lru_state[k.c.lru_state != 0] = 4


@pytest.mark.parametrize("spoil", [spoil_counts, spoil_swap_map, spoil_locks, spoil_lists])
def test_what_is_derived_is_not_believed(spoil: Spoil) -> None:
    """Map counts, the swap map, page locks and isolations are made anew whatever stands there."""
    k = machine_after(3, 80, "swap-v3").k
    spoil(k)
    assert fsck(k)
    again = reborn(k)
    assert fsck(again) == []


def test_a_migration_that_had_moved_some_entries_moves_the_others() -> None:
    """Of a page that two tasks map, one entry names the new frame, the other still waits: both get the new one."""
    p = Performer(a_machine("linux-6.1"))
    k = p.k
    parent = fork.attach(k, 0, [], None)
    p.call(mmap.sys_mmap(k, parent, BASE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS))
    p.call(memory.sys_fault(k, parent, BASE, PAGE, write=True))
    child: Task = p.call(fork.sys_fork(k, parent))
    first, second = (k.tables.pte_offset(task.mm.pgd, BASE // PAGE) for task in (parent, child))
    old, new = int(k.c.pte[first]) // PAGE, 70
    assert k.c.free_state[new] <= FREE_UNCLEAN
    k.c.free_state[new] = ALLOCATED
    for column in (k.c.mapping, k.c.index, k.c.pg_flags, k.c.frames):
        column[new] = column[old]
    k.c.moving_to[old] = new + 1
    k.c.pte[first] = new * PAGE | PTE_PRESENT | PTE_READABLE
    k.c.pte[second] = old * PAGE | PTE_MIGRATION | PTE_READABLE
    again = reborn(k)
    assert [int(entry) // PAGE for entry in again.c.pte[[first, second]]] == [new, new]
    assert again.c.mapcount[[old, new]].tolist() == [0, 2]
    assert not again.c.moving_to.any()
    assert fsck(again) == []


def test_a_migration_is_not_mistaken_for_a_page_that_was_copied_on_write() -> None:
    """Parent and child have a page each under one identity; that of the parent was moving: it stays its own."""
    p = Performer(a_machine("linux-6.1"))
    k = p.k
    parent = fork.attach(k, 0, [], None)
    p.call(mmap.sys_mmap(k, parent, BASE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS))
    p.call(memory.sys_fault(k, parent, BASE, PAGE, write=True))
    child: Task = p.call(fork.sys_fork(k, parent))
    p.call(memory.sys_fault(k, parent, BASE, PAGE, write=True))
    first, second = (k.tables.pte_offset(task.mm.pgd, BASE // PAGE) for task in (parent, child))
    mine, other = (int(k.c.pte[flat]) // PAGE for flat in (first, second))
    assert mine != other
    assert (k.c.mapping[mine], k.c.index[mine]) == (k.c.mapping[other], k.c.index[other])
    before = int(k.c.pte[first])
    k.c.pte[first] = before & ~PTE_PRESENT | PTE_MIGRATION
    again = reborn(k)
    assert int(again.c.pte[first]) == before
    assert int(again.c.pte[second]) // PAGE == other
    assert fsck(again) == []


def test_a_migration_that_had_moved_nothing_is_undone() -> None:
    """An entry that waits for a copy maps the page again where it is, with the right to write that it had."""
    p = Performer(a_machine("linux-6.1"))
    task = fork.attach(p.k, 0, [], None)
    p.call(mmap.sys_mmap(p.k, task, BASE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS))
    p.call(memory.sys_fault(p.k, task, BASE, PAGE, write=True))
    flat = p.k.tables.pte_offset(task.mm.pgd, BASE // PAGE)
    before = int(p.k.c.pte[flat])
    p.k.c.pte[flat] = before & ~PTE_PRESENT | PTE_MIGRATION
    again = reborn(p.k)
    assert int(again.c.pte[flat]) == before
    assert fsck(again) == []


def test_a_recovered_machine_goes_on() -> None:
    """Lives follow one another: recover, call, recover; no number is given twice."""
    p = machine_after(5, 40, "linux-6.1")
    for seed in range(20):
        before = p.k.next_pid
        p = Performer(p.k.topology, kernel=reborn(p.k))
        assert p.k.next_pid == before
        p._state = 2 * seed + 1  # noqa: SLF001 - as above
        for _ in range(10):
            tasks = list(p.k.tasks.values())
            with contextlib.suppress(MmError):
                p.call(random_call(p, tasks[p.draw(len(tasks))]))
        p.run()
        assert fsck(p.k) == [], f"seed {seed}"
    assert len(p.k.journal._bytes) == JOURNAL_BYTES  # noqa: SLF001 - as above
