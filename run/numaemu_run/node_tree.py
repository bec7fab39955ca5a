"""The tree of nodes and CPUs under /sys as text, and as files in a directory.

Source: drivers/base/node.c, drivers/base/cpu.c, drivers/base/topology.c, mm/hugetlb.c (6.12).
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from numaemu_core.nodemask import mask_of, node_list
from numaemu_core.profiles import profile_named
from numaemu_core.topology import Topology

NODE_DIR: Final = "/sys/devices/system/node"
CPU_DIR: Final = "/sys/devices/system/cpu"
#: Where the kernel lists the same devices by their bus.
NODE_BUS_DIR: Final = "/sys/bus/node/devices"
CPU_BUS_DIR: Final = "/sys/bus/cpu/devices"
#: What the tree lies over. A host that has no buses under /sys can do without those.
COVERED: Final = (NODE_DIR, CPU_DIR, NODE_BUS_DIR, CPU_BUS_DIR)

_HUGE_PAGES: Final = "/sys/kernel/mm/hugepages"
_WORD_BITS: Final = 32
#: A file that is not here: a link to another path.
_LINK: Final = "-> "
#: Rights of most files of sysfs, and of its directories.
_OF_FILES: Final = 0o444
_OF_FOLDERS: Final = 0o755
#: From there on Linux takes a node for another socket's (include/linux/topology.h).
_REMOTE_DISTANCE: Final = 20


def bitmap(mask: int, bits: int) -> str:
    """A mask as the kernel prints sets of CPUs and nodes: 32-bit words, the highest first (bitmap_string)."""
    words = -(-bits // _WORD_BITS)
    first = bits - (words - 1) * _WORD_BITS
    digits = [-(-first // 4), *[_WORD_BITS // 4] * (words - 1)]
    parts = [mask >> _WORD_BITS * (words - 1 - i) & (1 << _WORD_BITS) - 1 for i in range(words)]
    return ",".join(f"{part:0{count}x}" for part, count in zip(parts, digits, strict=True))


def huge_page_sizes() -> list[str]:
    """Those of this host, by their directories: programs look for the same ones in nodes."""
    return sorted(path.name for path in Path(_HUGE_PAGES).glob("*"))


class NodeTree:
    """What the tree says of a machine that does not change: everything but counters and free memory."""

    def __init__(self, topology: Topology, huge_page_sizes: Iterable[str] = ()) -> None:
        """From the description of the machine, which has no page of those sizes, as sysfs names them."""
        self.topology = topology
        self._huge_page_sizes = tuple(huge_page_sizes)
        self.cpu_node = {cpu: node.id for node in topology.nodes for cpu in node.cpus}
        #: One more than the highest CPU: nr_cpu_ids.
        self.cpu_bits = max(self.cpu_node) + 1
        self.cpus = mask_of(self.cpu_node)
        #: Bits of a node mask in /proc: MAX_NUMNODES.
        self.node_bits = profile_named(topology.profile).max_numnodes
        self.nodes = mask_of(node.id for node in topology.nodes)
        self._packages = _packages(topology)
        self._package_cpus: dict[int, list[int]] = {}
        for cpu, nid in self.cpu_node.items():
            self._package_cpus.setdefault(self._packages[nid], []).append(cpu)
        self.memory_nodes = mask_of(node.id for node in topology.nodes if node.memory_bytes)

    def files(self) -> dict[str, str]:
        """Paths below / without it, and what is in them; a directory is there where a file is in it."""
        return {
            **{f"{NODE_DIR[1:]}/{name}": text for name, text in self._node_files().items()},
            **{f"{CPU_DIR[1:]}/{name}": text for name, text in self._cpu_files().items()},
            **{
                f"{NODE_BUS_DIR[1:]}/node{n.id}": f"{_LINK}../../..{NODE_DIR[4:]}/node{n.id}"
                for n in self.topology.nodes
            },
            **{f"{CPU_BUS_DIR[1:]}/cpu{cpu}": f"{_LINK}../../..{CPU_DIR[4:]}/cpu{cpu}" for cpu in self.cpu_node},
        }

    def _node_files(self) -> Mapping[str, str]:
        nodes = self.topology.nodes
        ids = [node.id for node in nodes]
        memory = [node.id for node in nodes if node.memory_bytes]
        found = {
            "online": node_list(ids),
            "possible": node_list(range(ids[-1] + 1)),
            "has_cpu": node_list([node.id for node in nodes if node.cpus]),
            "has_memory": node_list(memory),
            "has_normal_memory": node_list(memory),
            "has_generic_initiator": "",
        }
        for node, row in zip(nodes, self.topology.distances, strict=True):
            place = f"node{node.id}"
            found[f"{place}/cpulist"] = node_list(node.cpus)
            found[f"{place}/cpumap"] = bitmap(mask_of(node.cpus), self.cpu_bits)
            found[f"{place}/distance"] = " ".join(map(str, row))
            # Their numbers change: whoever opens them is given those of the moment.
            found |= {f"{place}/{name}": "" for name in ("meminfo", "numastat", "vmstat")}
            found |= {f"{place}/cpu{cpu}": f"{_LINK}../../cpu/cpu{cpu}" for cpu in node.cpus}
            for size in self._huge_page_sizes:
                found |= {f"{place}/hugepages/{size}/{which}_hugepages": "0" for which in ("nr", "free", "surplus")}
        return found

    def _cpu_files(self) -> Mapping[str, str]:
        cpus = sorted(self.cpu_node)
        found = {name: node_list(cpus) for name in ("online", "present")}
        found["possible"] = node_list(range(self.cpu_bits))
        found |= {"offline": "", "isolated": "", "kernel_max": str(self.cpu_bits - 1)}
        for node in self.topology.nodes:
            for cpu in node.cpus:
                place = f"cpu{cpu}"
                found[f"{place}/online"] = "1"
                found[f"{place}/node{node.id}"] = f"{_LINK}../../node/node{node.id}"
                found |= {f"{place}/topology/{name}": text for name, text in self._topology(cpu)}
        return found

    def _topology(self, cpu: int) -> Iterable[tuple[str, str]]:
        """One core a CPU."""
        package = self._packages[self.cpu_node[cpu]]
        yield "physical_package_id", str(package)
        yield "die_id", "0"
        yield "core_id", str(cpu)
        for names, members in (
            (("thread_siblings", "core_cpus"), [cpu]),
            (("core_siblings", "package_cpus"), self._package_cpus[package]),
        ):
            for name in names:
                yield name, bitmap(mask_of(members), self.cpu_bits)
                yield f"{name}_list", node_list(sorted(members))

    def write(self, root: Path) -> None:
        """Make the tree below a directory, with that, for everybody to read, as sysfs is. OSError."""
        for name, text in self.files().items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith(_LINK):
                path.symlink_to(text.removeprefix(_LINK))
            else:
                path.write_text(text + "\n")
                path.chmod(_OF_FILES)
        for folder, *_ in os.walk(root):  # whatever our umask leaves: the program may become another user
            Path(folder).chmod(_OF_FOLDERS)


def _packages(topology: Topology) -> dict[int, int]:
    """The first node of each node's package: those with CPUs share one that are nearer than REMOTE_DISTANCE.

    Firmware says 11 or 12 between parts of a socket, and 20 or more between sockets.
    """
    found = {node.id: node.id for node in topology.nodes}
    for i, one in enumerate(topology.nodes):
        for j, other in enumerate(topology.nodes[:i]):
            near = max(topology.distances[i][j], topology.distances[j][i]) < _REMOTE_DISTANCE
            if near and one.cpus and other.cpus:
                old, new = sorted((found[one.id], found[other.id]), reverse=True)
                found = {nid: new if package == old else package for nid, package in found.items()}
    return found
