"""Which thread has touched which new pages: what follows from the counts of their faults."""

import numpy as np
import pytest

from numaemu_run.pagemap import Runs
from numaemu_run.shares import Run, as_runs, shares

ONE, TWO, THREE = 11, 12, 13


def runs(*pairs: Run) -> Runs:
    return np.array(pairs, np.int64).reshape(-1, 2)


@pytest.mark.parametrize(
    ("added", "faults", "asked", "expected"),
    [
        # Nobody has faulted that we know of: it was the one who asks.
        (runs((0, 10)), {}, None, {ONE: [(0, 10)]}),
        (runs((0, 10)), {ONE: 0, TWO: 0}, None, {ONE: [(0, 10)]}),
        # Only one has faulted.
        (runs((0, 10), (20, 24)), {ONE: 0, TWO: 14}, None, {TWO: [(0, 10), (20, 24)]}),
        # Each run is of the one whose count is nearest to its length.
        (runs((0, 100), (200, 260)), {ONE: 62, TWO: 103}, None, {TWO: [(0, 100)], ONE: [(200, 260)]}),
        # A run that is too long for any of them is of several.
        (runs((0, 200)), {ONE: 100, TWO: 100}, None, {ONE: [(0, 100)], TWO: [(100, 200)]}),
        # The page that is asked for is the asker's, though another count would fit better.
        (runs((0, 100), (200, 260)), {ONE: 90, TWO: 110}, 210, {ONE: [(200, 260)], TWO: [(0, 100)]}),
        # One that has faulted too often is likelier than one that has faulted too seldom.
        (runs((0, 100)), {ONE: 80, TWO: 300}, None, {TWO: [(0, 100)]}),
        # So is the part around it: at the end of the run, at its beginning, in its middle.
        (runs((0, 300)), {ONE: 105, TWO: 200}, 200, {ONE: [(200, 300)], TWO: [(0, 200)]}),
        (runs((0, 300)), {ONE: 100, TWO: 200}, 16, {ONE: [(0, 100)], TWO: [(100, 300)]}),
        (runs((0, 300)), {ONE: 100, TWO: 200}, 120, {ONE: [(120, 220)], TWO: [(0, 120), (220, 300)]}),
        # An asker that has not faulted has touched nothing.
        (runs((0, 50)), {ONE: 0, THREE: 55}, 3, {THREE: [(0, 50)]}),
    ],
)
def test_pages_are_those_of_the_thread_that_has_faulted_so_often(
    added: Runs, faults: dict[int, int], asked: int | None, expected: dict[int, list[Run]]
) -> None:
    """Case by case, with the first thread as the one that asks."""
    found = shares(added, faults, ONE, asked)
    assert {tid: sorted(parts) for tid, parts in found.items()} == expected


def test_no_page_is_lost_and_none_is_shared_out_twice() -> None:
    """Whatever the counts are, the parts are the pages that were new."""
    random = np.random.default_rng(7)
    for _ in range(500):
        edges = np.sort(random.choice(2000, 2 * random.integers(1, 12), replace=False))
        added = edges.reshape(-1, 2)
        faults = {int(tid): int(random.integers(0, 400)) for tid in range(random.integers(0, 6))}
        asked = int(added[0, 0]) if random.random() < 0.5 else None
        parts = [part for group in shares(added, faults, 0, asked).values() for part in group]
        pages = [page for first, end in as_runs(parts).tolist() for page in range(first, end)]
        assert pages == [page for first, end in added.tolist() for page in range(first, end)]
