"""The page cache: which frames hold the pages of an object, and the faults that map them.

What an object knows of its pages (`i_pages`) is the daemon's alone: looked at and changed between two yields, and
looked at again after each. Mirrors: mm/filemap.c and do_no_page, mm/memory.c (2.6.15); filemap_map_pages and
do_fault_around (6.1).
"""

from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, Bool
from numaemu_core.distinct import distinct
from numaemu_core.effects import KernelTask, ReadPages, WaitCopies
from numaemu_core.errors import BusError, OutOfMemory
from numaemu_core.install_page import file_page_prot, install_new_pages, make_entries, set_ptes
from numaemu_core.kernel import Kernel
from numaemu_core.lru import add_to_list_heads, lru_lock_keys, mark_page_accessed
from numaemu_core.mempolicy import alloc_page_cache, alloc_page_object, alloc_page_vma
from numaemu_core.mm_types import VM_SHARED, AddressSpace, FileKind, Task, VmArea
from numaemu_core.mmzone import free_pages
from numaemu_core.page_flags import LRU_ACTIVE, LRU_INACTIVE, PG_DIRTY, PG_HOSTED, PG_REFERENCED, PG_UPTODATE
from numaemu_core.page_lock import lock_new_pages, lock_some_pages, trylock_pages, unlock_pages
from numaemu_core.page_table import PTE_PRESENT, is_present, is_swapped, pte_lock_keys
from numaemu_core.rmap import get_pages, linear_page_index, put_pages
from numaemu_core.runs import copy_rows
from numaemu_core.shmem import shmem_swapin
from numaemu_core.swap_state import release_pages
from numaemu_core.task_locks import spin_lock

_NOTHING: Final = np.uint64(0)


# -- the pages of an object --------------------------------------------------------------------------------------------


def resident_pfns(k: Kernel, mapping: AddressSpace, indexes: I8) -> I8:
    """The frames of pages of an object, -1 where a page is not in memory (find_get_pages)."""
    entries = mapping.i_pages[indexes]
    return np.where(is_present(entries), (entries >> np.uint64(k.page_shift)).astype(np.int64), -1)


def still_in_cache(k: Kernel, mapping: AddressSpace, indexes: I8, pfns: I8) -> Bool:
    """Which of these locked frames are what they were taken for, with their bytes read."""
    c = k.c
    same = (c.mapping[pfns] == mapping.id) & (c.index[pfns] == indexes.astype(np.uint64))
    return np.asarray(same & (c.pg_flags[pfns] & PG_UPTODATE != 0))


def page_cache_read(k: Kernel, task: Task | None, mapping: AddressSpace, indexes: I8) -> KernelTask[bool]:
    """Bring pages of an object into memory: from swap, from the disk, or as zeros; False where memory ran out.

    Pages of tmpfs and shared anonymous memory go where the policy of the object says, others where the task's does.
    """
    enough = True
    swapped = is_swapped(mapping.i_pages[indexes])
    if swapped.any():
        enough = yield from shmem_swapin(k, task, mapping, indexes[swapped])
    missing = indexes[mapping.i_pages[indexes] == _NOTHING]
    if not len(missing):
        return enough
    on_disk = mapping.kind is FileKind.DISK
    if mapping.is_shmem:
        pfns = yield from alloc_page_object(k, task, mapping, missing)
    else:
        pfns = yield from alloc_page_cache(k, task, len(missing), zero=not on_disk)
    enough &= len(pfns) == len(missing)
    missing = missing[: len(pfns)]
    if on_disk:
        yield from _read_from_disk(k, mapping, missing, pfns)
    else:
        flags = PG_UPTODATE | _first_use(k) | (PG_HOSTED if mapping.mirrored else 0)
        yield from _add_to_page_cache(k, mapping, missing, pfns, flags)
    return enough


def _first_use(k: Kernel) -> int:
    """What a new page is marked with for whoever it was made for, where no later step says so."""
    return 0 if k.profile.uses_activate else PG_REFERENCED


def _add_to_page_cache(k: Kernel, mapping: AddressSpace, indexes: I8, pfns: I8, flags: int) -> KernelTask[Bool]:
    """New frames become pages of an object where it has none by now; True for those that did, the others are freed."""
    mine = mapping.i_pages[indexes] == _NOTHING
    new = pfns[mine]
    k.c.index[new] = indexes[mine].astype(np.uint64)
    k.c.pg_flags[new] = flags
    k.c.mapping[new] = mapping.id  # last: from now on recovery takes it for the page
    mapping.i_pages[indexes[mine]] = make_entries(k, new, PTE_PRESENT)
    late = pfns[~mine]
    if len(late):
        yield from unlock_pages(k, late[k.c.page_lock_owner[late] != 0])
        yield from free_pages(k, late)
    with (yield from spin_lock(k, lru_lock_keys(k, new))):
        add_to_list_heads(k, new, LRU_ACTIVE if mapping.is_shmem else LRU_INACTIVE)
    return mine


def _read_from_disk(k: Kernel, mapping: AddressSpace, indexes: I8, pfns: I8) -> KernelTask[None]:
    """Fill new frames from the disk segment; they are locked until their bytes are there (do_generic_mapping_read)."""
    if not len(pfns):
        return
    locked = yield from lock_new_pages(k, pfns)
    indexes, pfns = indexes[locked], pfns[locked]
    mine = yield from _add_to_page_cache(k, mapping, indexes, pfns, _first_use(k))
    new = pfns[mine]
    if len(new):
        read = ReadPages(disk_slots(k, mapping, indexes[mine]), new)
        yield read
        yield WaitCopies((read,))
        k.c.pg_flags[new] |= PG_UPTODATE
        k.count("pgpgin", len(new) * k.page_size // 1024)
        yield from unlock_pages(k, new)
        yield from put_pages(k, new)


def remove_from_page_cache(k: Kernel, mapping: AddressSpace, pfns: I8) -> None:
    """Locked pages are no longer pages of the object (mm/filemap.c remove_from_page_cache)."""
    mapping.i_pages[k.c.index[pfns].astype(np.int64)] = 0
    k.c.mapping[pfns] = 0
    k.c.index[pfns] = 0
    k.c.pg_flags[pfns] &= ~np.uint16(PG_DIRTY)


def disk_slots(k: Kernel, mapping: AddressSpace, indexes: I8) -> I8:
    """Where pages of a file lie on the disk segment, whose slots follow those of the swap area."""
    return indexes + (k.layout.slot_count + mapping.disk_start)


# -- faults ------------------------------------------------------------------------------------------------------------


def do_no_page(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, *, write: bool) -> KernelTask[None]:
    """First touches of pages of a file: map them, or a copy where a private mapping is written to.

    Mirrors: do_no_page, mm/memory.c (2.6.15).

    Raises:
        BusError: the file ends before the first of them that it does not have; those before it are there.
        OutOfMemory: a page can get no frame; those before it are there.
    """
    mapping = vma.vm_file
    assert mapping is not None
    indexes = linear_page_index(k, vma, vpns)
    inside = int(np.searchsorted(indexes, _pages_of_file(k, mapping)))
    if not write and k.profile.fault_around_pages > 1:
        yield from do_fault_around(k, vma, vpns[: inside + 1])  # the fault that will fail maps neighbours, too
    if inside:
        k.count("pgfault", inside)
        if write and not vma.vm_flags & VM_SHARED:
            yield from _do_cow_fault(k, task, vma, vpns[:inside], flats[:inside], indexes[:inside])
        else:
            yield from _map_file_pages(k, task, vma, vpns[:inside], flats[:inside], indexes[:inside], write=write)
    if inside < len(vpns):
        address = int(vpns[inside]) << k.page_shift
        raise BusError(address, f"the file ends before {address:#x}")


def _pages_of_file(k: Kernel, mapping: AddressSpace) -> int:
    """Pages of an object that may be touched: the last one may be in part beyond its end."""
    return min(len(mapping.i_pages), -(-mapping.i_size >> k.page_shift))


def _map_file_pages(
    k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, indexes: I8, *, write: bool
) -> KernelTask[None]:
    mapping = vma.vm_file
    assert mapping is not None
    while True:
        todo = k.c.pte[flats] == _NOTHING
        if not todo.any():
            return
        vpns, flats, indexes = vpns[todo], flats[todo], indexes[todo]
        enough = yield from page_cache_read(k, task, mapping, indexes)
        pfns = resident_pfns(k, mapping, indexes)
        here = np.flatnonzero(pfns >= 0)
        if len(here):
            got = yield from lock_some_pages(k, pfns[here])
            at = here[got]
            yield from _map_locked(k, vma, flats[at], indexes[at], pfns[at], write=write)
        elif not enough:
            raise OutOfMemory


def _map_locked(k: Kernel, vma: VmArea, flats: I8, indexes: I8, pfns: I8, *, write: bool) -> KernelTask[None]:
    """Map locked pages of a file where nothing is mapped yet, and unlock them."""
    assert vma.vm_file is not None
    with (yield from spin_lock(k, pte_lock_keys(flats))):
        same = (k.c.pte[flats] == _NOTHING) & still_in_cache(k, vma.vm_file, indexes, pfns)
        mapped = pfns[same]
        k.c.mapcount[mapped] += 1
        k.c.pg_flags[mapped] |= PG_DIRTY if write and k.profile.write_fault_dirties_page else 0
        set_ptes(k, flats[same], make_entries(k, mapped, file_page_prot(vma)), dirty=int(write))
    yield from mark_page_accessed(k, mapped)
    yield from unlock_pages(k, pfns)
    yield from put_pages(k, pfns[~same])


def _do_cow_fault(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, indexes: I8) -> KernelTask[None]:
    """Writes to a private mapping: a copy of each page, where the policy of the VMA says."""
    mapping = vma.vm_file
    assert mapping is not None
    while True:
        todo = k.c.pte[flats] == _NOTHING
        if not todo.any():
            return
        vpns, flats, indexes = vpns[todo], flats[todo], indexes[todo]
        enough = yield from page_cache_read(k, task, mapping, indexes)
        pfns = resident_pfns(k, mapping, indexes)
        here = np.flatnonzero(pfns >= 0)
        if not len(here):
            if not enough:
                raise OutOfMemory
            continue
        kept = pfns[here]
        get_pages(k, kept)
        copies = yield from alloc_page_vma(k, task, vma, vpns[here], zero=False)
        if not len(copies):
            yield from release_pages(k, kept)
            raise OutOfMemory
        here = here[: len(copies)]
        got = yield from lock_some_pages(k, pfns[here])
        at = here[got]
        whole = still_in_cache(k, mapping, indexes[at], pfns[at])
        new = copies[got]
        copy_rows(k.c.frames, new[whole], k.c.frames, pfns[at][whole])
        yield from mark_page_accessed(k, pfns[at][whole])
        yield from unlock_pages(k, pfns[at])
        yield from release_pages(k, kept)
        yield from free_pages(k, np.concatenate((copies[~got], new[~whole])))
        at = at[whole]
        expected = np.zeros(len(at), np.uint64)
        yield from install_new_pages(k, vma, vpns[at], flats[at], expected, new[whole])


# -- fault-around ------------------------------------------------------------------------------------------------------


def do_fault_around(k: Kernel, vma: VmArea, vpns: I8) -> KernelTask[None]:
    """Read faults on these pages map what is in memory around them, too: no frame is allocated for it.

    A fault maps a window that starts at the page rounded down to fault_around_pages, but not before the VMA, and ends
    with the VMA or the pte table. Mirrors: do_fault_around and filemap_map_pages (6.1).
    """
    assert vma.vm_file is not None
    around = _around(k, vma, vpns)
    around = around[~np.isin(around, vpns)]
    indexes = linear_page_index(k, vma, around)
    known = indexes < _pages_of_file(k, vma.vm_file)
    around, indexes = around[known], indexes[known]
    pfns = resident_pfns(k, vma.vm_file, indexes)
    flats = k.tables.walk(vma.vm_mm.pgd, around)
    can = (pfns >= 0) & (flats >= 0)
    can[can] = k.c.pte[flats[can]] == _NOTHING
    if not can.any():
        return
    got = yield from trylock_pages(k, pfns[can])
    at = np.flatnonzero(can)[got]
    yield from _map_locked(k, vma, flats[at], indexes[at], pfns[at], write=False)


def _around(k: Kernel, vma: VmArea, vpns: I8) -> I8:
    """The pages of the windows of faults on these pages, one after the other; ascending.

    Only the window of a VMA's first block may reach into the next block: what it maps there does not fault any more.
    """
    width = k.profile.fault_around_pages
    start, end = vma.vm_start >> k.page_shift, vma.vm_end >> k.page_shift
    first_block = start // width * width
    skewed = np.arange(start, min(start + width, end, (start | limits.PTRS_PER_TABLE - 1) + 1))
    in_first = vpns < first_block + width
    later = vpns[~in_first]
    if not in_first.any():
        skewed = NO_INDEXES
    elif len(later):
        assert vma.vm_file is not None
        spared = later[np.isin(later, skewed)]
        spared = spared[linear_page_index(k, vma, spared) < _pages_of_file(k, vma.vm_file)]
        resident = resident_pfns(k, vma.vm_file, linear_page_index(k, vma, spared)) >= 0
        later = later[~np.isin(later, spared[resident])]
    blocks = distinct(later // width * width)
    windows = (blocks[:, None] + np.arange(width)).reshape(-1)
    return distinct(np.concatenate((skewed, windows[windows < end])))
