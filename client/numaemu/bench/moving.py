"""Pages that move: to swap and back, straight to another node, and under pressure."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Final

import numaemu as nm
from numaemu.bench.machines import MIB, MOVED_BYTES, MOVED_PAGES, NODES, PAGE, booted, scatter_copy, seconds
from numaemu.bench.rounds import Figure, compare, rate, times

_MOVE: Final = nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT
_TIB: Final = 1 << 40
_CLUSTERS: Final = 64
_TABLE_BYTES: Final = 512 * PAGE
_TOUCHED_PAGES: Final = 256
_COPY_IS: Final = "numpy scatter copy of as many pages"


def swapout_64m() -> Iterator[Figure]:
    """mbind(MOVE) of 64 MiB that were just written: all of it goes to swap."""
    with booted() as machine, machine.attach() as task:
        buf = task.mmap(MOVED_BYTES)
        nodes = itertools.cycle((1, 2, 3, 0))

        def ours() -> float:
            task.touch(buf.start, buf.length, write=True)
            return MOVED_PAGES / seconds(lambda: task.mbind(buf.start, buf.length, nm.MPOL_BIND, {next(nodes)}, _MOVE))

        yield compare("swapout-64M", "pages/s", ours, scatter_copy(), peer_is=_COPY_IS, reach=rate(0.5))


def swapin_64m() -> Iterator[Figure]:
    """The touch that brings 64 MiB back from swap, to another node."""
    with booted() as machine, machine.attach() as task:
        buf = task.mmap(MOVED_BYTES)
        nodes = itertools.cycle((1, 2, 3, 0))

        def ours() -> float:
            task.touch(buf.start, buf.length, write=True)
            task.mbind(buf.start, buf.length, nm.MPOL_BIND, {next(nodes)}, _MOVE)
            return MOVED_PAGES / seconds(lambda: task.touch(buf.start, buf.length))

        yield compare("swapin-64M", "pages/s", ours, scatter_copy(), peer_is=_COPY_IS, reach=rate(0.5))


def direct_64m() -> Iterator[Figure]:
    """mbind(MOVE) of 64 MiB as today's kernels do it: one copy, node to node."""
    with booted(profile="linux-6.1") as machine, machine.attach() as task:
        buf = task.mmap(MOVED_BYTES)
        nodes = itertools.cycle((1, 2, 3, 0))
        task.touch(buf.start, buf.length, write=True)

        def ours() -> float:
            return MOVED_PAGES / seconds(lambda: task.mbind(buf.start, buf.length, nm.MPOL_BIND, {next(nodes)}, _MOVE))

        yield compare("direct-64M", "pages/s", ours, scatter_copy(), peer_is=_COPY_IS, reach=rate(0.5))


def _mover(task: nm.Task, start: int, length: int, ranges: list[tuple[int, int]]) -> Callable[[], float]:
    """Seconds of an mbind(MOVE) over a range of which only `ranges` (offset, bytes) hold pages."""
    nodes = itertools.cycle((1, 2, 3, 0))

    def move() -> float:
        for offset, size in ranges:
            task.touch(start + offset, size, write=True)
        return seconds(lambda: task.mbind(start, length, nm.MPOL_BIND, {next(nodes)}, _MOVE))

    return move


def sparse_1t() -> Iterator[Figure]:
    """mbind(MOVE) over 1 TiB that holds 16,384 pages, in 64 clusters or one a table, beside the same pages dense."""
    with booted(memory="160M", swap="384M") as machine, machine.attach() as task, machine.attach() as other:
        wide = task.mmap(_TIB, flags=nm.MAP_PRIVATE | nm.MAP_ANONYMOUS | nm.MAP_NORESERVE)
        dense = other.mmap(MOVED_BYTES)
        beside = _mover(other, dense.start, dense.length, [(0, MOVED_BYTES)])
        clusters = [(n * (_TIB // _CLUSTERS), MOVED_BYTES // _CLUSTERS) for n in range(_CLUSTERS)]
        yield compare(
            "sparse-1T",
            "s",
            _mover(task, wide.start, wide.length, clusters),
            beside,
            peer_is="the same pages dense",
            reach=times(1.5),
        )
        wide.close()
        wide = task.mmap(_TIB, flags=nm.MAP_PRIVATE | nm.MAP_ANONYMOUS | nm.MAP_NORESERVE)
        single = [(n * _TABLE_BYTES, PAGE) for n in range(0, 16 * MOVED_PAGES, 16)]
        yield compare(
            "sparse-1T-tables",
            "s",
            _mover(task, wide.start, wide.length, single),
            beside,
            peer_is="the same pages dense",
            reach=times(10),
        )


def reclaim() -> Iterator[Figure]:
    """Touching 1.5 times all memory in ranges of 256 pages, beside two scatter copies a page."""
    memory = NODES * 32 * MIB
    working_set = memory * 3 // 2
    starts = list(range(0, working_set, _TOUCHED_PAGES * PAGE))
    copy = scatter_copy()
    with booted(memory="32M", swap="256M") as machine, machine.attach() as task:
        buf = task.mmap(working_set)

        def pages_a_second(order: list[int]) -> float:
            def touch_all() -> None:
                for start in order:
                    buf.touch(start, _TOUCHED_PAGES * PAGE, write=True)

            return working_set // PAGE / seconds(touch_all)

        draw = random.Random(11)  # noqa: S311 - the same orders every time
        orders = {
            "reclaim-1.5x": lambda: starts,
            "reclaim-1.5x-random": lambda: draw.sample(starts, len(starts)),
        }
        for name, order in orders.items():
            yield compare(
                name,
                "pages/s",
                lambda order=order: pages_a_second(order()),  # type: ignore[misc]  # mypy cannot type such a default
                lambda: copy() / 2,
                peer_is="two scatter copies a page",
                reach=rate(0.3),
            )
