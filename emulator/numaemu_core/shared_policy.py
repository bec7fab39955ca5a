"""Memory policies, and the tree of them that belongs to an object: which pages of a tmpfs file have which.

Mirrors: struct mempolicy and the shared policy tree, mm/mempolicy.c (2.6.15 and 6.12).
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Mempolicy:
    """A policy object. MPOL_DEFAULT is the absence of one (None).

    Equal objects are what vma_merge calls equal policies.
    """

    mode: int
    #: The nodes in force as a mask, for the modes that have a mask.
    nodes: int = 0
    #: PREFERRED: the node, -1 for local.
    preferred: int = -1
    #: MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING.
    flags: int = 0
    #: The mask that the user gave, for policies with any of these flags.
    user_nodes: int = 0
    #: set_mempolicy_home_node, -1: none.
    home_node: int = -1
    #: The cpuset that `nodes` was made for, where no mask of the user is kept; equal policies may differ in it.
    cpuset_nodes: int = field(default=0, compare=False)


def set_range(ranges: list[tuple[int, int, _T]], start: int, end: int, value: _T | None) -> list[tuple[int, int, _T]]:
    """Ranges with their values, ordered and apart, once [start, end) has this value; None: has none."""
    kept: list[tuple[int, int, _T]] = []
    for low, high, old in ranges:
        if low < start:
            kept.append((low, min(high, start), old))
        if high > end:
            kept.append((max(low, end), high, old))
    if value is not None:
        kept.append((start, end, value))
    return sorted((row for row in kept if row[0] < row[1]), key=lambda row: row[0])


@dataclass(slots=True)
class SharedPolicy:
    """Ranges of pages of an object with their policies: ordered, apart, none of them default."""

    ranges: list[tuple[int, int, Mempolicy]] = field(default_factory=list)

    def set(self, start: int, end: int, policy: Mempolicy | None) -> None:
        """Pages [start, end) have this policy now; None takes theirs away."""
        self.ranges = set_range(self.ranges, start, end, policy)

    def lookup(self, index: int) -> Mempolicy | None:
        """The policy of a page, None where it has none."""
        at = bisect.bisect_right(self.ranges, index, key=lambda row: row[0]) - 1
        if at < 0 or self.ranges[at][1] <= index:
            return None
        return self.ranges[at][2]

    def segments(self, start: int, end: int) -> Iterator[tuple[int, int, Mempolicy | None]]:
        """[start, end) cut where the policy changes, gaps with None; ascending, without a break."""
        at = start
        for low, high, policy in self.ranges:
            if high <= at or low >= end:
                continue
            if low > at:
                yield at, low, None
            yield max(low, at), min(high, end), policy
            at = min(high, end)
        if at < end:
            yield at, end, None
