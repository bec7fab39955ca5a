"""get_mempolicy: which policy a task or an address has, or on which node a page is.

Mirrors: sys_get_mempolicy, get_zonemask and lookup_node, mm/mempolicy.c (2.6.15). It stands apart from `mempolicy`
because it faults pages in, and faults ask `mempolicy`.
"""

import errno
from typing import Final

from numaemu_core import limits
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.memory import sys_fault
from numaemu_core.mempolicy import bind_zonelist
from numaemu_core.mm_types import Task
from numaemu_core.nodemask import mask_of
from numaemu_core.page_table import PTE_PRESENT
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.task_locks import down_read
from numaemu_core.uapi import MPOL_BIND, MPOL_DEFAULT, MPOL_F_ADDR, MPOL_F_NODE, MPOL_INTERLEAVE, MPOL_PREFERRED

_WORD_BITS: Final = 64
#: Attempts to find a page in memory that was just faulted in, before it counts as one that does not stay.
_LOOKUPS_MAX: Final = 11


def sys_get_mempolicy(
    k: Kernel, task: Task, maxnode: int | None, addr: int, flags: int
) -> KernelTask[tuple[int, int | None]]:
    """The policy of the task or of the VMA at an address: (mode, or the node with NODE; mask).

    `maxnode` is None where the caller gives no mask (a NULL pointer); the mask is then None.

    Raises:
        MmError: EINVAL or EFAULT in the order of 2.6.15 sys_get_mempolicy.
    """
    if maxnode is not None and maxnode < limits.MAX_NUMNODES:
        raise MmError(errno.EINVAL, f"maxnode {maxnode} is less than the {limits.MAX_NUMNODES} possible nodes")
    if flags & ~(MPOL_F_NODE | MPOL_F_ADDR):
        raise MmError(errno.EINVAL, f"flags {flags:#x} hold more than MPOL_F_NODE and MPOL_F_ADDR")
    policy = task.policy
    if flags & MPOL_F_ADDR:
        with (yield from down_read(task.mm)):
            vma = task.mm.vmas.find_vma(addr)
            if vma is None or vma.vm_start > addr:
                raise MmError(errno.EFAULT, f"nothing is mapped at {addr:#x}")
            policy = vma.vm_policy
    elif addr:
        raise MmError(errno.EINVAL, "an address without MPOL_F_ADDR")
    if flags & MPOL_F_NODE:
        if flags & MPOL_F_ADDR:
            value = yield from _lookup_node(k, task, addr)
        elif policy is not None and policy.mode == MPOL_INTERLEAVE:
            value = task.il_next
        else:
            raise MmError(errno.EINVAL, "MPOL_F_NODE without MPOL_F_ADDR asks for a task that interleaves")
    else:
        value = policy.mode if policy is not None else MPOL_DEFAULT
    mask = policy_nodes(k, policy) if maxnode is not None else None
    if maxnode is not None and -(-(maxnode - 1) // _WORD_BITS) * 8 > k.page_size:
        raise MmError(errno.EINVAL, f"a mask of {maxnode - 1} bits is longer than one page")
    return value, mask


def policy_nodes(k: Kernel, policy: Mempolicy | None) -> int:
    """The mask that get_mempolicy reports (2.6.15 get_zonemask)."""
    if policy is None:
        return 0
    if policy.mode == MPOL_PREFERRED:
        return k.online if policy.preferred < 0 else mask_of([policy.preferred])
    if policy.mode == MPOL_BIND:
        return mask_of(bind_zonelist(k, policy))
    return policy.nodes


def _lookup_node(k: Kernel, task: Task, addr: int) -> KernelTask[int]:
    """The node of the page at an address, faulting it in for reading (2.6.15 lookup_node)."""
    start = addr & -k.page_size
    for _ in range(_LOOKUPS_MAX):
        yield from sys_fault(k, task, start, k.page_size, write=False)
        flat = k.tables.pte_offset(task.mm.pgd, start >> k.page_shift)
        entry = int(k.c.pte[flat]) if flat >= 0 else 0
        if entry & PTE_PRESENT:
            return int(k.nid_of_pfn[entry >> k.page_shift])
    raise MmError(errno.EFAULT, f"the page at {addr:#x} does not stay")
