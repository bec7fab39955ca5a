"""`python -m numaemu_daemon`: start one machine and be its init."""

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from numaemu_core import admission, limits
from numaemu_core.admission import Admission
from numaemu_core.errors import TopologyError
from numaemu_core.profiles import SWAP_V3
from numaemu_core.topology import Topology, from_dict, uniform
from numaemu_daemon.options import Options, StartError
from numaemu_daemon.ready_line import ReadyLine
from numaemu_daemon.rundir import default_directory

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{limits.MACHINE_NAME_MAX - 1}}}")

_DESCRIPTION = """\
Start one emulated NUMA machine and stay as its init: a kernel daemon, a process for each node, a swap node. It ends on
SIGTERM, SIGINT or SIGHUP, with its owner, or when told "down"; then its memory and its directory are gone.

When the machine serves, one line of JSON says so: {"ready": true, "endpoint": "ipc://DIR/kernel.ipc", "pid": PID}.
Logs are lines of JSON on stderr; the environment variable NUMAEMU_LOG sets their level (default: info).
"""


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that a starter that waits on its descriptor learns of a wrong command line."""

    def error(self, message: str) -> NoReturn:
        raise StartError(message)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m numaemu_daemon", description=_DESCRIPTION, formatter_class=formatter)
    add = parser.add_argument
    add("--name", default="default", help="name of the machine (default: default)")
    add(
        "--dir",
        help="its directory, private to you, made if missing and removed at the end "
        "(default: NAME in $NUMAEMU_RUNTIME, $XDG_RUNTIME_DIR/numaemu or /tmp/numaemu-UID)",
    )
    add(
        "--topology",
        metavar="JSON|FILE",
        help="nodes, memory, CPUs, distances, swap: as a JSON object, or as the path of a TOML file of the same shape "
        "(default: 2 nodes of 64M with one CPU each, swap 128M)",
    )
    add("--admission", metavar="JSON", help="other users and keys that are admitted, as numaemu up writes it")
    add("--visitors", metavar="DIR", help="directory for other users of this host, made with mode 0711")
    add("--ready-fd", type=int, metavar="N", help="open descriptor for the ready line (default: stdout)")
    add("--owner-pid", type=int, metavar="PID", help="go down when this process ends")
    return parser


def read_options(argv: Sequence[str]) -> Options:
    """The checked command line; StartError or TopologyError with one line of what is wrong."""
    given = _parser().parse_args(argv)
    if not _NAME.fullmatch(given.name):
        raise StartError(f"--name: expected up to {limits.MACHINE_NAME_MAX} letters, digits, . _ -, got {given.name!r}")
    if given.owner_pid is not None and given.owner_pid <= 0:
        raise StartError(f"--owner-pid: expected a process id, got {given.owner_pid}")
    return Options(
        directory=Path(given.dir).absolute() if given.dir else default_directory(given.name),
        name=given.name,
        topology=_topology(given.topology),
        ready_fd=given.ready_fd,
        owner_pid=given.owner_pid,
        admission=_admission(given.admission),
        visitors=Path(given.visitors).absolute() if given.visitors else None,
    )


def _admission(text: str | None) -> Admission:
    if text is None:
        return Admission()
    try:
        return admission.from_dict(json.loads(text))
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise StartError(f"--admission: {type(error).__name__}: {error}") from None


def _topology(text: str | None) -> Topology:
    if text is None:
        return uniform(2, "64M", "128M", SWAP_V3.name, 4096)
    if text.lstrip().startswith("{"):
        try:
            return from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise StartError(f"--topology: no JSON: {error}") from None
    try:
        return from_dict(tomllib.loads(Path(text).read_text(encoding="utf-8")))
    except OSError as error:
        raise StartError(f"--topology: {text}: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"--topology: {text}: {error}") from None


def _ready_fd(argv: Sequence[str]) -> int | None:
    """The descriptor for the ready line, found even if the rest of the command line is wrong."""
    finder = _Parser(add_help=False)
    finder.add_argument("--ready-fd", type=int)
    known, _ = finder.parse_known_args(argv)
    fd: int | None = known.ready_fd
    return fd


def main(argv: Sequence[str]) -> int:
    """Run a machine as the arguments say; the exit code."""
    ready = ReadyLine(None)
    try:
        ready = ReadyLine(_ready_fd(argv))
        options = read_options(argv)
    except (StartError, TopologyError) as error:
        ready.error(str(error))
        return 2
    except OSError as error:
        ready.error(f"--ready-fd: {error.strerror}")
        return 2
    # Here and not above: `--help` and a wrong command line need none of it.
    from numaemu_daemon import init  # noqa: PLC0415 - see above

    return init.run(options, ready)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
