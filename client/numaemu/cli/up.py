"""numaemu up: starts a machine."""

from __future__ import annotations

import argparse
import os
import signal
from typing import TYPE_CHECKING, Any, Final, NoReturn

from numaemu.cli.described import add_described, check_described, wanted_of
from numaemu.cli.options import PROFILES, add_machine, examples, machine_name

if TYPE_CHECKING:
    from types import FrameType

    from numaemu.launch import Started
    from numaemu_core.admission import Admission
    from numaemu_core.topology import Topology

#: What a machine has of which nothing is said: numaemu.description.Usual, which --help does without.
USUAL: Final[dict[str, Any]] = {"nodes": 2, "memory": "64M", "swap": "128M", "profile": PROFILES[0]}
_PAGE_SIZE: Final = "4096"


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "up",
        help="start a machine",
        description="Starts a machine, returns when it serves, and prints its endpoint. SIZE: 64M, 1G, or a number of "
        "bytes. Without a topology: one CPU a node, CPU i on node i, distances 10 and 20.",
        **examples(
            "numaemu up --nodes 4 --memory 256M --swap 1G\nnumaemu -m box up --topology box.toml\n"
            "numaemu up --preset dram-cxl --profile linux-6.12 --foreground"
        ),
    )
    add_machine(parser)
    add_described(parser, **USUAL)
    add = parser.add_argument
    add("--page-size", metavar="SIZE", help=f"4096 to 65536 (default: {_PAGE_SIZE}, or what the topology says)")
    add(
        "--allow-uid",
        metavar="UID,…",
        action="append",
        default=[],
        help="other users who may attach; what they read "
        "and write goes through the daemon, and the memory stays out of their reach",
    )
    add(
        "--grant",
        metavar="[UID:]CAP,…",
        action="append",
        default=[],
        help="capabilities that other users, or one of them, may give their tasks (default: none)",
    )
    add(
        "--listen",
        metavar="tcp://HOST:PORT",
        help="listen on TCP as well, with CURVE keys; port 0: any. Prints the endpoint and the machine's public key",
    )
    add(
        "--authorize",
        metavar="KEY[=UID]|FILE",
        action="append",
        default=[],
        help="the public key of somebody who may come over TCP, and the uid that their tasks have (default: one that "
        "nobody has); or a file with one of these a line",
    )
    add("--server-key", metavar="FILE", help="the machine's keys, made if missing (default: new ones each time)")
    add("--foreground", action="store_true", help="stay, log to this terminal, end with Ctrl-C")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Start it; with --foreground, stay until it ends."""
    check_described(args)
    from numaemu.launch import start  # noqa: PLC0415 - --help answers without it

    topology, admission = topology_of(args), admission_of(args)
    if not args.foreground:
        started = start(machine_name(args), topology, admission=admission)
        _tell(started, admission)
        return 0
    signal.signal(signal.SIGTERM, _terminated)
    started = start(machine_name(args), topology, admission=admission, owner_pid=os.getpid(), foreground=True)
    return _stay(started, admission)


def admission_of(args: argparse.Namespace) -> Admission:
    """Whom the options admit. AdmissionError."""
    from numaemu_core.admission import make_admission, parse_uid  # noqa: PLC0415 - --help answers without it
    from numaemu_host.keyfile import authorized_keys  # noqa: PLC0415 - as above

    uids = [parse_uid(uid) for text in args.allow_uid for uid in text.split(",")]
    if os.getuid() in uids:
        args.usage_error(f"--allow-uid: {os.getuid()} is you, and you need no leave")
    keys = [key for text in args.authorize for key in authorized_keys(text)]
    return make_admission(uids, args.grant, listen=args.listen or "", keys=keys, server_key=args.server_key or "")


def _tell(started: Started, admission: Admission) -> None:
    """Where the machine is to be found: for its owner, and then for others."""
    from numaemu import places  # noqa: PLC0415 - --help answers without it

    print(started.endpoint, flush=True)
    if admission.uids:
        print(places.visitors_dir(started.place), flush=True)
    if started.tcp is not None:
        print(*started.tcp, flush=True)


def topology_of(args: argparse.Namespace) -> Topology:
    """The machine that the options describe. TopologyError, OSError."""
    from numaemu.description import Usual, describe  # noqa: PLC0415 - --help answers without it

    return describe(wanted_of(args), Usual(**USUAL, page_size=_PAGE_SIZE))


def _stay(started: Started, admission: Admission) -> int:
    """Until the machine ends, or we are told to."""
    from numaemu import control  # noqa: PLC0415 - --help answers without it

    try:
        _tell(started, admission)
        return started.process.wait()
    finally:
        if started.process.poll() is None:
            control.down(started.place)
            started.process.wait()


def _terminated(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the shape of a signal handler
    raise SystemExit(128 + number)
