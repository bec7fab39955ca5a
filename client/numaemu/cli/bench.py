"""numaemu bench: the figures of a machine, each beside its peer."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu.cli.options import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numaemu.bench.rounds import Figure


#: As in numaemu.bench.figures, which --help does without.
NAMES: Final = (
    *("hit-read-64", "hit-write-64", "map-read-64", "hit-read-16M", "fault-1", "populate-64M"),
    *("swapout-64M", "swapin-64M", "direct-64M", "sparse-1T", "reclaim-1.5x", "fork-64M", "exit-64M"),
    *("clients-64", "fault-p99-64", "beside-mbind", "flood-p99-client", "flood-p99-stranger"),
    *("boot", "idle", "bytes-per-frame"),
    *("run-cpu", "run-getcpu", "run-sched_getcpu", "run-get_mempolicy", "run-files"),
)
GROWTH_NAMES: Final = ("growth-pages", "growth-clients", "growth-nodes", "growth-vmas")


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the machine beside what it could not be faster than",
        description="Measures each figure and its peer in turns on machines of its own: medians of seven rounds, the "
        "ratio pair by pair, its spread, how far it should reach. The growth figures are exponents of time against "
        "size. Quote ratios: absolute times depend on the host.",
        **examples("numaemu bench\nnumaemu bench fault-1 --json\nnumaemu bench growth-vmas --plots plots"),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES + GROWTH_NAMES)} (default: all)")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="write a plot of each growth figure (matplotlib)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; each line as soon as it is there."""
    if args.plots is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plots needs matplotlib: pip install 'numaemu[plot]'")
    measures = _measures(args.plots)
    unknown = [name for name in args.names if name not in measures]
    if unknown:
        raise ValueError(f"no figure is called {unknown[0]!r}; there are: {', '.join(measures)}")
    names = args.names or list(measures)
    found: list[Figure] = []
    if not args.json:
        head = f"{'figure':<36}{'ours':>14}{'peer':>14}{'ratio':>8}{'spread':>8}"
        print(f"{head}  {'reach':<18}{'met':<5}{'unit':<12}peer is")
    for number, name in enumerate(names, 1):
        _say(f"measuring {name}, {number} of {len(names)} …")
        for figure in measures[name]():
            found.append(figure)
            if not args.json:
                _say("")
                print(_row(figure), flush=True)
    _say("")
    if args.json:
        print(json.dumps([dataclasses.asdict(figure) for figure in found], indent=2))
    return 0


def _measures(plots: Path | None) -> dict[str, Callable[[], Iterator[Figure]]]:
    from numaemu.bench.figures import FIGURES, GROWTH  # noqa: PLC0415 - --help answers without the library

    return FIGURES | {name: functools.partial(measure, plots) for name, measure in GROWTH.items()}


def _say(text: str) -> None:
    """What is going on, on a terminal; empty: nothing any more."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def _row(figure: Figure) -> str:
    peer = "-" if figure.peer is None else f"{figure.peer:,.2f}"
    ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
    verdict = "yes" if figure.met else "no"
    row = f"{figure.name:<36}{figure.ours:>14,.2f}{peer:>14}{ratio:>8}{figure.spread:>8.0%}"
    return f"{row}  {figure.reach:<18}{verdict:<5}{figure.unit:<12}{figure.peer_is}".rstrip()
