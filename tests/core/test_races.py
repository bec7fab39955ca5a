"""Interleavings that once went wrong, each alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from numaemu_core import cpuset, files, fork, limits, madvise, memory, mlock, mmap, mprotect, mremap, vmscan
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError, OutOfMemory
from numaemu_core.fsck import fsck
from numaemu_core.kernel import Kernel
from numaemu_core.lru import isolate_lru_page, lru_lock_keys
from numaemu_core.mempolicy import sys_set_mempolicy
from numaemu_core.mm_types import Task
from numaemu_core.page_flags import FREE_UNCLEAN, PG_DIRTY, PG_SWAPCACHE
from numaemu_core.page_table import PTE_PRESENT, PTE_WRITABLE
from numaemu_core.performer import Performer
from numaemu_core.task_locks import spin_lock
from numaemu_core.topology import uniform
from numaemu_core.uapi import (
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_INTERLEAVE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)

Make = Callable[..., Any]

PAGE = 4096
ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_two_interleaved_faults_share_the_last_frames(first: int) -> None:
    """Of two tasks that together need more than two nodes have, one is killed and the other gets all that it needs."""
    for seed in range(first, first + 50):
        p = Performer(replace(uniform(2, "256K", "0", "swap-v3", PAGE), min_free_kbytes=0), seed)
        tasks = [fork.attach(p.k, cpu, [], None) for cpu in range(2)]
        running = []
        for task in tasks:
            p.call(sys_set_mempolicy(p.k, task, MPOL_INTERLEAVE, [3], 65))
            base = p.call(mmap.sys_mmap(p.k, task, 0, 100 * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS))
            running.append(p.start("faults", _fault_all(p.k, task, base)))
        p.run()
        killed = [task.killed for task in tasks]
        assert sorted(killed) == [False, True], f"seed {seed}"
        assert all(dead or one.error is None for one, dead in zip(running, killed, strict=True)), f"seed {seed}"
        assert all(one.error is None or isinstance(one.error, OutOfMemory) for one in running), f"seed {seed}"
        assert sum(zone.nr_free for zone in p.k.zones.values()) == 127 - 100, f"seed {seed}"
        assert fsck(p.k) == [], f"seed {seed}"


def _fault_all(k: Kernel, task: Task, base: int) -> KernelTask[None]:
    """Touch 100 pages."""
    done = 0
    while done < 100 * PAGE:
        done += yield from memory.sys_fault(k, task, base + done, 100 * PAGE - done, write=True)


@pytest.mark.parametrize("where", ["swap", "disk"])
def test_a_new_frame_may_be_locked_by_somebody_who_comes_too_late(machine: Make, where: str) -> None:
    """A task that slept for a page that is gone holds the lock of its frame for a moment; who gets it takes another."""
    m = machine(node=[{"memory": "256K", "cpus": [0]}], swap="256K", disk="256K")
    task = m.attach()
    if where == "swap":
        base = m.mmap(task, 3)
        m.touch(task, base, 3)
        m.call(madvise.sys_madvise(m.k, task, base, 3 * PAGE, MADV_PAGEOUT))
    else:
        files.create_file(m.k, "/data", "disk", 3 * PAGE)
        base = m.call(mmap.sys_mmap(m.k, task, 0, 3 * PAGE, PROT_READ, MAP_SHARED, "/data"))
    free = np.flatnonzero(m.k.c.free_state <= FREE_UNCLEAN)
    stale = free[free >= m.k.zones[0].cursor][:2]
    m.k.c.page_lock_owner[stale] = 99
    m.touch(task, base, 3, write=False)
    m.k.c.page_lock_owner[stale] = 0
    assert m.where(task, base, 3) == [0, 0, 0]
    assert not {m.entry(task, base + i * PAGE) // PAGE for i in range(3)} & set(stale.tolist())


def test_a_second_fork_copies_what_a_straggler_of_the_first_may_still_write(machine: Make) -> None:
    """A window that stays open over two forks is seen by neither child, though the entry lost its right long ago."""
    m = machine()
    task = m.attach()
    base = m.mmap(task, 2)
    m.touch(task, base, 2)
    m.poke(task, base, 7)
    frame = m.entry(task, base) // PAGE
    m.k.c.window_mm[0] = task.mm.id + 1
    m.k.c.window[0] = 1
    children = [m.call(fork.sys_fork(m.k, task)) for _ in range(2)]
    m.k.c.frames[frame, 0] = 99  # the straggler's store
    assert [m.peek(child, base) for child in children] == [7, 7]
    m.k.c.window[0] = 2
    m.k.c.window_mm[0] = 0


def test_a_call_that_waited_while_its_address_space_went_is_refused(machine: Make) -> None:
    """A call that comes to its turn after the last task's exit gets ESRCH, and writes nothing under freed tables."""
    m = machine()
    task = m.attach()
    base = m.mmap(task, 4)
    p = m.performer
    gone = p.start("exit", fork.sys_exit(m.k, task))
    calls = [
        p.start("mmap", mmap.sys_mmap(m.k, task, 0, 8 * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS)),
        p.start("fault", memory.sys_fault(m.k, task, base, 4 * PAGE, write=True)),
        p.start("fork", fork.sys_fork(m.k, task)),
        p.start("set_cpu", fork.sys_set_cpu(m.k, task, 1)),
    ]
    p.run()
    assert gone.error is None
    assert [call.error.errno for call in calls if call.error is not None] == [3, 3, 3, 3]


def test_an_mlock_that_fails_half_way_is_in_the_journal(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second split finds no room, what the first one did is told all the same."""
    m = machine()
    task = m.attach()
    base = m.mmap(task, 4)
    monkeypatch.setattr(limits, "MAX_MAP_COUNT", 2)
    with pytest.raises(MmError, match="at most 2 VMAs"):
        m.call(mlock.sys_mlock(m.k, task, base + PAGE, 2 * PAGE))
    assert len(task.mm.vmas) == 2


def test_the_exit_of_a_child_with_many_vmas_takes_them_out_one_by_one(machine: Make) -> None:
    """A child's VMAs leave the anon_vma that it shares with its parent, whose own stay."""
    m = machine()
    task = m.attach()
    base = m.mmap(task, 64)
    m.touch(task, base, 64)
    for page in range(0, 64, 2):
        m.call(mprotect.sys_mprotect(m.k, task, base + page * PAGE, PAGE, PROT_READ))
    child = m.call(fork.sys_fork(m.k, task))
    (anon_vma,) = m.k.anon_vmas.values()
    assert len(anon_vma.vmas) == 128
    m.call(fork.sys_exit(m.k, child))
    assert set(anon_vma.vmas) == set(task.mm.vmas)
    assert np.count_nonzero(m.k.c.mapcount > 1) == 0


def test_a_new_cpuset_passes_over_a_member_that_ends_meanwhile(machine: Make) -> None:
    """A forked child belongs to the cpuset of its parent: when it exits while the cpuset changes, that is no error."""
    m = machine(profile="linux-6.12", swap="1M", node=[{"memory": "1M", "cpus": [nid]} for nid in range(2)])
    task = m.attach()
    base = m.mmap(task, 4)
    m.touch(task, base, 4)
    m.call(cpuset.sys_set_cpuset(m.k, task, [3]))
    child = m.call(fork.sys_fork(m.k, task))
    m.k.c.window_mm[0], m.k.c.window[0] = child.mm.id + 1, 1
    holder = m.performer.start("protect", mprotect.sys_mprotect(m.k, child, base, PAGE, PROT_READ))
    m.performer.run(until=lambda: holder.ready is not None)  # for the window, with mmap_sem held
    gone = m.performer.start("exit", fork.sys_exit(m.k, child))
    m.performer.run(until=lambda: gone.ready is not None)
    change = m.performer.start("cpuset", cpuset.sys_set_cpuset(m.k, task, [2]))
    m.k.c.window[0] = 2
    m.performer.run()
    m.k.c.window_mm[0] = 0
    assert (gone.error, change.error) == (None, None)


def test_a_write_through_a_window_that_was_open_before_mremap_survives_an_eviction() -> None:
    """The page was clean, with its bytes in the swap area; who writes through the old entry has not written in vain."""
    p = Performer(replace(uniform(2, "256K", "256K", "swap-v3", PAGE), min_free_kbytes=0))
    k, c = p.k, p.k.c
    task = fork.attach(k, 0, [], None)
    base = p.call(mmap.sys_mmap(k, task, 0, PAGE, PROT_READ | PROT_WRITE, ANONYMOUS))
    p.call(memory.sys_fault(k, task, base, PAGE, write=True))
    p.call(madvise.sys_madvise(k, task, base, PAGE, MADV_PAGEOUT))
    p.call(memory.sys_fault(k, task, base, PAGE, write=False))
    old = k.tables.pte_offset(task.mm.pgd, base // PAGE)
    c.pte[old] |= np.uint64(PTE_WRITABLE)  # as an eviction leaves it that wrote the page and gave up
    pfn = int(c.pte[old]) // PAGE
    assert c.pg_flags[pfn] & (PG_SWAPCACHE | PG_DIRTY) == PG_SWAPCACHE
    c.window_mm[0] = task.mm.id + 1
    c.window[0] += 1
    target = base + (1 << 30)
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    moving = p.start("mremap", mremap.sys_mremap(k, task, base, PAGE, PAGE, flags, target))
    p.run(until=lambda: not c.pte[old])
    new = k.tables.pte_offset(task.mm.pgd, target // PAGE)
    p.start("evict", vmscan_one(k, pfn))
    p.run(until=lambda: not c.pte[new] & PTE_PRESENT)
    c.dirty[old] = 1  # the thread goes on
    c.frames[pfn] = 7
    c.window[0] += 1
    p.run()
    assert moving.result == target
    c.window_mm[0] = 0
    p.call(memory.sys_fault(k, task, target, PAGE, write=False))
    assert set(c.frames[int(c.pte[new]) // PAGE].tolist()) == {7}
    assert fsck(k) == []


def vmscan_one(k: Kernel, pfn: int) -> KernelTask[None]:
    """Reclaim takes this page."""
    pfns = np.array([pfn])
    with (yield from spin_lock(k, lru_lock_keys(k, pfns))):
        assert isolate_lru_page(k, pfns).all()
    left = yield from vmscan.swapout_pages(k, pfns)
    yield from vmscan.putback_lru_pages(k, left)
