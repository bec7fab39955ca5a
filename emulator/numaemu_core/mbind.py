"""mbind: set the policy of a range, and move the pages that do not follow it.

Mirrors: do_mbind, mm/mempolicy.c of 2.6.14-rc4-mm1 with "Swap migration V3: MPOL_MF_MOVE interface" (October 2005), of
6.1 and of 6.12. The order of the checks is part of the behaviour: it decides which errno a call with several faults
gets.
"""

import errno
from collections.abc import Sequence

import numpy as np

from numaemu_core.check_range import MOVE_FLAGS, PageList, check_range
from numaemu_core.columns import I8, NO_INDEXES, Bool
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mbind_policy import MbindArguments, mbind_arguments, mbind_range
from numaemu_core.migrate import migrate_pages
from numaemu_core.migration_target import NewPages, new_pages_by_address, new_pages_by_index
from numaemu_core.mm_types import Task
from numaemu_core.nodemask import nodes_of
from numaemu_core.task_locks import down_write
from numaemu_core.uapi import MPOL_MF_STRICT
from numaemu_core.vmscan import putback_lru_pages, swapout_pages


def sys_mbind(
    k: Kernel, task: Task, start: int, length: int, mode: int, words: Sequence[int] | None, maxnode: int, flags: int
) -> KernelTask[int]:
    """Set the policy of [start, start + length) and, with MOVE, move its misplaced pages.

    The policy is set before anything moves, and stays set when EIO says that a page could not. In 2005 misplaced pages
    are sent to swap, today they are copied to where the policy says.

    Raises:
        MmError: see docs/semantics.md for the errors in their order.
    """
    asked = mbind_arguments(k, task, start, length, mode, words, maxnode, flags)
    if asked is None:
        return 0
    allowed = np.zeros(k.topology.nr_node_ids, np.bool_)
    allowed[list(nodes_of(asked.mask & k.online))] = True
    if k.profile.direct_migration:
        return (yield from _do_mbind_today(k, task, asked, allowed))
    return (yield from _do_mbind(k, task, asked, allowed))


def _do_mbind(k: Kernel, task: Task, asked: MbindArguments, allowed: Bool) -> KernelTask[int]:
    """do_mbind of 2005: mmap_sem is held for writing until the last page is out, swap I/O included.

    What was queued is evicted even if the policy could be set on part of the range only.
    """
    mm, start, end, flags = task.mm, asked.start, asked.end, asked.flags
    pagelist = PageList() if flags & MOVE_FLAGS else None
    failure: MmError | None = None
    left = NO_INDEXES
    with (yield from down_write(mm)):
        try:
            vma = yield from check_range(k, mm, start, end, allowed, flags, pagelist)
        except MmError as error:
            failure = error
            left = _queued(k, pagelist)
        else:
            try:
                mbind_range(k, vma, start, end, asked.new)
            except MmError as error:
                failure = error
            k.journal.vmas(mm, start, end)
            k.reach("isolation.collected")
            left = yield from swapout_pages(k, _queued(k, pagelist))
        if failure is None and len(left) and flags & MPOL_MF_STRICT:
            failure = MmError(errno.EIO, f"{len(left)} pages of the range could not leave")
        yield from putback_lru_pages(k, left)
    if failure is not None:
        raise failure
    return 0


def _do_mbind_today(k: Kernel, task: Task, asked: MbindArguments, allowed: Bool) -> KernelTask[int]:
    """do_mbind of 6.x: nothing moves unless the policy could be set on the whole range."""
    mm, start, end, flags = task.mm, asked.start, asked.end, asked.flags
    pagelist = PageList() if flags & MOVE_FLAGS else None
    left = NO_INDEXES
    with (yield from down_write(mm)):
        try:
            vma = yield from check_range(k, mm, start, end, allowed, flags, pagelist)
            try:
                mbind_range(k, vma, start, end, asked.new)
            finally:
                k.journal.vmas(mm, start, end)
        except MmError:
            yield from putback_lru_pages(k, _queued(k, pagelist))
            raise
        k.reach("isolation.collected")
        pfns = _queued(k, pagelist)
        new_pages = _new_pages(k, task, asked, pfns)
        if not k.profile.mbind_moves_unlocked:
            left = (yield from migrate_pages(k, pfns, new_pages)).left
    if k.profile.mbind_moves_unlocked:
        left = (yield from migrate_pages(k, pfns, new_pages)).left
    yield from putback_lru_pages(k, left)
    if flags & MPOL_MF_STRICT and (len(left) or (pagelist is not None and pagelist.unmovable)):
        raise MmError(errno.EIO, "some pages of the range could not be moved")
    return 0


def _queued(k: Kernel, pagelist: PageList | None) -> I8:
    return NO_INDEXES if pagelist is None else pagelist.pages(lifo=k.profile.pagelist_lifo)


def _new_pages(k: Kernel, task: Task, asked: MbindArguments, pfns: I8) -> NewPages:
    """Where misplaced pages get their new frames from."""
    if k.profile.move_targets_by_index:
        return new_pages_by_index(k, task, asked.new, (asked.start, asked.end), pfns)
    return new_pages_by_address(k, task, asked.start)
