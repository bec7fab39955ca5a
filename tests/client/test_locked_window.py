"""Access without membarrier: under the pte lock."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from tests.client.conftest import PAGE, START

from numaemu.locked_window import LockedWindow
from numaemu.pte_lock import pte_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.conftest import FakeKernel

    from numaemu.task import Task


@pytest.fixture
def locked(kernel: FakeKernel) -> Iterator[Task]:
    """A task of a process for which membarrier is refused, with 64 pages."""
    kernel.attachment.fenced = False
    kernel.add_pages(64)
    with kernel.task() as found:
        yield found


def mutex_of(kernel: FakeKernel, addr: int) -> int:
    """The index of the pte lock of an address."""
    return kernel.layout.pte_mutex + (kernel.flat(addr >> 12) >> 9)


def test_same_results(kernel: FakeKernel, locked: Task) -> None:
    """Reads, writes and touches do what they do elsewhere, and every lock is given back."""
    data = bytes(range(256)) * 200
    locked.write(START + 77, data)
    assert isinstance(locked.window(), LockedWindow)
    assert locked.read(START + 77, len(data)) == data
    locked.touch(START, 64 * PAGE, write=True)
    assert locked.read(START, 0) == b""
    with pytest.raises(ValueError, match="negative"):
        locked.read(START, -1)
    with pte_lock(kernel.views, kernel.flat(START >> 12) >> 9) as held:
        assert held


def test_waits_for_the_lock(kernel: FakeKernel, locked: Task) -> None:
    """While another thread holds the pte lock, nothing is read, and the window does not stay open over the wait."""
    locked.write(START, b"there")
    index = mutex_of(kernel, START)
    holds, go_on = threading.Event(), threading.Event()
    counters: list[list[int]] = []

    def hold() -> None:
        kernel.mutexes.lock(index, 5.0)
        kernel.frame(1)[:5] = b"early"
        holds.set()
        go_on.wait(0.05)
        counters.append(kernel.counters)
        kernel.frame(1)[:5] = b"later"
        kernel.mutexes.unlock(index)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait(5)
    assert locked.read(START, 5) == b"later"
    thread.join()


def test_owner_died(kernel: FakeKernel, locked: Task) -> None:
    """A lock whose holder died is marked for the daemon, and nothing is read before the daemon has repaired it."""
    locked.write(START, b"x")
    index = mutex_of(kernel, START)
    thread = threading.Thread(target=lambda: kernel.mutexes.lock(index, 1.0))
    thread.start()
    thread.join()
    repaired = threading.Timer(0.1, lambda: kernel.views.needs_recovery.__setitem__(index, 0))

    def repair_when_marked() -> None:
        while not kernel.views.needs_recovery[index]:
            pass
        repaired.start()

    watcher = threading.Thread(target=repair_when_marked)
    watcher.start()
    assert locked.read(START, 1) == b"x"
    watcher.join()
    assert repaired.finished.is_set()


def test_handler_under_the_lock(kernel: FakeKernel, locked: Task) -> None:
    """An access from inside an access of its own thread works under the lock that is held around it."""
    locked.write(START, b"x")
    index = mutex_of(kernel, START)
    kernel.mutexes.lock(index, 1.0)
    window = locked.window()
    number, window.odd = window.odd, 0
    try:
        assert locked.read(START, 1) == b"x"
    finally:
        window.odd = number
        kernel.mutexes.unlock(index)


def test_only_tried_tables_are_asked_for(kernel: FakeKernel, locked: Task) -> None:
    """A range over two tables takes one lock at a time."""
    start = ((START >> 12 | 511) - 1) << 12
    kernel.add_pages(4, start=start)
    locked.write(start, bytes(range(256)) * 64)
    assert locked.read(start, 4 * PAGE) == bytes(range(256)) * 64
    assert mutex_of(kernel, start) != mutex_of(kernel, start + 3 * PAGE)
