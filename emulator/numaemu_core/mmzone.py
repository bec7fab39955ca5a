"""Zones: the frames of a node, which of them are free, the order in which nodes are tried, and the NUMA counters.

One zone a node. `free_state` is the truth about a frame; there is no free list to lose. A frame leaves the zone under
the zone lock; the daemon is the only one that allocates and frees, the node process turns unclean frames into clean
ones.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, Columns
from numaemu_core.distinct import distinct
from numaemu_core.effects import KernelTask
from numaemu_core.faults_on_demand import pages_of_full_nodes
from numaemu_core.layout import NUMA_COUNTERS, Layout
from numaemu_core.locks import Key, Rank
from numaemu_core.next_fit import next_fit
from numaemu_core.page_flags import ALLOCATED, FREE_CLEAN, FREE_UNCLEAN, PG_HOSTED, RESERVED
from numaemu_core.profiles import profile_named
from numaemu_core.runs import clear_rows
from numaemu_core.task_locks import spin_lock
from numaemu_core.topology import Topology
from numaemu_core.watermarks import zone_watermarks

if TYPE_CHECKING:
    from numaemu_core.kernel import Kernel

NUMA_HIT, NUMA_MISS, NUMA_FOREIGN, INTERLEAVE_HIT, LOCAL_NODE, OTHER_NODE = range(len(NUMA_COUNTERS))


@dataclass(slots=True)
class Zone:
    """The frames [first, end) of node `nid`."""

    nid: int
    first: int
    end: int
    #: Free frames, clean or not.
    nr_free: int
    #: Where the next search for free frames begins, from `first`: frames are reused late, which leaves time to clean.
    cursor: int = 0
    #: Frames freed since the node process was last told to clean.
    freed: int = 0
    #: Free frames that allocations leave, below which kswapd is woken, and at which it stops.
    pages_min: int = 0
    pages_low: int = 0
    pages_high: int = 0
    #: What reclaim has yet to scan of the lists: it waits until it is a batch.
    nr_scan_active: int = 0
    nr_scan_inactive: int = 0
    #: The lowest priority that reclaim had to go to: its distress.
    prev_priority: int = limits.DEF_PRIORITY
    #: Pages scanned since one was freed; past four times what there is, reclaim gives the zone up.
    pages_scanned: int = 0
    all_unreclaimable: bool = False
    #: Frames that are never given, as a fault on demand wants it: the last ones.
    set_apart: int = 0

    @property
    def present_pages(self) -> int:
        """Frames of the zone, the reserved ones included."""
        return self.end - self.first

    @property
    def managed_pages(self) -> int:
        """Frames without those that were set apart."""
        return self.present_pages - self.set_apart


def make_zones(layout: Layout, columns: Columns) -> dict[int, Zone]:
    """The zones of a machine by node id; the zero page is reserved in the first one that has memory.

    So is what nodes may never give: they have nothing more in use than what they gave, and are full when it is gone.
    """
    zones = {nid: Zone(nid, first, end, end - first) for nid, (first, end) in layout.node_pfns.items()}
    home = min(zones.values(), key=lambda zone: zone.first)
    columns.free_state[home.first] = RESERVED
    home.nr_free -= 1
    for nid, pages in pages_of_full_nodes(layout.topology.faults).items():
        zone = zones[nid]
        zone.set_apart = max(zone.nr_free - pages, 0)
        columns.free_state[zone.end - zone.set_apart : zone.end] = RESERVED
        zone.nr_free -= zone.set_apart
    for nid, marks in zone_watermarks(layout).items():
        zones[nid].pages_min, zones[nid].pages_low, zones[nid].pages_high = marks
        columns.watermarks[nid] = marks
    return zones


class Zonelist(NamedTuple):
    """The nodes that an allocation tries, in order, and the one that the NUMA counters take for the wanted one."""

    nodes: tuple[int, ...]
    wanted: int


def build_zonelists(topology: Topology) -> dict[int, tuple[int, ...]]:
    """For each online node, the nodes with memory in the order in which an allocation there tries them.

    Mirrors: build_zonelists and find_next_best_node, mm/page_alloc.c (2.6.15 and 6.1).
    """
    profile = profile_named(topology.profile)
    ids = [node.id for node in topology.nodes]
    with_memory = [node.id for node in topology.nodes if node.memory_bytes]
    node_load = dict.fromkeys(ids, 0)
    zonelists: dict[int, tuple[int, ...]] = {}
    for local, row in zip(ids, topology.distances, strict=True):
        distances = dict(zip(ids, row, strict=True))
        costs = _node_costs(topology, local, distances)
        candidates = [nid for nid in with_memory if nid != local]
        if profile.zonelist_rotates:
            candidates = [nid for nid in ids if nid > local] + [nid for nid in ids if nid < local]
        order = [local]
        while candidates:
            _, at = min((costs[nid] + node_load[nid], at) for at, nid in enumerate(candidates))
            best = candidates.pop(at)
            if distances[best] != distances[order[-1]]:
                node_load[best] += len(ids) - len(order) if profile.zonelist_rotates else 1
            order.append(best)
        zonelists[local] = tuple(nid for nid in order if nid in with_memory)
    return zonelists


def _node_costs(topology: Topology, local: int, distances: dict[int, int]) -> dict[int, int]:
    """What it costs to go to each node, but for its load: near ones first, in 2.6.15 those without CPUs before others.

    Since 5.16 a node below the local one is as good as one that is farther by one.
    """
    profile = profile_named(topology.profile)
    far = {node.id: distances[node.id] + (profile.zonelist_spares_cpus and bool(node.cpus)) for node in topology.nodes}
    if profile.zonelist_rotates:
        return {nid: cost * len(far) * profile.max_numnodes for nid, cost in far.items()}
    return {nid: (cost + (nid < local)) * profile.max_numnodes for nid, cost in far.items()}


def rmqueue(
    k: "Kernel", zonelist: Zonelist, count: int, cpu_node: int, *, low: bool, interleave: bool, zero: bool
) -> KernelTask[list[I8]]:
    """Take up to `count` frames from the nodes of a zonelist, in its order: of each what it has above a watermark.

    Mirrors: get_page_from_freelist and buffered_rmqueue, mm/page_alloc.c.
    """
    taken: list[I8] = []
    for nid in zonelist.nodes:
        zone = k.zones[nid]
        if count and zone.nr_free > (zone.pages_low if low else zone.pages_min):
            keys = [(Rank.ZONE, n) for n in sorted({nid, zonelist.wanted})]
            with (yield from spin_lock(k, keys)):
                room = max(zone.nr_free - (zone.pages_low if low else zone.pages_min), 0)
                pfns, unclean = _take_free(k.c, zone, min(count, room))
                _zone_statistics(k.c, nid, zonelist.wanted, cpu_node, len(pfns), interleave=interleave)
            if zero and len(unclean):
                clear_rows(k.c.frames, unclean)
            count -= len(pfns)
            taken.append(pfns)
        if count and low and zone.set_apart:
            k.strikes.found_full(nid)
    return taken


def free_pages(k: "Kernel", pfns: I8) -> KernelTask[None]:
    """Give frames that nobody knows back to their nodes (free_hot_cold_page, mm/page_alloc.c, 2.6.15)."""
    if len(pfns):
        with (yield from spin_lock(k, zone_lock_keys(k, pfns))):
            free_locked(k, pfns)


def zone_lock_keys(k: "Kernel", pfns: I8) -> list[Key]:
    """The zone locks of the nodes of these frames, in the order in which they are taken."""
    return node_lock_keys(k, Rank.ZONE, pfns)


def node_lock_keys(k: "Kernel", rank: Rank, pfns: I8) -> list[Key]:
    """One lock for each node that has one of these frames, ascending."""
    nodes = k.nid_of_pfn[pfns]
    if len(nodes) == 1 or (len(nodes) and bool((nodes == nodes[0]).all())):
        return [(rank, int(nodes[0]))]
    return [(rank, nid) for nid in distinct(nodes).tolist()]


def free_locked(k: "Kernel", pfns: I8) -> None:
    """Frames become free at once: identity gone, unclean if they have held bytes. The zone locks are held."""
    c = k.c
    assert (c.free_state[pfns] == ALLOCATED).all()
    clean = c.pg_flags[pfns] & PG_HOSTED != 0
    c.pg_flags[pfns] = 0
    c.mapping[pfns] = 0
    c.index[pfns] = 0
    c.free_state[pfns] = np.where(clean, FREE_CLEAN, FREE_UNCLEAN)
    nodes = k.nid_of_pfn[pfns]
    counts = np.bincount(nodes)
    unclean = np.bincount(nodes[~clean], minlength=len(counts))
    for nid in np.flatnonzero(counts).tolist():
        k.zones[nid].nr_free += int(counts[nid])
        k.zones[nid].freed += int(unclean[nid])
        k.zones[nid].pages_scanned = 0
        k.zones[nid].all_unreclaimable = False


def _take_free(c: Columns, zone: Zone, count: int) -> tuple[I8, I8]:
    """Up to `count` free frames in the order of the cursor, marked ALLOCATED; and which of them are unclean."""
    count = min(count, zone.nr_free)
    states = c.free_state[zone.first : zone.first + zone.managed_pages]
    places, zone.cursor = next_fit(states, FREE_UNCLEAN + 1, count, zone.cursor)
    pfns = places + zone.first
    unclean = pfns[c.free_state[pfns] != FREE_CLEAN]
    c.free_state[pfns] = ALLOCATED
    zone.nr_free -= count
    return pfns, unclean


def _zone_statistics(c: Columns, used: int, first: int, cpu_node: int, count: int, *, interleave: bool) -> None:
    """The NUMA counters of `count` allocations from node `used` when `first` headed the zonelist.

    Mirrors: zone_statistics, mm/page_alloc.c (2.6.15).
    """
    if used == first:
        c.numastat[used, NUMA_HIT] += count
        if interleave:
            c.numastat[used, INTERLEAVE_HIT] += count
    else:
        c.numastat[used, NUMA_MISS] += count
        c.numastat[first, NUMA_FOREIGN] += count
    c.numastat[used, LOCAL_NODE if used == cpu_node else OTHER_NODE] += count
