"""The system call migrate_pages: the pages of a whole task leave some nodes.

Mirrors: "Swap migration V3: sys_migrate_pages interface" (October 2005); kernel_migrate_pages, do_migrate_pages and
migrate_to_node, mm/mempolicy.c (6.1, 6.12).
"""

import contextlib
import errno
from collections.abc import Sequence
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.check_range import PageList, check_range
from numaemu_core.columns import Bool
from numaemu_core.cred import ptrace_may_access
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mbind_policy import MPOL_MF_DISCONTIG_OK
from numaemu_core.mempolicy import get_nodes
from numaemu_core.migrate import migrate_pages
from numaemu_core.migration_target import new_pages_on_node
from numaemu_core.mm_types import Mm, Task
from numaemu_core.nodemask import node_remap, nodes_of
from numaemu_core.task_locks import down_read
from numaemu_core.uapi import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL
from numaemu_core.vmscan import putback_lru_pages, swapout_pages

_FIRST_ADDRESS: Final = 0


def sys_migrate_pages(
    k: Kernel, task: Task, pid: int, maxnode: int, old_words: Sequence[int] | None, new_words: Sequence[int] | None
) -> KernelTask[int]:
    """Move the pages of a task (`pid` 0: the caller's own) from the old nodes; gives how many could not be moved.

    Policies stay as they are. In V3 the pages go to swap, and come back where the policies of that moment say: the new
    nodes only say what stays.

    Raises:
        MmError: EINVAL or EFAULT (a mask), ESRCH (no such task), EPERM (it is another's, or a new node is outside of
            its cpuset), EINVAL (today: no new node is in the caller's cpuset).
    """
    old, new = get_nodes(k, old_words, maxnode), get_nodes(k, new_words, maxnode)
    target = task if pid == 0 else k.tasks.get(pid)
    if target is None or target.exiting:
        raise MmError(errno.ESRCH, f"no task {pid}")
    if k.profile.migration_asks_ptrace and not ptrace_may_access(task, target):
        raise MmError(errno.EPERM, f"task {task.pid} may not look into task {pid}")
    if not k.profile.migrate_pages_pairs_nodes:
        if new & ~k.online:
            raise MmError(errno.EPERM, "a new node is not online")
        return (yield from _evict_from_nodes(k, target.mm, old & ~new))
    privileged = k.profile.move_all_capability in task.capabilities
    if new & ~target.mems_allowed and not privileged:
        raise MmError(errno.EPERM, f"a new node is outside of the cpuset of task {target.pid}")
    new &= task.mems_allowed
    if not new:
        raise MmError(errno.EINVAL, "no new node is in the cpuset of the caller")
    flags = MPOL_MF_MOVE_ALL if privileged else MPOL_MF_MOVE
    return (yield from do_migrate_pages(k, task, target.mm, old, new, flags))


def _evict_from_nodes(k: Kernel, mm: Mm, wrong: int) -> KernelTask[int]:
    """do_migrate_pages of V3: every page on a wrong node goes to swap; gives how many were queued and stayed.

    mmap_sem is held for reading only: other threads may fault pages back in meanwhile.
    """
    pagelist = PageList()
    with (yield from down_read(mm)):
        with contextlib.suppress(MmError):  # V3 does not look at what check_range says
            yield from _queue(k, mm, _all_but(k, wrong), MPOL_MF_MOVE, pagelist)
        left = yield from swapout_pages(k, pagelist.pages(lifo=k.profile.pagelist_lifo))
        return (yield from putback_lru_pages(k, left))


def do_migrate_pages(k: Kernel, task: Task | None, mm: Mm, old: int, new: int, flags: int) -> KernelTask[int]:
    """Move pages node by node, each to the node at its position; gives how many could not be moved.

    A node whose pages go to one that is itself still to be left has to wait. Where the sets differ in size, pages on a
    node that is in both stay. `task` is who asks, None: the kernel itself.
    """
    busy = 0
    waiting = old & k.online  # others have no page, are nobody's goal, and only count for the positions
    while waiting:
        source, dest = _next_pair(old, new, waiting)
        if source < 0:
            break
        waiting &= ~(1 << source)
        busy += yield from _migrate_to_node(k, task, mm, source, dest, flags)
    return busy


def _next_pair(old: int, new: int, waiting: int) -> tuple[int, int]:
    """The node to leave next, and where its pages go; (-1, 0) when no node is left to leave."""
    source, dest = -1, 0
    for nid in nodes_of(waiting):
        if old.bit_count() != new.bit_count() and new >> nid & 1:
            continue
        goal = node_remap(nid, old, new)
        if goal == nid:
            continue
        source, dest = nid, goal
        if not waiting >> dest & 1:
            break
    return source, dest


def _migrate_to_node(k: Kernel, task: Task | None, mm: Mm, source: int, dest: int, flags: int) -> KernelTask[int]:
    """Move what is on one node to another; gives how many pages stayed.

    Raises:
        MmError: ENOMEM: the other has no room.
    """
    pagelist = PageList()
    with (yield from down_read(mm)):
        if not len(mm.vmas):
            return 0
        yield from _queue(k, mm, _all_but(k, 1 << source), flags, pagelist)
        pfns = pagelist.pages(lifo=k.profile.pagelist_lifo)
        moved = yield from migrate_pages(k, pfns, new_pages_on_node(k, task, dest))
        yield from putback_lru_pages(k, moved.left)
    if moved.out_of_memory:
        raise MmError(errno.ENOMEM, f"node {dest} has no room")
    return len(moved.left) + (pagelist.unmovable if k.profile.unisolated_pages_count else 0)


def _queue(k: Kernel, mm: Mm, stay: Bool, flags: int, pagelist: PageList) -> KernelTask[None]:
    """Every page of an mm that is not on a node where it may stay."""
    yield from check_range(k, mm, _FIRST_ADDRESS, limits.TASK_SIZE_BYTES, stay, flags | MPOL_MF_DISCONTIG_OK, pagelist)


def _all_but(k: Kernel, nodes: int) -> Bool:
    """A bool a node id: all but these."""
    stay = np.ones(k.topology.nr_node_ids, np.bool_)
    stay[list(nodes_of(nodes & k.online))] = False
    return stay
