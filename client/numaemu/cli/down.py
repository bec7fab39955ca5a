"""numaemu down: ends a machine and leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numaemu.cli.options import add_machine, examples, machine_name

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "down",
        help="end a machine",
        description="Ends a machine; returns when its processes, its memory and its directory are gone.",
        **examples("numaemu down\nnumaemu -m box down"),
    )
    add_machine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """End it."""
    from numaemu import control, places  # noqa: PLC0415 - --help answers without it

    control.down(places.machine_dir(machine_name(args)))
    return 0
