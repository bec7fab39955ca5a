"""numaemu migratepages: moves the pages of a task from nodes to nodes, as the tool of that name."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import numaemu as nm
from numaemu.cli.options import add_machine, examples, machine_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

#: What the tool runs with when root calls it: pages that several tasks map move, too.
_CAPABILITIES: Final = ("CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_SYS_RESOURCE")


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser = subparsers.add_parser(
        "migratepages",
        help="move the pages of a task from nodes to nodes, as migratepages",
        description="Moves the pages that a task has on the nodes FROM to the nodes TO. Nodes are numbers and ranges "
        "(0,2-3), all, those that are not named (!0), or counted among those of the machine (+0,1). The policies of "
        "the task stay. Runs with all capabilities. Exit status 0 also if some pages could not be moved; how many is "
        "said on stderr.",
        **examples("numaemu migratepages 3 0 1\nnumaemu migratepages 3 0-1 2-3\nnumaemu migratepages 3 '!1' 1"),
    )
    add_machine(parser)
    parser.add_argument("pid", type=int, metavar="PID", help="pid of an emulated task")
    parser.add_argument("source", metavar="FROM", help="nodes to leave")
    parser.add_argument("target", metavar="TO", help="nodes to go to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Move them."""
    with nm.connect(machine_name(args)) as machine:
        nodes = machine.topology.nodes
        ids = [node.id for node in nodes]
        source, target = node_set(args.source, ids), node_set(args.target, ids)
        cpu = min(cpu for node in nodes for cpu in node.cpus)
        machine.numa_maps(args.pid)  # while ours is not there, which could have that pid: it must be
        with machine.attach(cpu, _CAPABILITIES) as task:
            left = task.migrate_pages(args.pid, source, target)
    if left:
        print(f"numaemu: {left} pages of task {args.pid} could not be moved", file=sys.stderr)
    return 0


def node_set(text: str, ids: Sequence[int]) -> set[int]:
    """The nodes that a text names, of a machine that has nodes `ids` (ascending).

    Mirrors: numa_parse_nodestring of libnuma.

    Raises:
        ValueError: it is no such text, or names a node that is not there.
    """
    body, negated = text.removeprefix("!"), text.startswith("!")
    body, counted = body.removeprefix("+"), body.startswith("+")
    if body == "all":
        found = set(ids)
    else:
        found = {number for part in body.split(",") for number in _range(part, text)}
        if counted:
            found = {ids[number] if number < len(ids) else number + ids[-1] + 1 for number in found}
    if found - set(ids):
        raise ValueError(f"nodes {text!r}: expected some of {', '.join(map(str, ids))}")
    return set(ids) - found if negated else found


def _range(part: str, text: str) -> range:
    first, dash, last = part.partition("-")
    last = last if dash else first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < _NODES_MAX):
        raise ValueError(f"nodes {text!r}: expected numbers and ranges such as 0,2-3, or all")
    return range(int(first), int(last) + 1)


#: Above every node id.
_NODES_MAX: Final = 1 << 16
