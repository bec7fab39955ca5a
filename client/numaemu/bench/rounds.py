"""Interleaved rounds of two measurements, and what comes out of them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

#: Rounds of each measurement; ours and the peer's take turns.
ROUNDS = 7


@dataclass(frozen=True)
class Reach:
    """How far a ratio (or, without a peer, a value) should go: at most or at least `bound`."""

    at_most: bool
    bound: float
    of: str

    def met_by(self, value: float) -> bool:
        """Is it within?"""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}{self.of}"


def times(bound: float) -> Reach:
    """Ours takes at most `bound` times as long as the peer's."""
    return Reach(at_most=True, bound=bound, of="x its time")


def rate(bound: float) -> Reach:
    """Ours does at least `bound` times as much a second as the peer's."""
    return Reach(at_most=False, bound=bound, of="x its rate")


@dataclass(frozen=True)
class Figure:
    """One line of the benchmark: medians of both, their ratio, and its spread."""

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_is: str
    #: Ours / peer, pair by pair, the median; None without a peer.
    ratio: float | None
    #: (largest - smallest) / median, of the ratios, or of our rounds where there is no peer.
    spread: float
    rounds: int
    reach: str
    met: bool


def compare(
    name: str,
    unit: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    peer_is: str,
    reach: Reach,
    rounds: int = ROUNDS,
) -> Figure:
    """Measure both in turns, one warm-up first; each call gives one value in `unit`."""
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(rounds)]
    ratios = [mine / beside for mine, beside in pairs]
    ratio = statistics.median(ratios)
    return Figure(
        name=name,
        unit=unit,
        ours=statistics.median(pair[0] for pair in pairs),
        peer=statistics.median(pair[1] for pair in pairs),
        peer_is=peer_is,
        ratio=ratio,
        spread=(max(ratios) - min(ratios)) / ratio,
        rounds=rounds,
        reach=str(reach),
        met=reach.met_by(ratio),
    )


def alone(name: str, unit: str, values: list[float], reach: Reach) -> Figure:
    """A figure that has nothing beside it."""
    value = statistics.median(values)
    return Figure(
        name=name,
        unit=unit,
        ours=value,
        peer=None,
        peer_is="",
        ratio=None,
        spread=(max(values) - min(values)) / abs(value) if value else 0.0,
        rounds=len(values),
        reach=str(reach),
        met=reach.met_by(value),
    )


def percentile(values: list[float], percent: float) -> float:
    """The value below which `percent` of 100 of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
