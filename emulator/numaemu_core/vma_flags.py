"""Changing the flags of part of an address space: split, change, merge; what mprotect, mlock and madvise share.

Mirrors: the fixup functions of mm/mprotect.c, mm/mlock.c and mm/madvise.c (2.6.15).
"""

from collections.abc import Callable

from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Mm, VmArea
from numaemu_core.mmap import split_vma, vma_merge


def change_flags(k: Kernel, vma: VmArea, start: int, end: int, vm_flags: int) -> VmArea:
    """Give [start, end) of a VMA other flags; gives the VMA that has the range now."""
    start, end = max(start, vma.vm_start), min(end, vma.vm_end)
    if vma.vm_flags == vm_flags:
        return vma
    if vma.vm_start < start:
        split_vma(k, vma, start, new_below=True)
    if vma.vm_end > end:
        split_vma(k, vma, end, new_below=False)
    vma.vm_flags = vm_flags
    return vma_merge(k, vma)


def each_vma(mm: Mm, start: int, end: int, change: Callable[[VmArea], VmArea]) -> bool:
    """Apply a change to the VMAs of a range in turn, up to the first hole; False where there was one."""
    address = start
    while address < end:
        vma = mm.vmas.find_vma(address)
        if vma is None or vma.vm_start > address:
            return False
        address = change(vma).vm_end
    return True
