"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any, Final

DEFAULT_MACHINE: Final = "default"
#: As in numaemu_core.profiles, which --help does without; the default first.
PROFILES: Final = ("swap-v3", "linux-6.1", "linux-6.12")
_EXAMPLES: Final = "examples:"


def add_machine(parser: argparse.ArgumentParser) -> None:
    """-m/--machine: read with `machine_name`."""
    parser.add_argument(
        "-m",
        "--machine",
        metavar="NAME",
        default=argparse.SUPPRESS,  # so that `numaemu -m NAME status` is not overruled by the parser of `status`
        help=f"the machine (default: $NUMAEMU_MACHINE, or {DEFAULT_MACHINE!r})",
    )


def add_faults(parser: argparse.ArgumentParser) -> None:
    """--fault, --seed: `args.fault` is None or a list of texts, `args.seed` None or a number."""
    parser.add_argument(
        "--fault",
        action="append",
        metavar="TEXT",
        help="what goes wrong, beside what the topology says; as often as you like: 'nodeN: full after P pages', "
        "'isolation: refused for X%% on nodeN', 'swap: full after P pages', 'migration: fails for X%% to nodeN'",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="decides about chance in faults (default: 0)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json: `args.json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


class _Formatter(argparse.HelpFormatter):
    """Wraps what --help says, but for the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def examples(lines: str) -> dict[str, Any]:
    """Arguments of a parser whose --help ends with examples, a command a line."""
    shown = "".join(f"\n  {line}" for line in lines.splitlines())
    return {"epilog": _EXAMPLES + shown, "formatter_class": _Formatter}


def machine_name(args: argparse.Namespace) -> str:
    """The machine that is meant."""
    name: str | None = getattr(args, "machine", None)
    return name if name is not None else os.environ.get("NUMAEMU_MACHINE") or DEFAULT_MACHINE


def print_json(value: Any) -> None:  # noqa: ANN401 - anything that JSON has
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2))
