"""Hits: pages that are there, read and written without a message."""

import contextlib
import mmap
import random
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

import numaemu as nm
from numaemu.bench.machines import MIB, PAGE, booted, seconds
from numaemu.bench.rounds import Figure, compare, rate, times

_ACCESSES: Final = 20_000
_AREA: Final = 4 * MIB
_RANGE: Final = 16 * MIB
_COPIES: Final = 8


def _offsets() -> list[int]:
    draw = random.Random(7)  # noqa: S311 - the same addresses every time
    return [draw.randrange(_AREA // 64) * 64 for _ in range(_ACCESSES)]


def _each_us(loop: Callable[[], object]) -> float:
    """Microseconds an access of a loop over all of them."""
    return seconds(loop) / _ACCESSES * 1e6


@contextlib.contextmanager
def _areas() -> Iterator[tuple[nm.Task, nm.Mapping, mmap.mmap]]:
    """A task, its mapping of pages that are all there, and as much plain memory."""
    with booted() as machine, machine.attach() as task, mmap.mmap(-1, _AREA) as plain:
        buf = task.mmap(_AREA)
        buf.write(0, bytes(range(256)) * (_AREA // 256))
        plain[:] = buf.read(0, _AREA)
        yield task, buf, plain


def _figure(name: str, ours: Callable[[], object], peer: Callable[[], object], peer_is: str, bound: float) -> Figure:
    return compare(name, "us", lambda: _each_us(ours), lambda: _each_us(peer), peer_is=peer_is, reach=times(bound))


def hit_read_64() -> Iterator[Figure]:
    """A read of 64 bytes of a present page, at random, beside a slice of a plain mmap."""
    offsets = _offsets()
    with _areas() as (task, buf, plain):
        addresses = [buf.start + offset for offset in offsets]

        def ours() -> None:
            read = task.read
            for address in addresses:
                read(address, 64)

        def peer() -> None:
            for offset in offsets:
                plain[offset : offset + 64]

        yield _figure("hit-read-64", ours, peer, "mmap[a:b] of the same bytes", 4.5)


def hit_write_64() -> Iterator[Figure]:
    """A write of 64 bytes, beside an assignment to a slice of a plain mmap."""
    offsets = _offsets()
    data = bytes(range(64))
    with _areas() as (task, buf, plain):
        addresses = [buf.start + offset for offset in offsets]

        def ours() -> None:
            write = task.write
            for address in addresses:
                write(address, data)

        def peer() -> None:
            for offset in offsets:
                plain[offset : offset + 64] = data

        yield _figure("hit-write-64", ours, peer, "mmap[a:b] = of the same bytes", 4.5)


def map_read_64() -> Iterator[Figure]:
    """A slice of 64 bytes of a mapping, beside the same slice of a plain mmap."""
    offsets = _offsets()
    with _areas() as (_, buf, plain):

        def slices(memory: nm.Mapping | mmap.mmap) -> None:
            for offset in offsets:
                memory[offset : offset + 64]

        yield _figure("map-read-64", lambda: slices(buf), lambda: slices(plain), "the same slice of a plain mmap", 6)


def hit_read_16m() -> Iterator[Figure]:
    """16 MiB into a buffer, a quarter on each node, and page by page in turn, beside a numpy copy."""
    quarter = _RANGE // 4
    room = bytearray(_RANGE)
    target = np.frombuffer(room, np.uint8)
    source = np.random.default_rng(3).integers(0, 255, _RANGE, np.uint8)
    whole = bytes(PAGE) * (_RANGE // PAGE)

    def copies_a_second(copy: Callable[[], object]) -> float:
        def many() -> None:
            for _ in range(_COPIES):
                copy()

        return _COPIES * _RANGE / seconds(many) / MIB

    with booted() as machine, machine.attach() as task:
        quarters = task.mmap(_RANGE)
        for nid in range(4):
            task.mbind(quarters.start + nid * quarter, quarter, nm.MPOL_BIND, {nid})
        quarters.write(0, whole)
        yield compare(
            "hit-read-16M",
            "MiB/s",
            lambda: copies_a_second(lambda: task.read_into(quarters.start, room)),
            lambda: copies_a_second(lambda: np.copyto(target, source)),
            peer_is="numpy copy of 16 MiB",
            reach=rate(0.7),
        )
        mixed = task.mmap(_RANGE)
        task.mbind(mixed.start, mixed.length, nm.MPOL_INTERLEAVE, set(range(4)))
        mixed.write(0, whole)
        yield compare(
            "hit-read-16M-interleaved",
            "MiB/s",
            lambda: copies_a_second(lambda: task.read_into(mixed.start, room)),
            lambda: copies_a_second(lambda: np.copyto(target, source)),
            peer_is="numpy copy of 16 MiB",
            reach=rate(0.4),
        )
