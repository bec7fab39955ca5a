"""Copies of many pages at a time, cut into runs of neighbours.

A copy of a long run is one slice. Lists that run against the addresses (a pagelist linked at its head) give runs too,
read backwards. Where runs are short, numpy gathers or scatters rows as quickly as it copies them, if the other side is
one run; if neither is, rows pass through a few pages that stay in the processor's cache. To gather into memory of the
whole size, which `target[rows] = source[rows]` does, takes twice as long.
"""

import itertools
from typing import Final

import numpy as np

from numaemu_core.columns import I8, U1
from numaemu_core.fault_points import Reach, unarmed

#: Fewer pages a run than this, and a loop over slices takes longer than to pass pages through the cache …
_PAGES_PER_RUN_MIN: Final = 8
#: … or, where one side is a single run, than to gather or to scatter.
_PAGES_PER_RUN_MIN_OF_ONE: Final = 64
#: Pages that pass through the cache at one time.
_CACHED_PAGES: Final = 64


def copy_rows(target: U1, target_rows: I8, source: U1, source_rows: I8) -> None:
    """target[target_rows[i]] = source[source_rows[i]] for every i; arrays of pages, no row of target twice."""
    assert len(target_rows) == len(source_rows)
    if _is_one_run(target_rows):
        gather_rows(target[int(target_rows[0]) :][: len(target_rows)], source, source_rows)
    elif _is_one_run(source_rows):
        scatter_rows(target, target_rows, source[int(source_rows[0]) :][: len(source_rows)])
    else:
        starts, ends = _cut(target_rows, source_rows)
        if len(starts) * _PAGES_PER_RUN_MIN > len(target_rows) + _PAGES_PER_RUN_MIN:
            _copy_through_cache(target, target_rows, source, source_rows)
            return
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            target[_slice(target_rows, start, end)] = source[_slice(source_rows, start, end)]


def gather_rows(target: U1, source: U1, rows: I8) -> None:
    """All of `target` from these rows of `source`."""
    runs = _long_runs(rows)
    if runs is None:
        _take(target, source, rows)
        return
    for here, there in runs:
        target[here] = source[there]


def scatter_rows(target: U1, rows: I8, source: U1) -> None:
    """All of `source` to these rows of `target`, none of them twice."""
    runs = _long_runs(rows)
    if runs is None:
        target[rows] = source
        return
    for here, there in runs:
        target[there] = source[here]


def _long_runs(rows: I8) -> list[tuple[slice, slice]] | None:
    """Runs that go up, each as slices of positions and of rows; None where they are too short to go over them."""
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    if (len(breaks) + 1) * _PAGES_PER_RUN_MIN_OF_ONE > len(rows) + _PAGES_PER_RUN_MIN_OF_ONE:
        return None
    bounds = itertools.pairwise([0, *breaks.tolist(), len(rows)])
    return [(slice(start, end), slice(int(rows[start]), int(rows[start]) + end - start)) for start, end in bounds]


def _copy_through_cache(target: U1, target_rows: I8, source: U1, source_rows: I8) -> None:
    pages = np.empty((_CACHED_PAGES, source.shape[1]), np.uint8)
    for first in range(0, len(source_rows), _CACHED_PAGES):
        rows = source_rows[first : first + _CACHED_PAGES]
        _take(pages[: len(rows)], source, rows)
        target[target_rows[first : first + _CACHED_PAGES]] = pages[: len(rows)]


def _take(target: U1, source: U1, rows: I8) -> None:
    """Rows of `source`; numpy copies twice if it is to look for rows that are not there."""
    assert rows.min() >= 0
    assert rows.max() < len(source)
    np.take(source, rows, axis=0, out=target, mode="clip")


def _is_one_run(rows: I8) -> bool:
    """Do they go up one by one? They are none twice, or it does not matter."""
    return len(rows) > 0 and bool(rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all())


def copy_reaching(reach: Reach, what: str, target: tuple[U1, I8], source: tuple[U1, I8]) -> None:
    """`copy_rows` of a process that tests may kill on the way: before, in the middle of and after `what`."""
    if reach is unarmed:
        copy_rows(*target, *source)
        return
    half = len(target[1]) // 2
    reach(f"{what}.asked")
    copy_rows(target[0], target[1][:half], source[0], source[1][:half])
    reach(f"{what}.half")
    copy_rows(target[0], target[1][half:], source[0], source[1][half:])
    reach(f"{what}.copied")


def clear_rows(target: U1, rows: I8) -> None:
    """Zero these pages."""
    target[rows] = 0


def _slice(rows: I8, start: int, end: int) -> slice:
    first, last = int(rows[start]), int(rows[end - 1])
    if last >= first:
        return slice(first, last + 1)
    return slice(first, last - 1 if last else None, -1)


def _cut(left: I8, right: I8) -> tuple[I8, I8]:
    """Starts and ends of the longest stretches in which both arrays keep going by one, up or down."""
    if len(left) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    left_step, right_step = np.diff(left), np.diff(right)
    code = np.where((abs(left_step) == 1) & (abs(right_step) == 1), 2 * left_step + right_step, 0)
    breaks = code == 0
    breaks[1:] |= (code[1:] != code[:-1]) & (code[:-1] != 0)
    inner = np.flatnonzero(breaks) + 1
    return np.concatenate(([0], inner)), np.concatenate((inner, [len(left)]))


def copy_bytes(pages: U1, rows: I8, offset: int, data: U1, *, write: bool) -> None:
    """Copy between `data` and pages in their order, from `offset` in the first of them on: to them if `write`.

    Shapes: `pages` is uint8[rows, bytes of a page], contiguous; `data` is uint8[n] and ends in the last of `rows`.
    """
    page_size = pages.shape[1]
    if bool((np.diff(rows) == 1).all()):
        start = int(rows[0]) * page_size + offset
        _move(pages.reshape(-1)[start : start + len(data)], data, write=write)
        return
    # The pages are scattered: whole ones in runs, and what is left of a page at either end by itself.
    head = -offset % page_size
    if head:
        _move(pages[int(rows[0]), offset:], data[:head], write=write)
        rows = rows[1:]
    count, tail = divmod(len(data) - head, page_size)
    middle = data[head : head + count * page_size].reshape(-1, page_size)
    if write:
        scatter_rows(pages, rows[:count], middle)
    else:
        gather_rows(middle, pages, rows[:count])
    if tail:
        _move(pages[int(rows[count]), :tail], data[-tail:], write=write)


def _move(there: U1, data: U1, *, write: bool) -> None:
    if write:
        there[:] = data
    else:
        data[:] = there
