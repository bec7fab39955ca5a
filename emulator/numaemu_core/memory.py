"""Faults: what happens when a page is touched that no entry maps, or not in this way; and unmapping.

Mirrors: mm/memory.c (2.6.15), for ranges of pages. Pages of files are in `filemap`, pages in the swap area in `swapin`.

A fault holds mmap_sem for reading. Entries are looked at again under the pte lock after everything that may have slept;
what has changed meanwhile is left to the next fault.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, U8
from numaemu_core.effects import Breathe, KernelTask, Shootdown
from numaemu_core.errors import BusError, MmError, OutOfMemory, SegmentationFault
from numaemu_core.filemap import do_no_page
from numaemu_core.harvest import begin_harvest, end_harvest
from numaemu_core.install_page import install_new_pages, set_ptes
from numaemu_core.kernel import Kernel
from numaemu_core.lru import mark_page_accessed
from numaemu_core.memory_one import try_anonymous_page
from numaemu_core.mempolicy import alloc_page_vma
from numaemu_core.mm_types import (
    VM_EXEC,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    AddressSpace,
    Mm,
    Task,
    VmArea,
)
from numaemu_core.mmzone import NUMA_HIT, NUMA_MISS
from numaemu_core.page_flags import PAGE_MAPPING_FILE, PG_DIRTY
from numaemu_core.page_lock import trylock_pages, unlock_pages, wait_on_pages_locked
from numaemu_core.page_table import (
    PTE_PRESENT,
    PTE_READABLE,
    PTE_WRITABLE,
    flats_of,
    is_migration,
    is_present,
    is_swapped,
    is_writable,
    pte_lock_keys,
    vm_page_prot,
)
from numaemu_core.rmap import get_pages
from numaemu_core.runs import copy_rows
from numaemu_core.swap_state import (
    can_share_swap_page,
    free_page_and_swap_cache,
    free_swap_and_cache,
    release_pages,
)
from numaemu_core.swapfile import SWAP_LOCK
from numaemu_core.swapin import do_swap_page, read_ahead
from numaemu_core.task_locks import down_read, spin_lock


def sys_fault(k: Kernel, task: Task, addr: int, length: int, *, write: bool) -> KernelTask[int]:
    """Make the pages of [addr, addr + length) accessible; gives how many bytes from addr are, at least one page's.

    Raises:
        SegmentationFault: the first page may not be accessed so (BusError: the file ends before it).
        OutOfMemory: it can get no frame.
    """
    first, end = addr >> k.page_shift, ((addr + max(length, 1) - 1) >> k.page_shift) + 1
    if end > first + 1:
        end = min(end, first + limits.FAULT_REQUEST_PAGES, first + pages_at_a_time(k))
    vpn = stop = ahead = first
    retries = FaultRetries()
    with (yield from down_read(task.mm)):
        k.reach("fault.sem_held")
        while vpn < end:
            if task.killed:
                raise OutOfMemory("the task was killed: out of memory")
            try:
                vma = accessible_vma(k, task.mm, vpn, write=write)
                stop = min(end, vma.vm_end >> k.page_shift, vpn + k.batch_pages)
                further = min(end, vma.vm_end >> k.page_shift, stop + k.batch_pages)
                if stop < further:
                    ahead = yield from read_ahead(k, task, vma, max(ahead, vpn), further)
                yield from handle_mm_fault(k, task, vma, vpn, stop, write=write)
            except (SegmentationFault, OutOfMemory) as error:
                if isinstance(error, (OutOfMemory, BusError)):
                    vpn += accessible_pages(k, task.mm, np.arange(vpn, stop), write=write)
                if vpn == first and retries.is_worth_another(k, task, error):
                    yield Breathe()
                    continue
                if vpn == first:
                    raise
                break
            vpn = stop
            if vpn < end:
                yield Breathe()
    return (vpn << k.page_shift) - addr


def pages_at_a_time(k: Kernel) -> int:
    """How many pages a request may ask for: of more, the first might be gone again before the last are there."""
    room = min(zone.nr_free - zone.pages_low for zone in k.zones.values())
    smallest = min(zone.present_pages for zone in k.zones.values())
    return max(room, smallest // limits.FAULT_SHARE_OF_NODE, 1)


@dataclass(slots=True)
class FaultRetries:
    """Times that a page was faulted in without being there in the end, while nobody was killed for it."""

    count: int = 0
    frames_taken: int = -1
    """How many the machine had given out by the last time."""

    def is_worth_another(self, k: Kernel, task: Task, error: MmError) -> bool:
        """Did some page get a frame, but not the first one, or was that reclaimed again?

        Where nobody at all has got one since the last time, another will be as vain.
        """
        taken = int(k.c.numastat[:, [NUMA_HIT, NUMA_MISS]].sum())
        moved = taken != self.frames_taken
        self.count, self.frames_taken = self.count + 1, taken
        return isinstance(error, OutOfMemory) and not task.dying and moved and self.count <= limits.FAULT_RETRIES


def accessible_pages(k: Kernel, mm: Mm, vpns: I8, *, write: bool) -> int:
    """How many of these pages, from the first on, may be accessed now without a fault."""
    flats = k.tables.walk(mm.pgd, vpns)
    rights = np.uint64(PTE_PRESENT | PTE_READABLE | (PTE_WRITABLE if write else 0))
    missing = np.flatnonzero((flats < 0) | (k.c.pte[flats] & rights != rights))
    return int(missing[0]) if len(missing) else len(vpns)


def accessible_vma(k: Kernel, mm: Mm, vpn: int, *, write: bool) -> VmArea:
    """The VMA of a page, if it allows this access (arch/x86_64/mm/fault.c do_page_fault)."""
    address = vpn << k.page_shift
    vma = mm.vmas.find_vma(address)
    if vma is None or vma.vm_start > address:
        raise SegmentationFault(address, f"nothing is mapped at {address:#x}")
    if not vma.vm_flags & (VM_WRITE if write else VM_READ | VM_EXEC):
        raise SegmentationFault(
            address, f"the mapping at {address:#x} does not allow {'writing' if write else 'reading'}"
        )
    return vma


def handle_mm_fault(
    k: Kernel, task: Task, vma: VmArea, first_vpn: int, end_vpn: int, *, write: bool
) -> KernelTask[None]:
    """Fault in the pages [first_vpn, end_vpn) of a VMA.

    Raises:
        OutOfMemory: the first of them that needs a frame can get none; those before it are there.
        BusError: the file ends before the first that is missing; those before it are there.
    """
    flats = k.tables.pte_alloc(task.mm.pgd, first_vpn, end_vpn)
    alone = write and vma.vm_file is None and len(flats) == 1
    if alone and try_anonymous_page(k, task, vma, first_vpn, int(flats[0])):
        return
    yield from handle_pte_faults(k, task, vma, np.arange(first_vpn, end_vpn), flats, write=write)


def handle_pte_faults(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, *, write: bool) -> KernelTask[None]:
    """handle_mm_fault for pages of a VMA, ascending, whose page tables are there. Raises as handle_mm_fault."""
    yield from _migration_entry_wait(k, flats)
    entries = k.c.pte[flats]
    none, swapped = entries == 0, is_swapped(entries)
    failure: MmError | None = None
    try:
        if none.any():
            yield from _map_missing_pages(k, task, vma, vpns[none], flats[none], write=write)
    except (BusError, OutOfMemory) as error:
        failure = error
        stop = int(np.argmax(k.c.pte[flats] == 0))
        flats, vpns, swapped = flats[:stop], vpns[:stop], swapped[:stop]
    if swapped.any():
        yield from do_swap_page(k, task, vma, vpns[swapped], flats[swapped], write=write)
    if write and not none.all():
        entries = k.c.pte[flats]
        protected = is_present(entries) & ~is_writable(entries)
        if protected.any():
            yield from do_wp_page(k, task, vma, vpns[protected], flats[protected], entries[protected])
    if failure is not None:
        raise failure


def _map_missing_pages(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, *, write: bool) -> KernelTask[None]:
    """Pages that have no entry yet."""
    if vma.vm_file is not None:
        yield from do_no_page(k, task, vma, vpns, flats, write=write)
    elif write:
        yield from do_anonymous_page(k, task, vma, vpns, flats)
    else:
        yield from _map_zero_page(k, vma, flats)


def _migration_entry_wait(k: Kernel, flats: I8) -> KernelTask[None]:
    """Sleep until none of these pages is on its way to another frame (migration_entry_wait, mm/migrate.c of 6.1)."""
    while True:
        entries = k.c.pte[flats]
        moving = entries[is_migration(entries)]
        if not len(moving):
            return
        yield from wait_on_pages_locked(k, (moving[:1] >> np.uint64(k.page_shift)).astype(np.int64))


# -- anonymous pages ---------------------------------------------------------------------------------------------------


def do_anonymous_page(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8) -> KernelTask[None]:
    """First writes: a zeroed frame for each page, where the policy says."""
    pfns = yield from alloc_page_vma(k, task, vma, vpns)
    k.reach("fault.frame_taken")
    got = len(pfns)
    if got:
        yield from install_new_pages(k, vma, vpns[:got], flats[:got], np.zeros(got, np.uint64), pfns)
        k.reach("fault.mapped")
        k.count("pgfault", got)
    if got < len(vpns):
        raise OutOfMemory


def _map_zero_page(k: Kernel, vma: VmArea, flats: I8) -> KernelTask[None]:
    """First reads: the one page of zeros, not writable."""
    with (yield from spin_lock(k, pte_lock_keys(flats))):
        empty = flats[k.c.pte[flats] == 0]
        zero = np.uint64(k.zero_pfn << k.page_shift | vm_page_prot(vma))
        set_ptes(k, empty, np.broadcast_to(zero, len(empty)), dirty=0)
    k.count("pgfault", len(flats))


# -- copy on write -----------------------------------------------------------------------------------------------------


def do_wp_page(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, entries: U8) -> KernelTask[None]:
    """Writes to pages mapped read-only: the last sharer takes the page over, others get a copy where their policy says.

    A page that somebody has locked is copied, too. Mirrors: do_wp_page, mm/memory.c (2.6.15).
    """
    k.count("pgfault", len(entries))
    if vma.vm_flags & VM_SHARED:  # nothing to copy: whoever may write writes to the file
        with (yield from spin_lock(k, pte_lock_keys(flats))):
            same = k.c.pte[flats] == entries
            set_ptes(k, flats[same], entries[same] | np.uint64(PTE_WRITABLE), dirty=1)
            if k.profile.write_fault_dirties_page:
                k.c.pg_flags[(entries[same] >> np.uint64(k.page_shift)).astype(np.int64)] |= PG_DIRTY
        return
    pfns = (entries >> np.uint64(k.page_shift)).astype(np.int64)
    copied = np.ones(len(pfns), np.bool_)
    anonymous = np.flatnonzero((pfns != k.zero_pfn) & (k.c.mapping[pfns] & PAGE_MAPPING_FILE == 0))
    if len(anonymous):
        got = yield from trylock_pages(k, pfns[anonymous])
        mine = anonymous[got]
        reused = yield from _reuse(k, pfns[mine], flats[mine], entries[mine])
        copied[mine[reused]] = False
        yield from unlock_pages(k, pfns[mine])
        yield from free_page_and_swap_cache(k, pfns[mine])
    if copied.any():
        yield from _copy_on_write(k, task, vma, vpns[copied], flats[copied], entries[copied])


def _reuse(k: Kernel, pfns: I8, flats: I8, entries: U8) -> KernelTask[I8]:
    """Make entries writable whose pages nobody shares; gives their positions."""
    if not len(pfns):
        return NO_INDEXES
    with (yield from spin_lock(k, [*pte_lock_keys(flats), SWAP_LOCK])):
        same = k.c.pte[flats] == entries
        mine = same & can_share_swap_page(k, pfns)
        set_ptes(k, flats[mine], entries[mine] | np.uint64(PTE_WRITABLE), dirty=1)
        done = mine | ~same
    return np.flatnonzero(done)


def _copy_on_write(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, entries: U8) -> KernelTask[None]:
    """Give the writer frames of its own; the old ones lose a mapping once no window can still read them through it.

    They are kept meanwhile: reclaim for the new frames must not live on what is to be copied.
    """
    old = (entries >> np.uint64(k.page_shift)).astype(np.int64)
    real = old != k.zero_pfn
    kept = old[real]
    get_pages(k, kept)
    new = yield from alloc_page_vma(k, task, vma, vpns)
    got = len(new)
    if got:
        old, real = old[:got], real[:got]
        if not task.mm.mirrored:
            copy_rows(k.c.frames, new[real], k.c.frames, old[real])
        k.reach("copy_on_write.copied")
        mapped = yield from install_new_pages(k, vma, vpns[:got], flats[:got], entries[:got], new)
        k.reach("copy_on_write.replaced")
        left = old[mapped][real[mapped]]
        if len(left):
            yield from release_mappings(k, task.mm, left, [])
    yield from release_pages(k, kept)
    if got < len(vpns):
        raise OutOfMemory


def release_mappings(
    k: Kernel, mm: Mm, pfns: I8, tables: list[int], written: Sequence[tuple[I8, I8]] = ()
) -> KernelTask[dict[int, int]]:
    """Entries of an mm no longer map these frames, tables are unlinked: shoot down, then let go of both.

    `written`: pages of files and the flat indexes of entries through which somebody may have used or written them: the
    dirty bytes go to the pages. Gives the stragglers for whose sake all of it went into quarantine, if there were any.
    """
    k.reach("unmapping.entries_cleared")
    stragglers: dict[int, int] = yield Shootdown(frozenset([mm.id]))
    k.reach("unmapping.windows_closed")
    for file_pfns, flats in written:
        end_harvest(k, file_pfns, (k.c.dirty[flats] != 0) | bool(stragglers))
        if k.profile.uses_activate:
            yield from mark_page_accessed(k, file_pfns[k.c.accessed[flats] != 0])
    if stragglers:
        k.quarantine.add(stragglers, pfns, tables)
        return stragglers
    for table in tables:
        k.tables.free_table(table)
    yield from page_remove_rmap(k, pfns)
    return stragglers


def page_remove_rmap(k: Kernel, pfns: I8) -> KernelTask[None]:
    """One mapping less of each page, which may stand several times; what nobody uses any more is freed."""
    if len(pfns):
        times = np.ones(len(pfns), np.uint32)
        if (k.c.mapping[pfns] & PAGE_MAPPING_FILE).any():  # an anonymous page stands once
            pfns, counts = np.unique(pfns, return_counts=True)
            times = counts.astype(np.uint32)
        assert (k.c.mapcount[pfns] >= times).all()
        k.c.mapcount[pfns] -= times
        yield from free_page_and_swap_cache(k, pfns)


def release_quarantine(k: Kernel) -> KernelTask[int]:
    """Let go of what waited for windows that have closed meanwhile; gives how many frames and tables."""
    count = 0
    for held in k.quarantine.release(k.c):
        for table in held.tables:
            k.tables.free_table(table)
        yield from page_remove_rmap(k, held.pfns)
        count += len(held.pfns) + len(held.tables)
    return count


# -- ranges ------------------------------------------------------------------------------------------------------------


def unmap_vmas(
    k: Kernel, mm: Mm, start: int, end: int, *, free_tables: bool, free_pgd: bool = False, even_cows: bool = True
) -> KernelTask[None]:
    """Drop every page of a range of an mm, and the page tables that are empty then (unmap_vmas and free_pgtables).

    The VMAs are out of the mm's list, or stay (MADV_DONTNEED). A frame or a table goes only when no window of the mm
    can reach it any more. Without `even_cows` only pages of files go, not what was written privately.
    """
    c = k.c
    first, last = start >> k.page_shift, end >> k.page_shift
    tables, bases = k.tables.pte_tables(mm.pgd, first, last)
    frames: list[I8] = []
    swapped: list[I8] = []
    written: list[tuple[I8, I8]] = []
    for part in range(0, len(tables), limits.PTE_LOCK_BATCH):
        batch = slice(part, part + limits.PTE_LOCK_BATCH)
        flats, _ = flats_of(tables[batch], bases[batch], first, last)
        if part:
            yield Breathe()
        with (yield from spin_lock(k, pte_lock_keys(flats))):
            entries = c.pte[flats]
            numbers = (entries >> np.uint64(k.page_shift)).astype(np.int64)
            mapped = (is_present(entries) | is_migration(entries)) & (numbers != k.zero_pfn)
            of_file = mapped & (c.mapping[np.where(mapped, numbers, 0)] & PAGE_MAPPING_FILE != 0)
            gone = entries != 0 if even_cows else of_file
            begin_harvest(k, numbers[of_file])
            c.pte[flats[gone]] = 0
        frames.append(numbers[mapped & gone])
        swapped.append(numbers[is_swapped(entries) & gone])
        if of_file.any():
            written.append((numbers[of_file], flats[of_file]))
    unlinked = k.tables.unlink_empty(mm.pgd, first, last) if free_tables else []
    if unlinked or free_pgd:
        c.mm_epoch[mm.id] += np.uint64(1)
    if free_pgd:
        unlinked.append(mm.pgd)
        _tell_gone(k, mm)
        k.reach("exit.told")
    pfns = np.concatenate([NO_INDEXES, *frames])
    if len(pfns) or unlinked:
        yield from release_mappings(k, mm, pfns, unlinked, written)
    yield from free_swap_and_cache(k, np.concatenate([NO_INDEXES, *swapped]))


def _tell_gone(k: Kernel, mm: Mm) -> None:
    """The journal learns that an mm is gone: its entries are, and its tables may be part of another one soon."""
    with k.journal.together():
        k.journal.append(["mm_gone", mm.id])
        for pid in [pid for pid, task in k.tasks.items() if task.mm is mm]:
            k.journal.append(["task_gone", pid])
    mm.told_gone = True


def unmap_mapping_range(k: Kernel, mapping: AddressSpace, first: int, end: int) -> KernelTask[None]:
    """No entry maps pages [first, end) of a file any more; private copies stay (mm/memory.c unmap_mapping_range)."""
    for vma in list(mapping.i_mmap):
        low = max(first, vma.vm_pgoff)
        high = min(end, vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> k.page_shift))
        if low < high and vma in mapping.i_mmap:
            start = vma.vm_start + ((low - vma.vm_pgoff) << k.page_shift)
            yield from unmap_vmas(
                k, vma.vm_mm, start, start + ((high - low) << k.page_shift), free_tables=False, even_cows=False
            )
