"""The figures of a machine as text, in the formats that existing tools print and existing parsers read.

Pure formatting: dicts and lists in, as the calls of the same names give them, text out. Sources: `hardware` and
`print_distances` of numactl.c (numactl 2.0), `numastat` without options (numastat.c since 2012),
drivers/base/node.c node_read_meminfo (2.6.15), mm/vmstat.c.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from numaemu_core.layout import NUMA_COUNTERS

_KB_PER_MB: Final = 1024
_CELL: Final = 16

#: Names of /sys/devices/system/node/nodeN/meminfo that are followed by kB, in their order.
_MEMINFO_KB: Final = (
    "MemTotal",
    "MemFree",
    "MemUsed",
    "Active",
    "Inactive",
    "HighTotal",
    "HighFree",
    "LowTotal",
    "LowFree",
    "Dirty",
    "Writeback",
    "Mapped",
    "Slab",
)


def hardware(figures: Mapping[str, Any]) -> str:
    """As `numactl --hardware`. The blanks at the ends of the lines of the distance table are numactl's.

    `figures`: "nodes", a list of {"id", "cpus", "size_kb", "free_kb"} by ascending id, and "distances", a row a node.
    """
    nodes: Sequence[Mapping[str, Any]] = figures["nodes"]
    ids = [node["id"] for node in nodes]
    lines = [f"available: {len(ids)} nodes ({_nodelist(ids)})"]
    for node in nodes:
        lines.append(f"node {node['id']} cpus:" + "".join(f" {cpu}" for cpu in node["cpus"]))
        lines.append(f"node {node['id']} size: {node['size_kb'] // _KB_PER_MB} MB")
        lines.append(f"node {node['id']} free: {node['free_kb'] // _KB_PER_MB} MB")
    lines.append("node distances:")
    lines.append("node " + "".join(f"{node: 3d} " for node in ids))
    for node, row in zip(ids, figures["distances"], strict=True):
        lines.append(f"{node: 3d}: " + "".join(f"{distance: 3d} " for distance in row))
    return "\n".join(lines) + "\n"


def numastat(figures: Sequence[tuple[int, Sequence[int]]]) -> str:
    """As `numastat`: a column a node, a row a counter, in pages.

    `figures`: pairs of node id and its counters in the order of NUMA_COUNTERS, by ascending id.
    """
    lines = [" " * _CELL + "".join(f"{f'node{node}':>{_CELL}}" for node, _ in figures)]
    for i, name in enumerate(NUMA_COUNTERS):
        lines.append(f"{name:<{_CELL}}" + "".join(f"{counters[i]:>{_CELL}}" for _, counters in figures))
    return "\n".join(lines) + "\n"


def meminfo(figures: Mapping[str, int]) -> str:
    """As /sys/devices/system/node/nodeN/meminfo of 2.6.15, which begins with an empty line.

    `figures`: "node", the names above in kB, "HugePages_Total" and "HugePages_Free".
    """
    head = f"Node {figures['node']} "
    lines = [""]
    lines += [f"{head}{name + ':':<14}{figures[name]:8d} kB" for name in _MEMINFO_KB]
    lines.append(f"{head}HugePages_Total: {figures['HugePages_Total']:5d}")
    lines.append(f"{head}HugePages_Free:  {figures['HugePages_Free']:5d}")
    return "\n".join(lines) + "\n"


def vmstat(figures: Mapping[str, int]) -> str:
    """As /proc/vmstat: a name and a number a line, in the order given."""
    return "".join(f"{name} {number}\n" for name, number in figures.items())


def _nodelist(ids: Sequence[int]) -> str:
    """Ascending ids as /sys prints sets: `0-3,5`."""
    parts: list[str] = []
    start = 0
    for i, node in enumerate(ids):
        if i + 1 < len(ids) and ids[i + 1] == node + 1:
            continue
        parts.append(str(node) if start == i else f"{ids[start]}-{node}")
        start = i + 1
    return ",".join(parts)
