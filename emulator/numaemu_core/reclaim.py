"""Reclaim: which pages leave memory when it gets short, and who makes them leave.

Mirrors: shrink_caches, shrink_zone, refill_inactive_zone, shrink_list, try_to_free_pages, balance_pgdat, mm/vmscan.c
(2.6.15); where 6.x decides otherwise, a field of the profile says so. Left out: slab, the swap token, laptop mode, the
ages of today's workingset code.

A page gets a second chance twice: referenced pages return from the tail of the active list to its head, and from the
inactive list to the active one. What remains is evicted by the functions of `vmscan`, written if it is dirty, and freed
when reclaim meets it again after the write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, Bool
from numaemu_core.distinct import distinct
from numaemu_core.effects import Breathe, Effect, KernelTask, Nap
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Rank
from numaemu_core.lru import add_to_list_heads, isolate_lru_pages, lru_lock_keys, lru_tail
from numaemu_core.mm_types import VM_LOCKED, Task
from numaemu_core.mmzone import Zone
from numaemu_core.page_flags import (
    LRU_ACTIVE,
    LRU_INACTIVE,
    LRU_ISOLATED,
    LRU_ON_LIST,
    PAGE_MAPPING_FILE,
    PG_DIRTY,
    PG_RECLAIM,
    PG_REFERENCED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
)
from numaemu_core.page_lock import trylock_pages, unlock_pages
from numaemu_core.page_table import is_present
from numaemu_core.rmap import Mapper, page_check_address, page_count, pinned_pages, rmap_walk, try_to_unmap
from numaemu_core.swap_state import add_to_swap, free_page_and_swap_cache
from numaemu_core.task_locks import spin_lock
from numaemu_core.vmscan import pageout, remove_mapping


@dataclass(slots=True)
class ScanControl:
    """What one run of reclaim has done (struct scan_control). `who` is "kswapd" or "direct"."""

    who: str
    #: Frames of the machine that somebody maps, as the run began.
    nr_mapped: int
    #: As so many runs, one after the other: for whoever takes many frames at a time.
    runs: int = 1
    nr_scanned: int = 0
    nr_reclaimed: int = 0
    #: Pages of the last pass over the zones that wait for the end of a write.
    nr_writeback: int = 0

    @property
    def nr_to_reclaim(self) -> int:
        """Pages that are enough, of a zone and of all."""
        return self.runs * limits.SWAP_CLUSTER_MAX


def begin_scan(k: Kernel, who: str, runs: int = 1) -> ScanControl:
    """A run of reclaim begins."""
    return ScanControl(who, int(np.count_nonzero(k.c.mapcount)), runs)


# -- who reclaims ------------------------------------------------------------------------------------------------------


def try_to_free_pages(k: Kernel, nodes: Sequence[int], task: Task | None = None, wanted: int = 1) -> KernelTask[int]:
    """Direct reclaim: free pages of the zones of a zonelist; gives how many, 0: there is nothing to be had.

    A task that wants more than 32 pages would come again and again; what these runs do is done in one here.
    2.6.15 counts fewer than 32 as none; here a page is a page, for machines of a few hundred of them. Zones whose pages
    have nowhere to go are not scanned, and a `task` that is killed meanwhile stops: others wait for its memory.
    """
    k.count("allocstall")
    runs = -(-min(wanted, limits.RECLAIM_BATCH_MAX) // limits.SWAP_CLUSTER_MAX)
    control = begin_scan(k, "direct", runs)
    zones = [k.zones[nid] for nid in nodes]
    priority = limits.DEF_PRIORITY
    while True:
        for zone in zones:
            zone.prev_priority = min(zone.prev_priority, priority)
        scanned = [zone for zone in zones if may_free_pages(k, zone.nid)]
        yield from shrink_zones(k, scanned, priority, control)
        enough = control.nr_reclaimed >= control.nr_to_reclaim
        if enough or not priority or (task is not None and task.dying):
            break
        yield _between_passes(k, nodes, control, priority)
        priority -= 1
    for zone in zones:
        zone.prev_priority = priority
    return control.nr_reclaimed


def may_free_pages(k: Kernel, nid: int) -> bool:
    """Has some page of a node somewhere to go, on a list or in the hands of a task (6.1 zone_reclaimable_pages)?"""
    zone = k.zones[nid]
    return bool(_have_somewhere_to_go(k, _lru_pages(k, zone, LRU_ON_LIST | LRU_ISOLATED)).any())


def is_on_its_way(k: Kernel, nodes: Sequence[int]) -> bool:
    """Is some page of these nodes being written, or in the hands of a task that may free it? It may be free soon."""
    for nid in nodes:
        zone = k.zones[nid]
        if (k.c.pg_flags[zone.first : zone.end] & PG_WRITEBACK).any():
            return True
        if _have_somewhere_to_go(k, _lru_pages(k, zone, LRU_ISOLATED)).any():
            return True
    return False


def _lru_pages(k: Kernel, zone: Zone, states: int) -> I8:
    """The frames of a zone in one of these states."""
    return np.flatnonzero(k.c.lru_state[zone.first : zone.end] & states) + zone.first


def _have_somewhere_to_go(k: Kernel, pfns: I8) -> Bool:
    """Pages that reclaim could ever free: of disk files, and others where they have a slot or can get one.

    Those of ramfs live in memory alone, those that are pinned stay.
    """
    owners = k.c.mapping[pfns].astype(np.int64)
    answer = np.asarray((k.c.pg_flags[pfns] & PG_SWAPCACHE != 0) | (k.nr_swap_pages > 0))
    for owner in distinct(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
        mapping = k.address_spaces[owner]
        answer[owners == owner] = mapping.is_swap_backed_or_on_disk and (not mapping.is_shmem or k.nr_swap_pages > 0)
    return answer & ~np.isin(pfns, pinned_pages(k))


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
        yield from shrink_zones(k, [zone], priority, control)
        if zone.pages_scanned >= 4 * nr_lru_pages(k, zone):
            zone.all_unreclaimable = True
        yield _between_passes(k, (nid,), control, priority)
    return control.nr_reclaimed


def _between_passes(k: Kernel, nodes: Sequence[int], control: ScanControl, priority: int) -> Effect:
    """What a run of reclaim does before it scans more: it naps where a write or somebody else's work may help it.

    Scanning takes a kernel so long that writes end meanwhile; here the next pass would meet the same pages under write.
    2.6.15 naps whether or not there is anything to wait for (blk_congestion_wait): ten naps a run where all is locked.
    """
    hard = control.nr_scanned > 0 and priority < limits.DEF_PRIORITY - 2
    waits = control.nr_writeback > 0 or (hard and is_on_its_way(k, nodes))
    control.nr_writeback = 0
    return Nap() if waits else Breathe()


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


# -- zones -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Share:
    """What a pass of reclaim is to scan of a zone's lists, and what it has freed of it."""

    zone: Zone
    nr_active: int = 0
    nr_inactive: int = 0
    nr_reclaimed: int = 0


def shrink_zones(k: Kernel, zones: Sequence[Zone], priority: int, control: ScanControl) -> KernelTask[None]:
    """Scan a part of the lists of zones, the larger the lower the priority; of each until 32 pages a run are freed.

    Mirrors: shrink_caches and shrink_zone. Linux takes 32 pages at a time and zone after zone. Here a batch costs much
    and a page in it little: all zones make one batch, and a scan that finds nothing takes larger and larger ones.
    """
    shares = [_share_of(k, zone, priority, control) for zone in zones]
    part_max = control.nr_to_reclaim
    while any(share.nr_active or share.nr_inactive for share in shares):
        had = control.nr_reclaimed
        yield from refill_inactive_zone(k, shares, part_max, control)
        yield from shrink_cache(k, shares, part_max, control)
        for share in shares:
            if share.nr_reclaimed >= control.nr_to_reclaim:
                share.nr_active = share.nr_inactive = 0
        freed = control.nr_reclaimed - had
        part_max = control.nr_to_reclaim if freed else min(2 * part_max, limits.RECLAIM_BATCH_MAX)
        yield Breathe()


def _share_of(k: Kernel, zone: Zone, priority: int, control: ScanControl) -> Share:
    """So many pages of its lists; what is less than a batch is left for a later pass."""
    states = k.c.lru_state[zone.first : zone.end]
    # Several runs would lower the priority one after the other; in one, a pass that scans less would be in vain.
    least = control.nr_to_reclaim if control.runs > 1 else 1
    zone.nr_scan_active += max((int(np.count_nonzero(states == LRU_ACTIVE)) >> priority) + 1, least)
    zone.nr_scan_inactive += max((int(np.count_nonzero(states == LRU_INACTIVE)) >> priority) + 1, least)
    share = Share(zone)
    batch = min(limits.SWAP_CLUSTER_MAX, zone.managed_pages // limits.SCAN_BATCHES_OF_ZONE)
    if zone.nr_scan_active >= batch:
        share.nr_active, zone.nr_scan_active = zone.nr_scan_active, 0
    if zone.nr_scan_inactive >= batch:
        share.nr_inactive, zone.nr_scan_inactive = zone.nr_scan_inactive, 0
    return share


def _isolate_tails(k: Kernel, wanted: Sequence[tuple[Zone, int]], state: int) -> KernelTask[I8]:
    """Take frames off the tails of a list of zones for the caller, zone after zone; how many of each is beside it.

    Once no slot is left, 6.x does not scan anonymous pages (get_scan_count); 2.6.15 takes them from list to list. Here
    only those are taken then that need none.
    """
    if not wanted:
        return NO_INDEXES
    found: list[I8] = []
    with (yield from spin_lock(k, [(Rank.LRU, nid) for nid in sorted(zone.nid for zone, _ in wanted)])):
        for zone, count in wanted:
            if k.nr_swap_pages or not k.layout.slot_count:
                pfns = k.lru_tails.take(k, zone, state, count)
            else:
                listed = np.flatnonzero(k.c.lru_state[zone.first : zone.end] == state) + zone.first
                pfns = lru_tail(k, listed[_have_somewhere_to_go(k, listed)], count)
            isolate_lru_pages(k, pfns)
            found.append(pfns)
    return found[0] if len(found) == 1 else np.concatenate(found)


def _put_back(k: Kernel, pfns: I8, active: Bool) -> KernelTask[None]:
    """Isolated frames go to the heads of the lists that `active` says; what nobody uses any more is freed."""
    if not len(pfns):
        return
    with (yield from spin_lock(k, lru_lock_keys(k, pfns))):
        add_to_list_heads(k, pfns, np.where(active, LRU_ACTIVE, LRU_INACTIVE))
    yield from free_page_and_swap_cache(k, pfns)


def refill_inactive_zone(k: Kernel, shares: Sequence[Share], part_max: int, control: ScanControl) -> KernelTask[None]:
    """Move pages from the tails of active lists to the heads of the inactive ones, at most `part_max` of a zone.

    Mapped pages move only when memory is mostly mapped, or reclaim in distress; in 2.6.15 not if they were referenced.
    Pages of locked VMAs stay, as do anonymous ones where there is no swap to send them to.
    """
    wanted = [(share.zone, min(share.nr_active, part_max)) for share in shares if share.nr_active]
    pfns = yield from _isolate_tails(k, wanted, LRU_ACTIVE)
    for share in shares:
        share.nr_active = max(share.nr_active - part_max, 0) if _some_of(share.zone, pfns) else 0
    if not len(pfns):
        return
    k.count("pgrefill", len(pfns))
    stay = _stays_mapped(k, shares, pfns, control)
    asked = np.flatnonzero((k.c.mapcount[pfns] > 0) & ~stay)
    if len(asked):
        young, locked = yield from page_referenced(k, pfns[asked])
        referenced = (young > 0) | (k.c.pg_flags[pfns[asked]] & PG_REFERENCED != 0)
        k.c.pg_flags[pfns[asked]] &= ~np.uint16(PG_REFERENCED)
        stay[asked] = locked | referenced & k.profile.referenced_pages_stay_active
    k.count("pgdeactivate", int(np.count_nonzero(~stay)))
    yield from _put_back(k, pfns, stay)


def _some_of(zone: Zone, pfns: I8) -> bool:
    return bool(((pfns >= zone.first) & (pfns < zone.end)).any())


def _stays_mapped(k: Kernel, shares: Sequence[Share], pfns: I8, control: ScanControl) -> Bool:
    """Pages that stay active because somebody maps them, and reclaim is not in need of those (yet)."""
    mapped = k.c.mapcount[pfns] > 0
    stay = mapped & (k.c.mapping[pfns] & PAGE_MAPPING_FILE == 0) & (k.layout.slot_count == 0)
    mapped_ratio = 100 * control.nr_mapped // k.layout.frame_count
    for share in shares:
        distress = 100 >> share.zone.prev_priority
        if mapped_ratio // 2 + distress + limits.VM_SWAPPINESS < 100:  # noqa: PLR2004 - per cent
            stay |= mapped & (k.nid_of_pfn[pfns] == share.zone.nid)
    return stay


def shrink_cache(k: Kernel, shares: Sequence[Share], part_max: int, control: ScanControl) -> KernelTask[None]:
    """Try to free pages from the tails of inactive lists, at most `part_max` of a zone."""
    wanted = [(share.zone, min(share.nr_inactive, part_max)) for share in shares if share.nr_inactive]
    pfns = yield from _isolate_tails(k, wanted, LRU_INACTIVE)
    for share in shares:
        scanned = int(np.count_nonzero(k.nid_of_pfn[pfns] == share.zone.nid))
        share.zone.pages_scanned += scanned
        share.nr_inactive = max(share.nr_inactive - part_max, 0) if scanned else 0
    if not len(pfns):
        return
    control.nr_scanned += len(pfns)
    k.count(f"pgscan_{control.who}", len(pfns))
    freed, activated = yield from shrink_list(k, pfns)
    for share in shares:
        share.nr_reclaimed += int(np.count_nonzero(k.nid_of_pfn[freed] == share.zone.nid))
    control.nr_reclaimed += len(freed)
    k.count(f"pgsteal_{control.who}", len(freed))
    k.count("pgactivate", len(activated))
    left = pfns[~np.isin(pfns, freed)]
    control.nr_writeback += int(np.count_nonzero(k.c.pg_flags[left] & PG_WRITEBACK))
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
    for owner in distinct(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
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
    for owner in distinct(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
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


def _referenced_in_vma(k: Kernel, mapper: Mapper, all_pfns: I8, young: I8, mlocked: Bool) -> KernelTask[None]:
    c = k.c
    locked = yield from page_check_address(k, mapper, mapper.vpns)
    if locked is None:
        return
    with locked.guard:
        here = is_present(locked.entries) & locked.name(k, all_pfns[mapper.positions])
        seen = here & (c.accessed[locked.flats] != 0)
        c.accessed[locked.flats[seen]] = 0
        young[mapper.positions[seen]] += 1
        mlocked[mapper.positions[here]] |= bool(mapper.vma.vm_flags & VM_LOCKED)
