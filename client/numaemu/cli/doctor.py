"""numaemu doctor: what this host allows of `numaemu run`, and what to do about what it does not."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from numaemu.cli.options import add_json, examples, print_json

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="what this host allows of `numaemu run`",
        description="Tries what `numaemu run` needs of the host, one line each, with what to do where it is missing. "
        "Exit status 0 if programs can be run.",
        **examples("numaemu doctor\nnumaemu doctor --json | jq '.[] | select(.state != \"ok\")'"),
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Try it all."""
    from numaemu_run.doctor import examine  # noqa: PLC0415 - --help answers without it

    findings = examine()
    if args.json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            advice = f"; {finding.advice}" if finding.advice else ""
            print(f"{finding.state:<5} {finding.what}: {finding.detail}{advice}")
    return int(any(finding.state == "no" for finding in findings))
