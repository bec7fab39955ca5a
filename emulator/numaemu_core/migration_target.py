"""Where the new frames of pages that are migrated come from: a node, or what the new policy says of each page.

Mirrors: alloc_migration_target, mm/migrate.c; new_page (6.1) and alloc_migration_target_by_mpol (6.12),
mm/mempolicy.c. Frames are neither fought for nor killed for: reclaim may help, the OOM killer is not called.
"""

from collections.abc import Callable

import numpy as np

from numaemu_core.columns import I8, NO_INDEXES
from numaemu_core.distinct import distinct
from numaemu_core.effects import KernelTask
from numaemu_core.interleave import interleaves
from numaemu_core.kernel import Kernel
from numaemu_core.mempolicy import alloc_page_vma, alloc_pages_mpol
from numaemu_core.mm_types import Mm, Task, VmArea
from numaemu_core.mmzone import Zonelist
from numaemu_core.nodemask import first_node
from numaemu_core.page_alloc import alloc_pages
from numaemu_core.page_flags import PAGE_MAPPING_FILE, PG_HOSTED
from numaemu_core.shared_policy import Mempolicy

#: Frames for isolated pages, in their order; fewer when memory ran out.
NewPages = Callable[[I8], KernelTask[I8]]


def new_pages_on_node(k: Kernel, task: Task | None, nid: int) -> NewPages:
    """Frames of one node and no other, if the cpuset of the caller has it (__GFP_THISNODE)."""
    cpu_node = first_node(k.online) if task is None else k.cpu_node[task.cpu]
    allowed = task is None or task.mems_allowed >> nid & 1
    zonelist = Zonelist((nid,) if allowed else (), nid)

    def allocate(pfns: I8) -> KernelTask[I8]:
        zero = _any_is_hosted(k, pfns)
        return (yield from alloc_pages(k, task, zonelist, len(pfns), cpu_node=cpu_node, zero=zero, may_kill=False))

    return allocate


def new_pages_by_address(k: Kernel, task: Task, start: int) -> NewPages:
    """Frames by the policy of the first VMA from `start` on that may map the page, or by the task's (6.1 new_page)."""

    def allocate(pfns: I8) -> KernelTask[I8]:
        zero = _any_is_hosted(k, pfns)
        areas, places, vpns = _first_areas(k, task.mm, start, pfns)
        taken: list[I8] = []
        for run in np.split(np.arange(len(pfns)), np.flatnonzero(np.diff(places)) + 1):
            if places[run[0]] < 0:
                indexes = k.c.index[pfns[run]].astype(np.int64)
                got = yield from alloc_pages_mpol(k, task, task.policy, indexes, zero=zero, may_kill=False)
            else:
                area = areas[int(places[run[0]])]
                got = yield from alloc_page_vma(k, task, area, vpns[run], zero=zero, may_kill=False)
            taken.append(got)
            if len(got) < len(run):
                break
        return np.concatenate([NO_INDEXES, *taken])

    return allocate


def _any_is_hosted(k: Kernel, pfns: I8) -> bool:
    """Has one of these pages no bytes that could be copied? It moves to a frame of zeros."""
    return bool((k.c.pg_flags[pfns] & PG_HOSTED).any())


def _first_areas(k: Kernel, mm: Mm, start: int, pfns: I8) -> tuple[list[VmArea], I8, I8]:
    """(VMAs, which of them each page is first found in by its index, -1: none; its virtual page there).

    Mirrors: page_address_in_vma, mm/rmap.c, in the loop of new_page.
    """
    areas: list[VmArea] = []
    places, vpns = np.full(len(pfns), -1), np.zeros(len(pfns), np.int64)
    owners, indexes = k.c.mapping[pfns].astype(np.int64), k.c.index[pfns].astype(np.int64)
    for owner in distinct(owners[owners != 0]).tolist():
        todo = np.flatnonzero(owners == owner)
        for area in _areas_of(k, mm, owner, start):
            offsets = indexes[todo] - area.vm_pgoff
            inside = (offsets >= 0) & (offsets < (area.vm_end - area.vm_start) >> k.page_shift)
            if inside.any():
                places[todo[inside]] = len(areas)
                vpns[todo[inside]] = offsets[inside] + (area.vm_start >> k.page_shift)
                areas.append(area)
                todo = todo[~inside]
            if not len(todo):
                break
    return areas, places, vpns


def _areas_of(k: Kernel, mm: Mm, owner: int, start: int) -> list[VmArea]:
    """The VMAs of an mm that may map pages of this owner and end above `start`, by address."""
    if owner & PAGE_MAPPING_FILE:
        mappers = list(k.address_spaces[owner].i_mmap)
    else:
        anon_vma = k.anon_vmas.get(owner)
        mappers = [] if anon_vma is None else list(anon_vma.vmas)
    mine = [vma for vma in mappers if vma.vm_mm is mm and vma.vm_end > start]
    return sorted(mine, key=lambda vma: vma.vm_start)


def new_pages_by_index(k: Kernel, task: Task, new: Mempolicy | None, span: tuple[int, int], pfns: I8) -> NewPages:
    """Frames by the policy that was just set, or the task's, with the page's index as what interleaves.

    `pfns` are those that will move: the first of them says where an interleave begins, so that pages of its VMA go to
    the very nodes that a fault would take (6.12 do_mbind). The VMAs of `span` are looked at now, under mmap_sem.
    """
    policy = new or task.policy
    base = _interleave_base(k, task.mm, span, pfns) if interleaves(policy) and len(pfns) else 0

    def allocate(pages: I8) -> KernelTask[I8]:
        zero = _any_is_hosted(k, pages)
        indexes = k.c.index[pages].astype(np.int64) + base
        return (yield from alloc_pages_mpol(k, task, policy, indexes, zero=zero, may_kill=False))

    return allocate


def _interleave_base(k: Kernel, mm: Mm, span: tuple[int, int], pfns: I8) -> int:
    """What is added to the index of a page: that of the first page's VMA, and the inode number of its file."""
    areas, places, vpns = _first_areas(k, mm, span[0], pfns[:1])
    if places[0] < 0 or areas[0].vm_start >= span[1]:
        return 0
    area = areas[0]
    offset = int(vpns[0]) - (area.vm_start >> k.page_shift) + area.vm_pgoff
    inode = area.vm_file.i_ino if area.vm_file is not None and area.vm_file.is_shmem else 0
    return offset + inode - int(k.c.index[pfns[0]])
