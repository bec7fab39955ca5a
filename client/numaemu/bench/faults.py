"""Faults: pages that are not there yet."""

from collections.abc import Iterator
from typing import Final

from numaemu.bench.echo import MESSAGE, dealer_to, echoing
from numaemu.bench.machines import MOVED_BYTES, MOVED_PAGES, PAGE, booted, seconds, small_pages
from numaemu.bench.rounds import Figure, compare, rate, times

_FAULTS: Final = 300


def fault_1() -> Iterator[Figure]:
    """The first write of a page, beside a bare ROUTER/DEALER echo of a message of the same size."""
    with booted() as machine, machine.attach() as task, echoing() as endpoint, dealer_to(endpoint) as dealer:
        buf = task.mmap(MOVED_BYTES)
        fresh = iter(range(buf.start, buf.start + buf.length, PAGE))

        def ours() -> float:
            def work() -> None:
                for _ in range(_FAULTS):
                    task.write(next(fresh), b"x")

            return seconds(work) / _FAULTS * 1e6

        def peer() -> float:
            def work() -> None:
                for _ in range(_FAULTS):
                    dealer.send(MESSAGE)
                    dealer.recv()

            return seconds(work) / _FAULTS * 1e6

        yield compare("fault-1", "us", ours, peer, peer_is="ZeroMQ echo of such a message", reach=times(1.4))


def populate_64m() -> Iterator[Figure]:
    """One write over 64 MiB that nobody has touched, beside the host kernel's faults of as many pages."""
    data = bytes(range(256)) * (MOVED_BYTES // 256)
    with booted() as machine, machine.attach() as task:

        def ours() -> float:
            with task.mmap(MOVED_BYTES) as buf:
                return MOVED_PAGES / seconds(lambda: buf.write(0, data))

        def peer() -> float:
            with small_pages(MOVED_BYTES) as memory:

                def fill() -> None:
                    memory[:] = data

                return MOVED_PAGES / seconds(fill)

        yield compare(
            "populate-64M",
            "pages/s",
            ours,
            peer,
            peer_is="first write of fresh memory of the host",
            reach=rate(1),
        )
