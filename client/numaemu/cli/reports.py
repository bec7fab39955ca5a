"""numaemu hardware, stat, maps, meminfo and vmstat: what numactl, numastat, /proc and /sys show of a machine."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

import numaemu as nm
from numaemu.cli.options import add_json, add_machine, examples, machine_name, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


#: Shown by --help below the options.
_EXAMPLES: Final = {
    "hardware": "numaemu hardware\nnumaemu hardware --json | jq '.distances[0]'",
    "stat": "numaemu stat\nnumaemu -m box stat --json | jq '.[] | {node, numa_miss}'",
    "maps": "numaemu maps 3\nnumaemu maps 3 --json | jq '.[] | select(.N1)'",
    "meminfo": "numaemu meminfo\nnumaemu meminfo 1 | grep MemFree",
    "vmstat": "numaemu vmstat | grep pswp\nnumaemu vmstat --json | jq .numa_miss",
}


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register all five commands."""
    _add(subparsers, "hardware", "nodes, CPUs, memory and distances, as numactl --hardware", run_hardware)
    _add(subparsers, "stat", "counters of each node, as numastat", run_stat)
    maps = _add(subparsers, "maps", "policies and pages of a task, as /proc/PID/numa_maps", run_maps)
    maps.add_argument("pid", type=int, metavar="PID", help="pid of an emulated task")
    meminfo = _add(subparsers, "meminfo", "memory of the nodes, as in /sys/devices/system/node", run_meminfo)
    meminfo.add_argument("node", type=int, nargs="?", metavar="NODE", help="one node (default: all)")
    _add(subparsers, "vmstat", "pages by kind and events since boot, as /proc/vmstat", run_vmstat)


def _add(
    subparsers: Any,  # noqa: ANN401 - argparse does not name its type
    name: str,
    what: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=what, description=f"Prints {what}.", **examples(_EXAMPLES[name])
    )
    add_machine(parser)
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def run_hardware(args: argparse.Namespace) -> int:
    """Print it."""
    with nm.connect(machine_name(args)) as machine:
        if args.json:
            print_json(machine.figures("hardware"))
        else:
            print(machine.hardware(), end="")
    return 0


def run_stat(args: argparse.Namespace) -> int:
    """Print it."""
    with nm.connect(machine_name(args)) as machine:
        if not args.json:
            print(machine.numastat(), end="")
            return 0
        from numaemu_core.layout import NUMA_COUNTERS  # noqa: PLC0415 - numpy: not before a command runs

        figures = machine.figures("numastat")
        print_json([{"node": node, **dict(zip(NUMA_COUNTERS, row, strict=True))} for node, row in figures])
    return 0


def run_meminfo(args: argparse.Namespace) -> int:
    """Print it."""
    with nm.connect(machine_name(args)) as machine:
        if not args.json:
            print(machine.meminfo(args.node), end="")
            return 0
        figures = machine.figures("meminfo", args.node)
        if not figures:
            raise FileNotFoundError(errno.ENOENT, f"the machine {machine.name!r} has no node {args.node}")
        print_json(figures)
    return 0


def run_vmstat(args: argparse.Namespace) -> int:
    """Print it."""
    with nm.connect(machine_name(args)) as machine:
        if args.json:
            print_json(machine.figures("vmstat"))
        else:
            print(machine.vmstat(), end="")
    return 0


def run_maps(args: argparse.Namespace) -> int:
    """Print it."""
    with nm.connect(machine_name(args)) as machine:
        text = machine.numa_maps(args.pid)
    if args.json:
        print_json([parsed_line(line) for line in text.splitlines()])
    else:
        print(text, end="")
    return 0


#: Policies of today's kernels whose names have a blank in them.
_TWO_WORDS: Final = ("prefer (many)", "weighted interleave")


def parsed_line(line: str) -> dict[str, Any]:
    """A line of numa_maps: `start` (hexadecimal), `policy`, and what else it says, numbers as numbers."""
    start, rest = line.split(maxsplit=1)
    name = next((name for name in _TWO_WORDS if rest.startswith(name)), "")
    tail, *words = rest[len(name) :].split(" ")
    found: dict[str, Any] = {"start": start, "policy": (name + tail).strip()}
    for word in words:
        key, sign, value = word.strip().partition("=")
        found[key] = (int(value) if value.isdecimal() else value) if sign else True
    return found
