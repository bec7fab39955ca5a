"""The figures of the nodes and of the machine: hardware, numastat, meminfo, vmstat. `views` makes text of them.

Mirrors: drivers/base/node.c (2.6.15 and 6.12), mm/vmstat.c (6.12), the vmstat part of mm/page_alloc.c (2.6.15).
"""

from typing import Any, Final

from numaemu_core.kernel import Kernel
from numaemu_core.mmzone import NUMA_HIT, NUMA_MISS, Zone
from numaemu_core.page_counts import PageCounts, mlocked_pfns, page_counts

#: Names in the order of /proc/vmstat of 2.6.15. One zone, Normal; of the others' lines there are none.
_VMSTAT_OF_2005: Final = (
    "nr_dirty",
    "nr_writeback",
    "nr_unstable",
    "nr_page_table_pages",
    "nr_mapped",
    "nr_slab",
    "pgpgin",
    "pgpgout",
    "pswpin",
    "pswpout",
    "pgalloc_normal",
    "pgfree",
    "pgactivate",
    "pgdeactivate",
    "pgfault",
    "pgmajfault",
    "pgrefill_normal",
    "pgsteal_normal",
    "pgscan_kswapd_normal",
    "pgscan_direct_normal",
    "pginodesteal",
    "kswapd_steal",
    "kswapd_inodesteal",
    "pageoutrun",
    "allocstall",
    "pgrotated",
)

#: Names in the order of /proc/vmstat of 6.12, as far as they mean something here.
_VMSTAT_OF_TODAY: Final = (
    "nr_free_pages",
    "nr_mlock",
    "numa_hit",
    "numa_miss",
    "numa_foreign",
    "numa_interleave",
    "numa_local",
    "numa_other",
    "nr_inactive_anon",
    "nr_active_anon",
    "nr_inactive_file",
    "nr_active_file",
    "nr_unevictable",
    "nr_isolated_anon",
    "nr_isolated_file",
    "nr_anon_pages",
    "nr_mapped",
    "nr_file_pages",
    "nr_dirty",
    "nr_writeback",
    "nr_shmem",
    "nr_page_table_pages",
    "nr_swapcached",
    "pgpgin",
    "pgpgout",
    "pswpin",
    "pswpout",
    "pgalloc_normal",
    "allocstall_normal",
    "pgfree",
    "pgactivate",
    "pgdeactivate",
    "pgfault",
    "pgmajfault",
    "pgrefill",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgscan_anon",
    "pgscan_file",
    "pgsteal_anon",
    "pgsteal_file",
    "kswapd_low_wmark_hit_quickly",
    "kswapd_high_wmark_hit_quickly",
    "pageoutrun",
    "pgrotated",
    "oom_kill",
    "pgmigrate_success",
    "pgmigrate_fail",
)

#: Events that are there from the start; others appear with their first time.
_ALWAYS: Final = ("pgfault", "pgmajfault", "pswpin", "pswpout")

#: kB to and from devices, and the pages of swap that are among them (block layer, submit_bio).
_PAGED: Final = (("pgpgin", "pswpin"), ("pgpgout", "pswpout"))

#: How /proc/vmstat calls the counters of numastat, in their order.
_NUMA_IN_VMSTAT: Final = ("numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other")


def hardware(k: Kernel) -> dict[str, Any]:
    """Nodes with CPUs and memory, and distances: what numactl --hardware shows; and faults on demand, if there are."""
    nodes = [
        {
            "id": node.id,
            "cpus": list(node.cpus),
            "size_kb": node.memory_bytes >> 10,
            "free_kb": _kb(k, k.zones[node.id].nr_free) if node.id in k.zones else 0,
        }
        for node in k.topology.nodes
    ]
    return {"nodes": nodes, "distances": [list(row) for row in k.topology.distances], **k.topology.told_faults()}


def numastat(k: Kernel) -> list[list[Any]]:
    """[node id, its six counters] for each node with memory or CPUs."""
    return [[node.id, k.c.numastat[node.id].tolist()] for node in k.topology.nodes]


# -- meminfo -----------------------------------------------------------------------------------------------------------


def meminfo(k: Kernel, only: int | None = None) -> list[dict[str, int]]:
    """The fields of nodeN/meminfo in the order of the machine's kernel, in kB, a dict a node; "node" is its id.

    `only`: of the node of that id alone; of none if there is no such node.
    """
    locked = mlocked_pfns(k)
    made = []
    for node in k.topology.nodes:
        if only not in {None, node.id}:
            continue
        zone = k.zones.get(node.id, Zone(node.id, 0, 0, 0))
        counts = page_counts(k, zone.first, zone.end, locked)
        fields = _fields_of_2005(counts) if k.profile.views_of_2005 else _fields_of_today(counts)
        huge = ("Total", "Free") if k.profile.views_of_2005 else ("Total", "Free", "Surp")
        sizes = {name: _kb(k, pages) for name, pages in fields.items()}
        made.append({"node": node.id, **sizes, **{f"HugePages_{name}": 0 for name in huge}})
    return made


def _fields_of_2005(counts: PageCounts) -> dict[str, int]:
    return {
        "MemTotal": counts.present,
        "MemFree": counts.free,
        "MemUsed": counts.present - counts.free,
        "Active": counts.active,
        "Inactive": counts.inactive,
        "HighTotal": 0,
        "HighFree": 0,
        "LowTotal": counts.present,
        "LowFree": counts.free,
        "Dirty": counts.dirty,
        "Writeback": counts.writeback,
        "Mapped": counts.mapped,
        "Slab": 0,
    }


def _fields_of_today(counts: PageCounts) -> dict[str, int]:
    """Page tables, stacks and slabs lie beside the emulated memory, and take none of it."""
    return {
        "MemTotal": counts.present,
        "MemFree": counts.free,
        "MemUsed": counts.present - counts.free,
        "SwapCached": counts.swapcached,
        "Active": counts.active_anon + counts.active_file,
        "Inactive": counts.inactive_anon + counts.inactive_file,
        "Active(anon)": counts.active_anon,
        "Inactive(anon)": counts.inactive_anon,
        "Active(file)": counts.active_file,
        "Inactive(file)": counts.inactive_file,
        "Unevictable": counts.unevictable,
        "Mlocked": counts.mlocked,
        "Dirty": counts.dirty,
        "Writeback": counts.writeback,
        "FilePages": counts.file_pages,
        "Mapped": counts.file_mapped,
        "AnonPages": counts.anon_mapped,
        "Shmem": counts.shmem,
        **dict.fromkeys(_NEVER_TODAY, 0),
    }


#: Fields of today's meminfo that are 0 on every emulated machine.
_NEVER_TODAY: Final = (
    "KernelStack",
    "PageTables",
    "SecPageTables",
    "NFS_Unstable",
    "Bounce",
    "WritebackTmp",
    "KReclaimable",
    "Slab",
    "SReclaimable",
    "SUnreclaim",
)

# -- vmstat ------------------------------------------------------------------------------------------------------------


def vmstat(k: Kernel) -> dict[str, int]:
    """Names and values of /proc/vmstat in the order of the machine's kernel; then what that kernel does not show."""
    order = _VMSTAT_OF_2005 if k.profile.views_of_2005 else _VMSTAT_OF_TODAY
    known = _now(k) | dict.fromkeys(_ALWAYS, 0) | _events(k)
    return {name: known.pop(name) for name in order if name in known} | known


def _events(k: Kernel) -> dict[str, int]:
    """What was counted since boot; what reclaim counted by the names that the machine's kernel has for it."""
    sums = {name: sum(k.vmstat[part] for part in parts) for name, parts in k.profile.reclaim_events}
    sums |= {paged: k.vmstat[paged] + _kb(k, k.vmstat[swapped]) for paged, swapped in _PAGED}
    named = {name: count for name, count in sums.items() if count}
    summed = {part for _, parts in k.profile.reclaim_events for part in parts} | set(sums)
    return {name: count for name, count in k.vmstat.items() if count and name not in summed} | named


def _now(k: Kernel) -> dict[str, int]:
    """Pages as they are, and what follows from the NUMA counters, which count every allocation."""
    counts = page_counts(k, 0, k.layout.frame_count, mlocked_pfns(k))
    totals = k.c.numastat.sum(axis=0).tolist()
    allocations = totals[NUMA_HIT] + totals[NUMA_MISS]
    found = {
        "nr_free_pages": counts.free,
        "nr_dirty": counts.dirty,
        "nr_writeback": counts.writeback,
        "nr_page_table_pages": k.tables.in_use,
        **dict(zip(_NUMA_IN_VMSTAT, totals, strict=True)),
        "pgalloc_normal": allocations,
        "pgfree": allocations - counts.allocated,
    }
    if k.profile.views_of_2005:
        found |= {
            "nr_mapped": counts.mapped,
            "nr_unstable": 0,
            "nr_slab": 0,
            "nr_active": counts.active,
            "nr_inactive": counts.inactive,
        }
    else:
        found |= {
            "nr_mlock": counts.mlocked,
            "nr_inactive_anon": counts.inactive_anon,
            "nr_active_anon": counts.active_anon,
            "nr_inactive_file": counts.inactive_file,
            "nr_active_file": counts.active_file,
            "nr_unevictable": counts.unevictable,
            "nr_isolated_anon": counts.isolated_anon,
            "nr_isolated_file": counts.isolated_file,
            "nr_anon_pages": counts.anon_mapped,
            "nr_mapped": counts.file_mapped,
            "nr_file_pages": counts.file_pages,
            "nr_shmem": counts.shmem,
            "nr_swapcached": counts.swapcached,
        }
    return found | {"nr_swap_free": k.nr_swap_pages}


def _kb(k: Kernel, pages: int) -> int:
    return pages << k.page_shift >> 10
