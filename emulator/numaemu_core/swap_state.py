"""The swap cache: pages that have a slot, and whether slot or frame has the newer bytes.

A frame in the cache has PG_SWAPCACHE, its slot in `private`, and one reference of the slot. Mirrors: mm/swap_state.c
and mm/page_io.c (2.6.15). Pages come back in `swapin`.
"""

import numpy as np

from numaemu_core.columns import I8, Bool
from numaemu_core.effects import KernelTask
from numaemu_core.kernel import Kernel
from numaemu_core.lru import rotate_reclaimable_page
from numaemu_core.page_flags import PG_DIRTY, PG_LAZYFREE, PG_RECLAIM, PG_SWAPCACHE, PG_UPTODATE, PG_WRITEBACK
from numaemu_core.page_lock import trylock_pages, unlock_pages
from numaemu_core.rmap import page_count, pinned_pages, put_pages
from numaemu_core.swapfile import SWAP_LOCK, get_swap_pages, slots_over_half, swap_free
from numaemu_core.task_locks import spin_lock


def add_to_swap(k: Kernel, pfns: I8) -> KernelTask[int]:
    """Give slots to locked anonymous pages, in their order; gives how many got one (2.6.15 add_to_swap)."""
    with (yield from spin_lock(k, [SWAP_LOCK])):
        slots = get_swap_pages(k, len(pfns))
        mine = pfns[: len(slots)]
        k.c.private[mine] = slots
        k.c.pg_flags[mine] = k.c.pg_flags[mine] & ~np.uint16(PG_LAZYFREE) | np.uint16(
            PG_SWAPCACHE | PG_DIRTY | PG_UPTODATE
        )
        k.slot_frame[slots] = mine
    return len(slots)


def delete_from_swap_cache(k: Kernel, pfns: I8) -> None:
    """Locked pages leave the swap cache, which gives its references of their slots back; the swap_lock is held."""
    slots = k.c.private[pfns].astype(np.int64)
    k.slot_frame[slots] = -1
    k.c.pg_flags[pfns] &= ~np.uint16(PG_SWAPCACHE)
    swap_free(k, slots)


def remove_exclusive_swap_page(k: Kernel, pfns: I8, references: int, at_most: int | None = None) -> KernelTask[None]:
    """Drop the slots of locked pages that nobody else uses: the frame alone has the bytes then.

    `references` are those that a page has when only the swap cache and the caller know it; of these pages the first
    `at_most` give their slot up.
    Mirrors: remove_exclusive_swap_page, mm/swapfile.c (2.6.15).
    """
    flags = k.c.pg_flags[pfns]
    candidates = pfns[(flags & PG_SWAPCACHE != 0) & (flags & PG_WRITEBACK == 0)]
    if not len(candidates):
        return
    with (yield from spin_lock(k, [SWAP_LOCK])):
        alone = (page_count(k, candidates) == references) & (k.c.swap_count[k.c.private[candidates]] == 1)
        exclusive = candidates[alone & (k.c.pg_flags[candidates] & PG_SWAPCACHE != 0)][:at_most]
        k.c.pg_flags[exclusive] |= PG_DIRTY
        delete_from_swap_cache(k, exclusive)


def can_share_swap_page(k: Kernel, pfns: I8) -> Bool:
    """Is this mapping the only user of each locked page (mm/swapfile.c can_share_swap_page)? The swap_lock is held."""
    users = k.c.mapcount[pfns].astype(np.int64)
    cached = k.c.pg_flags[pfns] & PG_SWAPCACHE != 0
    slots = k.c.private[pfns[cached]]
    users[cached] += k.c.swap_count[slots].astype(np.int64) - 1
    return np.asarray(users == 1)


def free_page_and_swap_cache(k: Kernel, pfns: I8) -> KernelTask[None]:
    """Somebody let go of each of these pages (an entry, a lock, an isolation): free what is unused, slots too.

    Whoever finds a page locked leaves it to the holder of the lock, who ends with this.
    """
    while len(orphans := pfns[_is_orphan(k, pfns)]):
        got = yield from trylock_pages(k, orphans)
        if not got.any():
            break
        yield from remove_exclusive_swap_page(k, orphans[got], references=1)
        yield from unlock_pages(k, orphans[got])
    yield from put_pages(k, pfns)
    pinned = pinned_pages(k)
    if len(pinned):
        k.left_to_pins.update(pfns[np.isin(pfns, pinned) & (k.c.mapcount[pfns] == 0)].tolist())


def release_pages(k: Kernel, pfns: I8) -> KernelTask[None]:
    """This task lets go of what `get_pages` kept for it (mm/swap.c release_pages)."""
    k.page_refs[pfns] -= 1
    yield from free_page_and_swap_cache(k, pfns)


def release_unpinned(k: Kernel) -> KernelTask[None]:
    """Pins were cleared, or their client is gone: free what they alone had kept."""
    left = np.array(sorted(k.left_to_pins), np.int64)
    k.left_to_pins.clear()
    yield from free_page_and_swap_cache(k, left)


def _is_orphan(k: Kernel, pfns: I8) -> Bool:
    """Only the swap cache knows the page, and only the page its slot; looked at anew after each unlock.

    While one task holds the page lock, another may let go of the last entry and leave the page to it.
    """
    cached = k.c.pg_flags[pfns] & (PG_SWAPCACHE | PG_WRITEBACK) == PG_SWAPCACHE
    if not cached.any():
        return cached
    return cached & (k.c.swap_count[np.where(cached, k.c.private[pfns], 0)] == 1) & (page_count(k, pfns) == 1)


def free_swap_and_cache(k: Kernel, slots: I8) -> KernelTask[None]:
    """An entry that named each of these slots is gone (2.6.15 free_swap_and_cache)."""
    if not len(slots):
        return
    with (yield from spin_lock(k, [SWAP_LOCK])):
        swap_free(k, slots)
        only_cached = (k.c.swap_count[slots] == 1) & (k.slot_frame[slots] >= 0)
        pfns = k.slot_frame[slots[only_cached]]
    if not len(pfns):
        return
    got = yield from trylock_pages(k, pfns)
    mine = pfns[got]
    with (yield from spin_lock(k, [SWAP_LOCK])):
        flags = k.c.pg_flags[mine]
        still = (flags & PG_SWAPCACHE != 0) & (flags & PG_WRITEBACK == 0)
        still &= k.c.swap_count[k.c.private[mine]] == 1
        removable = mine[still]
        # Slot after slot: a page with other users goes only as long as swap is more than half full.
        gone = removable[(page_count(k, removable) == 1) | (np.arange(len(removable)) < slots_over_half(k))]
        k.c.pg_flags[gone] |= PG_DIRTY
        delete_from_swap_cache(k, gone)
    yield from unlock_pages(k, mine)
    yield from free_page_and_swap_cache(k, pfns)


def end_swap_write(k: Kernel, pfns: I8) -> None:
    """The swap node has confirmed a write: what is in the slots is what is in the frames (end_swap_bio_write)."""
    k.reach("swap-out.write_confirmed")
    wanted = pfns[k.c.pg_flags[pfns] & PG_RECLAIM != 0]
    k.c.pg_flags[pfns] &= ~np.uint16(PG_WRITEBACK | PG_RECLAIM)
    if len(wanted):
        k.spawn("rotate", rotate_reclaimable_page(k, wanted))
    to_swap = int(np.count_nonzero(k.c.pg_flags[pfns] & PG_SWAPCACHE))
    k.count("pswpout", to_swap)
    k.count("pgpgout", (len(pfns) - to_swap) * k.page_size // 1024)
    k.writes_ended += 1
    k.pages_changed = True
