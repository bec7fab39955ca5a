"""What the files say that are answered: /proc/PID/status, numa_maps, meminfo, and the counters of nodes.

Everything that the machine does not decide is the host's text.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numaemu_core.nodemask import node_list, nodes_of
from numaemu_run.node_tree import NodeTree, bitmap
from numaemu_run.processes import Thread
from numaemu_run.procfs import Area

_FIELD: Final = re.compile(r"^(Cpus_allowed|Mems_allowed)(_list)?:\t.*$", re.MULTILINE)
#: Start, policy (some have blanks), what the machine calls the place, numbers.
_LINE: Final = re.compile(r"^([0-9a-f]+) (.*?)( heap| file=\S+(?: \(deleted\))?)?((?: \w+=\d+)*)$", re.MULTILINE)
#: Fields of /proc/meminfo, and those of the nodes that they sum up.
_SUMMED: Final[Mapping[str, str]] = {
    "MemTotal": "MemTotal",
    "MemFree": "MemFree",
    "MemAvailable": "MemFree",
    "AnonPages": "AnonPages",
    "Shmem": "Shmem",
}
#: The field `processor` of /proc/PID/stat, counted from the state.
_PROCESSOR: Final = 36
_MEMINFO: Final = re.compile(r"^(\w+):( +)(\d+)( kB)$", re.MULTILINE)


def status(text: str, thread: Thread, tree: NodeTree, mems_allowed: int) -> str:
    """The text of the host with the CPUs and nodes of the machine."""

    def field(found: re.Match[str]) -> str:
        name, listed = found[1], found[2] or ""
        mask, bits = (thread.cpus, tree.cpu_bits) if name == "Cpus_allowed" else (mems_allowed, tree.node_bits)
        return f"{name}{listed}:\t" + (node_list(list(nodes_of(mask))) if listed else bitmap(mask, bits))

    return _FIELD.sub(field, text)


def stat(text: str, cpu: int) -> str:
    """The text of the host with the machine's CPU as the one that the task ran on last."""
    head, end, tail = text.rpartition(") ")
    fields = tail.split(" ")
    fields[_PROCESSOR] = str(cpu)
    return head + end + " ".join(fields)


def numa_maps(text: str, areas: Sequence[Area], *, of_2005: bool) -> str:
    """The machine's text, with the heap, the stack and the files where the host has them (2.6.15 showed none)."""
    if of_2005:
        return text
    starts = {area.start: area for area in areas}
    last: list[Area] = []

    def line(found: re.Match[str]) -> str:
        area = starts.get(int(found[1], 16))
        if area is not None:
            last[:] = [area]
        label = f" {last[0].label}" if last and last[0].label else ""
        return f"{found[1]} {found[2]}{label}{found[4]}"

    return _LINE.sub(line, text)


def meminfo(text: str, nodes: Sequence[Mapping[str, Any]]) -> str:
    """The text of the host with the memory of the machine's nodes."""

    def field(found: re.Match[str]) -> str:
        source = _SUMMED.get(found[1])
        if source is None or any(source not in node for node in nodes):
            return found[0]
        total = sum(node[source] for node in nodes)
        width = len(found[2]) + len(found[3])
        return f"{found[1]}:{total:>{width}}{found[4]}"

    return _MEMINFO.sub(field, text)


def host_text(path: str) -> str:
    """A file of the host. OSError."""
    return Path(path).read_text(errors="replace")
