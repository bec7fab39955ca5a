"""The half of mbind that is about policy: its arguments in the order of their checks, and setting it on VMAs.

Mirrors: mm/mempolicy.c (2.6.14-rc4-mm1 with "Swap migration V3: MPOL_MF_MOVE interface", 6.1, 6.12). The order of the
checks is part of the behaviour: it decides which errno a call with several faults gets.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from numaemu_core import limits
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mempolicy import get_nodes, mpol_new, sanitize_mpol_flags
from numaemu_core.mm_types import Task, VmArea
from numaemu_core.mmap import page_align, split_vma, vma_merge
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.uapi import MPOL_DEFAULT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT

#: Internal: holes between VMAs are no error. Never accepted from a caller.
MPOL_MF_DISCONTIG_OK: Final = 1 << 20

_FLAGS: Final = MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL
_UINT_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class MbindArguments:
    """What a call of mbind asks for, once nothing but the address space can refuse it."""

    start: int
    end: int
    #: The mask as the user gave it: a page on none of its nodes is misplaced.
    mask: int
    #: The policy to set, None for MPOL_DEFAULT.
    new: Mempolicy | None
    #: STRICT (not with DEFAULT), MOVE, MOVE_ALL, and DISCONTIG_OK with DEFAULT.
    flags: int


def mbind_arguments(
    k: Kernel, task: Task, start: int, length: int, mode: int, words: Sequence[int] | None, maxnode: int, flags: int
) -> MbindArguments | None:
    """The arguments of mbind, checked; None where there is nothing to do, because the length is 0.

    6.x looks at the mode first; the kernel of 2005 reads the mask before anything else.

    Raises:
        MmError: see docs/semantics.md for the errors in their order.
    """
    mode_flags = 0
    if k.profile.mode_is_int:
        mode, mode_flags = sanitize_mpol_flags(k, mode)
    mask = get_nodes(k, words, maxnode)
    flags &= _UINT_MAX
    if flags & ~_FLAGS or mode > k.profile.mode_max:
        raise MmError(errno.EINVAL, f"mode {mode} or flags {flags:#x} are unknown")
    if flags & MPOL_MF_MOVE_ALL and k.profile.move_all_capability not in task.capabilities:
        raise MmError(errno.EPERM, f"MPOL_MF_MOVE_ALL needs {k.profile.move_all_capability}")
    if start & (k.page_size - 1):
        raise MmError(errno.EINVAL, f"address {start:#x} is not page aligned")
    if mode == MPOL_DEFAULT:
        flags &= ~MPOL_MF_STRICT
    end = (start + page_align(k, length)) & (1 << 64) - 1
    if end < start:
        raise MmError(errno.EINVAL, f"{start:#x} + {length} wraps around")
    if end == start:
        return None
    new = mpol_new(k, task, mode, mode_flags, mask)
    if new is None:
        flags |= MPOL_MF_DISCONTIG_OK
    return MbindArguments(start, end, mask, new, flags)


def check_holes(
    k: Kernel, vma: VmArea, previous: VmArea | None, following: VmArea | None, span: tuple[int, int], flags: int
) -> None:
    """Is the range [start, end) mapped in front of this VMA, and behind it as far as can be seen from here?

    The kernel of 2005 looks only between VMAs and above the last one: a hole at the head of the range passes, and one
    at its tail when a later VMA exists.

    Raises:
        MmError: EFAULT.
    """
    start, end = span
    if flags & MPOL_MF_DISCONTIG_OK:
        return
    if k.profile.holes_between_vmas_only:
        if following is None and vma.vm_end < end:
            raise MmError(errno.EFAULT, f"nothing is mapped from {vma.vm_end:#x} on")
        if previous is not None and previous.vm_end < vma.vm_start:
            raise MmError(errno.EFAULT, f"a hole at {previous.vm_end:#x}")
        return
    if previous is None and start < vma.vm_start:
        raise MmError(errno.EFAULT, f"a hole at {start:#x}")
    if vma.vm_end < end and (following is None or vma.vm_end < following.vm_start):
        raise MmError(errno.EFAULT, f"a hole at {vma.vm_end:#x}")


def mbind_range(k: Kernel, vma: VmArea | None, start: int, end: int, new: Mempolicy | None) -> None:
    """Set a policy on the VMAs of a range from `vma` on, splitting those that reach beyond it.

    Since 2.6.34 a VMA that has an equal policy is left alone, and what has become equal is merged first: the object of
    a VMA gets the policy for the pages of the VMAs that it is merged with, too.

    Raises:
        MmError: ENOMEM: too many VMAs; those before keep the new policy.
    """
    while vma is not None and vma.vm_start < end:
        if not (k.profile.mbind_merges_vmas and vma.vm_policy == new):
            if vma.vm_start < start:
                split_vma(k, vma, start, new_below=True)
            if vma.vm_end > end:
                split_vma(k, vma, end, new_below=False)
            if k.profile.mbind_merges_vmas:
                vma.vm_policy = new
                vma = vma_merge(k, vma)
            vma_replace_policy(k, vma, new)
        vma = vma.vm_mm.vmas.find_vma(vma.vm_end)


def vma_replace_policy(k: Kernel, vma: VmArea, new: Mempolicy | None) -> None:
    """Set the policy of a whole VMA, and that of the pages of its object where policies belong to objects.

    Raises:
        MmError: ENOMEM: objects have too many policies.
    """
    mapping = vma.vm_file
    if mapping is not None and mapping.is_shmem:
        ranges = sum(len(each.policy.ranges) for each in k.address_spaces.values())
        if new is not None and ranges + 2 > limits.MAX_SHARED_POLICIES:
            raise MmError(errno.ENOMEM, f"the objects of a machine have at most {limits.MAX_SHARED_POLICIES} policies")
        end = vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> k.page_shift)
        mapping.policy.set(vma.vm_pgoff, end, new)
        k.journal.policy(mapping, vma.vm_pgoff, end, new)
    vma.vm_policy = new
