"""What is counted of the locks: how often taken, contended, how long waited for and held."""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest

from numaemu_core.effects import Breathe, Effect
from numaemu_core.lock_stats import CLASSES, PAGE, LockStat, LockStats
from numaemu_core.locks import Key, LockTable, Mode, NoHost, Rank
from numaemu_core.page_lock import lock_some_pages, trylock_pages, unlock_pages
from numaemu_core.performer import Performer
from numaemu_core.topology import uniform

Steps = Generator[Effect, Any, None]


class Watch:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def timed_table() -> tuple[LockTable, Watch]:
    table, watch = LockTable(NoHost()), Watch()
    table.stats = LockStats(watch)
    return table, watch


def figures(table: LockTable, name: str) -> dict[str, float]:
    """Those that are not 0."""
    return {key: value for key, value in table.stats.as_dict()[name].items() if value}


def test_each_rank_has_its_class() -> None:
    """The class of a rank has its name, and the list begins with mmap_sem in both modes."""
    assert [CLASSES[rank].partition(".")[0] for rank in Rank] == [rank.name.lower() for rank in Rank]
    assert list(LockStats(Watch()).as_dict()) == ["mmap_sem.read", "mmap_sem.write", *CLASSES[1:8]]


@pytest.mark.parametrize(
    "keys", [[(Rank.ZONE, 0)], [(Rank.ZONE, 0), (Rank.ZONE, 3)], [(Rank.PTE, 1), (Rank.SWAP, 0)]], ids=str
)
def test_spin_locks_are_counted_one_by_one(keys: Sequence[Key]) -> None:
    """Each lock of a call counts in its class, for as long as all were held; the longest is remembered."""
    table, watch = timed_table()
    for seconds in (0.5, 2.0, 1.0):
        guard = table.try_spin(keys)
        assert guard is not None
        with guard:
            watch.now += seconds
    for rank in {rank for rank, _ in keys}:
        count = sum(one == rank for one, _ in keys)
        expected = {"taken": 3 * count, "hold_s": 3.5 * count, "hold_max_s": 2.0}
        assert figures(table, rank.name.lower()) == expected


def test_a_wait_for_an_mmap_sem_counts_once_and_by_its_mode() -> None:
    """However often a sleeping task is looked at it has waited once, from its first try to the end of its turn."""
    table, watch = timed_table()
    table.current = 1
    first = table.try_sem(7, Mode.WRITE)
    assert first is not None
    table.current = 2
    for _ in range(3):
        watch.now += 1.0
        assert table.try_sem(7, Mode.READ) is None
    with first:
        watch.now += 1.0
    watch.now += 4.0
    second = table.try_sem(7, Mode.READ)
    assert second is not None
    with second:
        watch.now += 0.25
    assert figures(table, "mmap_sem.write") == {"taken": 1, "hold_s": 4.0, "hold_max_s": 4.0}
    assert figures(table, "mmap_sem.read") == {
        "taken": 1,
        "contended": 1,
        "wait_s": 7.0,
        "wait_max_s": 7.0,
        "hold_s": 0.25,
        "hold_max_s": 0.25,
    }


def test_page_locks_count_from_the_first_to_the_last() -> None:
    """A task's page locks are one holding; who sleeps for one of them has waited until it was dropped."""
    p, watch = Performer(uniform(1, "64K", 0, "swap-v3", 4096), seed=3), Watch()
    p.k.locks.stats = LockStats(watch)

    def holder() -> Steps:
        yield from trylock_pages(p.k, np.array([5, 6]))
        while not p.k.locks.stats.classes[PAGE].contended:
            yield Breathe()
        watch.now += 1.0
        yield from unlock_pages(p.k, np.array([6]))
        watch.now += 2.0
        yield from unlock_pages(p.k, np.array([5]))

    def waiter() -> Steps:
        while not p.k.c.page_lock_owner[5]:
            yield Breathe()
        yield from lock_some_pages(p.k, np.array([5]))
        yield from unlock_pages(p.k, np.array([5]))

    p.start("holder", holder())
    p.start("waiter", waiter())
    p.run()
    found = figures(p.k.locks, "page")
    assert found == {
        "taken": 2,
        "contended": 1,
        "wait_s": 3.0,
        "wait_max_s": 3.0,
        "hold_s": 3.0,
        "hold_max_s": 3.0,
    }


def test_without_a_clock_everything_but_time_is_counted() -> None:
    """The core alone counts, and its times are 0."""
    table = LockTable(NoHost())
    guard = table.try_spin([(Rank.LRU, 0)])
    assert guard is not None
    with guard:
        pass
    assert table.stats.classes[Rank.LRU] == LockStat(taken=1)
