"""Direct migration: isolated pages get new frames, and whoever maps them finds the same bytes there.

Mirrors: migrate_pages, unmap_and_move, try_to_migrate and remove_migration_ptes, mm/migrate.c and mm/rmap.c (6.1).

The life of a page in here: locked; every entry that maps it says "migration", so that whoever touches it waits; the
windows that could still reach it have closed; its bytes are copied once, by the node that gets them; then, in one step,
the new frame is what the old one was, and the entries name it. A page that turns out to be in use beside its entries
gets its entries back and is tried again.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, U8, Bool
from numaemu_core.distinct import distinct
from numaemu_core.effects import Breathe, CopyPages, KernelTask, Shootdown, SpinBusy, WaitCopies, WaitWriteback
from numaemu_core.install_page import make_entries
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Key
from numaemu_core.lru import add_to_list_heads, lru_cache_del, lru_lock_keys
from numaemu_core.migration_target import NewPages
from numaemu_core.mm_types import FileKind, VmArea
from numaemu_core.mmzone import free_pages
from numaemu_core.page_flags import (
    LRU_ON_LIST,
    LRU_PG_ACTIVE,
    PAGE_MAPPING_FILE,
    PG_DIRTY,
    PG_HOSTED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
)
from numaemu_core.page_lock import lock_some_pages, trylock_pages, unlock_pages
from numaemu_core.page_table import (
    PTE_MIGRATION,
    PTE_MIGRATION_WRITE,
    PTE_PRESENT,
    PTE_WRITABLE,
    is_migration,
    is_present,
    is_writable,
    pte_lock_keys,
    vm_page_prot,
)
from numaemu_core.rmap import Mapper, is_cached, page_check_address, page_count, rmap_walk
from numaemu_core.swap_state import free_page_and_swap_cache
from numaemu_core.task_locks import spin_lock

#: What becomes of a page in one attempt.
_AGAIN: Final = 0
_MOVED: Final = 1
_FREED: Final = 2
_FAILED: Final = 3


class Migrated(NamedTuple):
    """What came of a migration."""

    #: Pages that stayed, still isolated.
    left: I8
    #: No frame was to be had for some of them.
    out_of_memory: bool


def migrate_pages(k: Kernel, pfns: I8, new_pages: NewPages) -> KernelTask[Migrated]:
    """Move isolated pages to the frames that `new_pages` gives; when no frame is left, the pages without one stay.

    Fewer frames than pages are no end: those that have moved leave theirs, as page by page. The first pass prepares a
    batch while that before it is being copied, if memory is plenty; those that ask to be tried again have the later
    passes together.
    """
    batches: list[_Batch] = []
    begun: _Attempt | None = None
    done = 0
    while done < len(pfns):
        if begun is not None and _is_short(k):
            yield from _complete(k, begun)
            begun = None
        sources = pfns[done : done + k.batch_pages]
        targets = yield from new_pages(sources)
        if not len(targets):
            break
        batch = _Batch(sources[: len(targets)], targets)
        batches.append(batch)
        done += len(targets)
        if k.strikes.migration is not None:
            nodes = k.nid_of_pfn[targets]
            batch.state[k.strikes.migration.strike(nodes, np.ones(len(nodes), np.bool_))] = _FAILED
        todo = batch.state == _AGAIN
        todo[todo] = yield from trylock_pages(k, batch.pfns[todo])
        attempt = yield from _begin(k, batch, todo)
        if begun is not None:
            yield from _complete(k, begun)
        begun = attempt
        yield Breathe()
    if begun is not None:
        yield from _complete(k, begun)
    left = [NO_INDEXES]
    for batch in batches:
        yield from _later_passes(k, batch)
        left.append((yield from _finish(k, batch)))
    stayed = np.concatenate([*left, pfns[done:]])
    k.count("pgmigrate_fail", len(stayed))
    return Migrated(stayed, done < len(pfns))


class _Batch:
    """Some pages with their new frames, and what has become of each."""

    def __init__(self, pfns: I8, targets: I8) -> None:
        self.pfns = pfns
        self.targets = targets
        self.state = np.full(len(pfns), _AGAIN)


@dataclass(slots=True)
class _Attempt:
    """An attempt on some pages of a batch, which are locked: those at `here` are being copied, others stay or go."""

    batch: _Batch
    chosen: I8
    pfns: I8
    targets: I8
    state: I8
    here: I8
    copies: tuple[CopyPages, ...]


def _is_short(k: Kernel) -> bool:
    """Could the frames be missed that a batch on its way has still to give back?"""
    return any(zone.nr_free - zone.pages_low < k.batch_pages for zone in k.zones.values())


def _later_passes(k: Kernel, batch: _Batch) -> KernelTask[None]:
    """All passes but the first: those that are left are tried again, at last by sleeping for their locks."""
    for migrate_pass in range(1, limits.MIGRATE_PASSES):
        todo = batch.state == _AGAIN
        if not todo.any():
            return
        if migrate_pass < limits.MIGRATE_TRYLOCK_PASSES:
            todo[todo] = yield from trylock_pages(k, batch.pfns[todo])
            yield from _complete(k, (yield from _begin(k, batch, todo)))
        else:
            while todo.any():
                got = todo.copy()
                got[todo] = yield from lock_some_pages(k, batch.pfns[todo])
                yield from _complete(k, (yield from _begin(k, batch, got)))
                todo &= ~got
        yield Breathe()


def _finish(k: Kernel, batch: _Batch) -> KernelTask[I8]:
    """No more attempts: frames without use are freed; gives the pages that stayed."""
    moved = batch.state == _MOVED
    k.count("pgmigrate_success", int(np.count_nonzero(moved)))
    yield from free_pages(k, batch.targets[~moved])
    return batch.pfns[(batch.state == _AGAIN) | (batch.state == _FAILED)]


def _begin(k: Kernel, batch: _Batch, chosen: Bool) -> KernelTask[_Attempt]:
    """One attempt on locked pages, up to where they are being copied (unmap_and_move, 6.1)."""
    pfns, targets = batch.pfns[chosen], batch.targets[chosen]
    state = np.full(len(pfns), _AGAIN)
    if (k.c.pg_flags[pfns] & PG_WRITEBACK).any():
        yield WaitWriteback(pfns)
    state[page_count(k, pfns) == 1] = _FREED  # whoever used it is gone: the isolation alone has it
    state[~can_be_moved(k, pfns)] = _FAILED
    here = np.flatnonzero(state == _AGAIN)
    late = yield from try_to_migrate(k, pfns[here])
    state[here[late]] = _FAILED
    here = here[~late]
    _learn_of_writes(k, pfns[here])
    state[here[~can_be_moved(k, pfns[here])]] = _FAILED
    here = here[state[here] == _AGAIN]
    here = here[_is_nobody_elses(k, pfns[here])]
    copies = []
    with_bytes = here[k.c.pg_flags[pfns[here]] & PG_HOSTED == 0]
    for nid in distinct(k.nid_of_pfn[targets[with_bytes]]).tolist():
        there = with_bytes[k.nid_of_pfn[targets[with_bytes]] == nid]
        copies.append(CopyPages(nid, pfns[there], targets[there]))
        yield copies[-1]
    return _Attempt(batch, np.flatnonzero(chosen), pfns, targets, state, here, tuple(copies))


def _complete(k: Kernel, attempt: _Attempt) -> KernelTask[None]:
    """The rest of an attempt: the pages are where their copies are, or stay; all are unlocked."""
    pfns, here, state = attempt.pfns, attempt.here, attempt.state
    yield WaitCopies(attempt.copies)
    k.reach("migration.copied")
    state[here[(yield from _move_to_new_pages(k, pfns[here], attempt.targets[here]))]] = _MOVED
    stay = pfns[state != _MOVED]
    yield from remove_migration_ptes(k, stay)
    yield from unlock_pages(k, stay)
    freed = pfns[state == _FREED]
    if len(freed):
        with (yield from spin_lock(k, lru_lock_keys(k, freed))):
            add_to_list_heads(k, freed, (k.c.lru_state[freed] & LRU_PG_ACTIVE | LRU_ON_LIST).astype(np.int64))
        yield from free_page_and_swap_cache(k, freed)
    attempt.batch.state[attempt.chosen] = state


def can_be_moved(k: Kernel, pfns: I8) -> Bool:
    """Pages of ramfs that were written to cannot: there is no way to write them out (fallback_migrate_folio)."""
    return ~_of_ramfs(k, pfns) | (k.c.pg_flags[pfns] & PG_DIRTY == 0)


def _of_ramfs(k: Kernel, pfns: I8) -> Bool:
    which = np.zeros(len(pfns), np.bool_)
    owners = k.c.mapping[pfns].astype(np.int64)
    for owner in distinct(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
        which |= (owners == owner) & (k.address_spaces[owner].kind is FileKind.RAMFS)
    return which


def _learn_of_writes(k: Kernel, pfns: I8) -> None:
    """What the entries of pages of ramfs know of writes, the pages know now; no window is open (try_to_migrate_one)."""
    pages = pfns[_of_ramfs(k, pfns)]
    if len(pages):
        found = _migration_entries(k, pages)
        k.c.pg_flags[pages[found.positions[k.c.dirty[found.flats] != 0]]] |= PG_DIRTY


def _is_nobody_elses(k: Kernel, pfns: I8) -> Bool:
    """Which pages are known to their entries, their cache and the isolation only: nobody has them pinned."""
    return np.asarray(page_count(k, pfns) == k.c.mapcount[pfns].astype(np.int64) + is_cached(k, pfns) + 1)


# -- entries -----------------------------------------------------------------------------------------------------------


def try_to_migrate(k: Kernel, pfns: I8) -> KernelTask[Bool]:
    """Every entry that maps one of these locked pages says "migration", and no window reaches it any more.

    Rights and the accessed and dirty bytes stay with the entry. True for pages that a straggler may still reach.
    """
    touched: dict[int, list[I8]] = {}
    for mapper in rmap_walk(k, pfns):
        positions = yield from _mark_in_vma(k, mapper, pfns)
        if len(positions):
            touched.setdefault(mapper.vma.vm_mm.id, []).append(positions)
    late = np.zeros(len(pfns), np.bool_)
    if touched:
        k.reach("migration.entries_marked")
        stragglers: dict[int, int] = yield Shootdown(frozenset(touched))
        k.reach("migration.windows_closed")
        for mm_id in {int(k.c.window_mm[slot]) - 1 for slot in stragglers} & touched.keys():
            late[np.concatenate(touched[mm_id])] = True
    return late


def _mark_in_vma(k: Kernel, mapper: Mapper, all_pfns: I8) -> KernelTask[I8]:
    """try_to_migrate_one for many pages and one VMA; gives the positions of those that it maps."""
    pfns = all_pfns[mapper.positions]
    locked = yield from page_check_address(k, mapper, mapper.vpns)
    if locked is None:
        return NO_INDEXES
    with locked.guard:
        here = is_present(locked.entries) & locked.name(k, pfns)
        may_write = np.where(is_writable(locked.entries[here]), np.uint64(PTE_MIGRATION_WRITE), np.uint64(0))
        k.c.pte[locked.flats[here]] = make_entries(k, pfns[here], PTE_MIGRATION) | may_write
    return mapper.positions[here]


@dataclass(slots=True)
class _Found:
    """The migration entries of some pages: which page each names, and the bits of a present entry of its VMA."""

    keys: list[Key]
    positions: I8
    flats: I8
    entries: U8
    rights: U8


def _migration_entries(k: Kernel, pfns: I8) -> _Found:
    """Look all of them up; their locks are to be taken before another task runs."""
    keys: set[Key] = set()
    positions, flats, entries, rights = [NO_INDEXES], [NO_INDEXES], [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for mapper in rmap_walk(k, pfns):
        at = k.tables.walk(mapper.vma.vm_mm.pgd, mapper.vpns)
        found = k.c.pte[at]
        here = (at >= 0) & is_migration(found) & (_numbers(k, found) == pfns[mapper.positions])
        if here.any():
            keys.update((mapper.lock, *pte_lock_keys(at[here])))
            positions.append(mapper.positions[here])
            flats.append(at[here])
            entries.append(found[here])
            rights.append(_rights(mapper.vma, found[here]))
    return _Found(
        sorted(keys), np.concatenate(positions), np.concatenate(flats), np.concatenate(entries), np.concatenate(rights)
    )


def _rights(vma: VmArea, entries: U8) -> U8:
    """The bits of entries once they are present again: what the VMA allows, writing if that was not lost meanwhile."""
    may_write = np.where(entries & np.uint64(PTE_MIGRATION_WRITE), np.uint64(PTE_WRITABLE), np.uint64(0))
    return may_write | np.uint64(vm_page_prot(vma))


def _move_to_new_pages(k: Kernel, pfns: I8, targets: I8) -> KernelTask[Bool]:
    """New frames become what the locked, copied ones were, entries included; True for those that did.

    All of it is one step under the locks of all entries, or two halves where those are too many. A page whose entries
    are fewer than its map count (one is being unmapped just now), or that others use, stays.
    Mirrors: move_to_new_folio, folio_migrate_mapping and remove_migration_ptes (6.1).
    """
    if not len(pfns):
        return np.zeros(0, np.bool_)
    while True:
        found = _migration_entries(k, pfns)
        if len(found.keys) > limits.PTE_LOCK_BATCH and len(pfns) > 1:
            half = len(pfns) // 2
            first = yield from _move_to_new_pages(k, pfns[:half], targets[:half])
            return np.concatenate((first, (yield from _move_to_new_pages(k, pfns[half:], targets[half:]))))
        if len(found.keys) > limits.ROBUST_LIST_MAX // 2:
            return np.zeros(1, np.bool_)
        guard = k.locks.try_spin(found.keys)
        if guard is not None:
            break
        yield SpinBusy(tuple(found.keys))
    with guard:
        counts = np.bincount(found.positions, minlength=len(pfns))
        moves = (counts == k.c.mapcount[pfns]) & _is_nobody_elses(k, pfns)
        # From here to where it is 0 again nobody else runs: what stands there is read by recovery alone.
        k.c.moving_to[pfns[moves]] = targets[moves] + 1
        _copy_identity(k, pfns[moves], targets[moves])
        k.reach("migration.identity_copied")
        mine = moves[found.positions]
        new = targets[found.positions[mine]]
        k.c.pte[found.flats[mine]] = make_entries(k, new, 0) | found.rights[mine]
        k.c.mapcount[pfns[moves]] = 0
        # From now on nobody who waited for the lock of an old frame takes it for the page (folio->mapping = NULL).
        for column in (k.c.mapping, k.c.index, k.c.moving_to):
            column[pfns[moves]] = 0
        k.c.pg_flags[pfns[moves]] &= PG_HOSTED
    k.reach("migration.moved")
    old, new = pfns[moves], targets[moves]
    states = k.c.lru_state[old] & LRU_PG_ACTIVE | LRU_ON_LIST
    yield from lru_cache_del(k, old)
    yield from unlock_pages(k, old)
    yield from free_pages(k, old)
    with (yield from spin_lock(k, lru_lock_keys(k, new))):
        add_to_list_heads(k, new, states.astype(np.int64))
    yield from free_page_and_swap_cache(k, new)
    return np.asarray(moves)


def _copy_identity(k: Kernel, pfns: I8, targets: I8) -> None:
    """Whose pages they are, and what their caches say (folio_migrate_mapping, folio_migrate_flags)."""
    c = k.c
    for column in (c.mapping, c.index, c.private, c.mapcount, c.pg_flags):
        column[targets] = column[pfns]
    swapped = c.pg_flags[pfns] & PG_SWAPCACHE != 0
    k.slot_frame[c.private[pfns[swapped]]] = targets[swapped]
    owners = np.where(swapped, 0, c.mapping[pfns]).astype(np.int64)
    for owner in distinct(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
        new = targets[owners == owner]
        k.address_spaces[owner].i_pages[c.index[new].astype(np.int64)] = make_entries(k, new, PTE_PRESENT)


def remove_migration_ptes(k: Kernel, pfns: I8) -> KernelTask[None]:
    """Pages that stay where they are: entries that say "migration" map them again (remove_migration_ptes).

    Entries that change their VMA meanwhile (mremap) are found in another round.
    """
    while len(pfns) and len(_migration_entries(k, pfns).flats):
        for mapper in rmap_walk(k, pfns):
            yield from _restore_in_vma(k, mapper, pfns)


def _restore_in_vma(k: Kernel, mapper: Mapper, all_pfns: I8) -> KernelTask[None]:
    pfns = all_pfns[mapper.positions]
    locked = yield from page_check_address(k, mapper, mapper.vpns)
    if locked is None:
        return
    with locked.guard:
        here = is_migration(locked.entries) & locked.name(k, pfns)
        k.c.pte[locked.flats[here]] = make_entries(k, pfns[here], 0) | _rights(mapper.vma, locked.entries[here])


def _numbers(k: Kernel, entries: U8) -> I8:
    """The frames that entries name."""
    return (entries >> np.uint64(k.page_shift)).astype(np.int64)
