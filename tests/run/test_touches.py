"""Which thread has touched which new pages: what follows from the faults that the host has recorded."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest

from numaemu_run.fault_events import NO_TOUCHES, TOUCH, Touches, parsed
from numaemu_run.pagemap import Runs
from numaemu_run.procfs import PAGE_SIZE
from numaemu_run.shares import Run
from numaemu_run.touches import touched_by

ONE, TWO = 11, 12
SAMPLE, LOST = 9, 2
HUGE = 512


def runs(*pairs: Run) -> Runs:
    return np.array(pairs, np.int64).reshape(-1, 2)


def touches(*faults: tuple[int, int]) -> Touches:
    """Pairs of thread and page, in the order in which they came."""
    rows = [(SAMPLE, 0, 32, 1, tid, at, page * PAGE_SIZE + at % PAGE_SIZE) for at, (tid, page) in enumerate(faults)]
    return np.array(rows, TOUCH)


@pytest.mark.parametrize(
    ("added", "faults", "expected", "left"),
    [
        # Nobody has faulted: nothing is known.
        (runs((0, 10)), [], {}, [(0, 10)]),
        # Each page is of the thread that has faulted there, wherever the runs begin and end.
        (runs((0, 4)), [(ONE, 0), (TWO, 1), (ONE, 2), (TWO, 3)], {ONE: [(0, 1), (2, 3)], TWO: [(1, 2), (3, 4)]}, []),
        (runs((5, 6), (7, 9)), [(TWO, 8), (TWO, 7), (ONE, 5)], {ONE: [(5, 6)], TWO: [(7, 9)]}, []),
        # Of several faults at a page the last one counts: the first may have found the page of zeros.
        (runs((3, 4)), [(ONE, 3), (TWO, 3)], {TWO: [(3, 4)]}, []),
        # Faults elsewhere do not matter.
        (runs((3, 4)), [(ONE, 3), (TWO, 4), (TWO, 2)], {ONE: [(3, 4)]}, []),
        # One fault brings a huge page, which begins where it may and not where it was touched.
        (runs((HUGE, 2 * HUGE)), [(TWO, HUGE + 100)], {TWO: [(HUGE, 2 * HUGE)]}, []),
        (runs((0, 2 * HUGE)), [(ONE, 7), (TWO, HUGE)], {ONE: [(0, HUGE)], TWO: [(HUGE, 2 * HUGE)]}, []),
        # Pages in between come with the one before.
        (runs((0, 8)), [(ONE, 2), (TWO, 5)], {ONE: [(0, 5)], TWO: [(5, 8)]}, []),
        # A huge page without a fault is nobody's.
        (
            runs((0, 3 * HUGE)),
            [(ONE, 0), (TWO, 2 * HUGE)],
            {ONE: [(0, HUGE)], TWO: [(2 * HUGE, 3 * HUGE)]},
            [(HUGE, 2 * HUGE)],
        ),
        # Nothing is new.
        (runs(), [(ONE, 0)], {}, []),
    ],
)
def test_pages_are_those_of_the_thread_that_has_faulted_there(
    added: Runs, faults: Sequence[Run], expected: dict[int, list[Run]], left: list[Run]
) -> None:
    """Case by case, with huge pages of 512 pages."""
    found, unknown = touched_by(added, touches(*faults))
    assert {tid: [*map(tuple, parts.tolist())] for tid, parts in found.items()} == expected
    assert [*map(tuple, unknown.tolist())] == left


def test_no_page_is_lost_and_none_has_two_threads() -> None:
    """Whatever was recorded, the parts are the pages that were new; who has faulted there has the page."""
    random = np.random.default_rng(7)
    for _ in range(300):
        edges = np.sort(random.choice(4000, 2 * random.integers(1, 12), replace=False))
        added = edges.reshape(-1, 2)
        faults = [(int(random.integers(1, 5)), int(random.integers(0, 4000))) for _ in range(random.integers(0, 60))]
        found, left = touched_by(added, touches(*faults))
        owner = {
            page: tid for tid, parts in [(0, left), *found.items()] for run in parts.tolist() for page in range(*run)
        }
        new = [page for run in added.tolist() for page in range(*run)]
        assert sorted(owner) == new
        assert sum(len(range(*run)) for parts in (left, *found.values()) for run in parts.tolist()) == len(new)
        assert {page: tid for tid, page in faults if page in owner}.items() <= owner.items()


def test_other_records_are_passed_over() -> None:
    """How many faults found no room, and whatever else comes, stands between the faults; nothing at all is no fault."""
    three = touches((ONE, 1), (TWO, 2), (ONE, 3))
    lost = struct.pack("=IHHQQ", LOST, 0, 24, 5, 17)
    unknown = struct.pack("=IHH", 77, 0, 32) + bytes(24)
    body = lost + three[:1].tobytes() + lost + lost + three[1:].tobytes() + unknown + lost
    assert parsed(body).tolist() == three.tolist()
    assert parsed(lost).tolist() == parsed(b"").tolist() == NO_TOUCHES.tolist()
