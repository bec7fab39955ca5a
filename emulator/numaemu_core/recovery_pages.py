"""What is derived from page tables and identities, made anew: map counts, swap counts, the caches, lists, free frames.

The second half of recovery. Nobody else writes these columns meanwhile: no kernel task runs, and a node process turns
nothing but free frames clean. Each function may be cut short and begun again: it only repeats what the truth says.
"""

from dataclasses import dataclass

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, U4, U8, Bool
from numaemu_core.install_page import make_entries
from numaemu_core.kernel import LRU_CLOCK_START, Kernel
from numaemu_core.mm_types import VM_WRITE, AddressSpace, Mm
from numaemu_core.mmzone import LOCAL_NODE, NUMA_FOREIGN, NUMA_HIT, NUMA_MISS, OTHER_NODE
from numaemu_core.page_flags import (
    ALLOCATED,
    FREE_UNCLEAN,
    LRU_ACTIVE,
    LRU_ISOLATED,
    LRU_NONE,
    LRU_ON_LIST,
    LRU_PG_ACTIVE,
    PAGE_MAPPING_FILE,
    PG_DIRTY,
    PG_HARVEST,
    PG_RECLAIM,
    PG_SWAPCACHE,
    PG_UPTODATE,
    PG_WRITEBACK,
)
from numaemu_core.page_table import (
    PTE_PRESENT,
    PTE_WRITABLE,
    PTE_WRITE_RIGHTS,
    is_migration,
    is_present,
    is_swapped,
    is_writable,
    vm_page_prot,
)
from numaemu_core.rmap import pinned_pages, swap_entries

_END_VPN = 1 << (limits.TABLE_LEVELS * limits.TABLE_SHIFT)


def _numbers(k: Kernel, entries: U8) -> I8:
    """The frames or slots that entries name."""
    return (entries >> np.uint64(k.page_shift)).astype(np.int64)


# -- entries -----------------------------------------------------------------------------------------------------------


def mend_entries(k: Kernel) -> None:
    """Entries become what their VMAs allow: none outside of them, no right that they do not give.

    A page on its way to another frame is where it was, unless some entry already names the other one.
    """
    moved_to = _moved_already(k)
    for mm in k.mms.values():
        flats, vpns, entries = k.tables.used_entries(mm.pgd, 0, _END_VPN)
        mended = np.zeros(len(flats), np.uint64)
        for vma in mm.vmas:
            inside = slice(*np.searchsorted(vpns, [vma.vm_start >> k.page_shift, vma.vm_end >> k.page_shift]).tolist())
            here = entries[inside]
            named = here >> np.uint64(k.page_shift) << np.uint64(k.page_shift)
            rights = np.uint64(vm_page_prot(vma))
            may_write = (here & np.uint64(PTE_WRITE_RIGHTS) != 0) & bool(vma.vm_flags & VM_WRITE)
            writable = np.where(may_write, np.uint64(PTE_WRITABLE), np.uint64(0))
            moving = is_migration(here)
            named[moving] = moved_to[_numbers(k, here[moving])].astype(np.uint64) << np.uint64(k.page_shift)
            mended[inside] = np.where(is_present(here) | moving, named | rights | writable, here)
        lost = flats[(mended == 0) & is_present(entries)]
        written = k.c.pte[lost][(k.c.dirty[lost] != 0) | is_writable(k.c.pte[lost])]  # an open window may write yet
        k.c.pg_flags[_numbers(k, written)] |= PG_DIRTY
        changed = mended != entries
        k.c.pte[flats[changed]] = mended[changed]


def _moved_already(k: Kernel) -> I8:
    """By frame: where its page is now. A migration that was cut short may have moved some of the entries of a page.

    An entry names the new frame only when that has the identity, and the bytes: they were copied before. Identities
    alone would not do: pages that were copied on write after a fork share one.
    """
    where = np.arange(k.layout.frame_count)
    moving = np.flatnonzero(k.c.moving_to)
    if len(moving):
        used = [k.tables.used_entries(mm.pgd, 0, _END_VPN)[2] for mm in k.mms.values()]
        mapped = np.concatenate([NO_INDEXES, *(_numbers(k, part[is_present(part)]) for part in used)])
        targets = k.c.moving_to[moving].astype(np.int64) - 1
        begun = np.isin(targets, mapped)
        where[moving[begun]] = targets[begun]
    return where


def finish_move(k: Kernel, mm: Mm, start: int, end: int, target: int) -> None:
    """A mremap had begun to move entries: move the others, so that no page is mapped in both places."""
    shift = (target - start) >> k.page_shift
    old, vpns, entries = k.tables.used_entries(mm.pgd, start >> k.page_shift, end >> k.page_shift)
    new = k.tables.pte_alloc_each(mm.pgd, vpns + shift)
    k.c.accessed[new] |= k.c.accessed[old]
    k.c.dirty[new] |= k.c.dirty[old]
    k.c.pte[new] = entries
    k.c.pte[old] = 0
    # What had moved already may have been written through its old entry afterwards.
    tables, bases = k.tables.pte_tables(mm.pgd, start >> k.page_shift, end >> k.page_shift)
    for table, base in zip(tables.tolist(), bases.tolist(), strict=True):
        row = (table << limits.TABLE_SHIFT) + np.arange(limits.PTRS_PER_TABLE)
        pages = base + np.arange(limits.PTRS_PER_TABLE)
        written = (k.c.dirty[row] != 0) & (pages >= start >> k.page_shift) & (pages < end >> k.page_shift)
        new = k.tables.walk(mm.pgd, pages[written] + shift)
        k.c.dirty[new[new >= 0]] = 1


def map_again(k: Kernel, mm_ids: set[int]) -> None:
    """A window of these mms stays open: what eviction took from them is mapped again, as it may still be written to."""
    frames = _swap_cache(k)
    for vma in [vma for mm in k.mms.values() if mm.id in mm_ids for vma in mm.vmas if vma.anon_vma is not None]:
        first, end = vma.vm_start >> k.page_shift, vma.vm_end >> k.page_shift
        flats, vpns, entries = k.tables.used_entries(vma.vm_mm.pgd, first, end)
        swapped = np.flatnonzero(is_swapped(entries))
        pfns = frames[_numbers(k, entries[swapped])]
        # What was read in for somebody, and nobody has mapped yet, has no identity.
        back = (pfns >= 0) & (k.c.pg_flags[pfns] & PG_UPTODATE != 0) & (k.c.mapping[pfns] == vma.anon_vma)
        back &= k.c.index[pfns] == (vpns[swapped] - first + vma.vm_pgoff).astype(np.uint64)
        k.c.pg_flags[pfns[back]] |= PG_DIRTY
        k.c.pte[flats[swapped[back]]] = make_entries(k, pfns[back], vm_page_prot(vma))


# -- who is referred to ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Users:
    """How many entries name each frame, and each slot."""

    frames: I8
    slots: I8


def count_entries(k: Kernel) -> Users:
    """Look at every entry of every mm."""
    users = Users(np.zeros(k.layout.frame_count, np.int64), np.zeros(k.layout.slot_count, np.int64))
    for mm in k.mms.values():
        _, _, entries = k.tables.used_entries(mm.pgd, 0, _END_VPN)
        users.frames += np.bincount(_numbers(k, entries[is_present(entries)]), minlength=k.layout.frame_count)
        if k.layout.slot_count:
            users.slots += np.bincount(_numbers(k, entries[is_swapped(entries)]), minlength=k.layout.slot_count)
    users.frames[k.zero_pfn] = 0
    return users


def _allocated(k: Kernel) -> Bool:
    return np.asarray(k.c.free_state == ALLOCATED)


def _known_objects(k: Kernel, owners: U4) -> list[AddressSpace]:
    """The objects among these numbers that there still are."""
    return [k.address_spaces[owner] for owner in np.unique(owners).tolist() if owner in k.address_spaces]


def find_page_cache(k: Kernel, users: Users) -> Bool:
    """Which frames are pages of files; their objects know them again. What was not read in is none."""
    c = k.c
    cached = np.zeros(k.layout.frame_count, np.bool_)
    claims = np.flatnonzero(_allocated(k) & (c.mapping & PAGE_MAPPING_FILE != 0))
    whole = (c.pg_flags[claims] & PG_UPTODATE != 0) | (users.frames[claims] > 0)
    # Of two copies of a page that was being moved, the one that is mapped counts.
    claims = claims[whole]
    claims = claims[np.argsort(users.frames[claims] > 0, kind="stable")]
    for mapping in _known_objects(k, c.mapping[claims]):
        mine = claims[c.mapping[claims] == mapping.id]
        indexes = c.index[mine].astype(np.int64)
        mine, indexes = mine[indexes < len(mapping.i_pages)], indexes[indexes < len(mapping.i_pages)]
        mapping.i_pages[indexes] = make_entries(k, mine, PTE_PRESENT)
        cached[_numbers(k, mapping.i_pages[is_present(mapping.i_pages)])] = True
        c.pg_flags[mine] &= ~np.uint16(PG_SWAPCACHE)
    return cached


def find_slots_of_objects(k: Kernel, users: Users) -> None:
    """Slots with pages of objects: known again where the object has no frame for the page."""
    c = k.c
    claims = np.flatnonzero(c.slot_mapping)
    owned = np.zeros(len(claims), np.bool_)
    for mapping in _known_objects(k, c.slot_mapping[claims]):
        mine = np.flatnonzero(c.slot_mapping[claims] == mapping.id)
        indexes = c.slot_index[claims[mine]].astype(np.int64)
        mine, indexes = mine[indexes < len(mapping.i_pages)], indexes[indexes < len(mapping.i_pages)]
        free = mapping.i_pages[indexes] == 0
        mapping.i_pages[indexes[free]] = swap_entries(k, claims[mine[free]])
        owned[mine[free]] = True
    c.slot_mapping[claims[~owned]] = 0
    users.slots[claims[owned]] += 1


def _swap_cache(k: Kernel, users: Users | None = None) -> I8:
    """The frame of each slot by what frames say, -1: none; of several that say so one that is mapped."""
    frames = np.full(k.layout.slot_count, -1, np.int64)
    said = np.flatnonzero(_allocated(k) & (k.c.pg_flags & PG_SWAPCACHE != 0) & (k.c.mapping & PAGE_MAPPING_FILE == 0))
    if users is not None:
        said = said[np.argsort(users.frames[said] > 0, kind="stable")]
    frames[k.c.private[said].astype(np.int64)] = said
    return frames


def find_swap_cache(k: Kernel, users: Users) -> Bool:
    """Which frames are in the swap cache; a page that is not whole, or that nobody needs, is not."""
    c = k.c
    k.slot_frame = _swap_cache(k, users)
    said = np.flatnonzero((c.pg_flags & PG_SWAPCACHE != 0) & (c.free_state == ALLOCATED))
    slots = c.private[said].astype(np.int64)
    stays = k.slot_frame[slots] == said
    stays &= (users.frames[said] > 0) | (users.slots[slots] > 0) & (c.pg_flags[said] & PG_UPTODATE != 0)
    gone = said[~stays]
    lost = slots[~stays][k.slot_frame[slots[~stays]] == gone]
    c.pg_flags[gone] &= ~np.uint16(PG_SWAPCACHE)
    k.slot_frame[lost] = -1
    users.slots[slots[stays]] += 1
    cached = np.zeros(k.layout.frame_count, np.bool_)
    cached[said[stays]] = True
    return cached


# -- frames and slots --------------------------------------------------------------------------------------------------


def settle_flags(k: Kernel) -> None:
    """What nobody has confirmed as written counts as dirty; nobody holds a page lock, and no page is moving."""
    flags = k.c.pg_flags
    unsure = np.flatnonzero(flags & (PG_WRITEBACK | PG_HARVEST))
    flags[unsure] |= PG_DIRTY
    stale = np.flatnonzero(flags & (PG_WRITEBACK | PG_HARVEST | PG_RECLAIM))
    flags[stale] &= ~np.uint16(PG_WRITEBACK | PG_HARVEST | PG_RECLAIM)
    for column in (k.c.page_lock_owner, k.c.moving_to):
        column[np.flatnonzero(column)] = 0


def settle_frames(k: Kernel, users: Users, cached: Bool, stragglers: dict[int, int]) -> None:
    """Map counts; who is referred to is on a list, and everybody else free, or kept for stragglers and pins."""
    c = k.c
    live = cached | (users.frames > 0)
    lost = np.flatnonzero(_allocated(k) & ~live)
    if len(lost):
        c.pg_flags[lost] = 0
        c.mapping[lost] = 0
        c.index[lost] = 0
        pinned = np.isin(lost, pinned_pages(k))
        k.left_to_pins = set(lost[pinned].tolist())
        live[lost[pinned]] = True
        lost = lost[~pinned]
    if stragglers and len(lost):
        k.quarantine.add(stragglers, lost, [])
        users.frames[lost] += 1
        live[lost] = True
        lost = NO_INDEXES
    changed = np.flatnonzero(c.mapcount != users.frames)
    c.mapcount[changed] = users.frames[changed]
    _settle_lists(k, live)
    c.lru_state[lost] = LRU_NONE
    c.free_state[lost] = FREE_UNCLEAN
    for zone in k.zones.values():
        states = c.free_state[zone.first : zone.end]
        zone.nr_free = int(np.count_nonzero(states <= FREE_UNCLEAN))
        zone.freed = int(np.count_nonzero(states == FREE_UNCLEAN))


def _settle_lists(k: Kernel, live: Bool) -> None:
    """Live frames that are isolated, or on their way to a list, go to the heads of the lists."""
    c = k.c
    k.lru_clock = k.lru_tail = LRU_CLOCK_START
    listed = np.flatnonzero(c.lru_state & LRU_ON_LIST)
    if len(listed):
        k.lru_clock = int(c.lru_stamp[listed].max()) + 1
        k.lru_tail = min(int(c.lru_stamp[listed].min()), LRU_CLOCK_START)
    off = np.flatnonzero(live & (c.lru_state & LRU_ON_LIST == 0))
    c.lru_stamp[off] = np.arange(k.lru_clock, k.lru_clock + len(off), dtype=np.uint64)
    k.lru_clock += len(off)
    isolated = c.lru_state[off] & LRU_ISOLATED != 0
    c.lru_state[off] = np.where(isolated, c.lru_state[off] & LRU_PG_ACTIVE | LRU_ON_LIST, LRU_ACTIVE)
    nobodys = np.flatnonzero((c.lru_state != LRU_NONE) & ~live)
    c.lru_state[nobodys] = LRU_NONE


def settle_slots(k: Kernel, users: Users) -> None:
    """The swap map counts entries, the cache and objects."""
    counts = np.minimum(users.slots, limits.SWAP_MAP_MAX).astype(np.uint16)
    changed = np.flatnonzero(k.c.swap_count != counts)
    k.c.swap_count[changed] = counts[changed]
    k.nr_swap_pages = int(np.count_nonzero(counts[: k.usable_slots] == 0))


def settle_counters(k: Kernel) -> None:
    """An allocation that was being counted is counted whole."""
    stat = k.c.numastat
    behind = stat[:, [NUMA_HIT, NUMA_MISS]].sum(axis=1) - stat[:, [LOCAL_NODE, OTHER_NODE]].sum(axis=1)
    for nid in np.flatnonzero(behind).tolist():
        stat[nid, LOCAL_NODE] += behind[nid]
    missing = int(stat[:, NUMA_MISS].sum() - stat[:, NUMA_FOREIGN].sum())
    if missing:
        stat[min(k.zones), NUMA_FOREIGN] += missing
