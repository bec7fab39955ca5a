"""Robust mutexes in shared memory."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from numaemu_host import memfd, robust
from numaemu_host.robust import MutexState, MutexTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.conftest import Child

PAGE = mmap.PAGESIZE
COUNT = PAGE // robust.MUTEX_BYTES
HOLDER = """
import mmap
from numaemu_host import memfd, robust
segment = memfd.Segment(int(sys.argv[1]), mmap.PAGESIZE)
table = robust.MutexTable(segment.address, int(sys.argv[2]))
for index in map(int, sys.argv[3:]):
    say(table.lock(index, 10).name)
wait_for_parent()
for index in map(int, sys.argv[3:]):
    table.unlock(index)
say("unlocked")
wait_for_parent()
"""


@pytest.fixture
def table(shared_fd: int) -> Iterator[MutexTable]:
    """A page full of free mutexes."""
    segment = memfd.Segment(shared_fd, PAGE)
    found = MutexTable(segment.address, COUNT)
    found.initialise_range(0, COUNT)
    yield found
    segment.close()


def hold(spawn: Callable[..., Child], fd: int, *indices: int) -> Child:
    """A child that holds these mutexes until told to go on."""
    child = spawn(HOLDER, fd, COUNT, *indices, pass_fds=[fd])
    assert {child.hear() for _ in indices} == {"ACQUIRED"}
    return child


def test_processes_exclude_each_other(table: MutexTable, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """While another process holds a mutex it is busy here, its neighbours are not, and unlocking there frees it."""
    child = hold(spawn, shared_fd, 3)
    assert table.trylock(3) is MutexState.BUSY
    assert table.trylock(4) is MutexState.ACQUIRED
    table.unlock(4)
    with pytest.raises(PermissionError):
        table.unlock(3)
    child.go_on()
    assert child.hear() == "unlocked"
    assert table.trylock(3) is MutexState.ACQUIRED
    table.unlock(3)


def test_killed_holder_is_told_and_recovered(table: MutexTable, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """After SIGKILL of the holder the next taker holds the mutex with OWNER_DIED, and can make it good again."""
    hold(spawn, shared_fd, 0, 5, COUNT - 1).kill()
    for index in (0, 5, COUNT - 1):
        assert table.trylock(index) is MutexState.OWNER_DIED
        table.make_consistent(index)
        table.unlock(index)
        assert table.trylock(index) is MutexState.ACQUIRED
        table.unlock(index)


def test_recovery_is_exclusive(table: MutexTable, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """Who got OWNER_DIED has the mutex: others find it busy until it is made consistent and unlocked."""
    hold(spawn, shared_fd, 1).kill()
    assert table.trylock(1) is MutexState.OWNER_DIED
    asker = spawn(
        """
        import mmap
        from numaemu_host import memfd, robust
        table = robust.MutexTable(memfd.Segment(int(sys.argv[1]), mmap.PAGESIZE).address, 2)
        say(table.trylock(1).name)
        wait_for_parent()
        say(table.trylock(1).name)
        """,
        shared_fd,
        pass_fds=[shared_fd],
    )
    assert asker.hear() == "BUSY"
    table.make_consistent(1)
    table.unlock(1)
    asker.go_on()
    assert asker.hear() == "ACQUIRED"


def test_waiter_is_woken_by_death(table: MutexTable, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """A process that waits for a mutex gets it when its holder is killed, long before the timeout."""
    holder = hold(spawn, shared_fd, 2)
    states: list[MutexState] = []

    def wait() -> None:
        states.append(table.lock(2, 15))
        table.make_consistent(2)
        table.unlock(2)

    waiter = threading.Thread(target=wait)
    waiter.start()
    holder.kill()
    waiter.join(10)
    assert states == [MutexState.OWNER_DIED]


def test_unlock_without_repair_spoils(table: MutexTable, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """Unlocking after OWNER_DIED without make_consistent is an error for the next taker, until initialised anew."""
    hold(spawn, shared_fd, 1).kill()
    assert table.trylock(1) is MutexState.OWNER_DIED
    table.unlock(1)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTRECOVERABLE)):
        table.trylock(1)
    table.initialise(1)
    assert table.trylock(1) is MutexState.ACQUIRED
    table.unlock(1)


def test_exiting_holder_counts_as_dead(table: MutexTable) -> None:
    """A thread that ends with a mutex in hand leaves it to the next taker as a dead owner."""
    thread = threading.Thread(target=table.trylock, args=(7,))
    thread.start()
    thread.join()
    state = table.lock(7, 10)  # join returns a moment before the host's thread is gone
    assert state is MutexState.OWNER_DIED
    table.make_consistent(7)
    table.unlock(7)


def test_lock_times_out(table: MutexTable, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """Waiting for a held mutex ends with BUSY after the timeout and not before."""
    hold(spawn, shared_fd, 0)
    for timeout_s in (-1, 0, 0.15):
        start = time.monotonic()
        assert table.lock(0, timeout_s) is MutexState.BUSY
        assert timeout_s <= time.monotonic() - start < 10


def test_lock_takes_a_free_mutex_at_once(table: MutexTable) -> None:
    """A free mutex is taken even with no time to wait."""
    assert table.lock(0, 0) is MutexState.ACQUIRED
    table.unlock(0)


def test_errors_of_the_holder(table: MutexTable) -> None:
    """Asking for what the thread holds, giving what it does not, and repairing what is whole are errors."""
    with pytest.raises(PermissionError):
        table.unlock(0)
    assert table.trylock(0) is MutexState.ACQUIRED
    attempts: list[Callable[[], MutexState]] = [lambda: table.trylock(0), lambda: table.lock(0, 1)]
    for attempt in attempts:
        with pytest.raises(OSError, match=os.strerror(errno.EDEADLK)):
            attempt()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        table.make_consistent(0)
    table.unlock(0)


def test_threads_exclude_each_other(table: MutexTable) -> None:
    """Only the thread that locked may unlock, and another thread of the process finds the mutex busy."""
    assert table.trylock(0) is MutexState.ACQUIRED
    seen: list[object] = []

    def other() -> None:
        seen.append(table.trylock(0))
        try:
            table.unlock(0)
        except PermissionError as error:
            seen.append(error.errno)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [MutexState.BUSY, errno.EPERM]
    table.unlock(0)


@pytest.mark.parametrize("index", [-1, COUNT])
def test_index_outside_the_table(table: MutexTable, index: int) -> None:
    """No index reaches memory outside the table."""
    for use in (table.trylock, table.unlock, table.make_consistent, table.initialise):
        with pytest.raises(IndexError):
            use(index)
    with pytest.raises(IndexError):
        table.lock(index, 0)
    with pytest.raises(IndexError):
        table.initialise_range(COUNT - 1, 2)


@pytest.mark.parametrize(("address", "count"), [(0, 1), (PAGE + 8, 1), (PAGE, -1)])
def test_table_needs_an_aligned_address(address: int, count: int) -> None:
    """A table lies at a multiple of its entry size and has no negative length."""
    with pytest.raises(ValueError, match="a table"):
        MutexTable(address, count)


def test_increments_under_the_mutex_are_not_lost(shared_fd: int, spawn: Callable[..., Child]) -> None:
    """Three processes that count under one mutex lose no increment."""
    segment = memfd.Segment(shared_fd, PAGE)
    table = MutexTable(segment.address, 1)
    table.initialise(0)
    children = [
        spawn(
            """
            import mmap
            from numaemu_host import memfd, robust
            segment = memfd.Segment(int(sys.argv[1]), mmap.PAGESIZE)
            table = robust.MutexTable(segment.address, 1)
            counter = segment.view.cast("Q")
            say("ready")
            wait_for_parent()
            for _ in range(3000):
                while table.lock(0, 1) is not robust.MutexState.ACQUIRED:
                    pass
                counter[100] += 1
                table.unlock(0)
            """,
            shared_fd,
            pass_fds=[shared_fd],
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.hear() == "ready"
    for child in children:
        child.go_on()
    assert [child.end() for child in children] == [0, 0, 0]
    assert int.from_bytes(segment.view[800:808], "little") == 9000
    segment.close()


def test_the_holder_of_a_mutex_is_known(table: MutexTable, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """The thread that holds it, by the host's number; nobody where it is free, or its holder has died."""
    assert table.owner(3) == 0
    child = hold(spawn, shared_fd, 3)
    assert table.owner(3) == child.process.pid
    table.trylock(4)
    assert table.owner(4) == threading.get_native_id()
    table.unlock(4)
    child.kill()
    assert table.owner(3) == 0
    with pytest.raises(IndexError):
        table.owner(-1)
