"""Cpusets: which nodes a task may allocate from, and what a change of them does to policies and pages.

A cpuset is made for one task; the children that it forks belong to it until they get their own. Mirrors:
kernel/cpuset.c, and the rebind functions of mm/mempolicy.c (2.6.15; 6.1 and 6.12 with cgroup v2).
"""

import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.intents import note, noted
from numaemu_core.kernel import Kernel
from numaemu_core.migrate_pages import do_migrate_pages
from numaemu_core.mm_types import Mm, Task
from numaemu_core.nodemask import node_remap, nodes_of, nodes_relative, nodes_remap
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.task_locks import down_write
from numaemu_core.uapi import (
    MPOL_BIND,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_MF_MOVE_ALL,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
)

_WORD_BITS: Final = 64


def top_cpuset(k: Kernel) -> int:
    """The nodes of a task that is in no cpuset, as a mask."""
    return k.memory_nodes if k.profile.top_cpuset_has_memory else k.online


def mpol_rebind_policy(k: Kernel, policy: Mempolicy | None, old: int, new: int) -> Mempolicy | None:
    """What a policy becomes when the cpuset of its task changes from `old` to `new`.

    STATIC keeps the nodes that are allowed, RELATIVE those at the same positions, others go to the same positions; what
    would have no node left gets all. PREFERRED and PREFERRED_MANY stay as they are since 5.x, but forget the mask that
    the user gave: the kernel stores the cpuset in its place. So it does with that of a policy that is only BALANCING,
    which counts as the old cpuset before.
    """
    if policy is None or policy.mode == MPOL_LOCAL:
        return policy
    if k.profile.cpuset_remaps_preferred:
        return _rebind_of_2005(k, policy, old, new)
    keeps_mask = bool(policy.flags)
    if not keeps_mask and policy.cpuset_nodes == new:
        return policy
    kept = {"user_nodes": new} if keeps_mask else {"cpuset_nodes": new}
    if policy.mode in (MPOL_PREFERRED, MPOL_PREFERRED_MANY):
        return replace(policy, **kept)
    if policy.flags & MPOL_F_STATIC_NODES:
        return replace(policy, nodes=policy.user_nodes & new or new)
    if policy.flags & MPOL_F_RELATIVE_NODES:
        return replace(policy, nodes=nodes_relative(policy.user_nodes, new) or new)
    before = policy.user_nodes if keeps_mask else policy.cpuset_nodes  # one field in the kernel, whatever it holds
    return replace(policy, nodes=nodes_remap(policy.nodes, before, new) or new, **kept)


def _rebind_of_2005(k: Kernel, policy: Mempolicy, old: int, new: int) -> Mempolicy:
    """rebind_policy of 2.6.15: all by position; a BIND that would have no memory stays."""
    if policy.mode == MPOL_PREFERRED:
        return replace(policy, preferred=node_remap(policy.preferred, old, new))
    nodes = nodes_remap(policy.nodes, old, new)
    if policy.mode == MPOL_BIND and not nodes & k.memory_nodes:
        return policy
    return replace(policy, nodes=nodes)


def mpol_rebind_mm(k: Kernel, mm: Mm, old: int, new: int) -> KernelTask[None]:
    """The policies of all VMAs follow; those of shared objects do not."""
    with (yield from down_write(mm)):
        for vma in mm.vmas:
            after = mpol_rebind_policy(k, vma.vm_policy, old, new)
            if after is not vma.vm_policy:
                vma.vm_policy = after
                k.journal.vmas(mm, vma.vm_start, vma.vm_end)


def sys_set_cpuset(k: Kernel, task: Task, words: Sequence[int]) -> KernelTask[int]:
    """Put a task into a cpuset of its own with these nodes, or change the nodes of the one that it has.

    Gives how many CPUs the task may run on afterwards: attaching resets sched_setaffinity in 6.1. 2.6.15 would act at
    the next allocation of the task.

    Raises:
        MmError: ERANGE (a node that no machine has), EINVAL (6.x: a node that this machine does not have), ENOSPC
            (2.6.15: none that is there), ESRCH (the task has ended).
    """
    if k.tasks.get(task.pid) is not task:
        raise MmError(errno.ESRCH, f"task {task.pid} has ended")
    nodes = _cpuset_nodes(k, sum(word << (_WORD_BITS * i) for i, word in enumerate(words)))
    if (begun := noted(k)) is not None:
        _, attached, old = begun
    else:
        attached, old = task.cpuset != task.pid, task.mems_allowed
        note(k, ["cpuset", attached, old])
    task.cpuset = task.pid
    members = [member for member in k.tasks.values() if member.cpuset == task.pid]
    for member in members:
        _change_task_nodemask(k, member, nodes)
    if k.profile.cpuset_rebinds_vmas:
        for mm in dict.fromkeys(member.mm for member in members if not member.mm.dead):
            try:
                yield from mpol_rebind_mm(k, mm, old, nodes)
            except MmError:
                if not mm.dead:
                    raise
            if k.profile.cpuset_migrates and old != nodes and not mm.dead:
                yield from _cpuset_migrate_mm(k, mm, old, nodes)
    return len(k.cpu_node) if attached and k.profile.cpuset_resets_affinity else 1


def _cpuset_nodes(k: Kernel, mask: int) -> int:
    """The nodes of a new cpuset, checked (update_nodemask)."""
    if mask >> k.profile.max_numnodes:
        raise MmError(errno.ERANGE, f"a node above {k.profile.max_numnodes - 1}")
    if k.profile.cpuset_drops_unknown:
        if not mask & k.online:
            raise MmError(errno.ENOSPC, "a cpuset needs at least one node that is online")
        return mask & k.online
    if mask & ~k.online:
        missing = sorted(nodes_of(mask & ~k.online))
        raise MmError(errno.EINVAL, f"node {missing[0]} is not there")
    return mask & k.memory_nodes or k.memory_nodes


def _change_task_nodemask(k: Kernel, task: Task, nodes: int) -> None:
    """A task's own policy and its nodes change (cpuset_change_task_nodemask)."""
    old = task.mems_allowed
    if not k.profile.cpuset_rebinds_vmas and task.policy is not None and task.policy.mode == MPOL_INTERLEAVE:
        task.il_next = node_remap(task.il_next, old, nodes)
    task.policy = mpol_rebind_policy(k, task.policy, old, nodes)
    task.mems_allowed = nodes
    k.journal.task(task)


def _cpuset_migrate_mm(k: Kernel, mm: Mm, old: int, new: int) -> KernelTask[None]:
    """Pages on the old nodes go to the new ones, shared ones too; what finds no room stays (cpuset_migrate_mm)."""
    try:
        yield from do_migrate_pages(k, None, mm, old, new, MPOL_MF_MOVE_ALL)
    except MmError:  # a worker of the kernel does it, and tells nobody
        return
