"""The page tables against a dict: walks, ranges, and which tables exist."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numaemu_core import limits
from numaemu_core.columns import Columns, columns_in_memory
from numaemu_core.errors import OutOfMemory
from numaemu_core.layout import Layout, layout_of
from numaemu_core.locks import Rank
from numaemu_core.page_table import (
    PTE_PRESENT,
    PTE_SWAPPED,
    PTE_WRITABLE,
    TableArena,
    flats_of,
    is_present,
    is_swapped,
    is_writable,
    pte_lock_keys,
)
from numaemu_core.topology import uniform

VPN_BITS = limits.TABLE_LEVELS * limits.TABLE_SHIFT
VPN_END = 1 << VPN_BITS
LEVEL_SHIFTS = (limits.TABLE_SHIFT, 2 * limits.TABLE_SHIFT, 3 * limits.TABLE_SHIFT)

#: Pages whose indexes are extreme at some level, so that random sets share tables at all of them.
EDGES = sorted(
    {
        min(max((index << shift) + offset, 0), VPN_END - 1)
        for shift in (0, *LEVEL_SHIFTS)
        for index in (0, 1, 511, 512)
        for offset in (-1, 0, 1)
    }
)
VPNS = st.one_of(st.sampled_from(EDGES), st.integers(0, VPN_END - 1), st.integers(0, 3000))
SPANS = st.tuples(VPNS, st.one_of(st.integers(1, 3), st.integers(1, 1200))).map(
    lambda span: (span[0], min(span[0] + span[1], VPN_END))
)
RANGES = st.tuples(VPNS, VPNS).map(lambda ends: (min(ends), max(ends) + 1))


@functools.cache
def memory() -> tuple[Layout, Columns]:
    layout = layout_of(uniform(1, "1M", "256K", "swap-v3", 4096))
    return layout, columns_in_memory(layout)


class Model:
    """A page table as a dict from virtual page to entry, and the set of tables that were made for it."""

    def __init__(self) -> None:
        """The arena is empty but for the pgd."""
        layout, columns = memory()
        columns.pte[:] = 0
        self.arena = TableArena(layout, columns)
        self.pgd = self.arena.alloc_table()
        self.entries: dict[int, int] = {}
        #: By level, from the pte tables upwards: first virtual pages, shifted.
        self.tables: tuple[set[int], ...] = (set(), set(), set())

    def map(self, first: int, end: int) -> None:
        """Make entries for a range, each unlike the others."""
        flats = self.arena.pte_alloc(self.pgd, first, end)
        assert len(flats) == end - first
        assert len(set(flats.tolist())) == len(flats)
        for vpn, flat in zip(range(first, end), flats.tolist(), strict=True):
            self.entries.setdefault(vpn, (len(self.entries) + 1) << 12 | PTE_PRESENT)
            self.arena.pte[flat] = self.entries[vpn]
        for level, shift in enumerate(LEVEL_SHIFTS):
            self.tables[level].update({first >> shift, (end - 1) >> shift})
            self.tables[level].update(range(first >> shift, (end - 1) >> shift))

    def unmap(self, first: int, end: int) -> None:
        """Clear the entries of a range; the tables stay."""
        for vpn in [vpn for vpn in self.entries if first <= vpn < end]:
            self.arena.pte[self.arena.pte_offset(self.pgd, vpn)] = 0
            del self.entries[vpn]

    def under(self, level: int, first: int, end: int) -> list[int]:
        """The tables of a level that cover part of a range, ascending."""
        shift = LEVEL_SHIFTS[level]
        return sorted(number for number in self.tables[level] if first >> shift <= number <= (end - 1) >> shift)

    def entry(self, vpn: int) -> int | None:
        """What a walk must find: an entry, 0, or None where a table is missing."""
        return self.entries.get(vpn, 0) if vpn >> LEVEL_SHIFTS[0] in self.tables[0] else None


def filled(spans: list[tuple[int, int]]) -> Model:
    model = Model()
    for first, end in spans:
        model.map(first, end)
    return model


SPARSE = st.lists(SPANS, min_size=1, max_size=8)


@settings(max_examples=60)
@given(SPARSE, st.lists(VPNS, max_size=20))
def test_walks_find_what_was_mapped(spans: list[tuple[int, int]], others: list[int]) -> None:
    """One address or many, in any order: a walk gives the entry, and -1 where a level is missing."""
    model = filled(spans)
    near = [vpn for first, end in spans for vpn in (first, end - 1, max(first - 1, 0), min(end, VPN_END - 1))]
    vpns = [*others, *near, *others[::-1]]
    flats = model.arena.walk(model.pgd, np.array(vpns, np.int64))
    assert flats.tolist() == [model.arena.pte_offset(model.pgd, vpn) for vpn in vpns]
    found = [int(model.arena.pte[flat]) if flat >= 0 else None for flat in flats.tolist()]
    assert found == [model.entry(vpn) for vpn in vpns]


@settings(max_examples=30)
@given(SPARSE, VPNS, st.integers(0, 600))
def test_walks_of_neighbours_find_each(spans: list[tuple[int, int]], first: int, count: int) -> None:
    """Neighbours, in one table or across its end, are found as they are one by one."""
    model = filled(spans)
    vpns = np.arange(first, min(first + count, VPN_END))
    expected = [model.arena.pte_offset(model.pgd, vpn) for vpn in vpns.tolist()]
    found = model.arena.walk(model.pgd, vpns).tolist()
    assert [flat if flat >= 0 else -1 for flat in found] == found == expected


@settings(max_examples=60)
@given(SPARSE, st.lists(RANGES, min_size=1, max_size=6))
def test_ranges_give_every_entry_once(spans: list[tuple[int, int]], ranges: list[tuple[int, int]]) -> None:
    """The tables and entries of a range are those of the model, ascending, and none outside of it."""
    model = filled(spans)
    for first, end in [*ranges, *spans, (0, VPN_END)]:
        tables, bases = model.arena.pte_tables(model.pgd, first, end)
        assert bases.tolist() == [number << limits.TABLE_SHIFT for number in model.under(0, first, end)]
        flats, vpns = flats_of(tables, bases, first, end)
        assert flats.tolist() == model.arena.walk(model.pgd, vpns).tolist()
        entries = {vpn: int(model.arena.pte[flat]) for vpn, flat in zip(vpns.tolist(), flats.tolist(), strict=True)}
        assert {vpn: entry for vpn, entry in entries.items() if entry} == {
            vpn: entry for vpn, entry in model.entries.items() if first <= vpn < end
        }
        covered = sum(min(end, base + limits.PTRS_PER_TABLE) - max(first, base) for base in bases.tolist())
        assert len(vpns) == covered
        assert (np.diff(vpns) > 0).all()


@settings(max_examples=60)
@given(SPARSE, RANGES)
def test_each_level_names_the_tables_below(spans: list[tuple[int, int]], span: tuple[int, int]) -> None:
    """One level down from the tables of a range are the tables of the next level of that range."""
    model = filled(spans)
    tables, bases = np.array([model.pgd]), np.array([0])
    for level in (2, 1, 0):
        shift = LEVEL_SHIFTS[level]
        tables, bases = model.arena.next_level(tables, bases, shift, *span)
        assert bases.tolist() == [number << shift for number in model.under(level, *span)]
        assert len(set(tables.tolist())) == len(tables)


@settings(max_examples=60)
@given(SPARSE, st.lists(RANGES, max_size=3), RANGES)
def test_empty_tables_are_unlinked(
    spans: list[tuple[int, int]], cleared: list[tuple[int, int]], span: tuple[int, int]
) -> None:
    """The tables under a range without an entry left go, lowest level first; all others stay where they were."""
    model = filled(spans)
    for first, end in cleared:
        model.unmap(first, end)
    before = {vpn: model.arena.pte_offset(model.pgd, vpn) for vpn in model.entries}
    numbers = model.arena.all_tables(model.pgd)
    doomed: list[int] = []
    kept = {vpn >> LEVEL_SHIFTS[0] for vpn in model.entries}
    for level in range(3):
        gone = [number for number in model.under(level, *span) if number not in kept]
        model.tables[level].difference_update(gone)
        kept = {number >> limits.TABLE_SHIFT for number in model.tables[level]}
        doomed.append(len(gone))
    unlinked = model.arena.unlink_empty(model.pgd, *span)
    assert len(unlinked) == sum(doomed)
    assert len(set(unlinked)) == len(unlinked)
    assert model.arena.all_tables(model.pgd) == numbers - set(unlinked)
    assert len(numbers) - len(unlinked) == 1 + sum(len(level) for level in model.tables)
    assert {vpn: model.arena.pte_offset(model.pgd, vpn) for vpn in model.entries} == before
    _, bases = model.arena.pte_tables(model.pgd, 0, VPN_END)
    assert bases.tolist() == [number << limits.TABLE_SHIFT for number in sorted(model.tables[0])]
    for table in unlinked:
        model.arena.free_table(table)
    assert sorted(model.arena.free_tables()) == sorted(unlinked)


def test_unlinked_tables_come_lowest_level_first() -> None:
    """A page alone in its tables takes its pte table, then the pmd, then the pud with it."""
    model = filled([(5 << 27, (5 << 27) + 1)])
    chain = [table for table in sorted(model.arena.all_tables(model.pgd)) if table != model.pgd]
    model.unmap(0, VPN_END)
    assert model.arena.unlink_empty(model.pgd, 5 << 27, (5 << 27) + 1) == chain[::-1]
    assert not model.arena.rows[model.pgd].any()


def test_a_full_arena_is_out_of_memory() -> None:
    """When no table is left the caller is told; tables made so far stay, and freed ones serve again."""
    model = Model()
    prepared: list[int] = []
    model.arena.prepare = prepared.append
    with pytest.raises(OutOfMemory, match="page-table page"):
        model.arena.pte_alloc(model.pgd, 0, 512 * model.arena.table_count)
    assert model.arena.in_use == model.arena.table_count - 1
    assert prepared == list(range(2, model.arena.table_count))
    with pytest.raises(OutOfMemory):
        model.arena.alloc_table()
    made, bases = model.arena.pte_tables(model.pgd, 0, VPN_END)
    assert len(made) == model.arena.table_count - 1 - 3
    assert bases.tolist() == [number * 512 for number in range(len(made))]
    unlinked = model.arena.unlink_empty(model.pgd, 0, VPN_END)
    for table in unlinked:
        model.arena.free_table(table)
    assert model.arena.in_use == 1
    assert {model.arena.alloc_table() for _ in unlinked} == set(unlinked)
    assert len(prepared) == model.arena.table_count - 2


def test_a_table_with_entries_is_not_freed() -> None:
    """Only an empty table may be given back."""
    model = filled([(0, 1)])
    with pytest.raises(AssertionError):
        model.arena.free_table(model.pgd)


@given(st.lists(st.integers(0, VPN_END - 1), max_size=20, unique=True).map(sorted))
def test_scattered_pages_get_the_tables_that_each_alone_would(vpns: list[int]) -> None:
    """And no other ones; asked again, they are there."""
    alone = Model()
    for vpn in vpns:
        alone.map(vpn, vpn + 1)
    in_use = alone.arena.in_use
    together = Model()
    flats = together.arena.pte_alloc_each(together.pgd, np.array(vpns, np.int64))
    assert flats.tolist() == together.arena.walk(together.pgd, np.array(vpns, np.int64)).tolist()
    assert len(set(flats.tolist())) == len(vpns)
    assert together.arena.in_use == in_use
    assert flats.tolist() == together.arena.pte_alloc_each(together.pgd, np.array(vpns, np.int64)).tolist()


def test_an_empty_range_needs_no_table() -> None:
    """No page, no table: an empty range makes and finds nothing."""
    model = Model()
    assert model.arena.pte_alloc(model.pgd, 7, 7).tolist() == []
    assert model.arena.walk(model.pgd, np.empty(0, np.int64)).tolist() == []
    tables, bases = model.arena.pte_tables(model.pgd, 0, VPN_END)
    assert [part.tolist() for part in flats_of(tables, bases, 0, VPN_END)] == [[], []]
    assert model.arena.unlink_empty(model.pgd, 0, VPN_END) == []
    assert model.arena.in_use == 1


@given(st.lists(st.integers(0, 1 << 20), max_size=30))
def test_the_locks_of_entries_are_those_of_their_tables(flats: list[int]) -> None:
    """The pte locks of entries are one a table, ascending."""
    keys = pte_lock_keys(np.array(flats, np.int64))
    assert keys == [(Rank.PTE, table) for table in sorted({flat // 512 for flat in flats})]


@pytest.mark.parametrize(
    ("bits", "present", "swapped", "writable"),
    [
        (0, False, False, False),
        (PTE_PRESENT, True, False, False),
        (PTE_PRESENT | PTE_WRITABLE, True, False, True),
        (PTE_SWAPPED, False, True, False),
    ],
    ids=["none", "present", "writable", "swapped"],
)
def test_bits_of_an_entry_are_told_apart(bits: int, present: bool, swapped: bool, writable: bool) -> None:  # noqa: FBT001 - columns of the table
    """What an entry is depends on its low bits alone, however high its page number."""
    entries = np.array([bits, (1 << 63) + bits, 0xFFF000 | bits], np.uint64)
    assert is_present(entries).tolist() == [present] * 3
    assert is_swapped(entries).tolist() == [swapped] * 3
    assert is_writable(entries).tolist() == [writable] * 3
