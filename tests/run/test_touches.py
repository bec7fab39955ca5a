"""Which thread has touched which new pages: what follows from the faults that the host has recorded."""

import struct
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from numaemu_run.fault_events import NO_TOUCHES, TOUCH, Touches, now_ns, parsed
from numaemu_run.pagemap import Runs
from numaemu_run.placement import Placement
from numaemu_run.processes import Counts, Process, Thread
from numaemu_run.procfs import PAGE_SIZE
from numaemu_run.shares import Run
from numaemu_run.touches import touched_by, unsettled

if TYPE_CHECKING:
    from numaemu.task import Task
    from numaemu_run.fault_events import FaultEvents
    from numaemu_run.mirror import Mirror

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


@pytest.mark.parametrize(
    ("since", "began", "held", "left"),
    [
        # What came after the look began is not settled, whether its page was found or not.
        (0, 2, runs((0, 9)), [2, 3]),
        # Nor is what came before, if its page was not there yet …
        (0, 2, runs((0, 1)), [1, 2, 3]),
        (0, 4, runs((1, 3)), [0, 3]),
        (0, 4, runs(), [0, 1, 2, 3]),
        # … but for how long it may take there is an end: the look after that.
        (1, 4, runs((1, 3)), [3]),
        (4, 5, runs(), []),
    ],
)
def test_faults_whose_pages_were_not_there_yet_are_kept(since: int, began: int, held: Runs, left: list[int]) -> None:
    """The host records a fault before its page is there: a look in between finds one without the other."""
    faults = touches((ONE, 0), (TWO, 1), (ONE, 2), (TWO, 3))  # the first one at 0 ns, and so on
    assert unsettled(faults, since, began, held)["time_ns"].tolist() == left


class FakeMirror:
    """Finds the pages of one look after the other; remembers to whom they were given."""

    def __init__(self, *found: Runs) -> None:
        self.found = iter(found)
        self.held = runs()
        self.given: list[tuple[object, list[list[int]]]] = []

    def settle(self, _task: object, _tid: int, share: Callable[[Runs], Iterable[tuple[object, Runs]]]) -> int:
        self.held = next(self.found)
        self.given += [(task, pages.tolist()) for task, pages in share(self.held)]
        return len(self.held)


def test_a_page_that_comes_late_is_still_that_of_its_thread() -> None:
    """Its fault was recorded, a look found no page, and another thread has faulted beside it since."""
    mirror = FakeMirror(runs(), runs((5, 6)))
    process = Process(1, -1, cast("Mirror", mirror))
    for tid in ONE, TWO:
        process.threads[tid] = Thread(tid, process, cast("Task", tid), 1, 0, -1, policy=tid)
    late, beside = touches((ONE, 5)), touches((TWO, 4))
    late["time_ns"], beside["time_ns"] = now_ns(), now_ns() + 10**12
    late["pid"] = beside["pid"] = process.pid
    recorded = iter((late, beside))
    events = SimpleNamespace(take=lambda: next(recorded))
    placement = Placement(Counts(), {1: process}, cast("FaultEvents", events), lambda its, tid: its.threads[tid])
    for _ in range(2):
        placement.place(process.threads[TWO], None)
    assert mirror.given == [(ONE, [[5, 6]])]
