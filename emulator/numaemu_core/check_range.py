"""Walking a range for pages on the wrong nodes: for mbind, which looks at a range, and for migrate_pages, at all of it.

Mirrors: check_range and what it calls, mm/mempolicy.c of 2.6.14-rc4-mm1 with "Swap migration V3: MPOL_MF_MOVE
interface"; queue_pages_range and what it calls in 6.1 and 6.12.
"""

import errno
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, Bool
from numaemu_core.distinct import distinct
from numaemu_core.effects import Breathe, KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Rank
from numaemu_core.lru import isolate_lru_page
from numaemu_core.mbind_policy import check_holes
from numaemu_core.mm_types import (
    VM_DENYWRITE,
    VM_IO,
    VM_LOCKED,
    VM_RESERVED,
    VM_SHM,
    AddressSpace,
    Mm,
    VmArea,
)
from numaemu_core.page_flags import PAGE_MAPPING_FILE
from numaemu_core.page_table import flats_of, is_migration, is_present
from numaemu_core.task_locks import spin_lock
from numaemu_core.uapi import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT

#: Either of them: pages are queued.
MOVE_FLAGS: Final = MPOL_MF_MOVE | MPOL_MF_MOVE_ALL
_PMD_SHIFT: Final = limits.TABLE_SHIFT
_PUD_SHIFT: Final = 2 * limits.TABLE_SHIFT
_PGD_SHIFT: Final = 3 * limits.TABLE_SHIFT


class PageList:
    """Isolated pages on their way out, in the order in which they were found."""

    def __init__(self) -> None:
        """Empty."""
        self._parts: list[I8] = []
        #: Misplaced pages that could not be queued although they should (6.x has_unmovable, nr_failed).
        self.unmovable = 0

    def add(self, pfns: I8) -> None:
        """Behind the others."""
        if len(pfns):
            self._parts.append(pfns)

    def pages(self, *, lifo: bool) -> I8:
        """All of them; with `lifo` as a list that was linked at its head runs."""
        pfns = np.concatenate([NO_INDEXES, *self._parts])
        return pfns[::-1] if lifo else pfns


# -- which pages -------------------------------------------------------------------------------------------------------


def single_mm_mapping(mm: Mm, mapping: AddressSpace) -> bool:
    """Is every VMA that maps any part of this file one of `mm`'s?"""
    return all(vma.vm_mm is mm for vma in mapping.i_mmap)


def mapping_writably_mapped(mapping: AddressSpace) -> bool:
    """Does anybody map the file shared and writable?"""
    return mapping.i_mmap_writable > 0


def migrate_page_add(k: Kernel, vma: VmArea, pfns: I8, pagelist: PageList, flags: int) -> None:
    """Isolate the pages that may move and queue them; the lru_locks are held.

    Without MOVE_ALL shared pages stay where they are, and that is no error; which ones those are is the profile's to
    say. A page that could not be isolated, or is met for the second time, counts as unmovable.
    """
    movable = pfns if flags & MPOL_MF_MOVE_ALL else pfns[_is_not_shared(k, vma, pfns)]
    found = len(movable)
    if (k.c.mapcount[movable] > 1).any():
        movable = movable[np.sort(np.unique(movable, return_index=True)[1])]
    got = movable[isolate_lru_page(k, movable)]
    pagelist.add(got)
    pagelist.unmovable += found - len(got)


def _is_not_shared(k: Kernel, vma: VmArea, pfns: I8) -> Bool:
    """Which pages MOVE may take, as it is not others who use them."""
    if k.profile.move_needs_mapcount_one:
        return np.asarray(k.c.mapcount[pfns] == 1)
    may_move = np.ones(len(pfns), np.bool_)
    owners = k.c.mapping[pfns]
    for owner in distinct(owners[owners & PAGE_MAPPING_FILE != 0]).tolist():
        mapping = k.address_spaces[owner]
        if not mapping_writably_mapped(mapping) and not single_mm_mapping(vma.vm_mm, mapping):
            may_move &= owners != owner
    return may_move


def check_pte_range(
    k: Kernel,
    vma: VmArea,
    ptes: tuple[I8, I8],
    span: tuple[int, int],
    nodes: Bool,
    flags: int,
    pagelist: PageList | None,
) -> KernelTask[None]:
    """Pages of some pte tables (numbers and first virtual pages) that are on none of `nodes`: queue them, or EIO.

    The zero page is nobody's and does not count.
    """
    tables, bases = ptes
    lru_locks = [(Rank.LRU, nid) for nid in sorted(k.zones) if not nodes[nid]] if pagelist is not None else []
    for part in range(0, len(tables), limits.PTE_LOCK_BATCH):
        batch = slice(part, part + limits.PTE_LOCK_BATCH)
        flats, _ = flats_of(tables[batch], bases[batch], *span)
        locks = [(Rank.PTE, table) for table in sorted(tables[batch].tolist())]
        if part:
            yield Breathe()
        with (yield from spin_lock(k, [*locks, *lru_locks])):
            entries = k.c.pte[flats]
            pfns = (entries[is_present(entries)] >> np.uint64(k.page_shift)).astype(np.int64)
            misplaced = pfns[~nodes[k.nid_of_pfn[pfns]] & (pfns != k.zero_pfn)]
            moving = int(np.count_nonzero(is_migration(entries))) if k.profile.migration_entries_fail else 0
            if pagelist is None and (len(misplaced) or moving):
                raise MmError(errno.EIO, "a page of the range is on a node outside of the mask")
            if pagelist is not None:
                pagelist.unmovable += moving
                migrate_page_add(k, vma, misplaced, pagelist, flags)


def check_pmd_range(
    k: Kernel,
    vma: VmArea,
    pmds: tuple[I8, I8],
    span: tuple[int, int],
    nodes: Bool,
    flags: int,
    pagelist: PageList | None,
) -> KernelTask[None]:
    """The pte tables under some pmd tables."""
    ptes = k.tables.next_level(*pmds, _PMD_SHIFT, *span)
    yield from check_pte_range(k, vma, ptes, span, nodes, flags, pagelist)


def check_pud_range(
    k: Kernel,
    vma: VmArea,
    puds: tuple[I8, I8],
    span: tuple[int, int],
    nodes: Bool,
    flags: int,
    pagelist: PageList | None,
) -> KernelTask[None]:
    """The pmd tables under some pud tables."""
    pmds = k.tables.next_level(*puds, _PUD_SHIFT, *span)
    yield from check_pmd_range(k, vma, pmds, span, nodes, flags, pagelist)


def check_pgd_range(
    k: Kernel, vma: VmArea, span: tuple[int, int], nodes: Bool, flags: int, pagelist: PageList | None
) -> KernelTask[None]:
    """The pud tables under a VMA's pgd; `span` is in virtual pages."""
    puds = k.tables.next_level(np.array([vma.vm_mm.pgd]), np.array([0]), _PGD_SHIFT, *span)
    yield from check_pud_range(k, vma, puds, span, nodes, flags, pagelist)


def vma_migratable(k: Kernel, vma: VmArea) -> bool:
    """May MPOL_MF_MOVE touch the pages of this VMA?"""
    refused = VM_LOCKED | VM_RESERVED | VM_DENYWRITE | VM_SHM if k.profile.locked_pages_stay else 0
    return not vma.vm_flags & (VM_IO | refused)


def check_range(
    k: Kernel, mm: Mm, start: int, end: int, nodes: Bool, flags: int, pagelist: PageList | None
) -> KernelTask[VmArea]:
    """Walk a range: look for holes, and for pages that are on none of `nodes` (a bool a node id); gives the first VMA.

    With STRICT every VMA is scanned, with MOVE those that are migratable.

    Raises:
        MmError: EFAULT (nothing above start, a hole), EACCES (first VMA reserved), EIO (misplaced page, no list).
            Pages queued so far stay on the list.
    """
    first = mm.vmas.find_vma(start)
    if first is None or (first.vm_start >= end and not k.profile.holes_between_vmas_only):
        raise MmError(errno.EFAULT, f"nothing is mapped above {start:#x}")
    if first.vm_flags & VM_RESERVED:
        raise MmError(errno.EACCES, "the first mapping is reserved")
    previous: VmArea | None = None
    vma: VmArea | None = first
    while vma is not None and vma.vm_start < end:
        following = mm.vmas.find_vma(vma.vm_end)
        check_holes(k, vma, previous, following, (start, end), flags)
        if flags & MPOL_MF_STRICT or (flags & MOVE_FLAGS and vma_migratable(k, vma)):
            span = (max(start, vma.vm_start) >> k.page_shift, min(end, vma.vm_end) >> k.page_shift)
            yield from check_pgd_range(k, vma, span, nodes, flags, pagelist)
            if flags & MPOL_MF_STRICT and k.profile.unmovable_ends_walk and pagelist is not None and pagelist.unmovable:
                break
        previous, vma = vma, following
    return first
