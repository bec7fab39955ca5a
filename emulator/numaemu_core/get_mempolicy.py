"""get_mempolicy: which policy a task or an address has, or on which node a page is.

Mirrors: sys_get_mempolicy and lookup_node, mm/mempolicy.c (2.6.15, 6.1, 6.12). It stands apart from `mempolicy`
because it faults pages in, and faults ask `mempolicy`.
"""

import errno
from typing import Final

from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.interleave import interleaves, next_il_node
from numaemu_core.kernel import Kernel
from numaemu_core.memory import sys_fault
from numaemu_core.mempolicy import bind_zonelist, get_own_policy
from numaemu_core.mm_types import Task
from numaemu_core.nodemask import mask_of
from numaemu_core.page_table import PTE_PRESENT
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.task_locks import down_read
from numaemu_core.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_ADDR,
    MPOL_F_MEMS_ALLOWED,
    MPOL_F_NODE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
)

_ULONG_MAX: Final = (1 << 64) - 1
_WORD_BITS: Final = 64
#: Attempts to find a page in memory that was just faulted in, before it counts as one that does not stay.
_LOOKUPS_MAX: Final = 11


def sys_get_mempolicy(
    k: Kernel, task: Task, maxnode: int | None, addr: int, flags: int
) -> KernelTask[tuple[int, int | None]]:
    """The policy of the task or of the VMA at an address: (mode and its flags, or the node with NODE; mask).

    `maxnode` is None where the caller gives no mask (a NULL pointer); the mask is then None.

    Raises:
        MmError: EINVAL or EFAULT in the order of sys_get_mempolicy.
    """
    _check_arguments(k, maxnode, flags)
    if flags & MPOL_F_MEMS_ALLOWED:
        value, mask = 0, task.mems_allowed
    else:
        policy = yield from _policy_asked_for(k, task, addr, flags)
        value = yield from _value(k, task, policy, addr, flags)
        mask = policy_nodes(k, policy)
    if maxnode is None:
        return value, None
    if ((maxnode - 1 + _WORD_BITS - 1) & _ULONG_MAX) // _WORD_BITS * 8 > k.page_size:
        raise MmError(errno.EINVAL, f"a mask of {maxnode - 1} bits is longer than one page")
    return value, mask


def _check_arguments(k: Kernel, maxnode: int | None, flags: int) -> None:
    """What is wrong whatever the policy is; room for the mask first."""
    room = k.online.bit_length() if k.profile.get_mempolicy_counts_possible else k.profile.max_numnodes
    if maxnode is not None and maxnode < room:
        raise MmError(errno.EINVAL, f"maxnode {maxnode} is less than the {room} possible nodes")
    known = MPOL_F_NODE | MPOL_F_ADDR | (MPOL_F_MEMS_ALLOWED if k.profile.mems_allowed_flag else 0)
    if flags & ~known:
        raise MmError(errno.EINVAL, f"flags {flags:#x} hold more than {known:#x}")
    if flags & MPOL_F_MEMS_ALLOWED and flags != MPOL_F_MEMS_ALLOWED:
        raise MmError(errno.EINVAL, "MPOL_F_MEMS_ALLOWED stands alone")


def _policy_asked_for(k: Kernel, task: Task, addr: int, flags: int) -> KernelTask[Mempolicy | None]:
    """The policy of the task; with ADDR that of the page, which never falls back to the task's."""
    if not flags & MPOL_F_ADDR:
        if addr:
            raise MmError(errno.EINVAL, "an address without MPOL_F_ADDR")
        return task.policy
    with (yield from down_read(task.mm)):
        vma = task.mm.vmas.find_vma(addr)
        if vma is None or vma.vm_start > addr:
            raise MmError(errno.EFAULT, f"nothing is mapped at {addr:#x}")
        return get_own_policy(vma, vma.vm_pgoff + ((addr - vma.vm_start) >> k.page_shift))


def _value(k: Kernel, task: Task, policy: Mempolicy | None, addr: int, flags: int) -> KernelTask[int]:
    """What get_mempolicy stores where its first argument points: a mode or a node."""
    if not flags & MPOL_F_NODE:
        return MPOL_DEFAULT if policy is None else policy.mode | policy.flags
    if flags & MPOL_F_ADDR:
        return (yield from _lookup_node(k, task, addr))
    if not interleaves(policy):
        raise MmError(errno.EINVAL, "MPOL_F_NODE without MPOL_F_ADDR asks for a task that interleaves")
    return next_il_node(k, task)


def policy_nodes(k: Kernel, policy: Mempolicy | None) -> int:
    """The mask that get_mempolicy reports: what the user gave, if that is kept, or else the nodes in force.

    Mirrors: get_zonemask (2.6.15), get_policy_nodemask (6.x).
    """
    if policy is None or policy.mode == MPOL_LOCAL:
        return 0
    if policy.flags:
        return policy.user_nodes
    if policy.mode == MPOL_PREFERRED:
        return k.online if policy.preferred < 0 else mask_of([policy.preferred])
    if policy.mode == MPOL_BIND:
        return mask_of(bind_zonelist(k, policy))
    return policy.nodes


def _lookup_node(k: Kernel, task: Task, addr: int) -> KernelTask[int]:
    """The node of the page at an address, faulting it in for reading (lookup_node)."""
    start = addr & -k.page_size
    for _ in range(_LOOKUPS_MAX):
        yield from sys_fault(k, task, start, k.page_size, write=False)
        flat = k.tables.pte_offset(task.mm.pgd, start >> k.page_shift)
        entry = int(k.c.pte[flat]) if flat >= 0 else 0
        if entry & PTE_PRESENT:
            return int(k.nid_of_pfn[entry >> k.page_shift])
    raise MmError(errno.EFAULT, f"the page at {addr:#x} does not stay")
