"""set_mempolicy_home_node: from which node a BIND or PREFERRED_MANY policy looks for the nearest one.

Mirrors: sys_set_mempolicy_home_node, mm/mempolicy.c (6.1).
"""

import errno
from dataclasses import replace

from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mbind_policy import mbind_range
from numaemu_core.mm_types import Task
from numaemu_core.mmap import page_align
from numaemu_core.task_locks import down_write
from numaemu_core.uapi import MPOL_BIND, MPOL_PREFERRED_MANY


def sys_set_mempolicy_home_node(
    k: Kernel, task: Task, start: int, length: int, home_node: int, flags: int
) -> KernelTask[int]:
    """Set the home node of the policies that VMAs of [start, start + length) have of their own.

    Raises:
        MmError: ENOSYS (before 5.17), EINVAL (unaligned, flags, no such node, wraps around), ENOENT (no VMA of the
            range has a policy), EOPNOTSUPP (one is neither BIND nor PREFERRED_MANY; those before it have changed),
            ENOMEM (too many VMAs).
    """
    if not k.profile.home_nodes:
        raise MmError(errno.ENOSYS, f"{k.profile.name} has no set_mempolicy_home_node")
    if start & (k.page_size - 1):
        raise MmError(errno.EINVAL, f"address {start:#x} is not page aligned")
    if flags:
        raise MmError(errno.EINVAL, f"flags {flags:#x}: there are none")
    if home_node >= k.profile.max_numnodes or not k.online >> home_node & 1:
        raise MmError(errno.EINVAL, f"node {home_node} is not online")
    end = (start + page_align(k, length)) & (1 << 64) - 1
    if end < start:
        raise MmError(errno.EINVAL, f"{start:#x} + {length} wraps around")
    if end == start:
        return 0
    with (yield from down_write(task.mm)):
        try:
            changed = _set_home(k, task, start, end, home_node)
        finally:
            k.journal.vmas(task.mm, start, end)
    if not changed:
        raise MmError(errno.ENOENT, "no mapping of the range has a policy of its own")
    return 0


def _set_home(k: Kernel, task: Task, start: int, end: int, home_node: int) -> bool:
    """Change the policies of a range; did any VMA have one?"""
    changed = False
    vma = task.mm.vmas.find_vma(start)
    while vma is not None and max(vma.vm_start, start) < end:
        low, high = max(start, vma.vm_start), min(end, vma.vm_end)
        if vma.vm_policy is not None:
            if vma.vm_policy.mode not in (MPOL_BIND, MPOL_PREFERRED_MANY):
                raise MmError(errno.EOPNOTSUPP, f"the mapping at {vma.vm_start:#x} has another policy")
            mbind_range(k, vma, low, high, replace(vma.vm_policy, home_node=home_node))
            changed = True
        vma, start = task.mm.vmas.find_vma(high), high
    return changed
