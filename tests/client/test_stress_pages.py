"""What a stress run says of a page: right, lost, wrong or torn."""

from collections.abc import Callable

import numpy as np
import pytest

from numaemu.stress import pages
from numaemu.stress.area import Area, check
from numaemu.stress.board import Board, new_memory
from numaemu.stress.pages import Verdict
from numaemu.stress.plan import PAGE_BYTES, PRIVATE, Plan
from numaemu_core.columns import U8

WHO, AREA, PAGE = 7, 3, 5
WHERE = int(pages.places(AREA, PAGE, 1)[0])

ONE = 1 << 3
COMPLETE, BEGUN = 4 * ONE, 4 * ONE | pages.WRITING
FIRST = ONE | pages.WRITING | pages.ZERO
DROPPED, DISCARDED = 4 * ONE | pages.ZERO, 4 * ONE | pages.DROPPING
REWRITTEN = 4 * ONE | pages.WRITING | pages.ZERO


def one(value: int) -> U8:
    return np.array([value], np.uint64)


def page(version: int, who: int = WHO, where: int = WHERE) -> U8:
    return pages.contents(PAGE_BYTES, one(who), one(where), one(version))[0]


def mixed(first: U8, second: U8, at: int = 1001) -> U8:
    """The bytes of one page up to `at`, then those of another."""
    return np.frombuffer(first.tobytes()[:at] + second.tobytes()[at:], np.uint64)


def flipped(whole: U8, bit: int) -> U8:
    changed = whole.copy()
    changed[bit // 64] ^= np.uint64(1 << bit % 64)
    return changed


def shifted(whole: U8) -> U8:
    """The same tags, each one place further on."""
    return np.roll(whole, 4)


ZEROS = page(0)

VERDICTS: list[tuple[str, int, U8, Verdict]] = [
    ("what was written", COMPLETE, page(4), Verdict.RIGHT),
    ("never written", pages.ZERO, ZEROS, Verdict.RIGHT),
    ("thrown away", DROPPED, ZEROS, Verdict.RIGHT),
    ("begun: the old one", BEGUN, page(3), Verdict.RIGHT),
    ("begun: the new one", BEGUN, page(4), Verdict.RIGHT),
    ("begun over zeros: zeros", FIRST, ZEROS, Verdict.RIGHT),
    ("may be thrown away: it is not", DISCARDED, page(4), Verdict.RIGHT),
    ("may be thrown away: it is", DISCARDED, ZEROS, Verdict.RIGHT),
    ("zeros", COMPLETE, ZEROS, Verdict.LOST),
    ("an earlier version", COMPLETE, page(3), Verdict.LOST),
    ("begun: one before the old one", BEGUN, page(2), Verdict.LOST),
    ("begun: zeros, and there were none", BEGUN, ZEROS, Verdict.LOST),
    ("may be thrown away: an earlier version", DISCARDED, page(3), Verdict.LOST),
    ("thrown away, and back again", DROPPED, page(4), Verdict.LOST),
    ("thrown away, begun, and back again", REWRITTEN, page(3), Verdict.LOST),
    ("a version that nobody wrote", COMPLETE, page(5), Verdict.WRONG),
    ("another page", COMPLETE, page(4, where=WHERE + 1), Verdict.WRONG),
    ("another area", COMPLETE, page(4, where=WHERE + (1 << 32)), Verdict.WRONG),
    ("another writer", COMPLETE, page(4, who=WHO + 1), Verdict.WRONG),
    ("one bit of the tag", COMPLETE, flipped(page(4), 3), Verdict.WRONG),
    ("one bit of the last word", COMPLETE, flipped(page(4), 8 * PAGE_BYTES - 1), Verdict.WRONG),
    ("moved inside of the page", COMPLETE, shifted(page(4)), Verdict.WRONG),
    ("two versions, and no write was begun", COMPLETE, mixed(page(4), page(3)), Verdict.WRONG),
    ("never written, and somebody's", pages.ZERO, page(1), Verdict.WRONG),
    ("torn", BEGUN, mixed(page(4), page(3)), Verdict.TORN),
    ("torn the other way", BEGUN, mixed(page(3), page(4)), Verdict.TORN),
    ("torn in the first byte", BEGUN, mixed(page(4), page(3), 25), Verdict.TORN),
    ("the first write, torn", FIRST, mixed(page(1), ZEROS), Verdict.TORN),
    ("torn, with a version that it cannot be", BEGUN, mixed(page(4), page(2)), Verdict.WRONG),
    ("torn, with another's bytes", BEGUN, mixed(page(4), page(3, who=WHO + 1)), Verdict.WRONG),
]


@pytest.mark.parametrize(("word", "found", "verdict"), [row[1:] for row in VERDICTS], ids=[row[0] for row in VERDICTS])
def test_a_page_is_judged_by_what_is_known_of_it(word: int, found: U8, verdict: Verdict) -> None:
    """Each way in which a page can be right, lost, wrong or torn is told from the others."""
    assert pages.judge(found[None], one(WHO), one(WHERE), one(word)) == [verdict]


def test_pages_are_judged_one_by_one() -> None:
    """A bad page in the middle of many is found, and only that one."""
    count = 9
    where, who = pages.places(AREA, 0, count), np.full(count, WHO, np.uint64)
    words = np.full(count, COMPLETE, np.uint64)
    found = pages.contents(PAGE_BYTES, who, where, np.full(count, 4, np.uint64))
    found[6] = found[5]
    assert pages.judge(found, who, where, words) == [*[Verdict.RIGHT] * 6, Verdict.WRONG, *[Verdict.RIGHT] * 2]


#: What happens to a page, step by step, and what it may hold then.
STORIES: list[tuple[str, list[Callable[[U8], U8]], list[int]]] = [
    ("written", [pages.begun, pages.completed], [1]),
    ("written twice", [pages.begun, pages.completed] * 2, [2]),
    ("begun", [pages.begun], [1, 0]),
    ("begun again after a refusal", [pages.begun, pages.begun], [1, 0]),
    ("written, begun", [pages.begun, pages.completed, pages.begun], [2, 1]),
    ("written, dropping", [pages.begun, pages.completed, pages.dropping], [1, 0]),
    ("dropped", [pages.begun, pages.completed, pages.dropping, pages.dropped], [0]),
    ("dropped, begun", [pages.begun, pages.completed, pages.dropping, pages.dropped, pages.begun], [2, 0]),
    ("refused, dropping", [pages.begun, pages.completed, pages.begun, pages.dropping], [2, 1, 0]),
    ("dropping, begun", [pages.begun, pages.completed, pages.dropping, pages.begun], [2, 1, 0]),
    ("dropping, written", [pages.begun, pages.completed, pages.dropping, pages.begun, pages.completed], [2]),
]


@pytest.mark.parametrize(("steps", "allowed"), [row[1:] for row in STORIES], ids=[row[0] for row in STORIES])
def test_the_word_of_a_page_tells_what_it_may_hold(steps: list[Callable[[U8], U8]], allowed: list[int]) -> None:
    """From a page of zeros on, through writes and drops that end or do not."""
    words = one(pages.ZERO)
    for step in steps:
        words = step(words)
    assert pages.may_hold(int(words[0])) == allowed


class Reader:
    """Pages in place of a machine, and a run's counters."""

    def __init__(self) -> None:
        plan = Plan(clients=1, seconds=1, seed=1)
        self.board = Board(plan, new_memory(plan))
        count = 4
        words = self.board.blocks[0, :count]
        self.area = Area(PRIVATE, 0, words, np.full(count, WHO, np.uint64))
        self.memory = bytearray(count * PAGE_BYTES)
        self.complaints: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def write(self, first: int, count: int) -> None:
        data = self.area.begin_write(first, count)
        self.put(first, data)
        self.area.end_write(first, count)

    def put(self, first: int, data: bytes) -> None:
        self.memory[first * PAGE_BYTES : first * PAGE_BYTES + len(data)] = data

    def check(self, *, still: bool) -> dict[str, int]:
        """What came of verifying all pages, but for zeros."""

        def read(first: int, count: int) -> bytes:
            self.meanwhile()
            return bytes(self.memory[first * PAGE_BYTES : (first + count) * PAGE_BYTES])

        before = self.board.totals()
        check(self.area, 0, len(self.area), read, self.board.row(0, 0), self.complaints.append, still=still)
        return {name: count - before[name] for name, count in self.board.totals().items() if count > before[name]}


def test_what_is_lost_or_wrong_is_counted_and_told() -> None:
    """A page of zeros that was written, and one that holds another's bytes, each with a sentence about it."""
    reader = Reader()
    reader.write(0, 4)
    assert reader.check(still=True) == {"reads_verified": 4}
    reader.put(1, bytes(PAGE_BYTES))
    reader.put(2, bytes(reader.memory[:PAGE_BYTES]))
    assert reader.check(still=False) == {"reads_verified": 2, "lost": 1, "wrong": 1}
    assert reader.complaints == [
        "lost: page 1 of private: expected version 1 by 0x7, found zeros",
        "wrong: page 2 of private: expected version 1 by 0x7, found version 1 of page 0 of area 3, written by 0x7",
    ]


def test_a_torn_page_is_counted_apart_and_only_of_a_dead_writer() -> None:
    """Half a page of a write that never ended: torn if nobody writes any more, overlapped as long as somebody may."""
    reader = Reader()
    reader.write(0, 4)
    reader.put(3, reader.area.begin_write(3, 1)[: PAGE_BYTES // 2])
    assert reader.check(still=False) == {"reads_verified": 3, "reads_overlapped": 1}
    assert reader.check(still=True) == {"reads_verified": 4, "torn": 1}
    assert reader.complaints == []


def test_a_page_that_is_written_while_it_is_read_raises_no_alarm() -> None:
    """A write begins, and another one ends, between the look at the word and the bytes."""
    reader = Reader()
    reader.write(0, 4)
    reader.meanwhile = lambda: reader.put(2, reader.area.begin_write(2, 1)[:100])
    assert reader.check(still=False) == {"reads_verified": 3, "reads_overlapped": 1}
    reader.meanwhile = lambda: reader.write(2, 1)
    assert reader.check(still=False) == {"reads_verified": 4}


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 8, 64, 200])
def test_a_run_uses_more_than_there_is_memory_and_less_than_swap_takes_too(clients: int) -> None:
    """Clients are those that were asked for, and memory is short without running out."""
    plan = Plan(clients, seconds=1, seed=1)
    assert plan.workers + plan.companions + plan.children == clients
    assert plan.workers >= 1
    used = plan.used_pages * PAGE_BYTES
    assert 4 * plan.node_bytes < used < 4 * plan.node_bytes + plan.all_swap_bytes
