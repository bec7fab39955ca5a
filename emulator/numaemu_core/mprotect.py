"""mprotect: what may be done with the pages of a range. Mirrors: mm/mprotect.c (2.6.15, 6.1)."""

import errno

import numpy as np

from numaemu_core import limits
from numaemu_core.effects import KernelTask, Shootdown
from numaemu_core.errors import MmError
from numaemu_core.gup import make_pages_present
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_LOCKED,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
    Mm,
    Task,
    VmArea,
)
from numaemu_core.mmap import calc_vm_prot_bits, page_align
from numaemu_core.page_table import (
    PTE_READABLE,
    PTE_WRITABLE,
    PTE_WRITE_RIGHTS,
    flats_of,
    is_migration,
    is_present,
    pte_lock_keys,
    vm_page_prot,
)
from numaemu_core.task_locks import down_write, spin_lock
from numaemu_core.uapi import PROT_EXEC, PROT_READ, PROT_WRITE
from numaemu_core.vma_flags import change_flags, each_vma

#: VM_MAYREAD and its like stand so many bits above VM_READ and its like.
_MAY_SHIFT = 4


def sys_mprotect(k: Kernel, task: Task, start: int, length: int, prot: int) -> KernelTask[int]:
    """Change what may be done with the pages of a range.

    Raises:
        MmError: EINVAL (unaligned, unknown bits), ENOMEM (a hole, or too many VMAs), EACCES (a shared mapping of a file
            that was opened for reading cannot be written to); what lies before it has changed.
    """
    size = page_align(k, length)
    if start & (k.page_size - 1) or prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC):
        raise MmError(errno.EINVAL, f"address {start:#x} is not page aligned, or prot {prot:#x} has unknown bits")
    if not length:
        return 0
    end = start + size
    if not size or end >= 1 << 64:
        raise MmError(errno.ENOMEM, "the range wraps around")
    new = calc_vm_prot_bits(prot)
    filled: list[tuple[int, int]] = []

    def fixup(vma: VmArea) -> VmArea:
        if new & ~(vma.vm_flags >> _MAY_SHIFT) & VM_ACCESS_FLAGS:
            raise MmError(errno.EACCES, f"the file mapped at {vma.vm_start:#x} was opened for reading")
        if _becomes_writable_and_locked(k, vma, new):
            filled.append((max(start, vma.vm_start), min(end, vma.vm_end)))
        return change_flags(k, vma, start, end, _new_flags(k, vma, new))

    with (yield from down_write(task.mm)):
        try:
            whole = each_vma(task.mm, start, end, fixup)
        finally:
            end = min(end, limits.TASK_SIZE_BYTES)
            k.journal.vmas(task.mm, min(start, end), end)
            yield from change_protection(k, task.mm, start, end)
            for low, high in filled:
                yield from make_pages_present(k, task, low, high)
    if not whole:
        raise MmError(errno.ENOMEM, "the range has a hole")
    return 0


def _becomes_writable_and_locked(k: Kernel, vma: VmArea, access: int) -> bool:
    """Is it private and locked, and to be written to from now on? Then no later write is to be a fault (4.2)."""
    locked_only = vma.vm_flags & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED
    return k.profile.mprotect_fills_locked and locked_only and access & VM_WRITE != 0


def _new_flags(k: Kernel, vma: VmArea, access: int) -> int:
    """The flags of a VMA with other rights; what may be written to is accounted for from then on (mprotect_fixup)."""
    flags = vma.vm_flags & ~VM_ACCESS_FLAGS | access
    if flags == vma.vm_flags:
        return flags
    if access & VM_WRITE:
        exempt = VM_ACCOUNT | VM_WRITE | VM_SHARED | VM_NORESERVE
        return flags if vma.vm_flags & exempt else flags | VM_ACCOUNT
    if k.profile.mprotect_unaccounts and vma.vm_file is None and vma.anon_vma is None:
        return flags & ~VM_ACCOUNT
    return flags


def change_protection(k: Kernel, mm: Mm, start: int, end: int) -> KernelTask[None]:
    """Entries follow their VMAs, then a shootdown; the right to write is earned anew by a fault."""
    taken = False
    for vma in mm.vmas.overlapping(start, end):
        first, last = max(start, vma.vm_start) >> k.page_shift, min(end, vma.vm_end) >> k.page_shift
        tables, bases = k.tables.pte_tables(mm.pgd, first, last)
        rights = np.uint64(vm_page_prot(vma) & PTE_READABLE)
        for part in range(0, len(tables), limits.PTE_LOCK_BATCH):
            batch = slice(part, part + limits.PTE_LOCK_BATCH)
            flats, _ = flats_of(tables[batch], bases[batch], first, last)
            with (yield from spin_lock(k, pte_lock_keys(flats))):
                entries = k.c.pte[flats]
                mapped = is_present(entries)
                k.c.pte[flats[mapped]] = entries[mapped] & ~np.uint64(PTE_READABLE | PTE_WRITABLE) | rights
                moving = is_migration(entries)  # gets the other rights from its VMA
                k.c.pte[flats[moving]] = entries[moving] & ~np.uint64(PTE_WRITE_RIGHTS)
            taken |= bool(mapped.any())
    if taken:
        yield Shootdown(frozenset([mm.id]))
