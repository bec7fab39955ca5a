"""Where pages are, and the words for it when they are not where a test wants them."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

    from numaemu.task import Task
    from numaemu_core.columns import I8

#: Ranges of misplaced pages that a message names.
_RANGES_SHOWN: Final = 5
_NOWHERE: Final = {
    -errno.ENOENT: "not in memory (never touched, or swapped out)",
    -errno.EFAULT: "not mapped",
}


@dataclass(frozen=True, slots=True)
class Found:
    """Pages of something: how many on each node, and how many on none, by -errno as `Task.where` tells it."""

    what: str
    by_node: Counter[int]
    nowhere: Counter[int]
    #: The place of each page, one after the other, and where the first one begins; None: only the numbers are known.
    places: I8 | None = None
    start: int = 0
    page_bytes: int = 0

    def misplaced(self, nodes: Collection[int], *, present_only: bool) -> str:
        """What is wrong if all pages should be on these nodes, as a sentence and a table; empty: nothing."""
        elsewhere = sum(count for node, count in self.by_node.items() if node not in nodes)
        nowhere = sum(self.nowhere.values())
        total = self.by_node.total()
        if total and not elsewhere and (present_only or not nowhere):
            return ""
        wrong = [f"{elsewhere} elsewhere"] if elsewhere else []
        wrong += [f"{nowhere} on no node"] if nowhere and not present_only else []
        wrong += ["none that is in memory"] if not total and not wrong else []
        listed = ", ".join(map(str, sorted(nodes)))
        head = f"{self.what}: expected all pages on node {listed}, found {' and '.join(wrong)}"
        return "\n".join([head, *self._table(nodes), *self._ranges(nodes, present_only=present_only)])

    def _table(self, nodes: Collection[int]) -> list[str]:
        rows = ["  node     pages"]
        for node in sorted({*self.by_node, *nodes}):
            expected = "  expected" if node in nodes else ""
            rows.append(f"  {node:>4}  {self.by_node[node]:>8}{expected}")
        rows += [f"     -  {count:>8}  {_why_nowhere(code)}" for code, count in sorted(self.nowhere.items())]
        return rows

    def _ranges(self, nodes: Collection[int], *, present_only: bool) -> list[str]:
        if self.places is None:
            return []
        wrong = ~np.isin(self.places, list(nodes))
        if present_only:
            wrong &= self.places >= 0
        # A new range begins where the place of a page is not that of the page before.
        firsts = np.flatnonzero(np.diff(self.places, prepend=np.iinfo(np.int64).min))
        ends = np.append(firsts[1:], len(self.places))
        chosen = [(int(first), int(end)) for first, end in zip(firsts, ends, strict=True) if wrong[first]]
        lines = [self._range(first, end) for first, end in chosen[:_RANGES_SHOWN]]
        more = len(chosen) - len(lines)
        return [*lines, *([f"  and {more} more ranges"] if more else [])]

    def _range(self, first: int, end: int) -> str:
        assert self.places is not None
        place = int(self.places[first])
        where = f"node {place}" if place >= 0 else _why_nowhere(place)
        low, high = first * self.page_bytes, end * self.page_bytes
        return f"  bytes {low:#x} to {high:#x} (address {self.start + low:#x}): {where}"


def _why_nowhere(code: int) -> str:
    return _NOWHERE.get(code) or errno.errorcode.get(-code, str(code))


def of_range(task: Task, addr: int, length: int, page_bytes: int) -> Found:
    """The pages of [addr, addr + length) of a task, in bytes."""
    places = task.where(addr, length)
    counts = Counter(dict(zip(*(part.tolist() for part in np.unique(places, return_counts=True)), strict=True)))
    by_node = Counter({place: count for place, count in counts.items() if place >= 0})
    nowhere = Counter({place: count for place, count in counts.items() if place < 0})
    what = f"{length} bytes at {addr:#x} of task {task.pid}"
    return Found(what, by_node, nowhere, places, addr - addr % page_bytes, page_bytes)
