"""Machines by name: the shapes on which software that knows of nodes goes wrong, with the numbering of real ones.

Distances and numbering follow machines as their vendors and the kernel describe them; sizes are small, and so are the
numbers of CPUs. Data only: --help reads it.
"""

from dataclasses import dataclass
from typing import Final

from numaemu_core.errors import TopologyError

#: A node: its id, its memory as a share (0: none), its CPUs.
Row = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Preset:
    """One machine; shares of memory are turned into bytes where somebody says how much the largest node has."""

    name: str
    summary: str
    nodes: tuple[Row, ...]
    distances: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, object]:
        """In the shape of a topology file, with shares as memory."""
        return {
            "distances": [list(row) for row in self.distances],
            "node": [{"id": nid, "memory": share, "cpus": list(cpus)} for nid, share, cpus in self.nodes],
        }


def _threads(first: int, cores: int, all_cores: int) -> tuple[int, ...]:
    """CPUs of cores with two threads each: firmware lists the second threads behind the first ones of all cores."""
    return (*range(first, first + cores), *range(all_cores + first, all_cores + first + cores))


#: Two sockets. 21 between them is what firmware of Xeons says (32: that of EPYCs).
_TWO_SOCKET: Final = Preset(
    "two-socket",
    "two sockets; CPUs 0 to 3 and 8 to 11, as where second threads of cores are numbered behind all first ones",
    ((0, 1, _threads(0, 4, 8)), (1, 1, _threads(4, 4, 8))),
    ((10, 21), (21, 10)),
)
#: Four sockets with two links each: neighbours are one hop away, the opposite one is two. Linux has such a ring as an
#: example of a machine that is not fully connected (kernel/sched/topology.c).
_RING: Final = Preset(
    "four-socket-ring",
    "four sockets in a ring: the opposite one is two hops away",
    tuple((nid, 1, tuple(range(4 * nid, 4 * nid + 4))) for nid in range(4)),
    ((10, 20, 30, 20), (20, 10, 20, 30), (30, 20, 10, 20), (20, 30, 20, 10)),
)
#: Xeons with SNC-2: a cluster's cores are those near its memory controller, and their numbers come in no order that one
#: would guess; 11 to the other cluster of the socket, which is hardly farther.
_SUB_NUMA: Final = Preset(
    "sub-numa-clusters",
    "two sockets of two clusters each; CPU numbers alternate between the clusters of a socket",
    ((0, 1, (0, 1, 2, 5)), (1, 1, (3, 4, 6, 7)), (2, 1, (8, 9, 10, 13)), (3, 1, (11, 12, 14, 15))),
    ((10, 11, 21, 21), (11, 10, 21, 21), (21, 21, 10, 11), (21, 21, 11, 10)),
)
#: EPYCs with four nodes a socket (NPS4): 12 inside of a socket, 32 between sockets.
_NPS4: Final = Preset(
    "eight-nodes",
    "two sockets of four nodes each",
    tuple((nid, 1, _threads(2 * nid, 2, 16)) for nid in range(8)),
    tuple(
        tuple(10 if one == other else 12 if one // 4 == other // 4 else 32 for other in range(8)) for one in range(8)
    ),
)
#: A CXL memory expander comes online as a node without CPUs; 14 from the socket that it is plugged into.
_CXL: Final = Preset(
    "dram-cxl",
    "a socket with its DRAM, and a memory expander without CPUs that is twice as large",
    ((0, 1, _threads(0, 4, 4)), (1, 2, ())),
    ((10, 14), (14, 10)),
)
#: Two Xeon Max in flat mode: the memory in the package is a node of its own, smaller, without CPUs, and behind the
#: others in number, so that nobody takes it by mistake.
_HBM: Final = Preset(
    "dram-hbm",
    "two sockets with DRAM, and for each a small node of high-bandwidth memory without CPUs",
    ((0, 4, _threads(0, 4, 8)), (1, 4, _threads(4, 4, 8)), (2, 1, ()), (3, 1, ())),
    ((10, 21, 13, 23), (21, 10, 23, 13), (13, 23, 10, 23), (23, 13, 23, 10)),
)
#: POWER8 with two chips in each of two sockets, and threads switched off: firmware numbers nodes by socket, and only
#: the first of eight threads of a core is a CPU.
_SPARSE: Final = Preset(
    "sparse-ids",
    "nodes 0, 1, 16 and 17, and CPUs that are multiples of eight",
    (
        (0, 1, (0, 8, 16, 24)),
        (1, 1, (32, 40, 48, 56)),
        (16, 1, (64, 72, 80, 88)),
        (17, 1, (96, 104, 112, 120)),
    ),
    ((10, 20, 40, 40), (20, 10, 40, 40), (40, 40, 10, 20), (40, 40, 20, 10)),
)
#: Threadripper 2990WX: of its four dies only two have memory controllers.
_MEMORYLESS: Final = Preset(
    "memoryless-node",
    "four nodes with CPUs, of which nodes 1 and 3 have no memory",
    tuple((nid, 1 - nid % 2, tuple(range(4 * nid, 4 * nid + 4))) for nid in range(4)),
    tuple(tuple(10 if one == other else 16 for other in range(4)) for one in range(4)),
)
#: Memory was replaced in one socket only: a node is an eighth of the others, and full long before them.
_UNEVEN: Final = Preset(
    "uneven-memory",
    "two sockets, of which the first has an eighth of the memory of the second",
    ((0, 1, _threads(0, 4, 8)), (1, 8, _threads(4, 4, 8))),
    ((10, 21), (21, 10)),
)
#: ACPI lets the distance there differ from the distance back.
_ASYMMETRIC: Final = Preset(
    "asymmetric-distances",
    "three nodes; no distance is the same there and back",
    tuple((nid, 1, (2 * nid, 2 * nid + 1)) for nid in range(3)),
    ((10, 15, 30), (20, 10, 25), (40, 17, 10)),
)

PRESETS: Final = {
    preset.name: preset
    for preset in (
        _TWO_SOCKET,
        _RING,
        _SUB_NUMA,
        _NPS4,
        _CXL,
        _HBM,
        _SPARSE,
        _MEMORYLESS,
        _UNEVEN,
        _ASYMMETRIC,
    )
}


def preset_named(name: str) -> Preset:
    """The one of that name. TopologyError: there is none; the message has all names."""
    if name not in PRESETS:
        raise TopologyError(f"preset: {name!r} is not known; known: {', '.join(PRESETS)}")
    return PRESETS[name]
