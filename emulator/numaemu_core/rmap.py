"""Who maps a page: references, map counts, and unmapping a page everywhere.

Mirrors: mm/rmap.c (2.6.15). A page's references are not stored but counted: map count + page cache or swap cache +
isolation + pins + those of kernel tasks, which end with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, U8, Bool
from numaemu_core.distinct import distinct
from numaemu_core.effects import KernelTask, Shootdown, SpinBusy
from numaemu_core.harvest import begin_harvest, end_harvest
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Key, Rank, SpinGuard
from numaemu_core.lru import lru_lock_keys
from numaemu_core.mm_types import VM_LOCKED, AnonVma, Mm, VmArea
from numaemu_core.mmzone import free_locked, zone_lock_keys
from numaemu_core.page_flags import LRU_ISOLATED, LRU_NONE, LRU_ON_LIST, PAGE_MAPPING_FILE, PG_DIRTY, PG_SWAPCACHE
from numaemu_core.page_table import PTE_SWAPPED, PTE_WRITABLE, is_present, is_writable, pte_lock_keys
from numaemu_core.swapfile import SWAP_LOCK, swap_duplicate, swap_free
from numaemu_core.task_locks import spin_lock


def pinned_pages(k: Kernel) -> I8:
    """The frames that clients hold pinned, once for each pin: every table that is in use is read.

    Clients write meanwhile, and numpy's search for what is not zero fails where the array changes under it: the
    comparison makes it search an array of ours.
    """
    slots = np.flatnonzero(k.c.pin_count != 0)
    if not len(slots):
        return NO_INDEXES
    tables = [k.c.pins[slot, : int(k.c.pin_count[slot])] for slot in slots.tolist()]
    pins = np.concatenate(tables).astype(np.int64)
    return pins[pins > 0] - 1


def is_cached(k: Kernel, pfns: I8) -> Bool:
    """Which pages are in the swap cache or the page cache: one reference each."""
    return np.asarray((k.c.pg_flags[pfns] & PG_SWAPCACHE != 0) | (k.c.mapping[pfns] & PAGE_MAPPING_FILE != 0))


def page_count(k: Kernel, pfns: I8) -> I8:
    """References of frames: page_count of the kernel, computed."""
    c = k.c
    count = c.mapcount[pfns].astype(np.int64)
    count += is_cached(k, pfns)
    count += c.lru_state[pfns] & LRU_ISOLATED != 0
    count += k.page_refs[pfns]
    pins = pinned_pages(k)
    if len(pins):
        numbers, times = np.unique(pins, return_counts=True)
        at = np.minimum(np.searchsorted(numbers, pfns), len(numbers) - 1)
        count += np.where(numbers[at] == pfns, times[at], 0)
    return count


def get_pages(k: Kernel, pfns: I8) -> None:
    """Keep these frames, none of which stands twice, while this task sleeps; `release_pages` lets go (get_page)."""
    k.page_refs[pfns] += 1


def put_pages(k: Kernel, pfns: I8) -> KernelTask[None]:
    """Free those of these frames that have no reference left and are not locked (put_page, __page_cache_release).

    Whether a frame goes is decided and done under its locks: two tasks may put the same one. A frame that is on no list
    is not yet anybody's, or already free.
    """
    if not len(pfns) or not (page_count(k, pfns) == 0).any():
        return
    with (yield from spin_lock(k, [*lru_lock_keys(k, pfns), *zone_lock_keys(k, pfns)])):
        unused = (page_count(k, pfns) == 0) & (k.c.page_lock_owner[pfns] == 0)
        gone = pfns[unused & (k.c.lru_state[pfns] & LRU_ON_LIST != 0)]
        k.c.lru_state[gone] = LRU_NONE
        free_locked(k, gone)


def anon_vma_prepare(k: Kernel, vma: VmArea) -> AnonVma:
    """The anon_vma of a VMA, made at its first anonymous page (2.6.15 anon_vma_prepare).

    A neighbour that the VMA could be merged with gives its own, so that they still can be.
    """
    if vma.anon_vma is None:
        anon_vma = _find_mergeable_anon_vma(k, vma)
        if anon_vma is None:
            anon_vma = AnonVma(k.next_anon_vma)
            k.next_anon_vma += 1
            k.anon_vmas[anon_vma.id] = anon_vma
        vma.anon_vma = anon_vma.id
        anon_vma.vmas[vma] = None
        k.journal.vmas(vma.vm_mm, vma.vm_start, vma.vm_end)
    return k.anon_vmas[vma.anon_vma]


def _find_mergeable_anon_vma(k: Kernel, vma: VmArea) -> AnonVma | None:
    vmas = vma.vm_mm.vmas
    for near in (vmas.find_vma(vma.vm_end), vmas.before(vma.vm_start)):
        if (
            near is not None
            and near.anon_vma is not None
            and not (near.anon_clone and k.profile.merge_needs_single_chain)
            and (near.vm_start == vma.vm_end or near.vm_end == vma.vm_start)
            and near.vm_policy == vma.vm_policy
            and (near.vm_flags ^ vma.vm_flags) & ~7 == 0
            and near.vm_pgoff - (near.vm_start >> k.page_shift) == vma.vm_pgoff - (vma.vm_start >> k.page_shift)
        ):
            return k.anon_vmas[near.anon_vma]
    return None


def linear_page_index(k: Kernel, vma: VmArea, vpns: I8) -> I8:
    """The index of pages of a VMA in their object (linear_page_index)."""
    return vpns + (vma.vm_pgoff - (vma.vm_start >> k.page_shift))


def set_anon_identity(k: Kernel, vma: VmArea, pfns: I8, vpns: I8) -> None:
    """Say whose pages these frames hold: before any entry names them."""
    k.c.index[pfns] = linear_page_index(k, vma, vpns).astype(np.uint64)
    k.c.mapping[pfns] = anon_vma_prepare(k, vma).id


# -- who maps a page ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Mapper:
    """A VMA that may map some pages: their positions among those that were asked about, and the lock of its list."""

    vma: VmArea
    lock: Key
    positions: I8
    vpns: I8

    def still_there(self, k: Kernel) -> bool:
        """Is the VMA still on the list of what it mapped? Asked under the lock."""
        if self.vma.vm_mm.dead:
            return False
        if self.lock[0] is Rank.I_MMAP:
            return self.vma.vm_file is not None and self.vma in self.vma.vm_file.i_mmap
        anon_vma = k.anon_vmas.get(self.lock[1])
        return anon_vma is not None and self.vma in anon_vma.vmas


class Locked(NamedTuple):
    """Entries of some pages of a VMA, whose locks are held: flat indexes (-1: no table), and what stands there."""

    guard: SpinGuard
    flats: I8
    entries: U8

    def name(self, k: Kernel, pfns: I8) -> Bool:
        """Which of them say the number of the frame that is beside them in `pfns`."""
        return (self.flats >= 0) & (self.entries >> np.uint64(k.page_shift) == pfns.astype(np.uint64))


def page_check_address(k: Kernel, mapper: Mapper, vpns: I8, *more: Key) -> KernelTask[Locked | None]:
    """Lock the list that a VMA is on and its entries of these pages, and `more`; None: it is on that list no longer.

    Mirrors: page_check_address, mm/rmap.c (2.6.15), for many pages.
    """
    while mapper.still_there(k):
        flats = k.tables.walk(mapper.vma.vm_mm.pgd, vpns)
        keys = [mapper.lock, *pte_lock_keys(flats[flats >= 0]), *more]
        guard = k.locks.try_spin(keys)
        if guard is not None:
            return Locked(guard, flats, k.c.pte[flats])
        yield SpinBusy(tuple(keys))
    return None


def rmap_walk(k: Kernel, pfns: I8) -> Iterator[Mapper]:
    """Every VMA that may map some of these pages, by the identities of the pages (rmap_walk, mm/rmap.c of 6.1).

    Anonymous pages by the VMAs of their anon_vma, pages of files by i_mmap. A VMA may come several times, with other
    pages of at most PTE_LOCK_BATCH.
    """
    owners, indexes = k.c.mapping[pfns].astype(np.int64), k.c.index[pfns].astype(np.int64)
    for owner in distinct(owners[owners != 0]).tolist():
        mine = np.flatnonzero(owners == owner)
        lowest, highest = int(indexes[mine].min()), int(indexes[mine].max())
        for vma in _mappers(k, owner):
            pages = (vma.vm_end - vma.vm_start) >> k.page_shift
            if vma.vm_pgoff > highest or vma.vm_pgoff + pages <= lowest:
                continue
            inside = mine[(indexes[mine] >= vma.vm_pgoff) & (indexes[mine] < vma.vm_pgoff + pages)]
            for part in range(0, len(inside), limits.PTE_LOCK_BATCH):
                chosen = inside[part : part + limits.PTE_LOCK_BATCH]
                vpns = indexes[chosen] + ((vma.vm_start >> k.page_shift) - vma.vm_pgoff)
                lock = (Rank.I_MMAP if owner & PAGE_MAPPING_FILE else Rank.ANON_VMA, owner & ~PAGE_MAPPING_FILE)
                yield Mapper(vma, lock, chosen, vpns)


def _mappers(k: Kernel, owner: int) -> list[VmArea]:
    if owner & PAGE_MAPPING_FILE:
        mapping = k.address_spaces.get(owner)  # none: it went with its last mapping, while the walk was on its way
        return list(mapping.i_mmap) if mapping is not None else []
    anon_vma = k.anon_vmas.get(owner)
    return list(anon_vma.vmas) if anon_vma is not None else []


# -- unmapping ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cleared:
    """Entries of one mm that try_to_unmap replaced by their slots."""

    mm: Mm
    pfns: I8
    vpns: I8
    flats: I8
    entries: U8
    #: What stands there now: slots, or nothing for pages of files.
    replaced: U8
    #: Pages that may become dirty until the windows have closed.
    maybe_dirty: Bool


def try_to_unmap(k: Kernel, pfns: I8) -> KernelTask[Bool]:
    """Replace every entry of these locked pages by their slots (pages of files: by nothing); True: no mapping is left.

    A locked VMA stops the walk of a page, and so, as the profile has it, does a young entry, whose accessed byte is
    cleared: the caller tries again. What was unmapped counts as mapped until every window that may still reach it has
    closed; an mm whose straggler does not leave gets its entries back.
    Mirrors: try_to_unmap, try_to_unmap_one (2.6.15).
    """
    walking = np.ones(len(pfns), np.bool_)
    cleared: list[_Cleared] = []
    for mapper in rmap_walk(k, pfns):
        going = walking[mapper.positions]
        if going.any():
            stopped = yield from _unmap_from_vma(k, mapper, pfns, going, cleared)
            walking[mapper.positions[going][stopped]] = False
    if cleared:
        yield from _finish_unmap(k, cleared)
    return k.c.mapcount[pfns] == 0


def _unmap_from_vma(k: Kernel, mapper: Mapper, all_pfns: I8, going: Bool, cleared: list[_Cleared]) -> KernelTask[Bool]:
    """try_to_unmap_one for many pages and one VMA; True for pages whose walk stops here."""
    c, vma = k.c, mapper.vma
    pfns, vpns = all_pfns[mapper.positions[going]], mapper.vpns[going]
    locked = yield from page_check_address(k, mapper, vpns, SWAP_LOCK)
    if locked is None:
        return np.zeros(len(pfns), np.bool_)
    flats, entries = locked.flats, locked.entries
    with locked.guard:
        here = is_present(entries) & locked.name(k, pfns)
        if vma.vm_flags & VM_LOCKED:
            return here
        young = here & (c.accessed[flats] != 0) & k.profile.young_stops_unmap
        c.accessed[flats[young]] = 0
        gone = here & ~young
        if gone.any():
            cleared.append(_clear_entries(k, vma.vm_mm, pfns[gone], vpns[gone], flats[gone], entries[gone]))
    return young


def _clear_entries(k: Kernel, mm: Mm, pfns: I8, vpns: I8, flats: I8, entries: U8) -> _Cleared:
    """Entries become slots, or none for pages of files; what might be dirty is harvested later."""
    c = k.c
    dirty = c.dirty[flats] != 0
    maybe = ~dirty & is_writable(entries) & (c.pg_flags[pfns] & PG_DIRTY == 0)
    c.pg_flags[pfns[dirty]] |= PG_DIRTY
    begin_harvest(k, pfns[maybe])
    replaced = replaced_entries(k, pfns)
    slots = c.private[pfns[replaced != 0]].astype(np.int64)
    swap_duplicate(k, slots)
    c.pte[flats] = replaced
    return _Cleared(mm, pfns, vpns, flats, entries, replaced, maybe)


def replaced_entries(k: Kernel, pfns: I8) -> U8:
    """What stands for these pages once they are unmapped: their slots; nothing for pages of files."""
    anonymous = k.c.mapping[pfns] & PAGE_MAPPING_FILE == 0
    return np.where(anonymous, swap_entries(k, k.c.private[pfns].astype(np.int64)), np.uint64(0))


def swap_entries(k: Kernel, slots: I8) -> U8:
    """Entries that name slots."""
    return slots.astype(np.uint64) << np.uint64(k.page_shift) | np.uint64(PTE_SWAPPED)


def _finish_unmap(k: Kernel, cleared: list[_Cleared]) -> KernelTask[None]:
    """Wait for the windows, then harvest; where a straggler stays, the entries come back."""
    k.reach("swap-out.entries_cleared")
    stragglers: dict[int, int] = yield Shootdown(frozenset(part.mm.id for part in cleared))
    late = {int(k.c.window_mm[slot]) - 1 for slot in stragglers}
    for part in cleared:
        if part.mm.id in late:
            yield from _restore(k, part, stragglers)
        else:
            written = _was_written(k, part)
            # Also where the right to write was taken away just before, from under an open window.
            k.c.pg_flags[part.pfns[written]] |= PG_DIRTY
            end_harvest(k, part.pfns[part.maybe_dirty], written[part.maybe_dirty])
            k.c.mapcount[part.pfns] -= 1


def _was_written(k: Kernel, part: _Cleared) -> Bool:
    """Which pages were written to through their entries, or may have been: their table has gone meanwhile."""
    if part.mm.dead:
        return np.ones(len(part.pfns), np.bool_)
    return np.asarray((k.c.dirty[part.flats] != 0) | (k.tables.walk(part.mm.pgd, part.vpns) != part.flats))


def _restore(k: Kernel, part: _Cleared, stragglers: dict[int, int]) -> KernelTask[None]:
    """Map the pages again where their entry is still as it was left; quarantine the others, which were unmapped."""
    c = k.c
    swapped = part.replaced != 0
    end_harvest(k, part.pfns[part.maybe_dirty], np.ones(np.count_nonzero(part.maybe_dirty), np.bool_))
    while True:
        alive = not part.mm.dead
        flats = k.tables.walk(part.mm.pgd, part.vpns) if alive else np.full(len(part.vpns), -1)
        keys = [*pte_lock_keys(flats[flats >= 0]), SWAP_LOCK]
        guard = k.locks.try_spin(keys)
        if guard is not None:
            break
        yield SpinBusy(tuple(keys))
    with guard:
        same = (flats >= 0) & (c.pte[flats] == part.replaced)
        exclusive = np.ones(len(part.pfns), np.bool_)
        slots = c.private[part.pfns[swapped]].astype(np.int64)
        swap_free(k, c.private[part.pfns[same & swapped]].astype(np.int64))
        exclusive[swapped] = (c.mapcount[part.pfns[swapped]] == 1) & (c.swap_count[slots] == 1)
        entries = np.where(exclusive, part.entries, part.entries & ~np.uint64(PTE_WRITABLE))
        c.accessed[flats[same]] = 1
        c.pte[flats[same]] = entries[same]
    unmapped = part.pfns[~same]
    if len(unmapped):
        k.quarantine.add(stragglers, unmapped, [])
