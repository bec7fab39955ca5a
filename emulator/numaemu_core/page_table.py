"""Four-level page tables in one arena of shared memory: pgd, pud, pmd, pte, rows of 512 entries.

A *flat* index names one pte: table * 512 + entry. Entries, all with the page number above PAGE_SHIFT, so that a present
entry without its low bits is the byte offset of the frame among all frames:

    0                                   none
    PRESENT [READABLE] [WRITABLE] pfn   mapped; without READABLE it is PROT_NONE
    SWAPPED slot                        in the swap area, or on its way there
    MIGRATION [MIGRATION_WRITE] pfn     being copied to another frame; its map count stays; a fault waits
    PRESENT table                       in the three upper levels

The daemon alone writes entries, a pte under the lock of its table. `accessed` and `dirty` are bytes beside the entry,
set by clients before they touch the bytes of the frame; they are reset before an entry becomes present.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, U8, Bool, Columns
from numaemu_core.distinct import distinct
from numaemu_core.errors import OutOfMemory
from numaemu_core.layout import Layout
from numaemu_core.locks import Key, Rank
from numaemu_core.mm_types import VM_ACCESS_FLAGS, VmArea

PTE_PRESENT: Final = 1
PTE_READABLE: Final = 2
PTE_WRITABLE: Final = 4
PTE_SWAPPED: Final = 16
PTE_MIGRATION: Final = 32
#: The entry was WRITABLE before, and will be again: clients look at that bit alone, so it must not stay.
PTE_MIGRATION_WRITE: Final = 64
#: What takes the right to write away from an entry, whether it is on its way or not.
PTE_WRITE_RIGHTS: Final = PTE_WRITABLE | PTE_MIGRATION_WRITE

_INDEX = limits.PTRS_PER_TABLE - 1
_SHIFT = limits.TABLE_SHIFT
#: Levels above the pte table, and by how many bits a virtual page number is shifted to index each.
_UPPER_SHIFTS = (3 * _SHIFT, 2 * _SHIFT, _SHIFT)


class TableArena:
    """Which tables of the arena are in use, and the walks through them."""

    def __init__(self, layout: Layout, columns: Columns) -> None:
        """All tables free but number 0, which stands for none."""
        self.page_shift = layout.page_shift
        self.pte = columns.pte
        self.rows = columns.pte_tables
        self.table_count = layout.table_count
        self._next_unused = 1
        self._made = columns.tables_made
        #: Told the number of each table before it is used for the first time: makes its lock.
        self.prepare: Callable[[int], None] = lambda _table: None
        self._free: list[int] = []

    # -- tables --------------------------------------------------------------------------------------------------------

    @property
    def in_use(self) -> int:
        """Tables that are neither free nor number 0."""
        return self._next_unused - 1 - len(self._free)

    def free_tables(self) -> list[int]:
        """Tables that were in use and are free again."""
        return list(self._free)

    def alloc_table(self) -> int:
        """A table of 512 empty entries; `prepare` was told of its number before its first use.

        Raises:
            OutOfMemory: the arena is full.
        """
        if self._free:
            return self._free.pop()
        if self._next_unused == self.table_count:
            message = "no page-table page is left"
            raise OutOfMemory(message)
        self.prepare(self._next_unused)
        self._next_unused += 1
        self._made[0] = self._next_unused
        return self._next_unused - 1

    def recover(self, in_use: set[int]) -> list[int]:
        """After a crash: these tables are in use, and none is free yet; gives the others that ever were used."""
        self._next_unused = max(int(self._made[0]), 1)
        self._free = []
        gone = np.ones(self._next_unused, np.bool_)
        gone[[0, *in_use]] = False
        return np.flatnonzero(gone).tolist()

    def clear(self, tables: list[int]) -> None:
        """Make tables empty that nothing leads to."""
        for part in range(0, len(tables), limits.PTE_LOCK_BATCH):
            batch = np.array(tables[part : part + limits.PTE_LOCK_BATCH])
            self.rows[batch[self.rows[batch].any(axis=1)]] = 0

    def free_table(self, table: int) -> None:
        """Give back a table that nobody can reach any more; its entries are none."""
        assert not self.rows[table].any()
        self._free.append(table)

    # -- one address ---------------------------------------------------------------------------------------------------

    def pte_offset(self, pgd: int, vpn: int) -> int:
        """The flat index of a virtual page's pte, -1 where a level is missing."""
        table = pgd
        for shift in _UPPER_SHIFTS:
            entry = int(self.pte[(table << _SHIFT) + (vpn >> shift & _INDEX)])
            if not entry:
                return -1
            table = entry >> self.page_shift
        return (table << _SHIFT) + (vpn & _INDEX)

    def pte_alloc(self, pgd: int, first_vpn: int, end_vpn: int) -> I8:
        """The flat indexes of the ptes of [first_vpn, end_vpn), making the tables that are missing.

        Raises:
            OutOfMemory: the arena is full; tables made so far stay.
        """
        pieces: list[I8] = []
        vpn = first_vpn
        while vpn < end_vpn:
            stop = min(end_vpn, (vpn | _INDEX) + 1)
            base = (self._pte_table(pgd, vpn) << _SHIFT) + (vpn & _INDEX)
            pieces.append(np.arange(base, base + stop - vpn))
            vpn = stop
        return pieces[0] if len(pieces) == 1 else np.concatenate([NO_INDEXES, *pieces])

    def pte_alloc_each(self, pgd: int, vpns: I8) -> I8:
        """The flat indexes of the entries of scattered pages, whose tables are made where need be. As `pte_alloc`."""
        flats = self.walk(pgd, vpns)
        missing = flats < 0
        if missing.any():
            for number in distinct(vpns[missing] >> _SHIFT).tolist():
                self._pte_table(pgd, number << _SHIFT)
            flats = self.walk(pgd, vpns)
        return flats

    def pte_alloc_some(self, pgd: int, vpns: I8) -> I8:
        """The same for as many of these pages, from the first on, as there is room for tables.

        Raises:
            OutOfMemory: there is none for the first.
        """
        try:
            return self.pte_alloc_each(pgd, vpns)
        except OutOfMemory:
            flats = self.walk(pgd, vpns)
            if flats[0] < 0:
                raise
            return flats[: int(np.argmin(flats))]  # the first that has none

    def _pte_table(self, pgd: int, vpn: int) -> int:
        table = pgd
        for shift in _UPPER_SHIFTS:
            at = (table << _SHIFT) + (vpn >> shift & _INDEX)
            entry = int(self.pte[at])
            if entry:
                table = entry >> self.page_shift
            else:
                table = self.alloc_table()
                self.pte[at] = table << self.page_shift | PTE_PRESENT
        return table

    # -- many addresses ------------------------------------------------------------------------------------------------

    def walk(self, pgd: int, vpns: I8) -> I8:
        """The flat indexes of many virtual pages, -1 where a level is missing."""
        if len(vpns) == 1 or (len(vpns) and int(vpns[0]) >> _SHIFT == int(vpns[-1]) >> _SHIFT and _ascends(vpns)):
            first = self.pte_offset(pgd, int(vpns[0]))  # neighbours in one table: one walk serves all
            return np.arange(first, first + len(vpns)) if first >= 0 else np.full(len(vpns), -1)
        tables = np.full(len(vpns), pgd)
        for shift in _UPPER_SHIFTS:
            entries = self.pte[(tables << _SHIFT) + (vpns >> shift & _INDEX)].astype(np.int64)
            tables = np.where(tables > 0, entries >> self.page_shift, 0)
        return np.where(tables > 0, (tables << _SHIFT) + (vpns & _INDEX), -1)

    def next_level(self, tables: I8, bases: I8, shift: int, first_vpn: int, end_vpn: int) -> tuple[I8, I8]:
        """One level down: the tables named by the entries that are not none and cover part of [first_vpn, end_vpn).

        `bases` are the first virtual pages of `tables`, `shift` what one entry covers (log2, in pages). Gives the
        tables below and their first virtual pages, ascending. Mirrors: the loops of p?d_none_or_clear_bad.
        """
        if len(tables) == 1:
            base = int(bases[0])
            low = max(first_vpn - base, 0) >> shift
            high = min(-(-(end_vpn - base) >> shift), limits.PTRS_PER_TABLE)
            entries = self.rows[int(tables[0]), low:high]
            columns = np.flatnonzero(entries)
            return (entries[columns] >> np.uint64(self.page_shift)).astype(np.int64), base + (columns + low << shift)
        numbers, firsts = [NO_INDEXES], [NO_INDEXES]
        for part in range(
            0, len(tables), limits.PTE_LOCK_BATCH
        ):  # a copy of all rows at once may be as large as memory
            batch = slice(part, part + limits.PTE_LOCK_BATCH)
            entries = self.rows[tables[batch]]
            row, column = np.nonzero(entries)
            starts = bases[batch][row] + (column << shift)
            inside = (starts < end_vpn) & (starts + (1 << shift) > first_vpn)
            below = (entries[row, column] >> np.uint64(self.page_shift)).astype(np.int64)
            numbers.append(below[inside])
            firsts.append(starts[inside])
        return np.concatenate(numbers), np.concatenate(firsts)

    def pte_tables(self, pgd: int, first_vpn: int, end_vpn: int) -> tuple[I8, I8]:
        """The pte tables that exist under [first_vpn, end_vpn), and the first virtual page of each, ascending."""
        tables, bases = np.array([pgd]), np.array([0])
        for shift in _UPPER_SHIFTS:
            tables, bases = self.next_level(tables, bases, shift, first_vpn, end_vpn)
            if not len(tables):
                break
        return tables, bases

    def used_entries(self, pgd: int, first_vpn: int, end_vpn: int) -> tuple[I8, I8, U8]:
        """Flat indexes, virtual pages and entries of everything under the range that is not none, ascending.

        Some tables at a time: many tables with an entry each take little room in the answer, and much on the way.
        """
        tables, bases = self.pte_tables(pgd, first_vpn, end_vpn)
        flats, vpns = [NO_INDEXES], [NO_INDEXES]
        for part in range(0, len(tables), limits.PTE_LOCK_BATCH):
            batch = slice(part, part + limits.PTE_LOCK_BATCH)
            all_flats, all_vpns = flats_of(tables[batch], bases[batch], first_vpn, end_vpn)
            used = self.pte[all_flats] != 0
            flats.append(all_flats[used])
            vpns.append(all_vpns[used])
        found = np.concatenate(flats)
        return found, np.concatenate(vpns), self.pte[found]

    def all_tables(self, pgd: int) -> set[int]:
        """Every table reachable from a pgd, itself included: for fsck."""
        tables, bases = np.array([pgd]), np.array([0])
        found = {pgd}
        for shift in _UPPER_SHIFTS:
            tables, bases = self.next_level(tables, bases, shift, 0, 1 << (limits.TABLE_LEVELS * _SHIFT))
            found.update(tables.tolist())
        return found

    def _have_entries(self, tables: I8) -> Bool:
        """Which of these tables have an entry that is not none."""
        parts = range(0, len(tables), limits.PTE_LOCK_BATCH)
        return np.concatenate([self.rows[tables[part : part + limits.PTE_LOCK_BATCH]].any(axis=1) for part in parts])

    def unlink_empty(self, pgd: int, first_vpn: int, end_vpn: int) -> list[int]:
        """Unlink the tables under the range that have no entry left, lowest level first.

        The caller frees them once no walk can still be inside.
        """
        levels = [(np.array([pgd]), np.array([0]))]
        for shift in _UPPER_SHIFTS:
            levels.append(self.next_level(*levels[-1], shift, first_vpn, end_vpn))
        unlinked: list[int] = []
        for depth in range(len(levels) - 1, 0, -1):
            tables, bases = levels[depth]
            if not len(tables):
                continue
            gone = ~self._have_entries(tables)
            unlinked += tables[gone].tolist()
            parents, parent_bases = levels[depth - 1]
            shift = _UPPER_SHIFTS[depth - 1]
            parent = parents[np.searchsorted(parent_bases, bases[gone], "right") - 1]
            self.pte[(parent << _SHIFT) + (bases[gone] >> shift & _INDEX)] = 0
        return unlinked


def flats_of(tables: I8, bases: I8, first_vpn: int, end_vpn: int) -> tuple[I8, I8]:
    """Flat indexes and virtual pages of all entries of some pte tables that lie in [first_vpn, end_vpn), ascending."""
    offsets = np.arange(limits.PTRS_PER_TABLE)
    flats = ((tables << _SHIFT)[:, None] + offsets).reshape(-1)
    vpns = (bases[:, None] + offsets).reshape(-1)
    if len(vpns) and (vpns[0] < first_vpn or vpns[-1] >= end_vpn):
        inside = slice(*np.searchsorted(vpns, [first_vpn, end_vpn]).tolist())
        return flats[inside], vpns[inside]
    return flats, vpns


def _ascends(vpns: I8) -> bool:
    """Each number is one above the one before it."""
    return bool((np.diff(vpns) == 1).all())


def pte_lock_keys(flats: I8) -> list[Key]:
    """The pte locks of the tables that hold these entries, in the order in which they are taken."""
    tables = flats >> _SHIFT
    if len(tables) == 1:
        return [(Rank.PTE, int(tables[0]))]
    if len(tables) and bool((tables == tables[0]).all()):
        return [(Rank.PTE, int(tables[0]))]
    tables = distinct(tables)
    return [(Rank.PTE, table) for table in tables.tolist()]


def is_present(entries: U8) -> Bool:
    """Which entries are mapped."""
    return entries & np.uint64(PTE_PRESENT) != 0


def is_swapped(entries: U8) -> Bool:
    """Which entries name a slot."""
    return entries & np.uint64(PTE_SWAPPED) != 0


def is_migration(entries: U8) -> Bool:
    """Which entries name a page that is being migrated."""
    return entries & np.uint64(PTE_MIGRATION) != 0


def is_writable(entries: U8) -> Bool:
    """Which entries let a write through."""
    return entries & np.uint64(PTE_WRITABLE) != 0


def vm_page_prot(vma: VmArea) -> int:
    """The bits of a present entry of a VMA, not writable: that is earned by a write fault (PAGE_COPY)."""
    return PTE_PRESENT | (PTE_READABLE if vma.vm_flags & VM_ACCESS_FLAGS else 0)
