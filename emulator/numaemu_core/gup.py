"""Faulting pages in for somebody else than their task at that moment: of ranges, and of pages here and there.

Mirrors: get_user_pages, mm/memory.c (2.6.15); mm/gup.c (6.1).
"""

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8
from numaemu_core.effects import Breathe, KernelTask
from numaemu_core.errors import BusError, OutOfMemory
from numaemu_core.kernel import Kernel
from numaemu_core.memory import (
    FaultRetries,
    accessible_pages,
    accessible_vma,
    handle_mm_fault,
    handle_pte_faults,
    pages_at_a_time,
)
from numaemu_core.mm_types import VM_ACCESS_FLAGS, VM_LOCKONFAULT, VM_SHARED, VM_WRITE, Task, VmArea
from numaemu_core.page_flags import PG_DIRTY
from numaemu_core.page_table import is_present, is_writable
from numaemu_core.task_locks import down_read


def make_pages_present(k: Kernel, task: Task, start: int, end: int) -> KernelTask[None]:
    """Fault a range in, for writing where the VMA allows it; errors end it quietly (2.6.15 make_pages_present)."""
    try:
        for vma in task.mm.vmas.overlapping(start, end):
            yield from populate_vma_range(k, task, vma, start, end)
    except (OutOfMemory, BusError):
        return


def populate_vma_range(k: Kernel, task: Task, vma: VmArea, start: int, end: int) -> KernelTask[None]:
    """Fault in what a VMA has of a range, for writing where that is what its pages are for.

    Mirrors: get_user_pages of make_pages_present (2.6.15), populate_vma_page_range, mm/gup.c (6.1).

    Raises:
        OutOfMemory, BusError: a page cannot be had; those before it are there.
    """
    if not vma.vm_flags & VM_ACCESS_FLAGS or vma.vm_flags & VM_LOCKONFAULT:
        return
    wanted = VM_WRITE if k.profile.populate_writes_shared else VM_WRITE | VM_SHARED
    write = vma.vm_flags & wanted == VM_WRITE
    first, last = max(start, vma.vm_start) >> k.page_shift, min(end, vma.vm_end) >> k.page_shift
    yield from faultin_page_range(k, task, vma, first, last, write=write)


def faultin_page_range(
    k: Kernel, task: Task, vma: VmArea, first_vpn: int, end_vpn: int, *, write: bool
) -> KernelTask[None]:
    """Fault in the pages [first_vpn, end_vpn) of a VMA that allows it (5.14 faultin_page_range).

    Raises:
        OutOfMemory, BusError: a page cannot be had; those before it are there.
    """
    vpn, retries = first_vpn, FaultRetries()
    while vpn < end_vpn:
        stop = min(end_vpn, vpn + _pages_per_step(k))
        try:
            yield from _get_user_pages(k, task, vma, vpn, stop, write=write)
            vpn, retries = stop, FaultRetries()
        except (OutOfMemory, BusError) as error:
            done = accessible_pages(k, task.mm, np.arange(vpn, stop), write=write)
            if done:
                vpn, retries = vpn + done, FaultRetries()
            elif not retries.is_worth_another(k, task, error):
                raise
        yield Breathe()


def _pages_per_step(k: Kernel) -> int:
    return min(k.batch_pages, pages_at_a_time(k))


def _get_user_pages(
    k: Kernel, task: Task, vma: VmArea, first_vpn: int, end_vpn: int, *, write: bool
) -> KernelTask[None]:
    """handle_mm_fault for a caller that takes the pages as touched: with `write` they become dirty in any case.

    Mirrors: __get_user_pages and follow_page with FOLL_TOUCH (2.6.15, 6.1).

    Raises:
        OutOfMemory, BusError: as handle_mm_fault.
    """
    yield from handle_mm_fault(k, task, vma, first_vpn, end_vpn, write=write)
    if write:
        flats = k.tables.walk(vma.vm_mm.pgd, np.arange(first_vpn, end_vpn))
        flats = flats[flats >= 0]
        entries = k.c.pte[flats]
        clean = is_present(entries) & is_writable(entries) & (k.c.dirty[flats] == 0)
        k.c.pg_flags[(entries[clean] >> np.uint64(k.page_shift)).astype(np.int64)] |= PG_DIRTY


def fault_in_pages(k: Kernel, task: Task, vpns: I8, *, write: bool) -> KernelTask[None]:
    """Make pages here and there accessible, as if the task accessed one after the other.

    Shapes: `vpns` int64[n], ascending.

    Raises:
        SegmentationFault: a page may not be accessed so. OutOfMemory, BusError: a page cannot be had. Those before it
            are there.
    """
    retries = FaultRetries()
    with (yield from down_read(task.mm)):
        while len(vpns):
            if task.killed:
                raise OutOfMemory("the task was killed: out of memory")
            vma = accessible_vma(k, task.mm, int(vpns[0]), write=write)
            here = vpns
            if len(vpns) > 1:
                here = vpns[: _pages_per_step(k)]
                here = here[: int(np.searchsorted(here, vma.vm_end >> k.page_shift))]
            try:
                done = yield from _fault_in_some(k, task, vma, here, write=write)
            except (OutOfMemory, BusError) as error:
                done = accessible_pages(k, task.mm, here, write=write)
                if not done and not retries.is_worth_another(k, task, error):
                    raise
            if done:
                vpns, retries = vpns[done:], FaultRetries()
            if len(vpns):
                yield Breathe()


def _fault_in_some(k: Kernel, task: Task, vma: VmArea, vpns: I8, *, write: bool) -> KernelTask[int]:
    """The first of these pages of a VMA, as many as may be at one time; gives how many. Raises as handle_mm_fault."""
    first, end = int(vpns[0]), int(vpns[-1]) + 1
    if end - first == len(vpns):
        yield from handle_mm_fault(k, task, vma, first, end, write=write)
        return len(vpns)
    other_tables = np.flatnonzero(np.diff(vpns >> limits.TABLE_SHIFT)) + 1
    if len(other_tables) >= limits.PTE_LOCK_BATCH:
        vpns = vpns[: other_tables[limits.PTE_LOCK_BATCH - 1]]
    flats = k.tables.pte_alloc_some(task.mm.pgd, vpns)
    yield from handle_pte_faults(k, task, vma, vpns[: len(flats)], flats, write=write)
    return len(flats)
