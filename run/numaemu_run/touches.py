"""Which thread has touched which of the pages that are new, from the faults that the host has recorded."""

from typing import Final

import numpy as np
import numpy.typing as npt

from numaemu_core.distinct import distinct
from numaemu_run.fault_events import Touches
from numaemu_run.pagemap import NO_RUNS, Runs
from numaemu_run.procfs import PAGE_SIZE

#: Pages that come with one fault, at the most: those of a huge page.
_TOGETHER: Final = (2 << 20) // PAGE_SIZE
#: No thread has that number.
_NOBODY: Final = 0


def touched_by(added: Runs, touches: Touches) -> tuple[dict[int, Runs], Runs]:
    """New pages by the thread that has faulted last at each, and those of which no fault is known.

    A page without a fault of its own came with another one of the same huge page: with the one before it, or else the
    one behind it.
    """
    if not len(touches) or not len(added):
        return {}, added
    faulted, tids = _last(touches)
    pages = _pages_of(added)
    toucher = np.full(len(pages), _NOBODY, np.int64)
    for neighbour in (
        np.searchsorted(faulted, pages),
        np.searchsorted(faulted, pages, "right") - 1,
    ):
        near = np.clip(neighbour, 0, len(faulted) - 1)
        together = faulted[near] // _TOGETHER == pages // _TOGETHER
        toucher[together] = tids[near[together]]
    found = {int(tid): _runs_of(pages[toucher == tid]) for tid in distinct(toucher)}
    return found, found.pop(_NOBODY, NO_RUNS)


def unsettled(touches: Touches, since_ns: int, began_ns: int, held: Runs) -> Touches:
    """Of these faults, those of which a look that began then may have found no page.

    Those that came after, and those since the look before it whose page is not held: a fault is recorded before its
    page is there, and a thread may wait for long between the two.
    """
    pages = touches["address"].astype(np.int64) // PAGE_SIZE
    run = np.searchsorted(held[:, 0], pages, "right") - 1
    is_held = (pages < held[run, 1]) & (run >= 0) if len(held) else np.zeros(len(pages), np.bool_)
    return touches[(touches["time_ns"] >= began_ns) | ((touches["time_ns"] >= since_ns) & ~is_held)]


def _last(touches: Touches) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The pages at which somebody has faulted, ascending, and who was the last."""
    pages = touches["address"].astype(np.int64) // PAGE_SIZE
    order = np.lexsort((touches["time_ns"], pages))
    pages = pages[order]
    last = np.append(pages[1:] != pages[:-1], np.True_)
    return pages[last], touches["tid"][order][last].astype(np.int64)


def _pages_of(runs: Runs) -> npt.NDArray[np.int64]:
    """Each page of runs, ascending."""
    lengths = runs[:, 1] - runs[:, 0]
    steps = np.ones(int(lengths.sum()), np.int64)
    ends = lengths.cumsum()
    steps[0] = runs[0, 0]
    steps[ends[:-1]] = runs[1:, 0] - runs[:-1, 1] + 1
    return steps.cumsum()


def _runs_of(pages: npt.NDArray[np.int64]) -> Runs:
    """Ascending pages as runs."""
    apart = np.flatnonzero(np.diff(pages) != 1) + 1
    firsts = pages[np.concatenate(([0], apart))]
    lasts = pages[np.concatenate((apart - 1, [len(pages) - 1]))]
    return np.stack([firsts, lasts + 1], 1)
