"""The figures of a machine as text, in the formats that existing tools print and existing parsers read.

Pure formatting: dicts and lists in, as the calls of the same names give them, text out. Sources: `hardware` and
`print_distances` of numactl.c (numactl 2.0), `numastat` without options (numastat.c since 2012), node_read_meminfo and
node_read_numastat of drivers/base/node.c (2.6.15 and 6.12), mm/vmstat.c.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from numaemu_core.faults_on_demand import one_line
from numaemu_core.layout import NUMA_COUNTERS
from numaemu_core.nodemask import node_list

_KB_PER_MB: Final = 1024
_CELL: Final = 16
#: A node and its pages in a line of numa_maps.
_ON_NODE: Final = re.compile(r"N(\d+)=(\d+)")

#: Columns that the name and its colon take in meminfo: of 2.6.15, and today.
_NAME_OF_2005: Final = 14
_NAME_OF_TODAY: Final = 16


def hardware(figures: Mapping[str, Any]) -> str:
    """As `numactl --hardware`. The blanks at the ends of the lines of the distance table are numactl's.

    `figures`: "nodes", a list of {"id", "cpus", "size_kb", "free_kb"} by ascending id, and "distances", a row a node.
    Where there are "faults", with a "seed", they are the last line.
    """
    nodes: Sequence[Mapping[str, Any]] = figures["nodes"]
    ids = [node["id"] for node in nodes]
    lines = [f"available: {len(ids)} nodes ({node_list(ids)})"]
    for node in nodes:
        lines.append(f"node {node['id']} cpus:" + "".join(f" {cpu}" for cpu in node["cpus"]))
        lines.append(f"node {node['id']} size: {node['size_kb'] // _KB_PER_MB} MB")
        lines.append(f"node {node['id']} free: {node['free_kb'] // _KB_PER_MB} MB")
    lines.append("node distances:")
    lines.append("node " + "".join(f"{node: 3d} " for node in ids))
    for node, row in zip(ids, figures["distances"], strict=True):
        lines.append(f"{node: 3d}: " + "".join(f"{distance: 3d} " for distance in row))
    if "faults" in figures:
        lines.append(one_line(figures["faults"], figures["seed"]))
    return "\n".join(lines) + "\n"


def numastat(figures: Sequence[tuple[int, Sequence[int]]]) -> str:
    """As `numastat`: a column a node, a row a counter, in pages.

    `figures`: pairs of node id and its counters in the order of NUMA_COUNTERS, by ascending id.
    """
    lines = [" " * _CELL + "".join(f"{f'node{node}':>{_CELL}}" for node, _ in figures)]
    for i, name in enumerate(NUMA_COUNTERS):
        lines.append(f"{name:<{_CELL}}" + "".join(f"{counters[i]:>{_CELL}}" for _, counters in figures))
    return "\n".join(lines) + "\n"


def node_numastat(counters: Sequence[int]) -> str:
    """As /sys/devices/system/node/nodeN/numastat: a name and a number a line, in pages."""
    return "".join(f"{name} {count}\n" for name, count in zip(NUMA_COUNTERS, counters, strict=True))


def meminfo(figures: Mapping[str, int], *, of_2005: bool) -> str:
    """As /sys/devices/system/node/nodeN/meminfo. That of 2.6.15 begins with an empty line.

    `figures`: "node", then names with kB, and those that begin with HugePages_ with pages, in the order to print.
    """
    head = f"Node {figures['node']} "
    width = _NAME_OF_2005 if of_2005 else _NAME_OF_TODAY
    lines = [""] if of_2005 else []
    for name, number in figures.items():
        if name.startswith("HugePages_"):
            lines.append(f"{head}{name + ':':<16} {number:5d}")
        elif name != "node":
            lines.append(f"{head}{name + ':':<{width}}{number:8d} kB")
    return "\n".join(lines) + "\n"


def vmstat(figures: Mapping[str, int]) -> str:
    """As /proc/vmstat: a name and a number a line, in the order given."""
    return "".join(f"{name} {number}\n" for name, number in figures.items())


def pages_by_node(numa_maps: str) -> dict[int, int]:
    """How many pages each node has of all that a text of `numa_maps` shows; nodes without any are left out."""
    found: dict[int, int] = {}
    for word in numa_maps.split():
        if (counted := _ON_NODE.fullmatch(word)) is not None:
            node = int(counted[1])
            found[node] = found.get(node, 0) + int(counted[2])
    return dict(sorted(found.items()))
