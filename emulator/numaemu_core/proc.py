"""What users see of the machine: where pages are, numa_maps, and the numbers behind numastat, meminfo and vmstat.

Mirrors: fs/proc/task_mmu.c show_numa_map and drivers/base/node.c (2.6.14). Data here; other formats than numa_maps are
made by `views`.
"""

import errno
from typing import Any

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, U8
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mempolicy import bind_zonelist, get_vma_policy
from numaemu_core.mm_types import Task, VmArea
from numaemu_core.mmzone import Zone
from numaemu_core.nodemask import nodes_of
from numaemu_core.page_flags import (
    LRU_ACTIVE,
    LRU_INACTIVE,
    PAGE_MAPPING_FILE,
    PG_DIRTY,
    PG_WRITEBACK,
)
from numaemu_core.page_table import is_present
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.task_locks import down_read
from numaemu_core.uapi import MPOL_BIND, MPOL_INTERLEAVE

#: Pages that one call of `where` may ask about: its answer fits one message.
WHERE_PAGES_MAX = limits.MESSAGE_BYTES_MAX // 8


def sys_where(k: Kernel, task: Task, addr: int, length: int) -> KernelTask[bytes]:
    """The node of each page of a range, or -EFAULT (not mapped) or -ENOENT (no page); little-endian int32 a page.

    As move_pages without nodes answers (2.6.18): the zero page counts as no page.

    Raises:
        MmError: EINVAL: more pages than one answer holds, or beyond the address space.
    """
    first = addr >> k.page_shift
    end = (addr + length + k.page_size - 1) >> k.page_shift if length else first
    if end - first > WHERE_PAGES_MAX or end > 1 << (limits.TABLE_LEVELS * limits.TABLE_SHIFT):
        raise MmError(errno.EINVAL, f"{end - first} pages at {addr:#x}: at most {WHERE_PAGES_MAX} of the address space")
    nodes = np.full(end - first, -errno.EFAULT, "<i4")
    with (yield from down_read(task.mm)):
        for vma in task.mm.vmas.overlapping(first << k.page_shift, end << k.page_shift):
            low, high = max(first, vma.vm_start >> k.page_shift), min(end, vma.vm_end >> k.page_shift)
            nodes[low - first : high - first] = -errno.ENOENT
            entries, vpns = _present_entries(k, vma, low, high)
            pfns = (entries >> np.uint64(k.page_shift)).astype(np.int64)
            real = pfns != k.zero_pfn
            nodes[vpns[real] - first] = k.nid_of_pfn[pfns[real]]
    return nodes.tobytes()


def _present_entries(k: Kernel, vma: VmArea, first_vpn: int, end_vpn: int) -> tuple[U8, I8]:
    """Entries that map pages [first_vpn, end_vpn) of a VMA, and the pages."""
    _, vpns, entries = k.tables.used_entries(vma.vm_mm.pgd, first_vpn, end_vpn)
    mapped = is_present(entries)
    return entries[mapped], vpns[mapped]


def sys_numa_maps(k: Kernel, task: Task) -> KernelTask[str]:
    """The text of /proc/PID/numa_maps, one line a VMA."""
    with (yield from down_read(task.mm)):
        return "".join(show_numa_map(k, task, vma) for vma in task.mm.vmas)


def show_numa_map(k: Kernel, task: Task, vma: VmArea) -> str:
    """One line of numa_maps (2.6.14): the policy in force, then pages by kind and node."""
    entries, _ = _present_entries(k, vma, vma.vm_start >> k.page_shift, vma.vm_end >> k.page_shift)
    pfns = (entries >> np.uint64(k.page_shift)).astype(np.int64)
    counts = k.c.mapcount[pfns].astype(np.int64)
    counts[pfns == k.zero_pfn] = 1
    anonymous = (k.c.mapping[pfns] != 0) & (k.c.mapping[pfns] & PAGE_MAPPING_FILE == 0)
    words = [f"{vma.vm_start:08x}", mpol_to_str(k, get_vma_policy(k, task, vma, vma.vm_pgoff))]
    words += [f"MaxRef={max(counts, default=0)}", f"Pages={len(pfns)}", f"Mapped={np.count_nonzero(counts)}"]
    if anonymous.any():
        words.append(f"Anon={np.count_nonzero(anonymous)}")
    nodes, pages = np.unique(k.nid_of_pfn[pfns], return_counts=True)
    words += [f"N{nid}={count}" for nid, count in zip(nodes.tolist(), pages.tolist(), strict=True)]
    return " ".join(words) + "\n"


def mpol_to_str(k: Kernel, policy: Mempolicy | None) -> str:
    """A policy as numa_maps of 2.6.14 prints it; every zone here is Normal."""
    if policy is None:
        return "default"
    if policy.mode == MPOL_BIND:
        return "bind={" + ",".join(f"{nid}/Normal" for nid in bind_zonelist(k, policy)) + "}"
    if policy.mode == MPOL_INTERLEAVE:
        return "interleave={" + ",".join(map(str, nodes_of(policy.nodes))) + "}"
    return f"prefer={policy.preferred}"


# -- numbers -----------------------------------------------------------------------------------------------------------


def hardware(k: Kernel) -> dict[str, Any]:
    """Nodes with CPUs and memory, and distances: what numactl --hardware shows."""
    nodes = [
        {
            "id": node.id,
            "cpus": list(node.cpus),
            "size_kb": node.memory_bytes >> 10,
            "free_kb": _kb(k, k.zones[node.id].nr_free) if node.id in k.zones else 0,
        }
        for node in k.topology.nodes
    ]
    return {"nodes": nodes, "distances": [list(row) for row in k.topology.distances]}


def numastat(k: Kernel) -> list[list[Any]]:
    """[node id, its six counters] for each node with memory or CPUs."""
    return [[node.id, k.c.numastat[node.id].tolist()] for node in k.topology.nodes]


def meminfo(k: Kernel) -> list[dict[str, int]]:
    """The fields of nodeN/meminfo of 2.6.15, in kB, a dict a node."""
    return [_node_meminfo(k, node.id) for node in k.topology.nodes]


def _node_meminfo(k: Kernel, nid: int) -> dict[str, int]:
    zone = k.zones.get(nid, Zone(nid, 0, 0, 0))
    first, end, total, free = zone.first, zone.end, zone.present_pages, zone.nr_free
    states, flags = k.c.lru_state[first:end], k.c.pg_flags[first:end]
    fields = {
        "MemTotal": total,
        "MemFree": free,
        "MemUsed": total - free,
        "Active": int(np.count_nonzero(states == LRU_ACTIVE)),
        "Inactive": int(np.count_nonzero(states == LRU_INACTIVE)),
        "HighTotal": 0,
        "HighFree": 0,
        "LowTotal": total,
        "LowFree": free,
        "Dirty": int(np.count_nonzero(flags & PG_DIRTY)),
        "Writeback": int(np.count_nonzero(flags & PG_WRITEBACK)),
        "Mapped": int(np.count_nonzero(k.c.mapcount[first:end])),
        "Slab": 0,
    }
    pages = {name: _kb(k, count) for name, count in fields.items()}
    return {"node": nid, **pages, "HugePages_Total": 0, "HugePages_Free": 0}


def vmstat(k: Kernel) -> dict[str, int]:
    """Names and values of /proc/vmstat: what is now, then events since boot."""
    c = k.c
    now = {
        "nr_free_pages": sum(zone.nr_free for zone in k.zones.values()),
        "nr_active": int(np.count_nonzero(c.lru_state == LRU_ACTIVE)),
        "nr_inactive": int(np.count_nonzero(c.lru_state == LRU_INACTIVE)),
        "nr_dirty": int(np.count_nonzero(c.pg_flags & PG_DIRTY)),
        "nr_writeback": int(np.count_nonzero(c.pg_flags & PG_WRITEBACK)),
        "nr_mapped": int(np.count_nonzero(c.mapcount)),
        "nr_page_table_pages": k.tables.in_use,
        "nr_swap_free": k.nr_swap_pages,
    }
    numa = ("numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other")
    totals = dict(zip(numa, c.numastat.sum(axis=0).tolist(), strict=True))
    events = {name: k.vmstat[name] for name in ("pgfault", "pgmajfault", "pswpin", "pswpout")}
    events |= {name: sum(k.vmstat[part] for part in parts) for name, parts in k.profile.reclaim_events}
    return now | totals | events


def _kb(k: Kernel, pages: int) -> int:
    return pages << k.page_shift >> 10
