"""numaemu fsck: every invariant of the running machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numaemu as nm
from numaemu.cli.options import add_json, add_machine, examples, machine_name, print_json

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "fsck",
        help="check every invariant of the running machine",
        description="Checks every invariant of the running machine; prints each that does not hold on a line. "
        "Exit status 0 if there is none, else 1.",
        **examples("numaemu fsck\nnumaemu -m box fsck --json"),
    )
    add_machine(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check and print."""
    with nm.connect(machine_name(args)) as machine:
        violations = machine.fsck()
    if args.json:
        print_json(violations)
    else:
        for line in violations:
            print(line)
    return 1 if violations else 0
