"""The LRU of each node: which frames are on a list, which are isolated, and the order.

Order is a stamp that only grows, not a linked list: taking a thousand frames off is one masked write. The columns are
guarded by the node's lru_lock. Mirrors: mm/swap.c and mm/vmscan.c (2.6.15), "Swap migration V4: LRU operations". Left
out: the per-CPU batches of frames on their way to a list: a frame is on its list at once, as after a drain.
"""

from typing import TYPE_CHECKING

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, U8, Bool
from numaemu_core.distinct import distinct
from numaemu_core.effects import KernelTask
from numaemu_core.locks import Key, Rank
from numaemu_core.mmzone import Zone, node_lock_keys
from numaemu_core.page_flags import (
    LRU_ACTIVE,
    LRU_INACTIVE,
    LRU_ISOLATED,
    LRU_NONE,
    LRU_ON_LIST,
    LRU_PG_ACTIVE,
    PG_DIRTY,
    PG_REFERENCED,
    PG_WRITEBACK,
)
from numaemu_core.task_locks import spin_lock

if TYPE_CHECKING:
    from numaemu_core.kernel import Kernel


def lru_lock_keys(k: "Kernel", pfns: I8) -> list[Key]:
    """The lru_locks of the nodes of these frames, in the order in which they are taken."""
    return node_lock_keys(k, Rank.LRU, pfns)


def add_to_list_heads(k: "Kernel", pfns: I8, states: I8 | int) -> None:
    """Put frames at the heads of their lists, one after the other, so that the last is nearest; lru_locks are held."""
    k.c.lru_stamp[pfns] = np.arange(k.lru_clock, k.lru_clock + len(pfns), dtype=np.uint64)
    k.lru_clock += len(pfns)
    k.c.lru_state[pfns] = states


def lru_cache_add_active(k: "Kernel", pfns: I8) -> KernelTask[None]:
    """New pages go to the head of the active list (mm/swap.c lru_cache_add_active)."""
    with (yield from spin_lock(k, lru_lock_keys(k, pfns))):
        add_to_list_heads(k, pfns, LRU_ACTIVE)


def mark_page_accessed(k: "Kernel", pfns: I8) -> KernelTask[None]:
    """Somebody used these pages: PG_REFERENCED, and as the profile has it the second time the head of the active list.

    A page that stands several times was used so often. Mirrors: mark_page_accessed, mm/swap.c (2.6.15).
    """
    while len(pfns):
        used, first = np.unique(pfns, return_index=True)
        with (yield from spin_lock(k, lru_lock_keys(k, used))):
            again = (k.c.lru_state[used] == LRU_INACTIVE) & (k.c.pg_flags[used] & PG_REFERENCED != 0)
            again &= k.profile.uses_activate
            k.c.pg_flags[used[~again]] |= PG_REFERENCED
            k.c.pg_flags[used[again]] &= ~np.uint16(PG_REFERENCED)
            add_to_list_heads(k, used[again], LRU_ACTIVE)
        k.count("pgactivate", int(np.count_nonzero(again)))
        pfns = np.delete(pfns, first)


def isolate_lru_page(k: "Kernel", pfns: I8) -> Bool:
    """Take the frames that a call is about off their lists, if no fault on demand forbids it; True for those it got.

    A frame that is on no list (isolated by another, say) is "not movable now". The lru_locks are held.
    Mirrors: isolate_lru_page, "Swap migration V4: LRU operations"; results 1 and 0.
    """
    got = k.c.lru_state[pfns] & LRU_ON_LIST != 0
    if k.strikes.isolation is not None:
        got &= ~k.strikes.isolation.strike(k.nid_of_pfn[pfns], got)
    isolate_lru_pages(k, pfns[got])
    return np.asarray(got)


def isolate_lru_pages(k: "Kernel", pfns: I8) -> None:
    """Take frames off the lists that they are on; the lru_locks are held. PG_active stays as it was.

    Reclaim takes what there is, and no fault on demand is in its way (mm/vmscan.c has an isolate_lru_pages of its own).
    """
    k.c.lru_state[pfns] = k.c.lru_state[pfns] & LRU_PG_ACTIVE | LRU_ISOLATED
    k.reach("isolation.isolated")


def rotate_reclaimable_page(k: "Kernel", pfns: I8) -> KernelTask[None]:
    """Pages that reclaim had written go to the tail of the inactive list: next to be freed (mm/swap.c, 2.6.15)."""
    with (yield from spin_lock(k, lru_lock_keys(k, pfns))):
        idle = (k.c.lru_state[pfns] == LRU_INACTIVE) & (k.c.page_lock_owner[pfns] == 0)
        mine = pfns[idle & (k.c.pg_flags[pfns] & (PG_DIRTY | PG_WRITEBACK) == 0)]
        k.lru_tail -= len(mine)
        k.c.lru_stamp[mine] = np.arange(k.lru_tail, k.lru_tail + len(mine), dtype=np.uint64)
        for nid in distinct(k.nid_of_pfn[mine]).tolist():
            zone = k.zones[nid]
            zone.all_unreclaimable = False
            k.lru_tails.put_at_tail(k, zone, LRU_INACTIVE, mine[k.nid_of_pfn[mine] == nid])
    k.count("pgrotated", len(mine))


def lru_tail(k: "Kernel", listed: I8, count: int) -> I8:
    """The `count` last of these frames of one list, the very last one first; the lru_lock is held."""
    stamps = k.c.lru_stamp[listed]
    if count < len(listed):
        nearest = np.argpartition(stamps, count)[:count]
        listed, stamps = listed[nearest], stamps[nearest]
    return listed[np.argsort(stamps)]


class LruTails:
    """The frames that are last on each list, by node and list: remembered, so that not every batch sorts a whole node.

    A remembered frame that has left its list or moved on it no longer has the stamp that is beside it. Whatever joins a
    list at its head is behind all that is remembered; who puts frames at a tail says so.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: dict[tuple[int, int], tuple[I8, U8]] = {}

    def take(self, k: "Kernel", zone: Zone, state: int, count: int) -> I8:
        """Up to `count` frames from the end of a list, the very last one first; the lru_lock is held."""
        pfns, stamps = self._known.get((zone.nid, state), (NO_INDEXES, NO_INDEXES.astype(np.uint64)))
        valid = self._valid(k, pfns, stamps, state, count)
        if len(valid) < count:
            pfns, stamps = self._sorted_tail(k, zone, state, max(count, limits.LRU_TAIL_PAGES))
            valid = np.arange(min(count, len(pfns)))
        used = int(valid[-1]) + 1 if len(valid) else 0
        self._known[zone.nid, state] = pfns[used:], stamps[used:]
        return pfns[valid]

    @staticmethod
    def _valid(k: "Kernel", pfns: I8, stamps: U8, state: int, count: int) -> I8:
        """Positions of the first `count` remembered frames that are still where they were."""
        for reach in (4 * count, len(pfns)):
            near = pfns[:reach]
            valid = np.flatnonzero((k.c.lru_state[near] == state) & (k.c.lru_stamp[near] == stamps[:reach]))
            if len(valid) >= count:
                break
        return valid[:count]

    @staticmethod
    def _sorted_tail(k: "Kernel", zone: Zone, state: int, count: int) -> tuple[I8, U8]:
        """The last `count` frames of a list and their stamps, looked for in all of the node."""
        pfns = lru_tail(k, np.flatnonzero(k.c.lru_state[zone.first : zone.end] == state) + zone.first, count)
        return pfns, k.c.lru_stamp[pfns]

    def put_at_tail(self, k: "Kernel", zone: Zone, state: int, pfns: I8) -> None:
        """Frames of a node have just got stamps below all others of their list, ascending."""
        if (zone.nid, state) in self._known:
            known, stamps = self._known[zone.nid, state]
            self._known[zone.nid, state] = np.concatenate((pfns, known)), np.concatenate((k.c.lru_stamp[pfns], stamps))


def lru_cache_del(k: "Kernel", pfns: I8) -> KernelTask[None]:
    """Frames that are about to be freed leave their lists (mm/swap.c __page_cache_release)."""
    with (yield from spin_lock(k, lru_lock_keys(k, pfns))):
        k.c.lru_state[pfns] = LRU_NONE
