"""Present entries: what a new one says, and frames that become the anonymous pages of a VMA.

Mirrors: the ends of do_anonymous_page, do_wp_page and do_no_page, mm/memory.c (2.6.15).
"""

import numpy as np

from numaemu_core.columns import I8, U8
from numaemu_core.effects import KernelTask
from numaemu_core.kernel import Kernel
from numaemu_core.lru import lru_cache_add_active
from numaemu_core.mm_types import VM_SHARED, VM_WRITE, VmArea
from numaemu_core.page_flags import PG_HOSTED, PG_REFERENCED, PG_UPTODATE
from numaemu_core.page_table import PTE_WRITABLE, pte_lock_keys, vm_page_prot
from numaemu_core.rmap import put_pages, set_anon_identity
from numaemu_core.task_locks import spin_lock


def make_entries(k: Kernel, pfns: I8, bits: int) -> U8:
    """Entries that map frames."""
    return (pfns << k.page_shift | bits).astype(np.uint64)


def set_ptes(k: Kernel, flats: I8, entries: U8, *, dirty: int) -> None:
    """Entries become present: the bits first; the pte locks are held."""
    k.c.accessed[flats] = 1
    k.c.dirty[flats] = dirty
    k.c.pte[flats] = entries


def file_page_prot(vma: VmArea) -> int:
    """The bits of an entry for a page of a file: who shares it may write at once, a private mapping reads only."""
    shared = VM_SHARED | VM_WRITE
    return vm_page_prot(vma) | (PTE_WRITABLE if vma.vm_flags & shared == shared else 0)


def install_new_pages(k: Kernel, vma: VmArea, vpns: I8, flats: I8, expected: U8, pfns: I8) -> KernelTask[I8]:
    """Map new anonymous frames writable where the entries are still what was expected; gives the positions mapped.

    Frames that came too late are freed. Those for an mm whose bytes are elsewhere are zeros.
    """
    c = k.c
    set_anon_identity(k, vma, pfns, vpns)
    c.pg_flags[pfns] = PG_UPTODATE | PG_REFERENCED | (PG_HOSTED if vma.vm_mm.mirrored else 0)
    c.mapcount[pfns] = 1
    k.reach("fault.identity_set")
    yield from lru_cache_add_active(k, pfns)
    with (yield from spin_lock(k, pte_lock_keys(flats))):
        same = c.pte[flats] == expected
        if same.all():
            set_ptes(k, flats, make_entries(k, pfns, vm_page_prot(vma) | PTE_WRITABLE), dirty=1)
            return np.arange(len(pfns))
        entries = make_entries(k, pfns[same], vm_page_prot(vma) | PTE_WRITABLE)
        set_ptes(k, flats[same], entries, dirty=1)
    late = pfns[~same]
    c.mapcount[late] = 0
    yield from put_pages(k, late)
    return np.flatnonzero(same)
