"""The system call move_pages: single pages of a task, each to a node of its own; or where they are.

Mirrors: kernel_move_pages, do_pages_move and do_pages_stat, mm/migrate.c (6.1, 6.12).
"""

import errno
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from numaemu_core.columns import I8, U8
from numaemu_core.cred import ptrace_may_access
from numaemu_core.distinct import distinct
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Rank
from numaemu_core.lru import isolate_lru_pages
from numaemu_core.mempolicy import room_above_low
from numaemu_core.migrate import can_be_moved, migrate_pages
from numaemu_core.migration_target import new_pages_on_node
from numaemu_core.mm_types import Mm, Task, VmArea
from numaemu_core.page_flags import LRU_ON_LIST, PG_WRITEBACK
from numaemu_core.page_table import PTE_READABLE, is_present
from numaemu_core.rmap import is_cached, page_count
from numaemu_core.task_locks import down_read, spin_lock
from numaemu_core.uapi import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL
from numaemu_core.vmscan import putback_lru_pages
from numaemu_core.wire import STATUS_UNWRITTEN

I4 = npt.NDArray[np.int32]

#: Pages whose statuses are read and written together when nothing moves (DO_PAGES_STAT_CHUNK_NR).
_STAT_CHUNK: Final = 16
#: Changes of the target in a call that are not worth another way than the kernel's.
_RUNS_ONE_BY_ONE: Final = 16


def sys_move_pages(
    k: Kernel, task: Task, pid: int, count: int, addresses: U8, nodes: I4 | None, flags: int, *, writable: bool
) -> KernelTask[tuple[int, bytes | None]]:
    """Move `count` pages of a task (`pid` 0: the caller's own), each to its node; without nodes: where are they?

    `addresses` and `nodes` may end before `count`: the memory behind them cannot be read. `writable`: can statuses be
    written? Gives (0, the number of pages that did not move, or -errno; int32 a page as bytes: its node, -errno, or
    STATUS_UNWRITTEN). An error comes beside the statuses that were written before it.

    Raises:
        MmError: ENOSYS (the kernel of the profile is older).
    """
    if not k.profile.move_pages:
        raise MmError(errno.ENOSYS, "move_pages came with Linux 2.6.18")
    status = np.full(min(count, len(addresses)), STATUS_UNWRITTEN, np.int32)
    try:
        target = _find_mm_struct(k, task, pid, flags)
        call = _Call(k, task, target, count, addresses, flags, status, writable)
        result = yield from _do_pages_stat(call) if nodes is None else _do_pages_move(call, nodes)
    except MmError as refusal:
        result = -refusal.errno
    return result, status.astype("<i4").tobytes() if writable else None


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call works on."""

    k: Kernel
    task: Task
    target: Task
    count: int
    addresses: U8
    flags: int
    status: I4
    writable: bool

    def store_status(self, start: int, values: int | I8, count: int) -> None:
        """Write statuses (store_status). MmError(EFAULT): they cannot be written."""
        if count and not self.writable:
            raise MmError(errno.EFAULT, "the statuses cannot be written")
        self.status[start : start + count] = values


def _find_mm_struct(k: Kernel, task: Task, pid: int, flags: int) -> Task:
    """The task whose pages are meant (find_mm_struct).

    Raises:
        MmError: EINVAL, EPERM (flags); ESRCH; EPERM (it is another's).
    """
    if flags & ~(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        raise MmError(errno.EINVAL, f"flags {flags:#x} are unknown")
    if flags & MPOL_MF_MOVE_ALL and k.profile.move_all_capability not in task.capabilities:
        raise MmError(errno.EPERM, f"MPOL_MF_MOVE_ALL needs {k.profile.move_all_capability}")
    target = task if pid == 0 else k.tasks.get(pid)
    if target is None or target.exiting:
        raise MmError(errno.ESRCH, f"no task {pid}")
    if not ptrace_may_access(task, target):
        raise MmError(errno.EPERM, f"task {task.pid} may not look into task {pid}")
    return target


# -- where pages are ---------------------------------------------------------------------------------------------------


def _do_pages_stat(call: _Call) -> KernelTask[int]:
    """The node of each page; chunks of addresses of which one cannot be read are left out."""
    k, given = call.k, len(call.status)
    readable = given if given == call.count else given // _STAT_CHUNK * _STAT_CHUNK
    with (yield from down_read(call.target.mm)):
        pfns, status = _look_up(k, call.target.mm, call.addresses[:readable])
    status[pfns >= 0] = k.nid_of_pfn[pfns[pfns >= 0]]
    call.store_status(0, status, readable)
    if readable < call.count:
        raise MmError(errno.EFAULT, "the addresses cannot be read")
    return 0


def _look_up(k: Kernel, mm: Mm, addresses: U8) -> tuple[I8, I8]:
    """(the frame of each page, -1: none; why there is none, as -errno); mmap_sem is held."""
    pfns, status = np.full(len(addresses), -1), np.full(len(addresses), -errno.EFAULT)
    order = np.argsort(addresses, kind="stable")
    ascending = addresses[order]
    at = 0
    while at < len(order):
        vma = mm.vmas.find_vma(int(ascending[at]))
        if vma is None:
            break
        low, at = np.searchsorted(ascending, np.array([vma.vm_start, vma.vm_end], np.uint64)).tolist()
        inside = order[low:at]
        pfns[inside], status[inside] = _look_up_in_vma(k, vma, addresses[inside])
    return pfns, status


def _look_up_in_vma(k: Kernel, vma: VmArea, addresses: U8) -> tuple[I8, I8]:
    """Frames and reasons for pages of one VMA (follow_page with FOLL_DUMP, 6.1; folio_walk_start, 6.12).

    The zero page is EFAULT, what is in swap or on its way is ENOENT.
    """
    flats = k.tables.walk(vma.vm_mm.pgd, (addresses >> np.uint64(k.page_shift)).astype(np.int64))
    entries = np.where(flats >= 0, k.c.pte[flats], np.uint64(0))
    found = is_present(entries)
    if k.profile.move_pages_skips_prot_none:
        found &= entries & np.uint64(PTE_READABLE) != 0
    untouched = k.profile.untouched_page_status if vma.vm_file is None else errno.ENOENT
    pfns = np.where(found, (entries >> np.uint64(k.page_shift)).astype(np.int64), -1)
    status = np.where(entries == 0, -untouched, -errno.ENOENT)
    status[pfns == k.zero_pfn] = -errno.EFAULT
    pfns[pfns == k.zero_pfn] = -1
    return pfns, status


# -- moving them -------------------------------------------------------------------------------------------------------


def _do_pages_move(call: _Call, nodes: I4) -> KernelTask[int]:
    """Runs of pages with one target, one after the other, up to the first node that is none."""
    given = min(len(call.status), len(nodes))
    error = errno.EFAULT if given < call.count else 0
    wrong = _node_errors(call, nodes[:given])
    if wrong.any():
        given = int(np.flatnonzero(wrong)[0])
        error = int(wrong[given])
    done, left = yield from _move_together(call, nodes[:given].astype(np.int64))
    if left:
        return left + call.count - done
    for run in np.split(np.arange(done, given), np.flatnonzero(np.diff(nodes[done:given])) + 1):
        if len(run):
            last = error != 0 and int(run[-1]) == given - 1
            result = yield from _move_run(call, int(run[0]), int(run[-1]) + 1, int(nodes[run[0]]), quiet_end=last)
            if result:
                return result
    return -error


def _move_together(call: _Call, targets: I8) -> KernelTask[tuple[int, int]]:
    """Move the first pages of a call whose targets change often, as long as nothing can go wrong with them.

    Queue after queue would come to the same: the pages are different ones, on their lists, known to their entries
    alone, and every node has room. Gives how many entries of the call are done, and how many pages stayed all the same.
    """
    done = 0
    if np.count_nonzero(np.diff(targets)) < _RUNS_ONE_BY_ONE or not call.writable:
        return 0, 0
    while done < len(targets):
        part = targets[done : done + call.k.batch_pages]
        pfns, status = yield from _candidates(call, done, done + len(part), part)
        queue, goals = pfns[pfns >= 0], part[pfns >= 0]
        if not _nothing_is_in_the_way(call.k, queue, goals):
            break
        queued, refused = yield from _isolate(call.k, queue)
        if refused:
            yield from putback_lru_pages(call.k, queue[:queued])
            break
        left = 0
        for nid in distinct(goals).tolist():
            left += yield from _move(call, queue[goals == nid], nid)
        if left:
            return done + len(part), left
        call.store_status(done, np.where(pfns >= 0, part, status), len(part))
        done += len(part)
    return done, 0


def _nothing_is_in_the_way(k: Kernel, pfns: I8, targets: I8) -> bool:
    """Will all of these pages move, each to its target?"""
    if k.strikes.isolation is not None or k.strikes.migration is not None:
        return False
    alone = bool((page_count(k, pfns) == k.c.mapcount[pfns] + is_cached(k, pfns)).all())
    idle = not (k.c.pg_flags[pfns] & PG_WRITEBACK).any() and not k.c.page_lock_owner[pfns].any()
    different = len(distinct(pfns)) == len(pfns)
    nodes, counts = np.unique(targets, return_counts=True)
    room = all(room_above_low(k, nid) >= count for nid, count in zip(nodes.tolist(), counts.tolist(), strict=True))
    return alone and idle and different and room and bool(can_be_moved(k, pfns).all())


def _node_errors(call: _Call, nodes: I4) -> I8:
    """What is wrong with each node, as an errno: it has no memory, or is outside of the task's cpuset; 0: nothing."""
    errors = np.full(len(nodes), errno.ENODEV)
    for nid in call.k.zones:
        allowed = call.target.mems_allowed >> nid & 1
        errors[nodes == nid] = 0 if allowed else errno.EACCES
    return errors


def _move_run(call: _Call, start: int, end: int, node: int, *, quiet_end: bool) -> KernelTask[int]:
    """Move pages [start, end) of the call to one node; gives 0, or how many pages of the whole call did not move.

    Pages are queued up to the first that cannot be, whose status says why; then the queue is moved. A page that stands
    twice is busy while it is queued, and where it should be once it has moved. With `quiet_end` the call fails behind
    the run anyhow: what becomes of its last pages does not count.
    """
    k, at = call.k, start
    pfns, status = yield from _candidates(call, start, end, node)
    twice = len(distinct(pfns[pfns >= 0])) < np.count_nonzero(pfns >= 0)
    while at < end:
        queued, refused = yield from _isolate(k, pfns[at - start :])
        queue = pfns[at - start : at - start + queued]
        at += queued
        if refused:
            status[at - start], pfns[at - start] = -errno.EBUSY, -1
        try:
            left = yield from _store_and_move(call, queue, node, at, status[at - start : at - start + 1])
        except MmError:
            if at == end and quiet_end:
                return 0
            raise
        if left:
            return 0 if at == end and quiet_end else left + call.count - at - (at < end)
        again = np.flatnonzero(pfns[at - start :] >= 0)  # statuses up to the next page that may move are known
        skipped = 1 if twice else int(again[0]) if len(again) else end - at
        call.store_status(at, status[at - start : at - start + skipped], min(skipped, end - at))
        at += skipped
        if twice and at < end:
            pfns[at - start :], status[at - start :] = yield from _candidates(call, at, end, node)
    return 0


def _store_and_move(call: _Call, queue: I8, node: int, at: int, refusal: I8) -> KernelTask[int]:
    """Write the status of the page that ended a queue, if one did; move the queue; write its statuses.

    Gives how many stayed (move_pages_and_store_status).

    Raises:
        MmError: EFAULT (a status cannot be written; the queue has moved), ENOMEM (the node has no room).
    """
    failure: MmError | None = None
    try:
        call.store_status(at, refusal, len(refusal))
    except MmError as error:
        failure = error
    left = yield from _move(call, queue, node)
    if failure is not None:
        raise failure
    if not left:
        call.store_status(at - len(queue), node, len(queue))
    return left


def _candidates(call: _Call, start: int, end: int, node: int | I8) -> KernelTask[tuple[I8, I8]]:
    """(the frames that are to move to a node, or each to its own, -1: not this one; the statuses of those).

    Mirrors: add_page_for_migration.
    """
    k = call.k
    with (yield from down_read(call.target.mm)):
        pfns, status = _look_up(k, call.target.mm, call.addresses[start:end])
    found = pfns >= 0
    there = found & (k.nid_of_pfn[pfns] == node)
    shared = found & ~there & (k.c.mapcount[pfns] > 1) & (not call.flags & MPOL_MF_MOVE_ALL)
    status = np.where(there, node, status)
    status[shared] = -errno.EACCES
    pfns[there | shared] = -1
    return pfns, status


def _isolate(k: Kernel, pfns: I8) -> KernelTask[tuple[int, bool]]:
    """Isolate the frames up to the first -1; gives how many, and whether one was in the way that could not be."""
    none = np.flatnonzero(pfns < 0)
    wanted = pfns[: int(none[0])] if len(none) else pfns
    if not len(wanted):
        return 0, False
    with (yield from spin_lock(k, [(Rank.LRU, nid) for nid in distinct(k.nid_of_pfn[wanted]).tolist()])):
        first = np.zeros(len(wanted), np.bool_)
        first[np.unique(wanted, return_index=True)[1]] = True
        can = first & (k.c.lru_state[wanted] & LRU_ON_LIST != 0)
        count = len(wanted) if can.all() else int(np.flatnonzero(~can)[0])
        if k.strikes.isolation is not None:
            struck = k.strikes.isolation.strike(k.nid_of_pfn[wanted[:count]], can[:count], first_only=True)
            count = int(np.flatnonzero(struck)[0]) if struck.any() else count
        isolate_lru_pages(k, wanted[:count])
    return count, count < len(wanted)


def _move(call: _Call, pfns: I8, node: int) -> KernelTask[int]:
    """Move isolated pages; gives how many stayed (do_move_pages_to_node).

    Raises:
        MmError: ENOMEM: the node has no room.
    """
    if not len(pfns):
        return 0
    moved = yield from migrate_pages(call.k, pfns, new_pages_on_node(call.k, call.task, node))
    yield from putback_lru_pages(call.k, moved.left)
    if moved.out_of_memory:
        raise MmError(errno.ENOMEM, f"node {node} has no room")
    return len(moved.left)
