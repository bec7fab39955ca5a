"""numaemu stress: many client processes at once, every byte verified."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from numaemu.cli.options import PROFILES, examples

_CLIENTS_MAX: Final = 200
_SECONDS_MAX: Final = 7 * 24 * 3600.0
_BAR: Final = 40


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser = subparsers.add_parser(
        "stress",
        help="many client processes that write, move, fork and verify every byte",
        description="Boots a machine of its own and runs client processes on it, each with a thread that writes and "
        "verifies tagged pages and one that moves them meanwhile; ends with fsck. Exit status 0 only if nothing was "
        "lost or wrong and fsck finds nothing. The same seed draws the same operations.",
        **examples("numaemu stress\nnumaemu stress --profile linux-6.12 --clients 32 --seconds 60 --seed 7 --json"),
    )
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="client processes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="K", help="names the run (default: %(default)s)")
    parser.add_argument(
        "--profile", default=PROFILES[0], metavar="NAME", help=f"{', '.join(PROFILES)} (default: first)"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run and report; 0 if the machine is sound."""
    from numaemu.stress import report as stress  # noqa: PLC0415 - --help answers without the library

    if not 1 <= args.clients <= _CLIENTS_MAX:
        raise ValueError(f"--clients: expected 1 to {_CLIENTS_MAX}, got {args.clients}")
    if not 0 < args.seconds <= _SECONDS_MAX:
        raise ValueError(f"--seconds: expected more than 0 and at most {_SECONDS_MAX:.0f}, got {args.seconds}")
    show = progress if sys.stderr.isatty() else lambda _part: None
    report = stress.run(args.clients, args.seconds, args.seed, args.profile, show)
    if args.json:
        print(json.dumps(report.as_dict(), indent=2))
        return 0 if report.sound else 1
    print(f"{report.clients} clients, {report.seconds:g} s, seed {report.seed}, {report.profile}")
    for name, count in report.counts.items():
        print(f"  {name:<24}{count:>12,}")
    for line in [*report.failed, *report.fsck]:
        print(f"  {line}")
    print(f"lost {report.lost}, wrong {report.wrong}, fsck {len(report.fsck)}")
    return 0 if report.sound else 1


def progress(part: float) -> None:
    """Draw a bar on stderr."""
    filled = round(_BAR * part)
    end = "\n" if part >= 1 else ""
    print(f"\r[{'#' * filled}{' ' * (_BAR - filled)}] {part:4.0%}", end=end, file=sys.stderr, flush=True)
