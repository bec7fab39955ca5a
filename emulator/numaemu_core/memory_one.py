"""The most frequent fault, alone: one page that nothing maps yet. A scalar twin of do_anonymous_page.

numpy earns its keep over many pages; for one, a dozen cells written one by one cost a fifth. What is done here is what
`memory` does for a range of one page, to the last cell (a test compares them); whatever is out of the ordinary (a lock
that is busy, a node that is full, an interleave) is left to it. Mirrors: do_anonymous_page, mm/memory.c (2.6.15).
"""

from typing import Final

from numaemu_core import limits
from numaemu_core.interleave import interleaves
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Rank
from numaemu_core.mempolicy import get_vma_policy, policy_zonelists
from numaemu_core.mm_types import Task, VmArea
from numaemu_core.mmzone import LOCAL_NODE, NUMA_HIT, OTHER_NODE, Zone
from numaemu_core.page_flags import (
    ALLOCATED,
    FREE_CLEAN,
    FREE_UNCLEAN,
    LRU_ACTIVE,
    PG_HOSTED,
    PG_REFERENCED,
    PG_UPTODATE,
)
from numaemu_core.page_table import PTE_WRITABLE, vm_page_prot
from numaemu_core.rmap import anon_vma_prepare

#: Frames that the search looks at one by one before it is left to numpy.
_LOOKED_AT_MAX: Final = 16


def try_anonymous_page(k: Kernel, task: Task, vma: VmArea, vpn: int, flat: int) -> bool:
    """Map a zeroed frame, writable, where the entry `flat` is none; False, and nothing done, where that is not all."""
    policy = get_vma_policy(k, task, vma, vpn + vma.vm_pgoff - (vma.vm_start >> k.page_shift))
    if interleaves(policy):
        return False
    cpu_node = k.cpu_node[task.cpu]
    zonelist = policy_zonelists(k, task, policy)[0]
    nid = zonelist.wanted
    if zonelist.nodes[:1] != (nid,):
        return False
    zone = k.zones[nid]
    keys = [(Rank.PTE, flat >> limits.TABLE_SHIFT), (Rank.LRU, nid), (Rank.ZONE, nid)]
    guard = k.locks.try_spin(keys) if zone.nr_free > zone.pages_low else None
    if guard is None:
        return False
    cells = k.c.cells
    with guard:
        pfn = _free_frame(k, zone)
        if cells.pte[flat] or pfn < 0:
            return False
        if cells.free_state[pfn] != FREE_CLEAN:
            k.c.frames[pfn] = 0
        cells.free_state[pfn] = ALLOCATED
        zone.nr_free -= 1
        zone.cursor = (pfn + 1 - zone.first) % (zone.end - zone.set_apart - zone.first)
        k.c.numastat[nid, NUMA_HIT] += 1
        k.c.numastat[nid, LOCAL_NODE if nid == cpu_node else OTHER_NODE] += 1
        cells.mapping[pfn] = anon_vma_prepare(k, vma).id
        cells.index[pfn] = vpn + vma.vm_pgoff - (vma.vm_start >> k.page_shift)
        cells.pg_flags[pfn] = PG_UPTODATE | PG_REFERENCED | (PG_HOSTED if vma.vm_mm.mirrored else 0)
        cells.mapcount[pfn] = 1
        k.reach("fault.single_identity_set")
        cells.lru_stamp[pfn] = k.lru_clock
        k.lru_clock += 1
        cells.lru_state[pfn] = LRU_ACTIVE
        cells.accessed[flat] = 1
        cells.dirty[flat] = 1
        cells.pte[flat] = pfn << k.page_shift | vm_page_prot(vma) | PTE_WRITABLE
    k.reach("fault.single_mapped")
    k.count("pgfault")
    return True


def _free_frame(k: Kernel, zone: Zone) -> int:
    """The next free frame from the cursor on, -1 if it is not near."""
    states = k.c.cells.free_state
    first = zone.first + zone.cursor
    for pfn in range(first, min(first + _LOOKED_AT_MAX, zone.end)):
        if states[pfn] <= FREE_UNCLEAN:
            return pfn
    return -1
