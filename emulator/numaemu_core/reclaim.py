"""Reclaim: which pages leave memory when it gets short, and who makes them leave.

Mirrors: shrink_zone, refill_inactive_zone, shrink_list, try_to_free_pages, balance_pgdat, mm/vmscan.c (2.6.15); where
6.x decides otherwise, a field of the profile says so. Left out: slab, the swap token, laptop mode, the ages of today's
workingset code.

A page gets a second chance twice: referenced pages return from the tail of the active list to its head, and from the
inactive list to the active one. What remains is evicted by the functions of `vmscan`, written if it is dirty, and freed
when reclaim meets it again after the write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, Bool
from numaemu_core.effects import Breathe, KernelTask, Nap, SpinBusy
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Rank
from numaemu_core.lru import add_to_list_heads, isolate_lru_page, lru_lock_keys
from numaemu_core.mm_types import VM_LOCKED
from numaemu_core.mmzone import Zone
from numaemu_core.page_flags import (
    LRU_ACTIVE,
    LRU_INACTIVE,
    LRU_ISOLATED,
    PAGE_MAPPING_FILE,
    PG_DIRTY,
    PG_RECLAIM,
    PG_REFERENCED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
)
from numaemu_core.page_lock import trylock_pages, unlock_pages
from numaemu_core.page_table import is_present, pte_lock_keys
from numaemu_core.rmap import Mapper, page_count, pinned_pages, rmap_walk, try_to_unmap
from numaemu_core.swap_state import add_to_swap, free_page_and_swap_cache
from numaemu_core.task_locks import spin_lock
from numaemu_core.vmscan import pageout, remove_mapping


@dataclass(slots=True)
class ScanControl:
    """What one run of reclaim has done (struct scan_control). `who` is "kswapd" or "direct"."""

    who: str
    #: Frames of the machine that somebody maps, as the run began.
    nr_mapped: int
    nr_scanned: int = 0
    nr_reclaimed: int = 0


def begin_scan(k: Kernel, who: str) -> ScanControl:
    """A run of reclaim begins."""
    return ScanControl(who, int(np.count_nonzero(k.c.mapcount)))


# -- who reclaims ------------------------------------------------------------------------------------------------------


def try_to_free_pages(k: Kernel, nodes: Sequence[int]) -> KernelTask[int]:
    """Direct reclaim: free pages of the zones of a zonelist; gives how many, 0: there is nothing to be had.

    2.6.15 counts fewer than 32 as none; here a page is a page, for machines of a few hundred of them.
    """
    k.count("allocstall")
    control = begin_scan(k, "direct")
    for priority in range(limits.DEF_PRIORITY, -1, -1):
        for nid in nodes:
            zone = k.zones[nid]
            if zone.all_unreclaimable and priority != limits.DEF_PRIORITY:  # left to kswapd
                continue
            zone.prev_priority = min(zone.prev_priority, priority)
            yield from shrink_zone(k, zone, priority, control)
        if control.nr_reclaimed >= limits.SWAP_CLUSTER_MAX:
            break
        if control.nr_scanned and priority < limits.DEF_PRIORITY - 2:
            yield Nap()
        else:
            yield Breathe()
    for nid in nodes:
        k.zones[nid].prev_priority = limits.DEF_PRIORITY if control.nr_reclaimed else 0
    return control.nr_reclaimed


def is_on_its_way(k: Kernel, nodes: Sequence[int]) -> bool:
    """Is some page of these nodes in the hands of another task, or being written? It may be free soon."""
    for nid in nodes:
        zone = slice(k.zones[nid].first, k.zones[nid].end)
        if (k.c.lru_state[zone] & LRU_ISOLATED).any() or (k.c.pg_flags[zone] & PG_WRITEBACK).any():
            return True
    return False


def balance_pgdat(k: Kernel, nid: int) -> KernelTask[int]:
    """One step of a node's kswapd: reclaim until its zone is above pages_high or 32 pages are free; gives how many.

    0: it is balanced, or nothing could be freed.
    """
    zone = k.zones[nid]
    k.count("pageoutrun")
    control = begin_scan(k, "kswapd")
    zone.prev_priority = limits.DEF_PRIORITY
    for priority in range(limits.DEF_PRIORITY, -1, -1):
        if zone.nr_free >= zone.pages_high or control.nr_reclaimed >= limits.SWAP_CLUSTER_MAX:
            break
        if zone.all_unreclaimable and priority != limits.DEF_PRIORITY:
            continue
        zone.prev_priority = priority
        yield from shrink_zone(k, zone, priority, control)
        if zone.pages_scanned >= 4 * nr_lru_pages(k, zone):
            zone.all_unreclaimable = True
        if control.nr_scanned and priority < limits.DEF_PRIORITY - 2:
            yield Nap()
        else:
            yield Breathe()
    return control.nr_reclaimed


def kswapd(k: Kernel, nid: int) -> KernelTask[None]:
    """All steps of a kswapd from when it is woken until it sleeps again, for performers without node processes."""
    fruitless = 0
    while k.zones[nid].nr_free < k.zones[nid].pages_high and fruitless < limits.MAX_RECLAIM_RETRIES:
        freed = yield from balance_pgdat(k, nid)
        fruitless = 0 if freed else fruitless + 1


def nr_lru_pages(k: Kernel, zone: Zone) -> int:
    """Pages on both lists of a zone."""
    states = k.c.lru_state[zone.first : zone.end]
    return int(np.count_nonzero((states == LRU_ACTIVE) | (states == LRU_INACTIVE)))


# -- one zone ----------------------------------------------------------------------------------------------------------


def shrink_zone(k: Kernel, zone: Zone, priority: int, control: ScanControl) -> KernelTask[None]:
    """Scan a part of a zone's lists, the larger the lower the priority; stops once 32 pages are freed."""
    if k.profile.anon_scanned_with_swap_only and not _has_reclaimable_pages(k, zone):
        return
    states = k.c.lru_state[zone.first : zone.end]
    zone.nr_scan_active += (int(np.count_nonzero(states == LRU_ACTIVE)) >> priority) + 1
    zone.nr_scan_inactive += (int(np.count_nonzero(states == LRU_INACTIVE)) >> priority) + 1
    nr_active = nr_inactive = 0
    batch = min(limits.SWAP_CLUSTER_MAX, zone.present_pages // limits.SCAN_BATCHES_OF_ZONE)
    if zone.nr_scan_active >= batch:
        nr_active, zone.nr_scan_active = zone.nr_scan_active, 0
    if zone.nr_scan_inactive >= batch:
        nr_inactive, zone.nr_scan_inactive = zone.nr_scan_inactive, 0
    before = control.nr_reclaimed
    while nr_active or nr_inactive:
        if nr_active:
            part = min(nr_active, limits.SWAP_CLUSTER_MAX)
            nr_active -= part
            yield from refill_inactive_zone(k, zone, part, control)
        if nr_inactive:
            part = min(nr_inactive, limits.SWAP_CLUSTER_MAX)
            nr_inactive -= part
            yield from shrink_cache(k, zone, part, control)
            if control.nr_reclaimed - before >= limits.SWAP_CLUSTER_MAX:
                return
        yield Breathe()


def _has_reclaimable_pages(k: Kernel, zone: Zone) -> bool:
    """Could a scan free anything: is there a slot to send anonymous pages to, or a page of a file (6.x)?"""
    pages = slice(zone.first, zone.end)
    return k.nr_swap_pages > 0 or bool((k.c.mapping[pages] & PAGE_MAPPING_FILE).any())


def _isolate_tail(k: Kernel, zone: Zone, state: int, count: int) -> KernelTask[I8]:
    """Take frames off the tail of a list for the caller."""
    with (yield from spin_lock(k, [(Rank.LRU, zone.nid)])):
        pfns = k.lru_tails.take(k, zone, state, count)
        return pfns[isolate_lru_page(k, pfns)]


def _put_back(k: Kernel, pfns: I8, active: Bool) -> KernelTask[None]:
    """Isolated frames go to the heads of the lists that `active` says; what nobody uses any more is freed."""
    if not len(pfns):
        return
    with (yield from spin_lock(k, lru_lock_keys(k, pfns))):
        add_to_list_heads(k, pfns, np.where(active, LRU_ACTIVE, LRU_INACTIVE))
    yield from free_page_and_swap_cache(k, pfns)


def refill_inactive_zone(k: Kernel, zone: Zone, count: int, control: ScanControl) -> KernelTask[None]:
    """Move pages from the tail of the active list to the head of the inactive one.

    Mapped pages move only when memory is mostly mapped, or reclaim in distress; in 2.6.15 not if they were referenced.
    Pages of locked VMAs stay, as do anonymous ones where there is no swap to send them to.
    """
    pfns = yield from _isolate_tail(k, zone, LRU_ACTIVE, count)
    if not len(pfns):
        return
    k.count("pgrefill", len(pfns))
    distress = 100 >> zone.prev_priority
    mapped_ratio = 100 * control.nr_mapped // k.layout.frame_count
    reclaim_mapped = mapped_ratio // 2 + distress + limits.VM_SWAPPINESS >= 100  # noqa: PLR2004 - per cent
    mapped = k.c.mapcount[pfns] > 0
    stay = mapped & (not reclaim_mapped)
    asked = np.flatnonzero(mapped & ~stay)
    if len(asked):
        young, locked = yield from page_referenced(k, pfns[asked])
        of_file = k.c.mapping[pfns[asked]] & PAGE_MAPPING_FILE != 0
        referenced = (young > 0) | (k.c.pg_flags[pfns[asked]] & PG_REFERENCED != 0)
        k.c.pg_flags[pfns[asked]] &= ~np.uint16(PG_REFERENCED)
        stay[asked] = locked | referenced & k.profile.referenced_pages_stay_active
        stay[asked] |= ~of_file & (k.layout.slot_count == 0)
    k.count("pgdeactivate", int(np.count_nonzero(~stay)))
    yield from _put_back(k, pfns, stay)


def shrink_cache(k: Kernel, zone: Zone, count: int, control: ScanControl) -> KernelTask[None]:
    """Try to free pages from the tail of the inactive list."""
    pfns = yield from _isolate_tail(k, zone, LRU_INACTIVE, count)
    zone.pages_scanned += len(pfns)
    control.nr_scanned += len(pfns)
    k.count(f"pgscan_{control.who}", len(pfns))
    if not len(pfns):
        return
    freed, activated = yield from shrink_list(k, pfns)
    control.nr_reclaimed += len(freed)
    k.count(f"pgsteal_{control.who}", len(freed))
    k.count("pgactivate", len(activated))
    left = pfns[~np.isin(pfns, freed)]
    yield from _put_back(k, left, np.isin(left, activated))


# -- pages -------------------------------------------------------------------------------------------------------------


def shrink_list(k: Kernel, pfns: I8) -> KernelTask[tuple[I8, I8]]:
    """Free what can be freed of isolated pages; gives those, and those that are to become active. None is locked then.

    A dirty page is written, and freed when it is met again: the end of its write puts it at the tail.
    """
    got = yield from trylock_pages(k, pfns)
    live = pfns[got]
    idle = k.c.pg_flags[live] & PG_WRITEBACK == 0
    idle &= (page_count(k, live) > 1) | (k.c.pg_flags[live] & PG_SWAPCACHE != 0)  # else: the last user has gone
    live = yield from _unlock_others(k, live, idle)
    keep, activate, dirty_stays = yield from _check_references(k, live)
    activated = [live[activate]]
    dirty_stays = dirty_stays[~keep & ~activate]
    live = yield from _unlock_others(k, live, ~keep & ~activate)
    with_slot = yield from _with_slots(k, live)
    activated.append(live[~with_slot])
    dirty_stays = dirty_stays[with_slot]
    live = yield from _unlock_others(k, live, with_slot)
    unmapped = k.c.mapcount[live] == 0
    if not unmapped.all():
        unmapped[~unmapped] = yield from try_to_unmap(k, live[~unmapped])
    activated.append(live[~unmapped])
    dirty_stays = dirty_stays[unmapped]
    live = yield from _unlock_others(k, live, unmapped)
    dirty = k.c.pg_flags[live] & PG_DIRTY != 0
    live, dirty = (yield from _unlock_others(k, live, ~(dirty & dirty_stays))), dirty[~(dirty & dirty_stays)]
    if dirty.any():
        out = live[dirty]
        homeless = ~_has_writepage(k, out)
        activated.append(out[homeless])
        yield from unlock_pages(k, out[homeless])
        k.c.pg_flags[out[~homeless]] |= PG_RECLAIM
        yield from pageout(k, out[~homeless])
        yield from _forget_reclaim(k, out[~homeless])
    freed = yield from remove_mapping(k, live[~dirty])
    return freed, np.concatenate([NO_INDEXES, *activated])


def _unlock_others(k: Kernel, pfns: I8, stay: Bool) -> KernelTask[I8]:
    """Unlock the pages that reclaim leaves alone; gives the others."""
    yield from unlock_pages(k, pfns[~stay])
    return pfns[stay]


def _forget_reclaim(k: Kernel, pfns: I8) -> KernelTask[None]:
    """PG_RECLAIM stays only on what is really being written."""
    idle = pfns[k.c.pg_flags[pfns] & PG_WRITEBACK == 0]
    k.c.pg_flags[idle] &= ~np.uint16(PG_RECLAIM)
    yield from ()


def _has_writepage(k: Kernel, pfns: I8) -> Bool:
    """Is there somewhere to write these pages to? Those of ramfs live in memory alone."""
    owners = k.c.mapping[pfns].astype(np.int64)
    answer = np.ones(len(pfns), np.bool_)
    for owner in np.unique(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
        mapping = k.address_spaces[owner]
        answer[owners == owner] = mapping.is_swap_backed_or_on_disk
    return answer


def _with_slots(k: Kernel, pfns: I8) -> KernelTask[Bool]:
    """Anonymous pages get a slot; False for those for which there is none."""
    done = np.ones(len(pfns), np.bool_)
    bare = np.flatnonzero((k.c.pg_flags[pfns] & PG_SWAPCACHE == 0) & (k.c.mapping[pfns] & PAGE_MAPPING_FILE == 0))
    if len(bare):
        count = yield from add_to_swap(k, pfns[bare])
        done[bare[count:]] = False
    return done


def _check_references(k: Kernel, pfns: I8) -> KernelTask[tuple[Bool, Bool, Bool]]:
    """Which locked pages of the inactive list stay there, which become active, and which may go only if clean."""
    young, locked = yield from page_referenced(k, pfns)
    flagged = k.c.pg_flags[pfns] & PG_REFERENCED != 0
    k.c.pg_flags[pfns] &= ~np.uint16(PG_REFERENCED)
    never = np.zeros(len(pfns), np.bool_)
    pinned = np.isin(pfns, pinned_pages(k))
    if k.profile.referenced_pages_stay_active:
        referenced = (young > 0) | flagged
        in_use = (k.c.mapcount[pfns] > 0) | (k.c.pg_flags[pfns] & PG_SWAPCACHE != 0) | _file_is_mapped(k, pfns)
        return never, locked | pinned | referenced & in_use, referenced
    again = (young > 0) & (flagged | (young > 1))
    keep = (young > 0) & ~again
    k.c.pg_flags[pfns[keep]] |= PG_REFERENCED
    activate = locked | pinned | again
    return keep & ~activate, activate, flagged & (k.c.mapping[pfns] & PAGE_MAPPING_FILE != 0)


def _file_is_mapped(k: Kernel, pfns: I8) -> Bool:
    """Does anybody map any part of the files that these pages belong to (mapping_mapped)?"""
    owners = k.c.mapping[pfns].astype(np.int64)
    answer = np.zeros(len(pfns), np.bool_)
    for owner in np.unique(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
        answer[owners == owner] = bool(k.address_spaces[owner].i_mmap)
    return answer


def page_referenced(k: Kernel, pfns: I8) -> KernelTask[tuple[I8, Bool]]:
    """Through how many entries each page was accessed since it was last asked, and is it in a locked VMA?

    The accessed bytes are cleared (mm/rmap.c page_referenced). PG_REFERENCED, which 2.6.15 looks at in here, is the
    callers' business: they need to know it apart.
    """
    young, locked = np.zeros(len(pfns), np.int64), np.zeros(len(pfns), np.bool_)
    for mapper in rmap_walk(k, pfns):
        yield from _referenced_in_vma(k, mapper, pfns, young, locked)
    return young, locked


def _referenced_in_vma(k: Kernel, mapper: Mapper, all_pfns: I8, young: I8, locked: Bool) -> KernelTask[None]:
    c = k.c
    pfns = all_pfns[mapper.positions]
    while True:
        if not mapper.still_there(k):
            return
        flats = k.tables.walk(mapper.vma.vm_mm.pgd, mapper.vpns)
        keys = [mapper.lock, *pte_lock_keys(flats[flats >= 0])]
        guard = k.locks.try_spin(keys)
        if guard is not None:
            break
        yield SpinBusy(tuple(keys))
    with guard:
        entries = c.pte[flats]
        here = (flats >= 0) & is_present(entries) & (entries >> np.uint64(k.page_shift) == pfns.astype(np.uint64))
        seen = here & (c.accessed[flats] != 0)
        c.accessed[flats[seen]] = 0
        young[mapper.positions[seen]] += 1
        locked[mapper.positions[here]] |= bool(mapper.vma.vm_flags & VM_LOCKED)
