"""numaemu run: an unmodified program on an emulated machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu.cli.described import add_described, check_described, said, wanted_of
from numaemu.cli.options import PROFILES, add_machine, examples

if TYPE_CHECKING:
    from types import FrameType

    from numaemu_core.topology import Topology

#: What a machine has of which nothing is said: numaemu.description.Usual. Programs of today expect a kernel of today.
USUAL: Final[dict[str, Any]] = {"nodes": 2, "memory": "1G", "swap": "1G", "profile": PROFILES[-1]}
#: Another one than a program gives for its own failures, as `env` has it; numaemu_run.child, which --help does without.
_CANNOT_RUN: Final = 125


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="run an unmodified program on an emulated machine",
        description="Runs a program and what it starts so that they see the nodes of an emulated machine, whose kernel "
        "keeps their memory policies. Their bytes stay in their own memory. Without -m the machine is made for the run "
        "and ends with it. The exit code is that of the program; 125: it could not be run, 126: not executed, 127: not "
        "found. docs/run.md says what is emulated and what is not.",
        **examples(
            "numaemu run --nodes 4 -- numactl --hardware\nnumaemu run --topology box.toml --report json -- ./tests\n"
            "numaemu run --preset dram-cxl -- ./tests\n"
            "numaemu run --nodes 4 --fault 'node2: full after 100 pages' -- ./tests\n"
            "numaemu -m box run -- numactl --interleave=all ./server"
        ),
    )
    add_machine(parser)
    add_described(parser, **USUAL)
    add = parser.add_argument
    add("--report", choices=("json", "junit"), help="what was called, refused and placed, on stderr at the end")
    add("--report-file", metavar="FILE", help="there, and not on stderr (with --report)")
    add("--no-mount", action="store_true", help="answer calls about the tree of nodes, even if it could be mounted")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …", help="the program and its arguments")
    parser.set_defaults(run=run, usage_error=parser.error, failure=_CANNOT_RUN)


def run(args: argparse.Namespace) -> int:
    """Run it."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        args.usage_error("expected a command: numaemu run [options] -- COMMAND …")
    machine: str | None = getattr(args, "machine", None)
    if machine is not None and said(args):
        args.usage_error(f"-m names a machine that is running: leave out --{said(args)[0]}")
    check_described(args)
    if args.report_file is not None and args.report is None:
        args.usage_error("--report-file: say --report json or --report junit")
    from numaemu_run.child import StartError  # noqa: PLC0415 - --help answers without it
    from numaemu_run.report import make_report  # noqa: PLC0415 - as above
    from numaemu_run.session import Outcome, Session, end_as  # noqa: PLC0415 - as above
    from numaemu_run.telling import tell  # noqa: PLC0415 - as above

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # before and after the program they end us, with our files
            signal.signal(number, _end)
    topology = None if machine is not None else topology_of(args)
    file = None if args.report_file is None else Path(args.report_file).open("w", encoding="utf-8")  # noqa: SIM115 - below
    with (
        file or contextlib.nullcontext(),
        Session(topology, machine, mount=not args.no_mount, exits=args.report is not None) as session,
    ):
        try:
            outcome = session.run(command, os.environ)
        except StartError as error:
            tell(f"numaemu run: {error}\n")
            outcome = Outcome(error.code)
        there_was_a_run = session.supervisor is not None  # also of a program that could not be executed
        text = make_report(args.report, session, command, outcome) if args.report and there_was_a_run else ""
        if file is not None:
            file.write(text)
    if file is None:
        tell(text)
    return end_as(outcome)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def topology_of(args: argparse.Namespace) -> Topology:
    """The machine that the options describe. TopologyError, OSError."""
    from numaemu.description import Usual, describe  # noqa: PLC0415 - --help answers without it
    from numaemu_run.procfs import PAGE_SIZE  # noqa: PLC0415 - as above

    return describe(wanted_of(args), Usual(**USUAL, page_size=PAGE_SIZE))
