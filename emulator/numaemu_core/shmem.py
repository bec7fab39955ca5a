"""tmpfs and shared anonymous memory: their pages go to the swap area and come back into the page cache.

The slot of a page stands in the object, which holds one reference of it. Mirrors: shmem_getpage and shmem_writepage,
mm/shmem.c (2.6.15); shmem_swapin_folio (6.1).
"""

import numpy as np

from numaemu_core.columns import I8
from numaemu_core.effects import KernelTask, WaitWriteback
from numaemu_core.install_page import make_entries
from numaemu_core.kernel import Kernel
from numaemu_core.mempolicy import alloc_page_object
from numaemu_core.mm_types import AddressSpace, Task
from numaemu_core.page_flags import PG_DIRTY, PG_SWAPCACHE, PG_UPTODATE, PG_WRITEBACK
from numaemu_core.page_lock import lock_some_pages, unlock_pages
from numaemu_core.page_table import PTE_PRESENT, is_swapped
from numaemu_core.rmap import swap_entries
from numaemu_core.swap_state import delete_from_swap_cache, free_page_and_swap_cache
from numaemu_core.swapfile import SWAP_LOCK, get_swap_pages, swap_duplicate, swap_free
from numaemu_core.swapin import any_is_hosted, end_swap_bio_read, read_swap_cache_async, readahead_slots
from numaemu_core.task_locks import spin_lock


def shmem_swapin(k: Kernel, task: Task | None, mapping: AddressSpace, indexes: I8) -> KernelTask[bool]:
    """Bring pages back into the page cache, on the node where the swap cache has them, or where the policy says.

    What readahead reads beside a page is placed as that page is. False where memory ran out.
    """
    while True:
        entries = mapping.i_pages[indexes]
        swapped = is_swapped(entries)
        if not swapped.any():
            return True
        indexes, entries = indexes[swapped], entries[swapped]
        slots = (entries >> np.uint64(k.page_shift)).astype(np.int64)
        missing = np.flatnonzero(k.slot_frame[slots] < 0)
        enough = True
        if len(missing):
            wanted, faults, _ = readahead_slots(k, slots[missing])
            zero = any_is_hosted(k, wanted)
            pfns = yield from alloc_page_object(k, task, mapping, indexes[missing][faults], zero=zero)
            enough = len(pfns) == len(wanted)
            read = yield from read_swap_cache_async(k, wanted[: len(pfns)], pfns, zeroed=zero)
            yield from end_swap_bio_read(k, read)
            k.count("pgmajfault", len(missing))
        pfns = k.slot_frame[slots]
        cached = np.flatnonzero(pfns >= 0)
        if len(cached):
            got = yield from lock_some_pages(k, pfns[cached])
            at = cached[got]
            yield from _move_from_swap_cache(k, mapping, indexes[at], slots[at], pfns[at])
        elif not enough:
            return False


def _move_from_swap_cache(k: Kernel, mapping: AddressSpace, indexes: I8, slots: I8, pfns: I8) -> KernelTask[None]:
    """Locked swap-cache pages become pages of the object again; their slots are free; unlock them."""
    if (k.c.pg_flags[pfns] & PG_WRITEBACK).any():
        yield WaitWriteback(pfns)
    with (yield from spin_lock(k, [SWAP_LOCK])):
        same = (k.slot_frame[slots] == pfns) & (mapping.i_pages[indexes] == swap_entries(k, slots))
        same &= k.c.pg_flags[pfns] & PG_UPTODATE != 0
        back = pfns[same]
        # From the second store on recovery takes the page for one of the page cache, whatever else is said of it.
        k.c.index[back] = indexes[same].astype(np.uint64)
        k.c.pg_flags[back] |= PG_DIRTY
        k.c.mapping[back] = mapping.id
        k.c.slot_mapping[slots[same]] = 0
        delete_from_swap_cache(k, back)
        swap_free(k, slots[same])
        mapping.i_pages[indexes[same]] = make_entries(k, back, PTE_PRESENT)
    yield from unlock_pages(k, pfns)
    yield from free_page_and_swap_cache(k, pfns[~same])


def shmem_writepage(k: Kernel, mapping: AddressSpace, pfns: I8) -> KernelTask[I8]:
    """Move locked, unmapped pages from the page cache to the swap cache, as long as there are slots; gives those moved.

    They stay locked and dirty: writing them is the swap cache's business.
    """
    with (yield from spin_lock(k, [SWAP_LOCK])):
        slots = get_swap_pages(k, len(pfns))
        moved = pfns[: len(slots)]
        swap_duplicate(k, slots)
        mapping.i_pages[k.c.index[moved].astype(np.int64)] = swap_entries(k, slots)
        # The slot's identity first, the frame's last: in between, the frame counts.
        k.c.slot_index[slots] = k.c.index[moved]
        k.c.slot_mapping[slots] = mapping.id
        k.c.private[moved] = slots
        k.c.pg_flags[moved] |= PG_SWAPCACHE | PG_DIRTY | PG_UPTODATE
        k.c.mapping[moved] = 0
        k.c.index[moved] = 0
        k.slot_frame[slots] = moved
    return moved
