"""numa_maps: the policy of each VMA, and its pages by kind and node, in the format of 2.6.14 and in today's.

Mirrors: show_numa_map, gather_stats and can_gather_numa_stats, fs/proc/task_mmu.c (2.6.14, 6.1 and 6.12).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from numaemu_core.columns import I8
from numaemu_core.effects import KernelTask
from numaemu_core.kernel import Kernel
from numaemu_core.mempolicy import get_vma_policy
from numaemu_core.mm_types import VM_LOCKED, AddressSpace, FileKind, Task, VmArea
from numaemu_core.mpol_str import mpol_to_str
from numaemu_core.page_flags import LRU_PG_ACTIVE, PAGE_MAPPING_FILE, PG_DIRTY, PG_SWAPCACHE, PG_WRITEBACK, RESERVED
from numaemu_core.page_table import is_present
from numaemu_core.task_locks import down_read

#: What stands as an octal number in the path of a file.
_ESCAPED: Final = str.maketrans({char: f"\\{ord(char):03o}" for char in "\n\t= "})


@dataclass(frozen=True, slots=True)
class NumaMapEntry:
    """Pages that a VMA has mapped, by kind. Only `nodes` tells of the zero page, too."""

    #: Pages, without the zero page.
    pages: int
    #: Entries that map the zero page.
    zero_pages: int
    anon: int
    #: Dirty by the page or by this VMA's entry.
    dirty: int
    swapcache: int
    #: On the active list, or where reclaim does not look: locked, or of ramfs.
    active: int
    writeback: int
    #: How often the page that is mapped most often is mapped.
    mapcount_max: int
    #: Pages by node id, without the zero page.
    nodes: dict[int, int]


def sys_numa_maps(k: Kernel, task: Task) -> KernelTask[str]:
    """The text of /proc/PID/numa_maps, one line a VMA."""
    with (yield from down_read(task.mm)):
        return "".join(show_numa_map(k, task, vma) for vma in task.mm.vmas)


def show_numa_map(k: Kernel, task: Task, vma: VmArea) -> str:
    """One line of numa_maps. The mmap_sem of the task is held."""
    words = [f"{vma.vm_start:08x}", mpol_to_str(k, get_vma_policy(k, task, vma, vma.vm_pgoff))]
    entry = numa_map_entry(k, vma)
    if k.profile.views_of_2005:
        words += words_of_2005(entry, int(k.nid_of_pfn[k.zero_pfn]))
    else:
        words += _location(k, vma) + words_of_today(entry, k.page_size >> 10)
    return " ".join(words) + "\n"


def numa_map_entry(k: Kernel, vma: VmArea) -> NumaMapEntry:
    """Count the pages that the entries of a VMA map. What is swapped out or being migrated is not among them."""
    c = k.c
    flats, _, entries = k.tables.used_entries(vma.vm_mm.pgd, vma.vm_start >> k.page_shift, vma.vm_end >> k.page_shift)
    mapped = is_present(entries)
    pfns = (entries[mapped] >> np.uint64(k.page_shift)).astype(np.int64)
    real = c.free_state[pfns] != RESERVED
    zero_pages = len(pfns) - int(np.count_nonzero(real))
    pte_dirty = c.dirty[flats[mapped]][real] != 0
    pfns = pfns[real]
    flags, mapping = c.pg_flags[pfns], c.mapping[pfns]
    nodes, counts = np.unique(k.nid_of_pfn[pfns], return_counts=True)
    return NumaMapEntry(
        pages=len(pfns),
        zero_pages=zero_pages,
        anon=_count((mapping != 0) & (mapping & PAGE_MAPPING_FILE == 0)),
        dirty=_count(pte_dirty | (flags & PG_DIRTY != 0)),
        swapcache=_count(flags & PG_SWAPCACHE),
        active=_active_pages(k, vma, pfns),
        writeback=_count(flags & PG_WRITEBACK),
        mapcount_max=int(c.mapcount[pfns].max(initial=0)),
        nodes=dict(zip(nodes.tolist(), counts.tolist(), strict=True)),
    )


def _active_pages(k: Kernel, vma: VmArea, pfns: I8) -> int:
    if vma.vm_flags & VM_LOCKED:
        return len(pfns)
    active = k.c.lru_state[pfns] & LRU_PG_ACTIVE != 0
    if vma.vm_file is not None and vma.vm_file.kind is FileKind.RAMFS:
        active |= k.c.mapping[pfns] & PAGE_MAPPING_FILE != 0
    return _count(active)


def _count(which: np.ndarray) -> int:
    return int(np.count_nonzero(which))


# -- the two formats ---------------------------------------------------------------------------------------------------


def words_of_2005(entry: NumaMapEntry, zero_node: int) -> list[str]:
    """What follows the policy in 2.6.14. The zero page, on `zero_node`, counts, as a page that is mapped once."""
    nodes = dict(entry.nodes)
    if entry.zero_pages:
        nodes[zero_node] = nodes.get(zero_node, 0) + entry.zero_pages
    pages = entry.pages + entry.zero_pages
    most = max(entry.mapcount_max, 1 if entry.zero_pages else 0)
    words = [f"MaxRef={most}", f"Pages={pages}", f"Mapped={pages}"]
    words += [f"Anon={entry.anon}"] if entry.anon else []
    return words + [f"N{nid}={nodes[nid]}" for nid in sorted(nodes)]


def words_of_today(entry: NumaMapEntry, page_kb: int) -> list[str]:
    """What follows the location today: numbers that say something new, and nothing for a VMA without pages."""
    if not entry.pages:
        return []
    shown = (
        ("anon", entry.anon, entry.anon > 0),
        ("dirty", entry.dirty, entry.dirty > 0),
        ("mapped", entry.pages, entry.pages not in {entry.anon, entry.dirty}),
        ("mapmax", entry.mapcount_max, entry.mapcount_max > 1),
        ("swapcache", entry.swapcache, entry.swapcache > 0),
        ("active", entry.active, entry.active < entry.pages),
        ("writeback", entry.writeback, entry.writeback > 0),
    )
    words = [f"{name}={number}" for name, number, wanted in shown if wanted]
    words += [f"N{nid}={count}" for nid, count in entry.nodes.items()]
    return [*words, f"kernelpagesize_kB={page_kb}"]


def _location(k: Kernel, vma: VmArea) -> list[str]:
    """The path of the file, or `heap`. Stacks are mappings like others here."""
    mm = vma.vm_mm
    if vma.vm_file is not None:
        return ["file=" + file_path(vma.vm_file).translate(_ESCAPED)]
    if k.profile.heap_includes_neighbours:
        return ["heap"] if vma.vm_start <= mm.brk and vma.vm_end >= mm.start_brk else []
    return ["heap"] if vma.vm_start < mm.brk and vma.vm_end > mm.start_brk else []


def file_path(file: AddressSpace) -> str:
    """The path of a file: all lie in the root directory, but for shared anonymous memory, which no directory has."""
    if file.kind is FileKind.ANON_SHARED:
        return "/dev/zero (deleted)"
    return file.name if file.name.startswith("/") else "/" + file.name
