"""When faults on demand strike, and how often each has: the same on every run with the same seed and the same calls.

Whether the n-th page that a fault is asked about is struck is a function of the seed, the text of the fault, and n. n
and the number of strikes lie in shared memory, so that a recovered daemon goes on where the last one was.

Nodes and swap that are full need no chance: what they may not give was set apart when the machine was switched on. What
counts as a strike of theirs: an allocation that found less than it wanted; of swap also one that took the last slot, as
reclaim no longer asks then.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from numaemu_core.columns import I2, I8, U8, Bool, Columns
from numaemu_core.faults_on_demand import ISOLATION, MIGRATION, NODE, SWAP, Fault

#: Columns of fault_strikes.
_ASKED, _STRUCK = range(2)
_WORD = (1 << 64) - 1


def struck_at(seed: int, fault: Fault, asked: I8) -> Bool:
    """Which of these questions of a fault are answered by a strike (splitmix64). Shapes: int64[m] gives bool[m]."""
    key = (seed * 0x9E3779B97F4A7C15 ^ zlib.crc32(str(fault).encode()) << 17) & _WORD
    mixed = _mix(_mix(np.full(1, key, np.uint64)) + asked.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.asarray(mixed % np.uint64(100) < np.uint64(fault.percent))


def _mix(x: U8) -> U8:
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


class Chance:
    """The faults of one kind that strike single pages."""

    def __init__(self, seed: int, faults: Sequence[tuple[int, Fault]], cells: I8) -> None:
        """Faults with their rows of `cells` (fault_strikes)."""
        self._seed = seed
        self._faults = faults
        self._cells = cells

    def strike(self, nodes: I2, wanted: Bool, *, first_only: bool = False) -> Bool:
        """Which of the pages that are wanted are struck, page after page; `nodes` has the node of each.

        With `first_only` nobody is asked about those behind the first that is. Shapes: [m] gives bool[m].
        """
        struck = np.zeros(len(nodes), np.bool_)
        asked: list[tuple[int, I8, Bool]] = []
        for row, fault in self._faults:
            about = wanted & ~struck
            places = np.flatnonzero(about if fault.node is None else about & (nodes == fault.node))
            hits = struck_at(self._seed, fault, int(self._cells[row, _ASKED]) + np.arange(len(places)))
            struck[places[hits]] = True
            asked.append((row, places, hits))
        if first_only and struck.any():
            end = int(np.flatnonzero(struck)[0]) + 1
            struck[end:] = False
            asked = [(row, places[places < end], hits[places < end]) for row, places, hits in asked]
        for row, places, hits in asked:
            self._cells[row] += (len(places), int(np.count_nonzero(hits)))
        return struck


class Strikes:
    """All faults of a machine."""

    def __init__(self, faults: Sequence[Fault], seed: int, columns: Columns) -> None:
        """Over the shared column, which one process at a time counts in."""
        self._faults = faults
        self._cells = columns.fault_strikes
        #: Those that strike pages which are to be isolated, and pages that migrate; None: there are none.
        self.isolation = self._chance(ISOLATION, seed)
        self.migration = self._chance(MIGRATION, seed)
        self._row_of_full = {fault.node: row for row, fault in enumerate(faults) if fault.kind in (NODE, SWAP)}

    def _chance(self, kind: str, seed: int) -> Chance | None:
        mine = [(row, fault) for row, fault in enumerate(self._faults) if fault.kind == kind]
        return Chance(seed, mine, self._cells) if mine else None

    def found_full(self, nid: int | None) -> None:
        """A node, or the swap area (None), that a fault has made smaller had not enough."""
        self._cells[self._row_of_full[nid], _STRUCK] += 1

    def counts(self) -> dict[str, int]:
        """How often each fault has struck since boot, by its text, in their order."""
        return {str(fault): int(self._cells[row, _STRUCK]) for row, fault in enumerate(self._faults)}
