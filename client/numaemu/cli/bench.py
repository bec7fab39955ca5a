"""numaemu bench: the figures of a machine, each beside its peer."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from numaemu.cli.options import examples

if TYPE_CHECKING:
    from numaemu.bench.rounds import Figure


#: As in numaemu.bench.figures, which --help does without.
NAMES: Final = (
    "hit-read-64",
    "fault-1",
    "round-64M",
    "boot",
    "idle",
    "bytes-per-frame",
    "flood-p99-client",
    "flood-p99-stranger",
)


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the machine beside what it could not be faster than",
        description="Measures each figure and its peer in turns on machines of its own: medians of seven rounds, the "
        "ratio pair by pair, the spread. Quote ratios: absolute times depend on the host.",
        **examples("numaemu bench\nnumaemu bench fault-1 --json"),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from numaemu.bench.figures import FIGURES  # noqa: PLC0415 - --help answers without the library

    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        raise ValueError(f"no figure is called {unknown[0]!r}; there are: {', '.join(FIGURES)}")
    found: list[Figure] = []
    names = args.names or list(FIGURES)
    for number, name in enumerate(names, 1):
        if sys.stderr.isatty():
            print(f"\rmeasuring {name}, {number} of {len(names)} …\x1b[K", end="", file=sys.stderr, flush=True)
        found.append(FIGURES[name]())
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(figure) for figure in found], indent=2))
        return 0
    print(f"{'figure':<16}{'ours':>14}{'peer':>14}{'ratio':>8}{'spread':>8}  {'unit':<12}{'reach':<20}peer is")
    for figure in found:
        peer = "-" if figure.peer is None else f"{figure.peer:,.2f}"
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
        row = f"{figure.name:<16}{figure.ours:>14,.2f}{peer:>14}{ratio:>8}{figure.spread:>8.0%}"
        print(f"{row}  {figure.unit:<12}{figure.reach:<20}{figure.peer_is}")
    return 0
