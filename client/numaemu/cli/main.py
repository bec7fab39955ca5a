"""numaemu: an emulated NUMA machine on this host."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numaemu
from numaemu.cli.options import add_machine

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Modules of this package with commands, in the order in which --help lists them; each has `add_parser(subparsers)`.
COMMANDS: Final = (
    "up",
    "down",
    "key",
    "status",
    "reports",
    "migratepages",
    "fsck",
    "demo",
    "stress",
    "bench",
    "replay",
    "run",
    "topologies",
    "doctor",
)

_FAILURE: Final = 1
_INTERRUPTED: Final = 128 + signal.SIGINT
_BROKEN_PIPE: Final = 128 + signal.SIGPIPE


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, which takes the parsed arguments and gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="numaemu",
        description="An emulated NUMA machine on this host: real processes, real bytes, Linux's memory policy.",
    )
    parser.add_argument("--version", action="version", version=f"numaemu {numaemu.__version__}")
    add_machine(parser)
    parser.set_defaults(failure=_FAILURE)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"numaemu.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 if it failed (`run`: 125), 2 for a wrong command line, 130 after Ctrl-C."""
    failure = _FAILURE
    if sys.__stdout__ is None:  # closed by whoever has started us: what is printed goes nowhere
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as we live
    try:
        args = make_parser().parse_args(argv)
        failure = args.failure
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough; what is still in the buffer goes nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (OSError, ValueError, numaemu.NumaemuFailure) as error:
        sys.stderr.write(f"numaemu: {sentence(error)}\n")
        return failure
    return code


def sentence(error: Exception) -> str:
    """What went wrong in one line, as far as the error says it in one."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    elif isinstance(error, numaemu.SegmentationFault | numaemu.OutOfMemory):
        text = error.detail
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
