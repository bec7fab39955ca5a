"""madvise: what a range is needed for. Mirrors: mm/madvise.c (2.6.15, 6.1).

MADV_PAGEOUT came in 5.4 and is offered by every profile, because people who look at eviction want to ask for it.
"""

import errno
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, Bool
from numaemu_core.effects import KernelTask
from numaemu_core.errors import BusError, MmError, OutOfMemory
from numaemu_core.files import truncate_range
from numaemu_core.gup import faultin_page_range
from numaemu_core.kernel import Kernel
from numaemu_core.lru import isolate_lru_page, lru_lock_keys
from numaemu_core.memory import release_mappings, unmap_mapping_range, unmap_vmas
from numaemu_core.mempolicy import alloc_page_cache, alloc_page_vma
from numaemu_core.mm_types import (
    VM_DONTCOPY,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WRITE,
    Task,
    VmArea,
)
from numaemu_core.mmap import page_align
from numaemu_core.page_flags import LRU_INACTIVE, LRU_ON_LIST, PG_DIRTY, PG_LAZYFREE, PG_REFERENCED, PG_SWAPCACHE
from numaemu_core.page_lock import trylock_pages, unlock_pages
from numaemu_core.page_table import is_present, is_swapped, pte_lock_keys
from numaemu_core.rmap import linear_page_index
from numaemu_core.swap_state import free_page_and_swap_cache, free_swap_and_cache, remove_exclusive_swap_page
from numaemu_core.swapin import any_is_hosted, end_swap_bio_read, read_swap_cache_async
from numaemu_core.task_locks import down_write, spin_lock
from numaemu_core.uapi import (
    MADV_COLD,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
)
from numaemu_core.vma_flags import change_flags
from numaemu_core.vmscan import putback_lru_pages, swapout_pages

_OF_2005: Final = frozenset({MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_PAGEOUT})
_OF_TODAY: Final = _OF_2005 | {
    MADV_FREE,
    MADV_REMOVE,
    MADV_DONTFORK,
    MADV_DOFORK,
    MADV_COLD,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_DONTNEED_LOCKED,
}
_READAHEAD: Final = VM_SEQ_READ | VM_RAND_READ
#: Advice that changes flags of VMAs: (bits cleared, bits set).
_NEW_FLAGS: Final = {
    MADV_NORMAL: (_READAHEAD, 0),
    MADV_RANDOM: (_READAHEAD, VM_RAND_READ),
    MADV_SEQUENTIAL: (_READAHEAD, VM_SEQ_READ),
    MADV_DONTFORK: (0, VM_DONTCOPY),
    MADV_DOFORK: (VM_DONTCOPY, 0),
}
_POPULATE: Final = frozenset({MADV_POPULATE_READ, MADV_POPULATE_WRITE})
_OF_UNLOCKED_MEMORY: Final = frozenset({MADV_DONTNEED, MADV_PAGEOUT, MADV_COLD, MADV_FREE})


def sys_madvise(k: Kernel, task: Task, start: int, length: int, advice: int) -> KernelTask[int]:
    """Say what a range is needed for.

    DONTNEED drops its pages, PAGEOUT sends them to swap, WILLNEED reads them into the swap cache, REMOVE punches a hole
    into the file, POPULATE faults in.

    Raises:
        MmError: EINVAL (unaligned, unknown advice, a locked mapping), ENOMEM (a hole: the mapped parts are done),
            EACCES (REMOVE of what is not mapped shared and writable), EFAULT (POPULATE beyond the end of a file).
    """
    known = _OF_TODAY if k.profile.madvise_of_today else _OF_2005
    size = page_align(k, length)
    end = start + size
    if advice not in known or start & (k.page_size - 1) or (length and not size) or end >= 1 << 64:
        raise MmError(errno.EINVAL, f"range {start:#x} + {length} or advice {advice} is not valid")
    if not size:
        return 0
    with (yield from down_write(task.mm)):
        covered = 0
        for vma in task.mm.vmas.overlapping(start, min(end, limits.TASK_SIZE_BYTES)):
            low, high = max(start, vma.vm_start), min(end, vma.vm_end)
            if advice in _POPULATE and low != start + covered and k.profile.populate_ends_at_hole:
                break
            covered += high - low
            yield from _advise(k, task, vma, (low, high), advice)
    if covered < size:
        raise MmError(errno.ENOMEM, "the range has a hole")
    return 0


def _advise(k: Kernel, task: Task, vma: VmArea, span: tuple[int, int], advice: int) -> KernelTask[None]:
    """Follow advice in part of one VMA (madvise_vma)."""
    low, high = span
    if advice in _OF_UNLOCKED_MEMORY and vma.vm_flags & VM_LOCKED:
        raise MmError(errno.EINVAL, "the mapping is locked")
    if advice in _NEW_FLAGS:
        cleared, added = _NEW_FLAGS[advice]
        change_flags(k, vma, low, high, vma.vm_flags & ~cleared | added)
        k.journal.vmas(task.mm, low, high)
    elif advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
        yield from unmap_vmas(k, task.mm, low, high, free_tables=False)
    elif advice == MADV_PAGEOUT:
        yield from _madvise_pageout(k, vma, low, high)
    elif advice == MADV_COLD:
        yield from _madvise_cold(k, vma, low, high)
    elif advice == MADV_FREE:
        yield from _madvise_free(k, vma, low, high)
    elif advice == MADV_REMOVE:
        yield from _madvise_remove(k, vma, low, high)
    elif advice == MADV_WILLNEED and k.profile.madvise_of_today:
        yield from _madvise_willneed(k, task, vma, span)
    elif advice in _POPULATE:
        yield from _madvise_populate(k, task, vma, span, write=advice == MADV_POPULATE_WRITE)


def _own_pages(k: Kernel, vma: VmArea, start: int, end: int) -> tuple[I8, I8]:
    """Flat indexes and frames of the pages of a range that only this entry maps."""
    first, last = start >> k.page_shift, end >> k.page_shift
    flats, _, entries = k.tables.used_entries(vma.vm_mm.pgd, first, last)
    mapped = is_present(entries)
    flats, pfns = flats[mapped], (entries[mapped] >> np.uint64(k.page_shift)).astype(np.int64)
    own = (pfns != k.zero_pfn) & (k.c.mapcount[pfns] == 1)
    return flats[own], pfns[own]


def _still_map(k: Kernel, flats: I8, pfns: I8) -> Bool:
    """Which of these entries map these frames, now that their locks are held?"""
    entries = k.c.pte[flats]
    return np.asarray(is_present(entries) & (entries >> np.uint64(k.page_shift) == pfns.astype(np.uint64)))


def _madvise_pageout(k: Kernel, vma: VmArea, start: int, end: int) -> KernelTask[None]:
    """Evict the pages of a range that nobody else maps (5.4 madvise_cold_or_pageout_pte_range: old first).

    Where writes take their time, today's kernels do not wait for them: the pages stay in the swap cache.
    """
    flats, pfns = _own_pages(k, vma, start, end)
    flats, pfns = yield from _discard(k, vma, flats, pfns)
    if not len(pfns):
        return
    with (yield from spin_lock(k, [*pte_lock_keys(flats), *lru_lock_keys(k, pfns)])):
        same = _still_map(k, flats, pfns)
        k.c.accessed[flats[same]] = 0
        pfns = pfns[same]
        isolated = pfns[isolate_lru_page(k, pfns)]
    passes = limits.SWAPOUT_PASSES if k.profile.swap_synchronous else k.profile.pageout_passes
    left = yield from swapout_pages(k, isolated, passes)
    yield from putback_lru_pages(k, left)


def _discard(k: Kernel, vma: VmArea, flats: I8, pfns: I8) -> KernelTask[tuple[I8, I8]]:
    """Drop those of these pages that MADV_FREE gave up; gives the entries and frames of the others.

    One that was written to since counts as any other from now on, and stays this time (try_to_unmap_one, 6.1).
    """
    lazy = k.c.pg_flags[pfns] & PG_LAZYFREE != 0
    if not lazy.any():
        return flats, pfns
    mine = flats[lazy]
    with (yield from spin_lock(k, pte_lock_keys(mine))):
        entries = k.c.pte[mine]
        same = is_present(entries) & ((entries >> np.uint64(k.page_shift)).astype(np.int64) == pfns[lazy])
        clean = (k.c.dirty[mine] == 0) & (k.c.pg_flags[pfns[lazy]] & PG_DIRTY == 0)
        k.c.pg_flags[pfns[lazy][same & ~clean]] &= ~np.uint16(PG_LAZYFREE)
        gone = same & clean
        k.c.pte[mine[gone]] = 0
    if gone.any():
        yield from release_mappings(k, vma.vm_mm, pfns[lazy][gone], [])
    return flats[~lazy], pfns[~lazy]


def _madvise_cold(k: Kernel, vma: VmArea, start: int, end: int) -> KernelTask[None]:
    """Pages that nobody else maps become old and inactive (5.4 madvise_cold)."""
    flats, pfns = _own_pages(k, vma, start, end)
    if not len(pfns):
        return
    with (yield from spin_lock(k, [*pte_lock_keys(flats), *lru_lock_keys(k, pfns)])):
        same = _still_map(k, flats, pfns)
        flats, pfns = flats[same], pfns[same]
        k.c.accessed[flats] = 0
        k.c.pg_flags[pfns] &= ~np.uint16(PG_REFERENCED)
        listed = pfns[k.c.lru_state[pfns] & LRU_ON_LIST != 0]
        k.c.lru_state[listed] = LRU_INACTIVE


def _madvise_free(k: Kernel, vma: VmArea, start: int, end: int) -> KernelTask[None]:
    """Anonymous pages of a range need not be kept (4.5 madvise_free_pte_range): what is in swap is gone.

    Those in memory count as clean, and may be dropped, until they are written to. One whose swap slot others use, or
    that is dirty and shared, stays as it is.

    Raises:
        MmError: EINVAL: a mapping of a file.
    """
    if vma.vm_file is not None:
        raise MmError(errno.EINVAL, "MADV_FREE is for private anonymous memory")
    flats, _, _ = k.tables.used_entries(vma.vm_mm.pgd, start >> k.page_shift, end >> k.page_shift)
    if not len(flats):
        return
    with (yield from spin_lock(k, pte_lock_keys(flats))):
        entries = k.c.pte[flats]
        swapped = is_swapped(entries)
        k.c.pte[flats[swapped]] = 0
    numbers = (entries >> np.uint64(k.page_shift)).astype(np.int64)
    yield from free_swap_and_cache(k, numbers[swapped])
    cached = numbers[is_present(entries)]
    cached = cached[k.c.pg_flags[cached] & PG_SWAPCACHE != 0]
    got = cached[(yield from trylock_pages(k, cached))]
    yield from remove_exclusive_swap_page(k, got, references=2)
    yield from unlock_pages(k, got)
    yield from free_page_and_swap_cache(k, got)
    with (yield from spin_lock(k, pte_lock_keys(flats))):
        entries = k.c.pte[flats]
        pfns = (entries >> np.uint64(k.page_shift)).astype(np.int64)
        lazy = is_present(entries) & (pfns != k.zero_pfn)
        held = np.where(lazy, k.c.pg_flags[np.where(lazy, pfns, 0)], 0)
        shared = np.where(lazy, k.c.mapcount[np.where(lazy, pfns, 0)], 0) > 1
        lazy &= (held & PG_SWAPCACHE == 0) & ~((held & PG_DIRTY != 0) & shared)
        k.c.accessed[flats[lazy]] = 0
        k.c.dirty[flats[lazy]] = 0
        k.c.pg_flags[pfns[lazy]] = k.c.pg_flags[pfns[lazy]] & ~np.uint16(PG_DIRTY) | np.uint16(PG_LAZYFREE)


def _madvise_willneed(k: Kernel, task: Task, vma: VmArea, span: tuple[int, int]) -> KernelTask[None]:
    """Read what a range has in swap into the swap cache (6.1 madvise_willneed): policies of this moment place it."""
    first, last = span[0] >> k.page_shift, span[1] >> k.page_shift
    if vma.vm_file is None:
        _, vpns, entries = k.tables.used_entries(vma.vm_mm.pgd, first, last)
        by_vma = True
    elif vma.vm_file.is_shmem:
        indexes = linear_page_index(k, vma, np.arange(first, last))
        vpns = np.arange(first, last)[indexes < len(vma.vm_file.i_pages)]
        entries = vma.vm_file.i_pages[linear_page_index(k, vma, vpns)]
        by_vma = k.profile.willneed_knows_vma
    else:
        return
    slots = (entries >> np.uint64(k.page_shift)).astype(np.int64)
    missing = is_swapped(entries)
    missing[missing] = k.slot_frame[slots[missing]] < 0
    vpns, slots = vpns[missing], slots[missing]
    zero = any_is_hosted(k, slots)
    if by_vma:
        pfns = yield from alloc_page_vma(k, task, vma, vpns, zero=zero)
    else:
        pfns = yield from alloc_page_cache(k, task, len(vpns), zero=zero)
    read = yield from read_swap_cache_async(k, slots[: len(pfns)], pfns, zeroed=zero)
    yield from end_swap_bio_read(k, read)


def _madvise_remove(k: Kernel, vma: VmArea, start: int, end: int) -> KernelTask[None]:
    """Punch a hole into the file behind a range (madvise_remove); copies that were written privately stay.

    Raises:
        MmError: EINVAL (locked, or no file), EACCES (not mapped shared and writable), EOPNOTSUPP (a kind of file
            without holes).
    """
    if vma.vm_flags & VM_LOCKED or vma.vm_file is None:
        raise MmError(errno.EINVAL, "MADV_REMOVE is for mappings of files that are not locked")
    asked = VM_SHARED | (VM_MAYWRITE if k.profile.remove_asks_maywrite else VM_WRITE)
    if vma.vm_flags & asked != asked:
        raise MmError(errno.EACCES, "the mapping is not shared and writable")
    if not vma.vm_file.is_shmem:
        raise MmError(errno.EOPNOTSUPP, "only tmpfs has holes")
    ends = np.array([start, end]) >> k.page_shift
    first, last = linear_page_index(k, vma, ends).tolist()
    yield from unmap_mapping_range(k, vma.vm_file, first, last)
    yield from truncate_range(k, vma.vm_file, first, last)


def _madvise_populate(k: Kernel, task: Task, vma: VmArea, span: tuple[int, int], *, write: bool) -> KernelTask[None]:
    """Fault a range in, with errors (5.14 madvise_populate).

    Raises:
        MmError: EINVAL (the mapping does not allow it), EFAULT (beyond the end of the file), ENOMEM.
    """
    if not vma.vm_flags & (VM_WRITE if write else VM_READ):
        raise MmError(errno.EINVAL, "the mapping does not allow such an access")
    first, last = span[0] >> k.page_shift, span[1] >> k.page_shift
    try:
        yield from faultin_page_range(k, task, vma, first, last, write=write)
    except BusError as error:
        raise MmError(errno.EFAULT, error.detail) from None
    except OutOfMemory as error:
        raise MmError(errno.ENOMEM, error.detail) from None
