"""mprotect, mlock, madvise: calls that change VMAs, and what their pages may do.

Mirrors: mm/mprotect.c, mm/mlock.c, mm/madvise.c (2.6.15). MADV_PAGEOUT came in 5.4 and is taken from there, because
people who look at eviction want to ask for it. Left out: RLIMIT_MEMLOCK, MADV advice about files (accepted, does
nothing).
"""

import errno
from collections.abc import Callable
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.effects import KernelTask, Shootdown
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mbind import PageList, check_pgd_range
from numaemu_core.memory import make_pages_present, unmap_vmas
from numaemu_core.mm_types import VM_ACCESS_FLAGS, VM_LOCKED, Mm, Task, VmArea
from numaemu_core.mmap import calc_vm_prot_bits, page_align, split_vma, vma_merge
from numaemu_core.page_table import PTE_READABLE, PTE_WRITABLE, flats_of, is_present, pte_lock_keys, vm_page_prot
from numaemu_core.task_locks import down_write, spin_lock
from numaemu_core.uapi import (
    MADV_DONTNEED,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_WILLNEED,
    MCL_CURRENT,
    MCL_FUTURE,
    MPOL_MF_MOVE_ALL,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)
from numaemu_core.vmscan import putback_lru_pages, swapout_pages

_ADVICE_WITHOUT_EFFECT: Final = range(MADV_NORMAL, MADV_WILLNEED + 1)


def _change_flags(k: Kernel, vma: VmArea, start: int, end: int, vm_flags: int) -> VmArea:
    """Give [start, end) of a VMA other flags: split off, change, merge; gives the VMA that has the range now."""
    start, end = max(start, vma.vm_start), min(end, vma.vm_end)
    if vma.vm_start < start:
        split_vma(k, vma, start, new_below=True)
    if vma.vm_end > end:
        split_vma(k, vma, end, new_below=False)
    vma.vm_flags = vm_flags
    return vma_merge(k, vma)


def _each_vma(mm: Mm, start: int, end: int, change: Callable[[VmArea], VmArea]) -> bool:
    """Apply a change to the VMAs of a range in turn, up to the first hole; False where there was one."""
    address = start
    while address < end:
        vma = mm.vmas.find_vma(address)
        if vma is None or vma.vm_start > address:
            return False
        address = change(vma).vm_end
    return True


# -- mprotect ----------------------------------------------------------------------------------------------------------


def sys_mprotect(k: Kernel, task: Task, start: int, length: int, prot: int) -> KernelTask[int]:
    """Change what may be done with the pages of a range.

    Raises:
        MmError: EINVAL (unaligned, unknown bits), ENOMEM (a hole, or too many VMAs; what lies before it has changed).
    """
    size = page_align(k, length)
    if start & (k.page_size - 1) or prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC):
        raise MmError(errno.EINVAL, f"address {start:#x} is not page aligned, or prot {prot:#x} has unknown bits")
    end = start + size
    if end > limits.TASK_SIZE_BYTES:
        raise MmError(errno.ENOMEM, "the range lies beyond the address space")
    new = calc_vm_prot_bits(prot)
    with (yield from down_write(task.mm)):
        try:
            whole = _each_vma(
                task.mm,
                start,
                end,
                lambda vma: _change_flags(k, vma, start, end, vma.vm_flags & ~VM_ACCESS_FLAGS | new),
            )
        finally:
            k.journal.vmas(task.mm, start, end)
            yield from _change_protection(k, task.mm, start, end)
    if not whole:
        raise MmError(errno.ENOMEM, "the range has a hole")
    return 0


def _change_protection(k: Kernel, mm: Mm, start: int, end: int) -> KernelTask[None]:
    """Entries follow their VMAs, then a shootdown; the right to write is earned anew by a fault (change_protection)."""
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
            taken |= bool(mapped.any())
    if taken:
        yield Shootdown(frozenset([mm.id]))


# -- mlock -------------------------------------------------------------------------------------------------------------


def sys_mlock(k: Kernel, task: Task, start: int, length: int) -> KernelTask[int]:
    """Fault a range in and keep it: its pages cannot be unmapped.

    Raises:
        MmError: EINVAL (the range wraps), ENOMEM (a hole; what lies before it is locked).
    """
    return (yield from _do_mlock(k, task, start, length, lock=True))


def sys_munlock(k: Kernel, task: Task, start: int, length: int) -> KernelTask[int]:
    """Undo mlock for a range. Raises as sys_mlock."""
    return (yield from _do_mlock(k, task, start, length, lock=False))


def _do_mlock(k: Kernel, task: Task, start: int, length: int, *, lock: bool) -> KernelTask[int]:
    size = page_align(k, length + (start & (k.page_size - 1)))
    start &= -k.page_size
    end = start + size
    if end >= 1 << 64:
        raise MmError(errno.EINVAL, "the range wraps around")
    with (yield from down_write(task.mm)):
        whole = yield from _lock_range(k, task, start, end, lock=lock)
    if not whole:
        raise MmError(errno.ENOMEM, "the range has a hole")
    return 0


def _lock_range(k: Kernel, task: Task, start: int, end: int, *, lock: bool) -> KernelTask[bool]:
    """Set or clear VM_LOCKED up to the first hole, and fault in what is locked; False where there was a hole."""
    locked_bit = VM_LOCKED if lock else 0
    try:
        whole = _each_vma(
            task.mm, start, end, lambda vma: _change_flags(k, vma, start, end, vma.vm_flags & ~VM_LOCKED | locked_bit)
        )
    finally:
        k.journal.vmas(task.mm, start, min(end, limits.TASK_SIZE_BYTES))
    if lock:
        for vma in task.mm.vmas.overlapping(start, end):
            if vma.vm_flags & VM_LOCKED:
                yield from make_pages_present(k, task, max(start, vma.vm_start), min(end, vma.vm_end))
    return whole


def sys_mlockall(k: Kernel, task: Task, flags: int) -> KernelTask[int]:
    """Lock everything that is mapped (MCL_CURRENT), everything that will be (MCL_FUTURE).

    Raises:
        MmError: EINVAL: no flag, or others.
    """
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE):
        raise MmError(errno.EINVAL, f"flags {flags:#x} are not MCL_CURRENT, MCL_FUTURE or both")
    return (
        yield from _do_mlockall(k, task, future=bool(flags & MCL_FUTURE), current=bool(flags & MCL_CURRENT), lock=True)
    )


def sys_munlockall(k: Kernel, task: Task) -> KernelTask[int]:
    """Unlock everything, now and in future."""
    return (yield from _do_mlockall(k, task, future=False, current=True, lock=False))


def _do_mlockall(k: Kernel, task: Task, *, future: bool, current: bool, lock: bool) -> KernelTask[int]:
    mm = task.mm
    with (yield from down_write(mm)):
        mm.def_flags = VM_LOCKED if future else 0
        k.journal.mm(mm)
        for start, end in [(vma.vm_start, vma.vm_end) for vma in mm.vmas] if current else []:
            yield from _lock_range(k, task, start, end, lock=lock)
    return 0


# -- madvise -----------------------------------------------------------------------------------------------------------


def sys_madvise(k: Kernel, task: Task, start: int, length: int, advice: int) -> KernelTask[int]:
    """Say what a range is needed for; DONTNEED drops its pages, PAGEOUT sends them to swap.

    Raises:
        MmError: EINVAL (unaligned, unknown advice, a locked mapping), ENOMEM (a hole: the mapped parts are done).
    """
    size = page_align(k, length)
    end = start + size
    known = advice in _ADVICE_WITHOUT_EFFECT or advice in (MADV_DONTNEED, MADV_PAGEOUT)
    if start & (k.page_size - 1) or (length and not size) or end > limits.TASK_SIZE_BYTES or not known:
        raise MmError(errno.EINVAL, f"range {start:#x} + {length} or advice {advice} is not valid")
    if not size:
        return 0
    with (yield from down_write(task.mm)):
        vmas = task.mm.vmas.overlapping(start, end)
        covered = 0
        for vma in vmas:
            low, high = max(start, vma.vm_start), min(end, vma.vm_end)
            covered += high - low
            if advice in _ADVICE_WITHOUT_EFFECT:
                continue
            if vma.vm_flags & VM_LOCKED:
                raise MmError(errno.EINVAL, "the mapping is locked")
            if advice == MADV_DONTNEED:
                yield from unmap_vmas(k, task.mm, low, high, free_tables=False)
            else:
                yield from _madvise_pageout(k, vma, low, high)
    if covered < size:
        raise MmError(errno.ENOMEM, "the range has a hole")
    return 0


def _madvise_pageout(k: Kernel, vma: VmArea, start: int, end: int) -> KernelTask[None]:
    """Evict the pages of a range that nobody else maps (5.4 madvise_cold_or_pageout_pte_range: old first)."""
    pagelist = PageList()
    nowhere = np.zeros(limits.MAX_NUMNODES, np.bool_)
    span = (start >> k.page_shift, end >> k.page_shift)
    yield from check_pgd_range(k, vma, span, nowhere, MPOL_MF_MOVE_ALL, pagelist)
    pfns = pagelist.pages(lifo=False)
    shared = k.c.mapcount[pfns] > 1
    yield from putback_lru_pages(k, pfns[shared])
    left = yield from swapout_pages(k, pfns[~shared])
    yield from putback_lru_pages(k, left)
