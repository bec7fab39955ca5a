"""Every invariant of a machine at rest: no kernel task between two yields, no write on its way.

`fsck` gives one line for each violation. Tests run it after everything they do, and break each invariant by hand to see
it named. A check reads the shared truth and compares it with what is derived from it.
"""

from collections.abc import Callable, Iterator

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES
from numaemu_core.kernel import Kernel
from numaemu_core.layout import NUMA_COUNTERS
from numaemu_core.mm_types import VM_SHARED, Mm
from numaemu_core.mmzone import LOCAL_NODE, NUMA_FOREIGN, NUMA_HIT, NUMA_MISS, OTHER_NODE
from numaemu_core.page_flags import (
    ALLOCATED,
    FREE_CLEAN,
    FREE_UNCLEAN,
    LRU_ISOLATED,
    LRU_ON_LIST,
    PAGE_MAPPING_FILE,
    PG_HOSTED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
    RESERVED,
)
from numaemu_core.page_table import is_present, is_swapped
from numaemu_core.rmap import linear_page_index, page_count, pinned_pages

#: Violations of one kind that are listed one by one; the rest are counted.
LISTED_MAX = 5
#: Frames that are copied to be looked at, at one time.
LOOKED_AT = 1024


def fsck(k: Kernel, own_task: int = 0) -> list[str]:
    """One line for each violation; empty for a sound machine. `own_task` is the kernel task that runs the check."""
    found: list[str] = []
    for check in CHECKS:
        found.extend(check(k, own_task))
    return found


def _some(what: str, numbers: I8) -> Iterator[str]:
    """A line for each of the first few, and one for the rest."""
    for number in numbers[:LISTED_MAX].tolist():
        yield what.format(number)
    if len(numbers) > LISTED_MAX:
        yield f"{what.format('…')}: {len(numbers) - LISTED_MAX} more"


def _mapped(k: Kernel, mm: Mm) -> tuple[I8, I8, I8]:
    """(flat indexes, virtual pages, entries) of everything that an mm's tables name."""
    end = 1 << (limits.TABLE_LEVELS * limits.TABLE_SHIFT)
    flats, vpns, entries = k.tables.used_entries(mm.pgd, 0, end)
    return flats, vpns, entries.astype(np.int64)


def check_frame_states(k: Kernel, _own: int) -> Iterator[str]:
    """Each frame is in exactly one state, and free frames are nobody's."""
    c = k.c
    free = c.free_state <= FREE_UNCLEAN
    yield from _some("frame {}: unknown state", np.flatnonzero(c.free_state > RESERVED))
    in_use = (c.mapcount > 0) | (c.pg_flags != 0) | (c.lru_state != 0) | (c.mapping != 0)
    yield from _some("frame {}: free, but in use", np.flatnonzero(free & in_use))
    yield from _some("frame {}: clean, but not zero", _clean_not_zero(k))
    allocated = np.flatnonzero(c.free_state == ALLOCATED)
    yield from _some("frame {}: allocated, but nobody refers to it", allocated[page_count(k, allocated) == 0])
    for nid, zone in k.zones.items():
        count = int(np.count_nonzero(free[zone.first : zone.end]))
        if count != zone.nr_free:
            yield f"node {nid}: {count} frames are free, the zone says {zone.nr_free}"


def _clean_not_zero(k: Kernel) -> I8:
    """Frames with bytes that the next user must not see.

    A machine that takes memory when it is touched would take all of it to be looked at: there nobody looks.
    """
    if not k.topology.preallocate:
        return NO_INDEXES
    clean = np.flatnonzero((k.c.free_state == FREE_CLEAN) | (k.c.pg_flags & PG_HOSTED != 0))
    parts = np.split(clean, range(LOOKED_AT, len(clean), LOOKED_AT))
    return np.concatenate([part[k.c.frames[part].any(axis=1)] for part in parts])


def check_set_apart(k: Kernel, _own: int) -> Iterator[str]:
    """Frames and slots that faults on demand have set apart are nobody's; else only the zero page is reserved."""
    apart = np.zeros(k.layout.frame_count, np.bool_)
    for zone in k.zones.values():
        apart[zone.end - zone.set_apart : zone.end] = True
    reserved = k.c.free_state == RESERVED
    yield from _some("frame {}: set apart by a fault, but not reserved", np.flatnonzero(apart & ~reserved))
    reserved[k.zero_pfn] = False
    reserved &= k.c.mapcount == 0  # of those that are mapped check_map_counts tells
    yield from _some("frame {}: reserved, but not set apart", np.flatnonzero(reserved & ~apart))
    used = np.flatnonzero(k.c.swap_count[k.usable_slots :]) + k.usable_slots
    yield from _some("slot {}: set apart by a fault, but in use", used)


def check_lru(k: Kernel, _own: int) -> Iterator[str]:
    """Each allocated frame is on a list, or pinned or in quarantine; none is isolated by nobody."""
    c = k.c
    yield from _some("frame {}: isolated, but by no task that lives", np.flatnonzero(c.lru_state & LRU_ISOLATED))
    excused = np.concatenate([pinned_pages(k), *(held.pfns for held in k.quarantine.entries)])
    off = np.flatnonzero((c.free_state == ALLOCATED) & (c.lru_state & LRU_ON_LIST == 0))
    yield from _some("frame {}: allocated, but on no list", off[~np.isin(off, excused)])


def check_map_counts(k: Kernel, _own: int) -> Iterator[str]:
    """Entries, map counts and identities agree; no frame is mapped under two identities."""
    c = k.c
    mapped = np.zeros(k.layout.frame_count, np.int64)
    for mm in k.mms.values():
        _, vpns, entries = _mapped(k, mm)
        here = is_present(entries.astype(np.uint64))
        pfns, pages = entries[here] >> k.page_shift, vpns[here]
        real = pfns != k.zero_pfn
        pfns, pages = pfns[real], pages[real]
        np.add.at(mapped, pfns, 1)
        yield from _some("frame {}: mapped, but not allocated", pfns[c.free_state[pfns] != ALLOCATED])
        for vma in mm.vmas:
            inside = (pages >= vma.vm_start >> k.page_shift) & (pages < vma.vm_end >> k.page_shift)
            indexes = linear_page_index(k, vma, pages[inside])
            owner = c.mapping[pfns[inside]]
            right = owner == (-1 if vma.anon_vma is None else vma.anon_vma)
            if vma.vm_file is not None:
                right |= owner == vma.vm_file.id
            right &= c.index[pfns[inside]] == indexes.astype(np.uint64)
            yield from _some("frame {}: mapped as another page than it says it is", pfns[inside][~right])
    for held in k.quarantine.entries:
        np.add.at(mapped, held.pfns, 1)
    yield from _some("frame {}: map count is not the number of its entries", np.flatnonzero(mapped != c.mapcount))


def check_swap(k: Kernel, _own: int) -> Iterator[str]:
    """Slot counts are entries plus cache; cache and frames agree; nothing is being written."""
    c = k.c
    cached = np.flatnonzero(c.pg_flags & PG_SWAPCACHE)
    slots = c.private[cached].astype(np.int64)
    yield from _some("frame {}: in the swap cache, which does not know it", cached[k.slot_frame[slots] != cached])
    known = np.flatnonzero(k.slot_frame >= 0)
    yield from _some(
        "slot {}: cached in a frame that is not in the cache", known[~np.isin(k.slot_frame[known], cached)]
    )
    references = np.zeros(k.layout.slot_count, np.int64)
    np.add.at(references, slots, 1)
    for mm in k.mms.values():
        _, _, entries = _mapped(k, mm)
        np.add.at(references, entries[is_swapped(entries.astype(np.uint64))] >> k.page_shift, 1)
    for mapping in k.address_spaces.values():
        np.add.at(references, (mapping.i_pages[is_swapped(mapping.i_pages)] >> np.uint64(k.page_shift)).astype(int), 1)
    yield from _some("slot {}: its count is not the number of its users", np.flatnonzero(references != c.swap_count))
    free = int(np.count_nonzero(c.swap_count[: k.usable_slots] == 0))
    if free != k.nr_swap_pages:
        yield f"swap: {free} slots are free, the machine says {k.nr_swap_pages}"
    yield from _some("frame {}: under writeback that nobody does", np.flatnonzero(c.pg_flags & PG_WRITEBACK))


def check_page_cache(k: Kernel, _own: int) -> Iterator[str]:
    """Objects and the frames of their pages know each other; the lists of VMAs are those that map them."""
    c = k.c
    cached = np.flatnonzero(c.mapping & PAGE_MAPPING_FILE)
    known = np.zeros(k.layout.frame_count, np.bool_)
    for mapping in k.address_spaces.values():
        indexes = np.flatnonzero(is_present(mapping.i_pages))
        pfns = (mapping.i_pages[indexes] >> np.uint64(k.page_shift)).astype(np.int64)
        right = (c.mapping[pfns] == mapping.id) & (c.index[pfns] == indexes.astype(np.uint64))
        yield from _some(f"file {mapping.name}: page {{}} is not what its frame says", indexes[~right])
        known[pfns[c.mapping[pfns] == mapping.id]] = True
        mappers = {vma for mm in k.mms.values() for vma in mm.vmas if vma.vm_file is mapping}
        if mappers != set(mapping.i_mmap):
            yield f"file {mapping.name}: {len(mapping.i_mmap)} VMAs are on its list, {len(mappers)} map it"
        writable = sum(1 for vma in mappers if vma.vm_flags & VM_SHARED)
        if writable != mapping.i_mmap_writable:
            yield f"file {mapping.name}: {writable} VMAs share it, i_mmap_writable is {mapping.i_mmap_writable}"
    yield from _some("frame {}: of a file that does not know it", cached[~known[cached]])


def check_address_spaces(k: Kernel, _own: int) -> Iterator[str]:
    """VMAs are ordered, whole pages, apart; entries lie inside of them; policies name nodes that are online."""
    for mm in k.mms.values():
        previous_end = 0
        spans = []
        for vma in mm.vmas:
            if not previous_end <= vma.vm_start < vma.vm_end or (vma.vm_start | vma.vm_end) & (k.page_size - 1):
                yield f"mm {mm.id}: VMA {vma.vm_start:#x}-{vma.vm_end:#x} overlaps or is not whole pages"
            if vma.anon_vma is not None and vma not in k.anon_vmas[vma.anon_vma].vmas:
                yield f"mm {mm.id}: VMA {vma.vm_start:#x} is not in its anon_vma"
            if vma.vm_policy is not None and vma.vm_policy.nodes & ~k.online:
                yield f"mm {mm.id}: VMA {vma.vm_start:#x} has a policy for nodes that are not online"
            previous_end = vma.vm_end
            spans.append((vma.vm_start >> k.page_shift, vma.vm_end >> k.page_shift))
        _, vpns, _ = _mapped(k, mm)
        inside = np.zeros(len(vpns), np.bool_)
        for first, end in spans:
            inside |= (vpns >= first) & (vpns < end)
        yield from _some(f"mm {mm.id}: page {{}} has an entry outside of every VMA", vpns[~inside])
    for task in k.tasks.values():
        if task.policy is not None and task.policy.nodes & ~k.online:
            yield f"task {task.pid}: its policy names nodes that are not online"
        if k.mms.get(task.mm.id) is not task.mm:
            yield f"task {task.pid}: its mm is gone"


def check_tables(k: Kernel, _own: int) -> Iterator[str]:
    """Each page-table page belongs to one mm, or is free and empty, or waits in quarantine."""
    free = k.tables.free_tables()
    owned = set(free) | {table for held in k.quarantine.entries for table in held.tables}
    count = len(owned)
    yield from _some("table {}: free, but not empty", np.array([t for t in free if k.tables.rows[t].any()], np.int64))
    for mm in k.mms.values():
        mine = k.tables.all_tables(mm.pgd)
        for table in sorted(mine & owned)[:LISTED_MAX]:
            yield f"table {table}: used by mm {mm.id} and by another"
        owned |= mine
        count += len(mine)
    if count - len(free) != k.tables.in_use:
        yield f"tables: {count - len(free)} are reachable, {k.tables.in_use} are in use"


def check_counters(k: Kernel, _own: int) -> Iterator[str]:
    """numa_miss and numa_foreign have the same sum; hit and miss are local and other, on each node."""
    stat = k.c.numastat
    if stat[:, NUMA_MISS].sum() != stat[:, NUMA_FOREIGN].sum():
        yield f"{NUMA_COUNTERS[NUMA_MISS]} and {NUMA_COUNTERS[NUMA_FOREIGN]} have different sums"
    wrong = stat[:, NUMA_HIT] + stat[:, NUMA_MISS] != stat[:, LOCAL_NODE] + stat[:, OTHER_NODE]
    yield from _some("node {}: hit + miss is not local + other", np.flatnonzero(wrong))


def check_locks(k: Kernel, own: int) -> Iterator[str]:
    """No page lock and no other lock is held, no frame is kept; no access slot that nobody has is open."""
    yield from _some("frame {}: locked, but no task runs", np.flatnonzero(k.c.page_lock_owner))
    yield from _some("frame {}: kept by a task, but no task runs", np.flatnonzero(k.page_refs))
    for task, held in k.locks.holders().items():
        if task != own:
            yield f"kernel task {task} holds {held.sems} {held.spins}"
    yield from _some(
        "access slot {}: open, but nobody's", np.flatnonzero((k.c.window & np.uint64(1) != 0) & (k.c.window_mm == 0))
    )
    yield from _some("mutex {}: needs recovery", np.flatnonzero(k.c.needs_recovery != 0))


def check_journal(k: Kernel, _own: int) -> Iterator[str]:
    """Replaying the journal gives the tasks, mms, VMAs and policies that there are."""
    said, live = k.journal.replay(), k.truth()
    for what in ("tasks", "mms", "vmas", "files", "policies", "weights"):
        told, real = getattr(said, what), getattr(live, what)
        for key in sorted(told.keys() | real.keys()):
            if told.get(key) != real.get(key):
                yield f"journal: {what} {key}: {told.get(key)} is told, {real.get(key)} is so"


CHECKS: tuple[Callable[[Kernel, int], Iterator[str]], ...] = (
    check_frame_states,
    check_set_apart,
    check_lru,
    check_map_counts,
    check_swap,
    check_page_cache,
    check_address_spaces,
    check_tables,
    check_counters,
    check_locks,
    check_journal,
)
