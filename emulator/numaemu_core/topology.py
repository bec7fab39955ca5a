"""What a machine consists of: nodes with memory and CPUs, distances, swap, disk, page size, profile.

A topology comes from a TOML file or a dict of the same shape, or from `uniform`. Everything is checked here, once; what
passes can be built. Memory without CPUs, CPUs without memory and sparse node ids are legal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from numaemu_core import limits
from numaemu_core.errors import TopologyError
from numaemu_core.faults_on_demand import SEED_MAX, Fault, faults_of
from numaemu_core.nodemask import mask_of
from numaemu_core.profiles import PROFILES, SWAP_V3, profile_named
from numaemu_core.sizes import parse_size

LOCAL_DISTANCE: Final = 10
REMOTE_DISTANCE: Final = 20
DISTANCE_MAX: Final = 255
#: Swap readahead reads at most 2 to this power of pages.
PAGE_CLUSTER_MAX: Final = 5
#: Settings that take the place of the profile's.
TUNABLES: Final = ("page_cluster", "fault_around", "swap_device", "min_free_kbytes")
_FAULT_AROUND_MAX: Final = 512
_SWAP_DEVICES: Final = ("ram", "disk")
#: Room for files of kind disk, unless told; it takes memory only where it is written to.
DISK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its id, its memory in bytes (0: none), its CPU numbers."""

    id: int
    memory_bytes: int
    cpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """A machine that can be built. `nodes` ascend by id; `distances` has a row a node, in that order."""

    nodes: tuple[Node, ...]
    distances: tuple[tuple[int, ...], ...]
    swap_bytes: int
    page_size: int
    profile: str
    disk_bytes: int = DISK_BYTES
    #: log2 of the pages that swap readahead reads, in place of the profile's.
    page_cluster: int | None = None
    #: Pages that a read fault of a file maps around the one that was asked for, in place of the profile's.
    fault_around: int | None = None
    #: "ram": swap is as fast as memory; "disk": pages pass through the swap cache; None: as in the profile.
    swap_device: str | None = None
    #: vm.min_free_kbytes; None: as the kernel chooses, 0: allocations take the last frame.
    min_free_kbytes: int | None = None
    #: True: the host's memory is taken when the machine starts; False: page by page when it is touched, and a host that
    #: has no more kills who touches. For machines that use little of what they have.
    preallocate: bool = True
    #: What goes wrong on purpose, and what decides about chance in it.
    faults: tuple[Fault, ...] = ()
    seed: int = 0

    @property
    def nr_node_ids(self) -> int:
        """One more than the highest node id: how long an array by node id is."""
        return self.nodes[-1].id + 1

    @property
    def online(self) -> int:
        """node_online_map as a mask."""
        return mask_of(node.id for node in self.nodes)

    def told_faults(self) -> dict[str, object]:
        """What goes wrong on purpose, as views and `status` tell of it; nothing where nothing does."""
        return {"faults": [str(fault) for fault in self.faults], "seed": self.seed} if self.faults else {}

    def as_dict(self) -> dict[str, object]:
        """The same machine in the shape of a topology file."""
        return {
            "profile": self.profile,
            "page_size": self.page_size,
            "swap": self.swap_bytes,
            "disk": self.disk_bytes,
            **{name: value for name in TUNABLES if (value := getattr(self, name)) is not None},
            **({} if self.preallocate else {"preallocate": False}),
            **({"seed": self.seed} if self.seed else {}),
            **self.told_faults(),
            "distances": [list(row) for row in self.distances],
            "node": [{"id": n.id, "memory": n.memory_bytes, "cpus": list(n.cpus)} for n in self.nodes],
        }


def uniform(nodes: int, memory: str | int, swap: str | int, profile: str, page_size: str | int) -> Topology:
    """`nodes` equal nodes with one CPU each (CPU i on node i), distances 10 and 20."""
    numnodes = PROFILES[profile].max_numnodes if profile in PROFILES else limits.MAX_NUMNODES
    _check_range("nodes", nodes, 1, min(numnodes, limits.MAX_NODES), f" for {profile}")
    table = [{"id": i, "memory": memory, "cpus": [i]} for i in range(nodes)]
    return from_dict({"node": table, "swap": swap, "profile": profile, "page_size": page_size})


def from_dict(description: Mapping[str, object]) -> Topology:
    """A topology from the shape of a topology file.

    Raises:
        TopologyError: a field is missing, of the wrong type, out of range or unknown; the message names it.
    """
    known = {
        "profile",
        "page_size",
        "swap",
        "disk",
        "page_cluster",
        "fault_around",
        "swap_device",
        "min_free_kbytes",
        "preallocate",
        "faults",
        "seed",
        "distances",
        "node",
    }
    _refuse_unknown("topology", description, known)
    page_size = parse_size(_scalar(description.get("page_size", 4096)), "page_size")
    if page_size.bit_count() != 1 or not 1 << limits.PAGE_SHIFT_MIN <= page_size <= 1 << limits.PAGE_SHIFT_MAX:
        _refuse(f"page_size: expected a power of two from 4096 to 65536, got {page_size}")
    profile = description.get("profile", SWAP_V3.name)
    if not isinstance(profile, str) or profile not in PROFILES:
        _refuse(f"profile: {profile!r} is not known; known: {', '.join(sorted(PROFILES))}")
    nodes = _nodes(description.get("node"), page_size, profile)
    swap_bytes = parse_size(_scalar(description.get("swap", 0)), "swap")
    if swap_bytes % page_size:
        _refuse(f"swap: expected a multiple of the page size {page_size}, got {swap_bytes}")
    frames = (sum(node.memory_bytes for node in nodes) + swap_bytes) // page_size
    if frames >= limits.MAX_FRAMES:
        _refuse(f"memory and swap together: expected fewer than {limits.MAX_FRAMES} pages, got {frames}")
    disk_bytes = parse_size(_scalar(description.get("disk", DISK_BYTES)), "disk")
    if disk_bytes % page_size:
        _refuse(f"disk: expected a multiple of the page size {page_size}, got {disk_bytes}")
    distances = _distances(description.get("distances"), len(nodes))
    min_free = _optional_number(description, "min_free_kbytes", 0, sum(node.memory_bytes for node in nodes) >> 11)
    preallocate = description.get("preallocate", True)
    if not isinstance(preallocate, bool):
        _refuse(f"preallocate: expected true or false, got {preallocate!r}")
    tunables = _tunables(description)
    pages = {node.id: node.memory_bytes // page_size for node in nodes}
    migrates = profile_named(str(profile)).direct_migration
    faults = faults_of(description.get("faults", ()), pages, swap_bytes // page_size, migrates=migrates)
    seed = _optional_number(description, "seed", 0, SEED_MAX) or 0
    made = Topology(nodes, distances, swap_bytes, page_size, str(profile), disk_bytes, *tunables, min_free, preallocate)
    return replace(made, faults=faults, seed=seed)


def _tunables(description: Mapping[str, object]) -> tuple[int | None, int | None, str | None]:
    cluster = _optional_number(description, "page_cluster", 0, PAGE_CLUSTER_MAX)
    around = _optional_number(description, "fault_around", 1, _FAULT_AROUND_MAX)
    device = description.get("swap_device")
    if device is not None and device not in _SWAP_DEVICES:
        _refuse(f"swap_device: expected one of {', '.join(_SWAP_DEVICES)}, got {device!r}")
    return cluster, around, None if device is None else str(device)


def _optional_number(description: Mapping[str, object], name: str, lowest: int, highest: int) -> int | None:
    value = description.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        _refuse(f"{name}: expected a number from {lowest} to {highest}, got {value!r}")
    return value


def _nodes(tables: object, page_size: int, profile: str) -> tuple[Node, ...]:
    if not isinstance(tables, Sequence) or isinstance(tables, str) or not tables:
        _refuse(f"node: expected at least one [[node]] table, got {tables!r}")
    if len(tables) > limits.MAX_NODES:
        _refuse(f"node: expected at most {limits.MAX_NODES} [[node]] tables, got {len(tables)}")
    nodes = sorted((_node(i, table, page_size, profile) for i, table in enumerate(tables)), key=lambda node: node.id)
    ids = [node.id for node in nodes]
    if len(set(ids)) != len(ids):
        _refuse(f"node: each id may stand once, got {ids}")
    cpus = [cpu for node in nodes for cpu in node.cpus]
    if len(set(cpus)) != len(cpus):
        _refuse(f"node: each CPU belongs to one node, got {sorted(cpus)}")
    if not cpus:
        _refuse("node: at least one node needs a CPU")
    if all(node.memory_bytes == 0 for node in nodes):
        _refuse("node: at least one node needs memory")
    return tuple(nodes)


def _node(position: int, table: object, page_size: int, profile: str) -> Node:
    where = f"node {position}"
    if not isinstance(table, Mapping):
        _refuse(f"{where}: expected a table, got {table!r}")
    _refuse_unknown(where, table, {"id", "memory", "cpus"})
    node_id = table.get("id", position)
    _check_range(f"{where}: id", node_id, 0, PROFILES[profile].max_numnodes - 1, f" for {profile}")
    memory_bytes = parse_size(_scalar(table.get("memory", 0)), f"{where}: memory")
    if memory_bytes % page_size:
        _refuse(f"{where}: memory: expected a multiple of the page size {page_size}, got {memory_bytes}")
    cpus = table.get("cpus", [])
    if not isinstance(cpus, Sequence) or isinstance(cpus, str):
        _refuse(f"{where}: cpus: expected a list of numbers, got {cpus!r}")
    for cpu in cpus:
        _check_range(f"{where}: cpus", cpu, 0, limits.MAX_CPUS - 1)
    return Node(node_id, memory_bytes, tuple(sorted(cpus)))


def _distances(rows: object, count: int) -> tuple[tuple[int, ...], ...]:
    if rows is None:
        line = range(count)
        return tuple(tuple(LOCAL_DISTANCE if i == j else REMOTE_DISTANCE for j in line) for i in line)
    if not isinstance(rows, Sequence) or isinstance(rows, str) or len(rows) != count:
        _refuse(f"distances: expected {count} rows of {count} numbers, got {rows!r}")
    for i, row in enumerate(rows):
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != count:
            _refuse(f"distances: row {i}: expected {count} numbers, got {row!r}")
        for j, distance in enumerate(row):
            lowest = LOCAL_DISTANCE if i == j else LOCAL_DISTANCE + 1
            highest = LOCAL_DISTANCE if i == j else DISTANCE_MAX
            _check_range(f"distances: row {i}, column {j}", distance, lowest, highest)
    return tuple(tuple(row) for row in rows)


def _scalar(value: object) -> str | int:
    return value if isinstance(value, (str, int)) else repr(value)


def _check_range(what: str, value: object, lowest: int, highest: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        _refuse(f"{what}: expected a whole number from {lowest} to {highest}{why}, got {value!r}")


def _refuse_unknown(where: str, table: Mapping[str, object], known: set[str]) -> None:
    unknown = sorted(str(key) for key in table if key not in known)
    if unknown:
        _refuse(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _refuse(message: str) -> NoReturn:
    raise TopologyError(message)
