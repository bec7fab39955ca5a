"""Eviction: sending isolated pages to the swap area.

Mirrors: swapout_pages and its helpers, "Swap migration V3: Page Eviction" (October 2005), and pageout, mm/vmscan.c
(2.6.15).

The life of a page in here, one pass each or all in one:

1. locked; 2. in the swap cache (a slot, PG_dirty); 3. unmapped: every entry names the slot; 4. written: PG_writeback,
the lock dropped; 5. clean, only the cache and the isolation know it: out of the cache, frame free. A page of tmpfs goes
over to the swap cache in place of 4, and on from there; one of a disk file is written to the file; a dirty one of ramfs
has nowhere to go.
"""

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, Bool
from numaemu_core.distinct import distinct
from numaemu_core.effects import Breathe, KernelTask, WaitWriteback, WritePages
from numaemu_core.filemap import disk_slots, remove_from_page_cache
from numaemu_core.kernel import Kernel
from numaemu_core.lru import add_to_list_heads, lru_cache_del, lru_lock_keys
from numaemu_core.mm_types import AddressSpace, FileKind
from numaemu_core.mmzone import free_pages
from numaemu_core.page_flags import (
    LRU_ISOLATED,
    LRU_ON_LIST,
    LRU_PG_ACTIVE,
    PAGE_MAPPING_FILE,
    PG_DIRTY,
    PG_HOSTED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
)
from numaemu_core.page_lock import lock_some_pages, trylock_pages, unlock_pages
from numaemu_core.rmap import page_count, try_to_unmap
from numaemu_core.shmem import shmem_writepage
from numaemu_core.swap_state import add_to_swap, delete_from_swap_cache, free_page_and_swap_cache
from numaemu_core.swapfile import SWAP_LOCK
from numaemu_core.task_locks import spin_lock


def swapout_pages(k: Kernel, pfns: I8, passes: int = limits.SWAPOUT_PASSES) -> KernelTask[I8]:
    """Evict isolated pages, in their order, in at most so many passes; gives those that stayed, still isolated.

    A pass goes over every page that is left, also over those that had failed; there is another one only if a page
    asked to be tried again.
    """
    for swap_pass in range(passes):
        retry = False
        kept: list[I8] = []
        done = 0
        while done < len(pfns):
            batch = pfns[done : done + k.batch_pages]
            done += len(batch)
            left, again = yield from _one_pass(k, batch, swap_pass)
            kept.append(left)
            retry |= again
            yield Breathe()
        pfns = np.concatenate([NO_INDEXES, *kept])
        if not retry:
            break
    return pfns


def _one_pass(k: Kernel, pfns: I8, swap_pass: int) -> KernelTask[tuple[I8, bool]]:
    """One pass over some pages; gives those that are left, in their order, and whether one wants another pass."""
    if swap_pass < limits.SWAPOUT_TRYLOCK_PASSES:
        got = yield from trylock_pages(k, pfns)
        again = not got.all()
        freed, retry = yield from _evict_locked(k, pfns[got], wait=swap_pass > 0)
        return pfns[~np.isin(pfns, freed)], again or retry
    again = False
    freed_parts: list[I8] = []
    todo = pfns
    while len(todo):
        got = yield from lock_some_pages(k, todo)
        freed, retry = yield from _evict_locked(k, todo[got], wait=True)
        freed_parts.append(freed)
        again |= retry
        todo = todo[~got]
    return pfns[~np.isin(pfns, np.concatenate([NO_INDEXES, *freed_parts]))], again


def _evict_locked(k: Kernel, pfns: I8, *, wait: bool) -> KernelTask[tuple[I8, bool]]:
    """Take locked pages as far as they go, and unlock them.

    Gives those that were freed, and whether one asks to be tried again.
    """
    live, retry = yield from _after_writeback(k, pfns, wait=wait)
    live = yield from _with_slots(k, live)
    unmapped = yield from _unmapped(k, live)
    retry |= not unmapped.all()
    yield from unlock_pages(k, live[~unmapped])
    live = live[unmapped]
    dirty = k.c.pg_flags[live] & PG_DIRTY != 0
    if dirty.any():
        yield from pageout(k, live[dirty])
        retry = True
        live = live[~dirty]
    freed = yield from remove_mapping(k, live)
    retry |= len(freed) < len(live)
    return freed, retry


def _after_writeback(k: Kernel, pfns: I8, *, wait: bool) -> KernelTask[tuple[I8, bool]]:
    """Step B: pages under writeback are waited for, or in the first pass left for the next."""
    busy = k.c.pg_flags[pfns] & PG_WRITEBACK != 0
    if not busy.any():
        return pfns, False
    if wait:
        yield WaitWriteback(pfns[busy])
        return pfns, False
    yield from unlock_pages(k, pfns[busy])
    return pfns[~busy], True


def _with_slots(k: Kernel, pfns: I8) -> KernelTask[I8]:
    """Step C: anonymous pages without a slot get one while there are any; the others have failed."""
    bare = np.flatnonzero((k.c.pg_flags[pfns] & PG_SWAPCACHE == 0) & (k.c.mapping[pfns] & PAGE_MAPPING_FILE == 0))
    if not len(bare):
        return pfns
    got = yield from add_to_swap(k, pfns[bare])
    k.reach("swap-out.slot_given")
    if got == len(bare):
        return pfns
    failed = np.zeros(len(pfns), np.bool_)
    failed[bare[got:]] = True
    yield from unlock_pages(k, pfns[failed])
    return pfns[~failed]


def _unmapped(k: Kernel, pfns: I8) -> KernelTask[Bool]:
    """Step D: which of these pages no entry maps now."""
    mapped = k.c.mapcount[pfns] > 0
    if not mapped.any():
        return ~mapped
    done = ~mapped
    done[mapped] = yield from try_to_unmap(k, pfns[mapped])
    k.reach("swap-out.unmapped")
    return done


def pageout(k: Kernel, pfns: I8) -> KernelTask[None]:
    """Step E: write dirty, unmapped pages, and drop their locks; who has other users is kept as it is.

    Mirrors: pageout, mm/vmscan.c (2.6.15).
    """
    idle = page_count(k, pfns) == 2  # its cache and the isolation  # noqa: PLR2004 - the kernel's own test
    yield from unlock_pages(k, pfns[~idle])
    pfns = pfns[idle]
    owners = k.c.mapping[pfns].astype(np.int64)
    in_swap_cache = pfns[owners & PAGE_MAPPING_FILE == 0]
    for owner in distinct(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
        moved = yield from _writepage_of_file(k, k.address_spaces[owner], pfns[owners == owner])
        in_swap_cache = np.concatenate((in_swap_cache, moved))
    yield from swap_writepage(k, in_swap_cache)


def _writepage_of_file(k: Kernel, mapping: AddressSpace, pfns: I8) -> KernelTask[I8]:
    """The writepage of an object; gives the pages that go on to the swap area, still locked."""
    if mapping.is_shmem:
        moved = yield from shmem_writepage(k, mapping, pfns)
        on = moved if k.profile.shmem_writepage_writes else NO_INDEXES
        yield from unlock_pages(k, pfns[~np.isin(pfns, on)])
        return on
    if mapping.kind is FileKind.DISK:
        k.c.pg_flags[pfns] = k.c.pg_flags[pfns] & ~np.uint16(PG_DIRTY) | np.uint16(PG_WRITEBACK)
        slots = disk_slots(k, mapping, k.c.index[pfns].astype(np.int64))
        yield from unlock_pages(k, pfns)
        yield WritePages(pfns, slots)
    else:
        yield from unlock_pages(k, pfns)
    return NO_INDEXES


def swap_writepage(k: Kernel, pfns: I8) -> KernelTask[None]:
    """Write locked swap-cache pages to their slots and drop their locks (mm/page_io.c swap_writepage, 2.6.15).

    A page whose slot only the cache knows needs no write: it gives the slot up.
    """
    if not len(pfns):
        return
    with (yield from spin_lock(k, [SWAP_LOCK])):
        alone = k.c.swap_count[k.c.private[pfns]] == 1
        delete_from_swap_cache(k, pfns[alone])
    out = pfns[~alone]
    k.c.slot_hosted[k.c.private[out]] = k.c.pg_flags[out] & PG_HOSTED != 0
    k.c.pg_flags[out] = k.c.pg_flags[out] & ~np.uint16(PG_DIRTY) | np.uint16(PG_WRITEBACK)
    k.reach("swap-out.writeback_set")
    yield from unlock_pages(k, pfns)
    if len(out):
        yield WritePages(out, k.c.private[out].astype(np.int64))
        k.reach("swap-out.write_asked")


def remove_mapping(k: Kernel, pfns: I8) -> KernelTask[I8]:
    """Steps G and H: clean pages that only their cache and the isolation know leave memory; gives them.

    All are unlocked.
    """
    if not len(pfns):
        return pfns
    with (yield from spin_lock(k, [SWAP_LOCK])):
        unused = (page_count(k, pfns) == 2) & (k.c.pg_flags[pfns] & (PG_DIRTY | PG_WRITEBACK) == 0)  # noqa: PLR2004 - as above
        swap_cached = k.c.pg_flags[pfns] & PG_SWAPCACHE != 0
        owners = np.where(swap_cached, 0, k.c.mapping[pfns]).astype(np.int64)
        of_file = owners & PAGE_MAPPING_FILE != 0
        freed = pfns[unused & (swap_cached | of_file)]
        delete_from_swap_cache(k, pfns[unused & swap_cached])
        for owner in distinct(owners[unused & of_file]).tolist():
            remove_from_page_cache(k, k.address_spaces[owner], pfns[unused & (owners == owner)])
    k.reach("swap-out.out_of_cache")
    yield from unlock_pages(k, pfns)
    if len(freed):
        yield from lru_cache_del(k, freed)
        yield from free_pages(k, freed)
        k.reach("swap-out.freed")
    return freed


def putback_lru_pages(k: Kernel, pfns: I8) -> KernelTask[int]:
    """Give isolated frames back to the heads of their lists, and free those that nobody uses any more; gives how many.

    Mirrors: putback_lru_pages, "Swap migration V4: LRU operations": the reference of the isolation is dropped.
    """
    if not len(pfns):
        return 0
    with (yield from spin_lock(k, lru_lock_keys(k, pfns))):
        assert (k.c.lru_state[pfns] & LRU_ISOLATED != 0).all()
        add_to_list_heads(k, pfns, (k.c.lru_state[pfns] & LRU_PG_ACTIVE | LRU_ON_LIST).astype(np.int64))
    k.reach("isolation.put_back")
    yield from free_page_and_swap_cache(k, pfns)
    return len(pfns)
