"""The locks: the checker refuses what may deadlock, and tells why; mmap_sem serves in turn."""

import itertools
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest

from numaemu_core import locks
from numaemu_core.effects import Breathe, DownSem, WaitPageLocks
from numaemu_core.errors import BugError
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Key, LockTable, Mode, NoHost, Rank, SemGuard
from numaemu_core.page_lock import lock_some_pages, trylock_pages, unlock_pages
from numaemu_core.performer import Performer
from numaemu_core.task_locks import spin_lock
from numaemu_core.topology import uniform

Steps = Generator[Any, Any, Any]

SPIN_RANKS = [rank for rank in Rank if rank > Rank.PAGE]
MAY_NEST = {
    (outer, inner) for outer in SPIN_RANKS for inner in SPIN_RANKS if inner > outer and (outer, inner) != (5, 6)
}


def small() -> Performer:
    """A machine whose tasks run one after the other, each as far as it can."""
    return Performer(uniform(2, "64K", "64K", "swap-v3", 4096))


def pair_id(pair: tuple[Rank, Rank]) -> str:
    return f"{pair[0].name}-{pair[1].name}"


# -- the order ---------------------------------------------------------------------------------------------------------


def test_the_tree_in_the_docstring_names_every_rank_in_order() -> None:
    """The lock order that people read is the one that is checked; ranks never taken together stand side by side."""
    assert locks.__doc__ is not None
    tree = locks.__doc__.split("one above it:")[1].split("Every lock has")[0]
    lines = re.findall(r"^( +)([A-Z_]+) {2,}\S", tree, re.MULTILINE)
    assert [name for _, name in lines] == [rank.name for rank in Rank]
    assert [rank.value for rank in Rank] == list(range(len(Rank)))
    depths = {Rank[name]: len(spaces) for spaces, name in lines}
    assert list(depths.values()) == sorted(depths.values())
    side_by_side = [rank for rank in Rank if list(depths.values()).count(depths[rank]) > 1]
    assert side_by_side == [Rank.LRU, Rank.SWAP]


@pytest.mark.parametrize("pair", sorted(MAY_NEST), ids=pair_id)
def test_a_later_rank_may_be_taken_inside(pair: tuple[Rank, Rank]) -> None:
    """A lock may be taken while one further out is held, and both are gone after their blocks."""
    table = LockTable(NoHost())
    outer, inner = table.try_spin([(pair[0], 3)]), table.try_spin([(pair[1], 1)])
    assert outer is not None
    assert inner is not None
    with outer:
        with inner:
            assert table.held(0).spins == [(pair[0], 3), (pair[1], 1)]
        assert table.held(0).spins == [(pair[0], 3)]
    assert table.holders() == {}


@pytest.mark.parametrize("pair", sorted(set(itertools.product(SPIN_RANKS, SPIN_RANKS)) - MAY_NEST), ids=pair_id)
@pytest.mark.parametrize("number", [0, 3, 9])
def test_any_other_rank_is_refused_inside(pair: tuple[Rank, Rank], number: int) -> None:
    """A lock of the same or an earlier rank is refused with its name, the name of what is held, and the story."""
    table = LockTable(NoHost())
    table.try_spin([(pair[0], 3)])
    with pytest.raises(BugError, match="lock order") as refusal:
        table.try_spin([(pair[1], number)])
    what, story = str(refusal.value).split(". Before: ")
    assert f"{pair[1].name} {number}" in what
    assert f"{pair[0].name} 3" in what or f"while holding an {pair[0].name} lock" in what
    assert story == f"took {pair[0].name} 3"


KEYS_OF_ONE_CALL: dict[str, tuple[list[Key], bool]] = {
    "ascending": ([(Rank.PTE, 2), (Rank.PTE, 5), (Rank.PTE, 6)], True),
    "two-ranks": ([(Rank.PTE, 7), (Rank.LRU, 0), (Rank.LRU, 1)], True),
    "descending": ([(Rank.PTE, 5), (Rank.PTE, 2)], False),
    "twice": ([(Rank.PTE, 5), (Rank.PTE, 5)], False),
    "ranks-descend": ([(Rank.ZONE, 0), (Rank.LRU, 1)], False),
    "lru-and-swap": ([(Rank.LRU, 1), (Rank.SWAP, 0)], False),
}


@pytest.mark.parametrize(("keys", "legal"), KEYS_OF_ONE_CALL.values(), ids=KEYS_OF_ONE_CALL)
def test_the_keys_of_one_call_ascend(keys: list[Key], legal: bool) -> None:  # noqa: FBT001 - a column of the table
    """Several locks are taken in one call by ascending number, or not at all."""
    table = LockTable(NoHost())
    if legal:
        assert table.try_spin(keys) is not None
        assert table.held(0).spins == keys
    else:
        with pytest.raises(BugError, match="lock order"):
            table.try_spin(keys)


def held_spin(table: LockTable) -> None:
    table.try_spin([(Rank.LRU, 1)])


def held_page(table: LockTable) -> None:
    table.held(0).page_locks = 1


def held_same_sem(table: LockTable) -> None:
    table.try_sem(7, Mode.READ)


def held_other_sem(table: LockTable) -> None:
    table.try_sem(6, Mode.READ)


@pytest.mark.parametrize(
    "takes_outer",
    [held_spin, held_page, held_same_sem, held_other_sem],
    ids=lambda takes_outer: takes_outer.__name__,
)
@pytest.mark.parametrize("mode", Mode)
def test_an_mmap_sem_is_taken_before_everything_else(takes_outer: Callable[[LockTable], None], mode: Mode) -> None:
    """An mmap_sem is refused inside of any lock, another mmap_sem included."""
    table = LockTable(NoHost())
    takes_outer(table)
    with pytest.raises(BugError, match="lock order: MMAP_SEM 7"):
        table.try_sem(7, mode)


def test_a_page_lock_is_refused_inside_a_spin_lock() -> None:
    """A page lock comes before every spin lock in the order, and is refused after one."""
    p = small()

    def task() -> Steps:
        with (yield from spin_lock(p.k, [(Rank.PTE, 4)])):
            yield from trylock_pages(p.k, np.array([5]))
        yield from unlock_pages(p.k, np.array([5]))

    with pytest.raises(BugError, match=r"lock order.*took PTE 4"):
        p.call(task())


def test_the_story_is_of_the_last_steps() -> None:
    """A refusal tells what the task took before, oldest first, and forgets what is long ago."""
    table = LockTable(NoHost())
    for number in range(20):
        guard = table.try_spin([(Rank.SWAP, number)])
        assert guard is not None
        with guard:
            pass
    table.try_spin([(Rank.ZONE, 1)])
    with pytest.raises(BugError) as refusal:
        table.try_spin([(Rank.PTE, 1)])
    story = str(refusal.value).split(". Before: ")[1].split("; ")
    assert story == [*(f"took SWAP {number}" for number in range(5, 20)), "took ZONE 1"]


def test_tasks_do_not_share_what_they_hold() -> None:
    """What one task holds is no part of another's order."""
    table = LockTable(NoHost())
    table.current = 1
    table.try_spin([(Rank.ZONE, 0)])
    table.current = 2
    assert table.try_spin([(Rank.PTE, 0)]) is not None
    assert {task: held.spins for task, held in table.holders().items()} == {1: [(Rank.ZONE, 0)], 2: [(Rank.PTE, 0)]}


# -- across yields -----------------------------------------------------------------------------------------------------


def yields_in_spin(k: Kernel) -> Steps:
    with (yield from spin_lock(k, [(Rank.PTE, 4)])):
        yield Breathe()


def sleeps_with_page_lock(k: Kernel) -> Steps:
    k.c.page_lock_owner[6] = 99
    yield from trylock_pages(k, np.array([5]))
    yield from lock_some_pages(k, np.array([6]))


def waits_for_own_page(k: Kernel) -> Steps:
    yield from trylock_pages(k, np.array([5]))
    yield WaitPageLocks(np.array([5]))


def sem_with_page_lock(k: Kernel) -> Steps:
    yield from trylock_pages(k, np.array([5]))
    yield DownSem(3, Mode.READ)


def ends_with_page_lock(k: Kernel) -> Steps:
    yield from trylock_pages(k, np.array([5, 6]))


def ends_with_spin(k: Kernel) -> Steps:
    yield Breathe()
    k.locks.try_spin([(Rank.SWAP, 0)])


def ends_with_sem(k: Kernel) -> Steps:
    del k
    yield DownSem(3, Mode.READ)


REFUSED_BY_THE_PERFORMER = {
    "yields-in-spin": (yields_in_spin, "a yield while holding PTE 4"),
    "sleeps-with-page-lock": (sleeps_with_page_lock, "sleeping for a page lock while holding 1"),
    "waits-for-own-page": (waits_for_own_page, "sleeping for a page lock while holding 1"),
    "sem-with-page-lock": (sem_with_page_lock, "MMAP_SEM 3 for read while holding 1 PAGE locks"),
    "ends-with-page-lock": (ends_with_page_lock, "2 page locks"),
    "ends-with-spin": (ends_with_spin, "SWAP"),
    "ends-with-sem": (ends_with_sem, "ended holding {3: "),
}


@pytest.mark.parametrize(("task", "text"), REFUSED_BY_THE_PERFORMER.values(), ids=REFUSED_BY_THE_PERFORMER)
def test_the_performer_refuses(task: Callable[[Kernel], Steps], text: str) -> None:
    """A task that keeps a lock where it may not ends the process with the story."""
    p = small()
    with pytest.raises(BugError) as refusal:
        p.call(task(p.k))
    assert text in str(refusal.value)
    assert "Before: " in str(refusal.value)


def test_page_locks_may_be_held_while_others_run() -> None:
    """A page lock is held across yields, and who waits for it goes on when it is dropped."""
    p = small()
    order: list[str] = []

    def holder() -> Steps:
        got = yield from trylock_pages(p.k, np.array([5]))
        assert got.all()
        yield None
        yield Breathe()
        order.append("dropped")
        yield from unlock_pages(p.k, np.array([5]))

    def waiter() -> Steps:
        got = yield from lock_some_pages(p.k, np.array([5]))
        assert got.all()
        order.append("taken")
        yield from unlock_pages(p.k, np.array([5]))

    first, second = holder(), waiter()
    next_to_run(p, "waiter", second, after=p.start("holder", first))
    p.run()
    assert order == ["dropped", "taken"]


def next_to_run(p: Performer, name: str, body: Steps, after: object) -> None:
    """Start a task once another has made its first step."""
    assert p.tasks[0] is after
    p.run(until=iter([False, True]).__next__)
    p.start(name, body)
    p.tasks.reverse()


# -- mmap_sem ----------------------------------------------------------------------------------------------------------


class Queue:
    """Tasks at one mmap_sem, each by its number; `try_` is what the performer does whenever it looks at one."""

    def __init__(self, host: locks.HostLocks | None = None) -> None:
        """Nobody there."""
        self.table = LockTable(host or NoHost())
        self.guards: dict[int, SemGuard] = {}

    def try_(self, task: int, mode: Mode) -> bool:
        self.table.current = task
        guard = self.table.try_sem(7, mode)
        if guard is not None:
            self.guards[task] = guard
        return guard is not None

    def up(self, task: int) -> None:
        with self.guards.pop(task):
            pass


def test_readers_share_and_a_writer_excludes() -> None:
    """Readers are in together, a writer is in alone."""
    q = Queue()
    assert q.try_(1, Mode.READ)
    assert q.try_(2, Mode.READ)
    assert not q.try_(3, Mode.WRITE)
    q.up(1)
    assert not q.try_(3, Mode.WRITE)
    q.up(2)
    assert q.try_(3, Mode.WRITE)
    assert not q.try_(4, Mode.READ)
    assert not q.try_(5, Mode.WRITE)
    q.up(3)
    assert q.try_(4, Mode.READ)
    q.up(4)
    assert q.try_(5, Mode.WRITE)
    q.up(5)
    assert q.table.holders() == {}


def test_later_readers_do_not_starve_a_waiting_writer() -> None:
    """Who comes after a waiting writer gets in after it; readers that came before it do not wait for each other."""
    q = Queue()
    assert q.try_(1, Mode.WRITE)
    for task, mode in ((2, Mode.READ), (3, Mode.READ), (4, Mode.WRITE), (5, Mode.READ), (6, Mode.WRITE)):
        assert not q.try_(task, mode)
    q.up(1)
    assert not q.try_(6, Mode.WRITE)
    assert not q.try_(5, Mode.READ)
    assert q.try_(3, Mode.READ)
    assert not q.try_(5, Mode.READ)
    assert not q.try_(4, Mode.WRITE)
    assert q.try_(2, Mode.READ)
    q.up(3)
    q.up(2)
    assert not q.try_(5, Mode.READ)
    assert q.try_(4, Mode.WRITE)
    q.up(4)
    assert not q.try_(6, Mode.WRITE)
    assert q.try_(5, Mode.READ)
    q.up(5)
    assert q.try_(6, Mode.WRITE)


@pytest.mark.parametrize("seed", range(20))
def test_an_endless_stream_of_readers_lets_a_writer_in(seed: int) -> None:
    """Readers that come again and again never share the semaphore with a writer, and do not keep it out."""
    p = Performer(uniform(1, "64K", 0, "swap-v3", 4096), seed)
    inside: list[str] = []
    over: list[bool] = []

    def reader() -> Steps:
        while not over:
            with (yield DownSem(0, Mode.READ)):
                assert "writer" not in inside
                inside.append("reader")
                yield Breathe()
                inside.remove("reader")

    def writer() -> Steps:
        with (yield DownSem(0, Mode.WRITE)):
            assert not inside
            inside.append("writer")
            yield Breathe()
            inside.remove("writer")
        over.append(True)

    for _ in range(3):
        p.start("reader", reader())
    p.start("writer", writer())
    p.run()
    assert over


class Elsewhere:
    """Another process that holds everything until it has been asked `refusals` times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.log: list[object] = []

    def _gives_way(self, what: object) -> bool:
        self.refusals -= 1
        if self.refusals < 0:
            self.log.append(what)
        return self.refusals < 0

    def try_spin(self, keys: Sequence[Key]) -> bool:
        return self._gives_way(tuple(keys))

    def spin_unlock(self, keys: Sequence[Key]) -> None:
        self.log.append(("unlock", *keys))

    def try_sem(self, mm_id: int, mode: Mode) -> bool:
        return self._gives_way((mm_id, mode))

    def drop_sem(self, mm_id: int) -> None:
        self.log.append(("drop", mm_id))


@pytest.mark.parametrize("mode", Mode)
def test_a_task_waits_for_the_host_half_of_a_semaphore(mode: Mode) -> None:
    """A task that another process keeps out is let in as soon as that one gives way, and the half is given back."""
    p = small()
    p.k.locks.host = host = Elsewhere(refusals=5)
    seen: list[str] = []

    def task() -> Steps:
        with (yield DownSem(3, mode)):
            seen.append("in")

    p.call(task())
    assert seen == ["in"]
    assert host.log == [(3, mode), ("drop", 3)]


def test_a_task_waits_for_the_host_half_of_spin_locks() -> None:
    """Spin locks that another process holds are tried again, all or none, and nothing is held meanwhile."""
    p = small()
    p.k.locks.host = host = Elsewhere(refusals=3)
    keys = [(Rank.PTE, 2), (Rank.SWAP, 0)]

    def task() -> Steps:
        with (yield from spin_lock(p.k, keys)):
            assert p.k.locks.held(p.k.locks.current).spins == keys

    p.call(task())
    assert host.log == [tuple(keys), ("unlock", *keys)]


def test_the_host_half_is_taken_by_the_first_and_dropped_by_the_last() -> None:
    """Readers of one process are one reader to the others."""
    host = Elsewhere(refusals=0)
    q = Queue(host)
    assert q.try_(1, Mode.READ)
    assert q.try_(2, Mode.READ)
    q.up(1)
    assert q.try_(3, Mode.READ)
    assert host.log == [(7, Mode.READ)]
    q.up(2)
    q.up(3)
    assert host.log == [(7, Mode.READ), ("drop", 7)]
    assert q.try_(4, Mode.WRITE)
    q.up(4)
    assert host.log[2:] == [(7, Mode.WRITE), ("drop", 7)]


def test_the_host_does_not_change_the_turn() -> None:
    """A writer that the host keeps out stays ahead of a reader that came later."""
    q = Queue(Elsewhere(refusals=1))
    assert not q.try_(1, Mode.WRITE)
    assert not q.try_(2, Mode.READ)
    assert q.try_(1, Mode.WRITE)
    assert not q.try_(2, Mode.READ)
    q.up(1)
    assert q.try_(2, Mode.READ)
