"""The swap map: how many references each slot has; 0 is free. Guarded by the swap_lock, which every caller here holds.

Mirrors: mm/swapfile.c (2.6.15). Left out: priorities and several areas, the header slot.
"""

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Key, Rank
from numaemu_core.next_fit import next_fit

SWAP_LOCK: Key = (Rank.SWAP, 0)


def get_swap_pages(k: Kernel, count: int) -> I8:
    """Up to `count` free slots, consecutive where they can be, each with one reference (get_swap_page)."""
    if count >= k.nr_swap_pages:
        if k.usable_slots < k.layout.slot_count:
            k.strikes.found_full(None)
        count = k.nr_swap_pages
    if not count:
        return NO_INDEXES
    slots, k.slot_cursor = next_fit(k.c.swap_count[: k.usable_slots], 1, count, k.slot_cursor)
    k.c.swap_count[slots] = 1
    k.nr_swap_pages -= count
    return slots


def swap_duplicate(k: Kernel, slots: I8) -> None:
    """One reference more to each slot; no slot stands twice."""
    counts = k.c.swap_count[slots]
    assert (counts > 0).all()
    k.c.swap_count[slots] = np.minimum(counts + 1, limits.SWAP_MAP_MAX)


def swap_free(k: Kernel, slots: I8) -> None:
    """One reference less to each slot; no slot stands twice."""
    counts = k.c.swap_count[slots]
    assert (counts > 0).all()
    k.c.swap_count[slots] = counts - (counts < limits.SWAP_MAP_MAX)
    k.nr_swap_pages += int(np.count_nonzero(counts == 1))


def slots_over_half(k: Kernel) -> int:
    """How many slots must become free until vm_swap_full() is false: more than half of the area is in use.

    While it is, slots are given up as soon as their page is in memory, one after the other.
    """
    return max(0, -(-k.layout.slot_count // 2) - k.nr_swap_pages)
