"""Interleaved rounds of two measurements, and what comes out of them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

#: Rounds of each measurement; ours and the peer's take turns.
ROUNDS = 7


@dataclass(frozen=True)
class Figure:
    """One line of the benchmark: medians of both, their ratio as the reach has it, and the spread of ours."""

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_is: str
    #: Ours / peer, pair by pair, the median; None without a peer.
    ratio: float | None
    #: (largest - smallest) / median of our rounds.
    spread: float
    reach: str


def compare(
    name: str,
    unit: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    peer_is: str,
    reach: str,
    rounds: int = ROUNDS,
) -> Figure:
    """Measure both in turns, one warm-up first; each call gives one value in `unit`."""
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(rounds)]
    mine = [pair[0] for pair in pairs]
    middle = statistics.median(mine)
    ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
    beside = statistics.median(pair[1] for pair in pairs)
    return Figure(name, unit, middle, beside, peer_is, ratio, (max(mine) - min(mine)) / middle, reach)


def alone(name: str, unit: str, value: float, reach: str) -> Figure:
    """A figure that has nothing beside it."""
    return Figure(name, unit, value, None, "", None, 0.0, reach)
