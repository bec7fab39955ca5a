"""numaemu topologies: which machines have a name, and what a machine is, as a file that can be changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from numaemu.cli.described import add_described, check_described, said, wanted_of
from numaemu.cli.options import add_json, examples, print_json
from numaemu.cli.up import USUAL

if TYPE_CHECKING:
    import argparse

    from numaemu_core.topology import Topology

_SHAPES: Final = ("nodes", "topology", "preset")


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "topologies",
        help="which machines have a name; a machine as a topology file",
        description="Lists the presets, each with its nodes, their memory, CPUs and distances. With --preset, "
        "--topology or --nodes it prints that machine as a topology file, to be looked at or changed. Nothing is "
        "started. The defaults are those of `numaemu up`.",
        **examples(
            "numaemu topologies\nnumaemu topologies --preset dram-cxl --memory 1G > box.toml\n"
            "numaemu run --topology box.toml -- numactl --hardware"
        ),
    )
    add_described(parser, **USUAL)
    parser.add_argument("--page-size", metavar="SIZE", help="4096 to 65536 (default: 4096, or what the topology says)")
    add_json(parser)
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    check_described(args)
    from numaemu.description import Usual, describe  # noqa: PLC0415 - --help answers without it
    from numaemu.presets import PRESETS  # noqa: PLC0415 - as above

    usual = Usual(**USUAL)
    wanted = wanted_of(args)
    if any(name in _SHAPES for name in said(args)):
        topology = describe(wanted, usual)
        if args.json:
            print_json(topology.as_dict())
        else:
            print(as_toml(topology), end="")
        return 0
    from dataclasses import replace  # noqa: PLC0415 - as above

    found = {name: describe(replace(wanted, preset=name), usual) for name in PRESETS}
    if args.json:
        print_json({name: topology.as_dict() for name, topology in found.items()})
    else:
        print("\n".join(table(name, PRESETS[name].summary, topology) for name, topology in found.items()), end="")
    return 0


def table(name: str, summary: str, topology: Topology) -> str:
    """A preset for people: a line a node."""
    from numaemu_core.nodemask import node_list  # noqa: PLC0415 - --help answers without it
    from numaemu_core.sizes import format_size  # noqa: PLC0415 - as above

    lines = [f"{name}: {summary}"]
    for node, row in zip(topology.nodes, topology.distances, strict=True):
        memory = format_size(node.memory_bytes) if node.memory_bytes else "none"
        cpus = node_list(node.cpus) or "none"
        distances = " ".join(f"{distance:2d}" for distance in row)
        lines.append(f"  node {node.id:2d}  memory {memory:<6} cpus {cpus:<16} distances {distances}")
    return "\n".join(lines) + "\n"


def as_toml(topology: Topology) -> str:
    """A topology file of it."""
    from numaemu_core.sizes import format_size  # noqa: PLC0415 - --help answers without it

    lines = []
    for key, value in topology.as_dict().items():
        if key == "distances":
            lines += ["distances = [", *(f"    {list(row)}," for row in topology.distances), "]"]
        elif key in ("swap", "disk"):
            lines.append(f'{key} = "{format_size(int(str(value)))}"')
        elif key != "node":
            lines.append(f"{key} = {json.dumps(value)}")
    for node in topology.nodes:
        memory = format_size(node.memory_bytes)
        lines += ["", "[[node]]", f"id = {node.id}", f'memory = "{memory}"', f"cpus = {list(node.cpus)}"]
    return "\n".join(lines) + "\n"
