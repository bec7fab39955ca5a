"""How many pages of each kind there are, on a node or on the whole machine: what meminfo and vmstat are made of.

Mirrors: the items of enum node_stat_item, include/linux/mmzone.h (6.12), and of struct page_state,
include/linux/page-flags.h (2.6.15).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from numaemu_core.columns import I8, NO_INDEXES, Bool
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import VM_LOCKED, FileKind
from numaemu_core.page_flags import (
    ALLOCATED,
    LRU_ACTIVE,
    LRU_INACTIVE,
    LRU_ISOLATED,
    PAGE_MAPPING_FILE,
    PG_DIRTY,
    PG_SWAPCACHE,
    PG_WRITEBACK,
)
from numaemu_core.page_table import is_present


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Pages of a stretch of frames."""

    present: int
    free: int
    allocated: int
    #: On the two lists, whatever they are, as 2.6.15 counts.
    active: int
    inactive: int
    #: The same in four, as today: tmpfs counts as anonymous, what reclaim does not look at as unevictable.
    active_anon: int
    inactive_anon: int
    active_file: int
    inactive_file: int
    unevictable: int
    mlocked: int
    isolated_anon: int
    isolated_file: int
    #: Dirty pages of files on the disk: nobody has to write the others back.
    dirty: int
    writeback: int
    #: The page cache: pages of files, of tmpfs, of the swap cache.
    file_pages: int
    swapcached: int
    shmem: int
    #: Mapped somewhere: all (2.6.15), those of files, anonymous ones.
    mapped: int
    file_mapped: int
    anon_mapped: int


def page_counts(k: Kernel, first: int, end: int, locked: I8) -> PageCounts:
    """Count the frames [first, end); `locked` are the frames of the whole machine that `mlocked_pfns` found."""
    c = k.c
    states, flags = c.lru_state[first:end], c.pg_flags[first:end]
    mapping, mapped = c.mapping[first:end], c.mapcount[first:end] != 0
    allocated = c.free_state[first:end] == ALLOCATED
    of_file = mapping & PAGE_MAPPING_FILE != 0
    swapcached = flags & PG_SWAPCACHE != 0
    shmem = of_file & np.isin(mapping, _ids(k, FileKind.TMPFS, FileKind.ANON_SHARED))
    # A page of tmpfs on its way out has no file any more, and is as anonymous as its slot.
    anon = ~of_file | shmem
    is_locked = np.zeros(end - first, np.bool_)
    is_locked[locked[(locked >= first) & (locked < end)] - first] = True
    unevictable = is_locked | (of_file & np.isin(mapping, _ids(k, FileKind.RAMFS)))
    active, inactive = states == LRU_ACTIVE, states == LRU_INACTIVE
    isolated = states & LRU_ISOLATED != 0
    dirty = (flags & PG_DIRTY != 0) & of_file & np.isin(mapping, _ids(k, FileKind.DISK))
    return PageCounts(
        present=end - first,
        free=sum(zone.nr_free for zone in k.zones.values() if first <= zone.first and zone.end <= end),
        allocated=_count(allocated),
        active=_count(active),
        inactive=_count(inactive),
        active_anon=_count(active & anon & ~unevictable),
        inactive_anon=_count(inactive & anon & ~unevictable),
        active_file=_count(active & ~anon & ~unevictable),
        inactive_file=_count(inactive & ~anon & ~unevictable),
        unevictable=_count(unevictable),
        mlocked=_count(is_locked),
        isolated_anon=_count(isolated & anon),
        isolated_file=_count(isolated & ~anon),
        dirty=_count(dirty),
        writeback=_count(flags & PG_WRITEBACK),
        file_pages=_count(of_file | swapcached),
        swapcached=_count(swapcached),
        shmem=_count(shmem),
        mapped=_count(mapped),
        file_mapped=_count(mapped & of_file),
        anon_mapped=_count(mapped & ~of_file),
    )


def mlocked_pfns(k: Kernel) -> I8:
    """The frames that a VM_LOCKED mapping of any task maps; one may be listed twice."""
    found = [NO_INDEXES]
    for mm in k.mms.values():
        for vma in mm.vmas:
            if vma.vm_flags & VM_LOCKED:
                first, end = vma.vm_start >> k.page_shift, vma.vm_end >> k.page_shift
                _, _, entries = k.tables.used_entries(mm.pgd, first, end)
                pfns = (entries[is_present(entries)] >> np.uint64(k.page_shift)).astype(np.int64)
                found.append(pfns[pfns != k.zero_pfn])
    return np.concatenate(found)


def _ids(k: Kernel, *kinds: FileKind) -> list[int]:
    """What the `mapping` column holds for the files of some kinds."""
    return [PAGE_MAPPING_FILE | number for number, file in k.address_spaces.items() if file.kind in kinds]


def _count(which: "np.ndarray[Any, Any] | Bool") -> int:
    return int(np.count_nonzero(which))
