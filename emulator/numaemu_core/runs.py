"""Copies of many pages at a time, cut into runs of neighbours.

A copy of a run is one slice; gathering row by row is 2.5 times slower where runs are long. Lists that run against the
addresses (a pagelist linked at its head) give runs too, read backwards. Where runs are short, one gather is cheaper
than many slices.
"""

import numpy as np

from numaemu_core.columns import I8, U1
from numaemu_core.fault_points import Reach, unarmed

#: Fewer pages a run than this, and one gather beats a Python loop over slices.
PAGES_PER_RUN_MIN = 3


def copy_rows(target: U1, target_rows: I8, source: U1, source_rows: I8) -> None:
    """target[target_rows[i]] = source[source_rows[i]] for every i; arrays of pages, no row of target twice."""
    assert len(target_rows) == len(source_rows)
    starts, ends = _cut(target_rows, source_rows)
    if len(starts) * PAGES_PER_RUN_MIN > len(target_rows) + PAGES_PER_RUN_MIN:
        target[target_rows] = source[source_rows]
        return
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        target[_slice(target_rows, start, end)] = source[_slice(source_rows, start, end)]


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
    starts, ends = _cut(rows, rows)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        target[_slice(rows, start, end)] = 0


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
        copy_rows(pages, rows[:count], middle, np.arange(count))
    else:
        copy_rows(middle, np.arange(count), pages, rows[:count])
    if tail:
        _move(pages[int(rows[count]), :tail], data[-tail:], write=write)


def _move(there: U1, data: U1, *, write: bool) -> None:
    if write:
        there[:] = data
    else:
        data[:] = there
