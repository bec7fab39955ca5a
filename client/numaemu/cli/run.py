"""numaemu run: an unmodified program on an emulated machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu.cli.options import PROFILES, add_faults, add_machine, examples

if TYPE_CHECKING:
    from types import FrameType

    from numaemu_core.topology import Topology

_NODES: Final = 2
_MEMORY: Final = "1G"
_SWAP: Final = "1G"
#: Programs of today expect a kernel of today.
_PROFILE: Final = PROFILES[-1]
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
            "numaemu run --nodes 4 --fault 'node2: full after 100 pages' -- ./tests\n"
            "numaemu -m box run -- numactl --interleave=all ./server"
        ),
    )
    add_machine(parser)
    add = parser.add_argument
    add("--nodes", type=int, metavar="N", help=f"nodes (default: {_NODES})")
    add("--memory", metavar="SIZE", help=f"memory of each node (default: {_MEMORY}); the host's is not taken")
    add("--swap", metavar="SIZE", help=f"swap area of the machine (default: {_SWAP}, or what the topology says)")
    add("--topology", metavar="FILE", help="a TOML file with nodes, CPUs and distances, in place of --nodes, --memory")
    names = ", ".join(PROFILES[:-1]) + f" or {PROFILES[-1]}"
    add("--profile", metavar="NAME", help=f"which kernel: {names} (default: {_PROFILE}, or what the topology says)")
    add_faults(parser)
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
    words = ("nodes", "memory", "swap", "topology", "profile", "fault", "seed")
    described = [name for name in words if getattr(args, name) is not None]
    if machine is not None and described:
        args.usage_error(f"-m names a machine that is running: leave out --{described[0]}")
    if args.topology is not None and (args.nodes is not None or args.memory is not None):
        args.usage_error("--topology says nodes and memory: leave out --nodes and --memory")
    if args.report_file is not None and args.report is None:
        args.usage_error("--report-file: say --report json or --report junit")
    from numaemu_run.child import StartError  # noqa: PLC0415 - --help answers without it
    from numaemu_run.report import make_report  # noqa: PLC0415 - as above
    from numaemu_run.session import Session, end_as  # noqa: PLC0415 - as above
    from numaemu_run.telling import tell  # noqa: PLC0415 - as above

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # before and after the program they end us, with our files
            signal.signal(number, _end)
    topology = None if machine is not None else topology_of(args)
    file = None if args.report_file is None else Path(args.report_file).open("w", encoding="utf-8")  # noqa: SIM115 - below
    try:
        with (
            file or contextlib.nullcontext(),
            Session(topology, machine, mount=not args.no_mount, exits=args.report is not None) as session,
        ):
            outcome = session.run(command, os.environ)
            text = "" if args.report is None else make_report(args.report, session, command, outcome)
            if file is not None:
                file.write(text)
    except StartError as error:
        tell(f"numaemu run: {error}\n")
        return error.code
    if file is None:
        tell(text)
    return end_as(outcome)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def topology_of(args: argparse.Namespace) -> Topology:
    """The machine that the options describe. TopologyError, OSError."""
    from numaemu.description import topology_from, with_faults  # noqa: PLC0415 - --help answers without it
    from numaemu_core.topology import uniform  # noqa: PLC0415 - as above
    from numaemu_run.procfs import PAGE_SIZE  # noqa: PLC0415 - as above

    if args.topology is not None:
        topology = topology_from(args.topology, swap=args.swap, profile=args.profile)
    else:
        nodes = _NODES if args.nodes is None else args.nodes
        topology = uniform(nodes, args.memory or _MEMORY, args.swap or _SWAP, args.profile or _PROFILE, PAGE_SIZE)
    return with_faults(topology, args.fault or (), args.seed)
