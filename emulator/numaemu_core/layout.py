"""Where everything lies in shared memory: segments, their columns, and who may write each.

A segment is one memfd; a column is a flat array in it, aligned to a cache line. Both sides of every process boundary
compute the same layout from the same topology, so that no offsets cross a wire.

**One column, one lock**: no cell is written under two locks, because a numpy store is a read-modify-write of nothing
but its own cell, and two processes setting bits in one cell lose some of them.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.topology import Topology

CACHE_LINE_BYTES: Final = 64
#: A robust mutex in shared memory takes one cache line.
MUTEX_BYTES: Final = 64
#: How the names of the segments begin that hold frames.
POOL_PREFIX: Final = "pool."
#: The host maps memory in pages of at most this size; segments are multiples of it.
SEGMENT_GRANULE_BYTES: Final = 65536

#: Counters of one node, in the order of /sys/devices/system/node/nodeN/numastat.
NUMA_COUNTERS: Final = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
#: Events that vmstat counts, by their names there, or in the sums that it shows (`Profile.reclaim_events`).
VM_EVENTS: Final = (
    "allocstall",
    "oom_kill",
    "pageoutrun",
    "pgactivate",
    "pgdeactivate",
    "pgfault",
    "pgmajfault",
    "pgmigrate_fail",
    "pgmigrate_success",
    "pgpgin",
    "pgpgout",
    "pgrefill",
    "pgrotated",
    "pgscan_direct",
    "pgscan_kswapd",
    "pgsteal_direct",
    "pgsteal_kswapd",
    "pswpin",
    "pswpout",
)


@dataclass(frozen=True, slots=True)
class Column:
    """A flat array: name, element type, shape, and its offset in the segment in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(slots=True)
class SegmentLayout:
    """One memfd: `owner` creates it; `sparse` ones get memory only where they are touched."""

    name: str
    owner: str
    sparse: bool = False
    columns: list[Column] = field(default_factory=list)
    size: int = 0

    def add(self, name: str, dtype: str, *shape: int) -> None:
        """Append a column behind the others."""
        column = Column(name, dtype, shape, self.size)
        self.columns.append(column)
        self.size += -(-column.size // CACHE_LINE_BYTES) * CACHE_LINE_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole machine: counts of things, and the segments by name."""

    topology: Topology
    page_shift: int
    frame_count: int
    slot_count: int
    #: Pages of the disk segment; as slots of the swap node they follow those of the swap area.
    disk_count: int
    table_count: int
    #: First pfn of each node that has memory, and one past its last, by node id.
    node_pfns: dict[int, tuple[int, int]]
    segments: dict[str, SegmentLayout]

    @property
    def lru_mutex(self) -> int:
        """Index of node 0's lru_lock in the mutex table; node n's is n further."""
        return 0

    @property
    def zone_mutex(self) -> int:
        """Index of node 0's zone lock in the mutex table; node n's is n further."""
        return self.topology.nr_node_ids

    @property
    def swap_mutex(self) -> int:
        """Index of the swap_lock in the mutex table."""
        return 2 * self.topology.nr_node_ids

    @property
    def pte_mutex(self) -> int:
        """Index of table 0's pte lock in the mutex table; table t's is t further."""
        return 2 * self.topology.nr_node_ids + 1

    @property
    def mutex_count(self) -> int:
        """Mutexes of the table."""
        return self.pte_mutex + self.table_count


def pool_name(node: int) -> str:
    """Name of the segment that holds a node's frames."""
    return f"{POOL_PREFIX}{node}"


def layout_of(topology: Topology) -> Layout:
    """The layout that every process computes from the topology."""
    page_shift = topology.page_size.bit_length() - 1
    node_pfns: dict[int, tuple[int, int]] = {}
    pfn = 0
    for node in topology.nodes:
        count = node.memory_bytes >> page_shift
        if count:
            node_pfns[node.id] = (pfn, pfn + count)
            pfn += count
    slot_count = topology.swap_bytes >> page_shift
    table_count = pfn + slot_count + 1
    disk_count = topology.disk_bytes >> page_shift
    layout = Layout(topology, page_shift, pfn, slot_count, disk_count, table_count, node_pfns, {})
    for segment in _segments(layout):
        if not segment.name.startswith(POOL_PREFIX):  # pools lie back to back: a pfn is an offset
            segment.size = -(-max(segment.size, 1) // SEGMENT_GRANULE_BYTES) * SEGMENT_GRANULE_BYTES
        layout.segments[segment.name] = segment
    return layout


def _segments(layout: Layout) -> list[SegmentLayout]:
    page_size = layout.topology.page_size
    lazy = not layout.topology.preallocate
    pools = []
    for node, (first, end) in layout.node_pfns.items():
        pool = SegmentLayout(pool_name(node), f"node.{node}", lazy)
        pool.add("bytes", "u1", end - first, page_size)
        pools.append(pool)
    swap = SegmentLayout("swap", "swap", lazy)
    swap.add("bytes", "u1", layout.slot_count, page_size)
    disk = SegmentLayout("disk", "swap", sparse=True)
    disk.add("bytes", "u1", layout.disk_count, page_size)
    swap_map = SegmentLayout("swap_map", "swap")
    swap_map.add("swap_count", "u2", layout.slot_count)  # swap_lock
    swap_map.add("slot_mapping", "u4", layout.slot_count)  # daemon only: the object whose page is there, 0: none
    swap_map.add("slot_index", "u8", layout.slot_count)  # daemon only: which of its pages
    swap_map.add("slot_hosted", "u1", layout.slot_count)  # by the daemon, read by swap: has it no bytes?
    return [*pools, swap, disk, swap_map, _ptes(layout), _pte_bits(layout), _frames(layout), _control(), _locks(layout)]


def _ptes(layout: Layout) -> SegmentLayout:
    """Page tables: written by the kernel daemon alone, under the pte lock of the table; read by clients without one."""
    segment = SegmentLayout("ptes", "kernel", sparse=True)
    segment.add("pte", "u8", layout.table_count, limits.PTRS_PER_TABLE)
    return segment


def _pte_bits(layout: Layout) -> SegmentLayout:
    """Accessed and dirty: set by clients inside a window, cleared by the daemon; bytes, as nobody may modify a word."""
    segment = SegmentLayout("pte_bits", "kernel", sparse=True)
    segment.add("accessed", "u1", layout.table_count, limits.PTRS_PER_TABLE)
    segment.add("dirty", "u1", layout.table_count, limits.PTRS_PER_TABLE)
    return segment


def _frames(layout: Layout) -> SegmentLayout:
    """The frame table (mem_map): a column a lock, an entry a frame."""
    segment = SegmentLayout("frames", "kernel")
    count = layout.frame_count
    segment.add("free_state", "u1", count)  # zone lock
    segment.add("page_lock_owner", "u4", count)  # zone lock
    segment.add("lru_state", "u2", count)  # lru_lock
    segment.add("lru_stamp", "u8", count)  # lru_lock
    segment.add("pg_flags", "u2", count)  # daemon only, as all below
    segment.add("mapcount", "u4", count)
    segment.add("mapping", "u4", count)
    segment.add("index", "u8", count)
    segment.add("private", "u4", count)
    segment.add("moving_to", "u4", count)  # frame + 1 that is just becoming the page (direct migration), 0: none
    ids = layout.topology.nr_node_ids
    segment.add("numastat", "i8", ids, len(NUMA_COUNTERS))  # zone lock
    segment.add("watermarks", "i8", ids, 3)  # daemon only: pages_min, pages_low, pages_high
    segment.add("cleaned", "i8", ids)  # zone lock: frames that the node process cleaned
    segment.add("vm_events", "i8", len(VM_EVENTS))  # daemon only
    segment.add("fault_strikes", "i8", limits.FAULTS_MAX, 2)  # daemon only: pages that a fault was asked about, and hit
    return segment


def _control() -> SegmentLayout:
    """What daemon and clients tell each other without messages."""
    segment = SegmentLayout("control", "kernel", sparse=True)
    segment.add("generation", "u8", 8)  # daemon: element 0 counts the daemons that this machine has had
    segment.add("tables_made", "u8", 8)  # daemon: element 0 counts the page-table pages that were ever used
    segment.add("mm_epoch", "u8", limits.MAX_MMS)  # daemon: moves whenever a page table of that mm is freed
    segment.add("window", "u8", limits.MAX_ACCESS_SLOTS)  # its client thread: odd while inside a window
    segment.add("window_mm", "u8", limits.MAX_ACCESS_SLOTS)  # daemon: mm of the slot, +1 (0: free)
    segment.add("window_client", "u8", limits.MAX_ACCESS_SLOTS)  # daemon: client of the slot
    segment.add("window_task", "u8", limits.MAX_ACCESS_SLOTS)  # daemon: pid of its task
    segment.add("pin_count", "u8", limits.MAX_ACCESS_SLOTS)  # its client thread: records in use
    segment.add("pins", "u4", limits.MAX_ACCESS_SLOTS, limits.MAX_PINS_PER_SLOT)  # its client thread: pfn + 1
    return segment


def _locks(layout: Layout) -> SegmentLayout:
    """Robust mutexes, one a cache line: lru_lock and zone lock a node, swap_lock, a pte lock a table; and the marks."""
    segment = SegmentLayout("locks", "kernel", sparse=True)
    segment.add("mutex", "u1", layout.mutex_count, MUTEX_BYTES)
    segment.add("needs_recovery", "u1", layout.mutex_count)
    return segment
