"""What several figures need: machines of a certain size, and copies to measure them by."""

import contextlib
import mmap
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

import numaemu as nm

PAGE: Final = 4096
MIB: Final = 1 << 20
#: What the figures with 64M in their names move.
MOVED_BYTES: Final = 64 * MIB
MOVED_PAGES: Final = MOVED_BYTES // PAGE
NODES: Final = 4


@contextlib.contextmanager
def booted(
    memory: str = "96M", swap: str = "256M", profile: str = "swap-v3", nodes: int = NODES
) -> Iterator[nm.Machine]:
    """A machine of equal nodes."""
    with nm.boot(nodes=nodes, memory=memory, swap=swap, profile=profile) as machine:
        yield machine


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def scatter_copy(pages: int = MOVED_PAGES) -> Callable[[], float]:
    """Measures a numpy scatter copy of so many pages into shared memory: pages a second."""
    source = np.random.default_rng(1).integers(0, 255, (pages, PAGE), np.uint8)
    target = np.frombuffer(mmap.mmap(-1, pages * PAGE), np.uint8).reshape(pages, PAGE)
    rows = np.random.default_rng(2).permutation(pages)

    def copy() -> None:
        target[rows] = source

    return lambda: pages / seconds(copy)


def small_pages(length: int) -> mmap.mmap:
    """Private anonymous memory of the host, which the host backs with pages of 4 KiB only."""
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
