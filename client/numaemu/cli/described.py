"""The options that say which machine is wanted: of `up`, `run` and `topologies`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from numaemu.cli.options import PROFILES, add_faults

if TYPE_CHECKING:
    import argparse

    from numaemu.description import Wanted

_NAMES: Final = ("nodes", "memory", "swap", "profile", "page_size", "topology", "preset", "fault", "seed")
#: Of these, one says which nodes there are.
_SHAPES: Final = ("nodes", "topology", "preset")


def add_described(parser: argparse.ArgumentParser, nodes: int, memory: str, swap: str, profile: str) -> None:
    """--nodes, --memory, --swap, --topology, --preset, --profile, with the defaults that --help tells; faults."""
    add = parser.add_argument
    add("--nodes", type=int, metavar="N", help=f"equal nodes with one CPU each (default: {nodes})")
    add(
        "--memory",
        metavar="SIZE",
        help=f"memory of each node, or of the largest one of a topology or a preset, with the others' in proportion "
        f"(default: {memory}, or what the topology says)",
    )
    add("--swap", metavar="SIZE", help=f"swap area of the machine (default: {swap}, or what the topology says)")
    add(
        "--topology",
        metavar="FILE",
        help="nodes, CPUs and distances, in place of --nodes: TOML, XML of lstopo, or what numactl --hardware printed",
    )
    add("--preset", metavar="NAME", help="nodes, CPUs and distances by name, in place of --nodes: `numaemu topologies`")
    names = ", ".join(PROFILES[:-1]) + f" or {PROFILES[-1]}"
    add("--profile", metavar="NAME", help=f"which kernel: {names} (default: {profile}, or what the topology says)")
    add_faults(parser)


def said(args: argparse.Namespace) -> list[str]:
    """The options of these that were given."""
    return [name for name in _NAMES if getattr(args, name, None) is not None]


def check_described(args: argparse.Namespace) -> None:
    """End with the usage if two options say which nodes there are."""
    shapes = [name for name in said(args) if name in _SHAPES]
    if len(shapes) > 1:
        args.usage_error(f"--{shapes[0]} and --{shapes[1]} both say which nodes there are: leave out one")


def wanted_of(args: argparse.Namespace) -> Wanted:
    """What was given."""
    from numaemu.description import Wanted  # noqa: PLC0415 - --help answers without it

    given = {name: getattr(args, name) for name in said(args)}
    faults = given.pop("fault", ())
    return Wanted(**given, faults=faults)
