"""Where the pages of a task are.

Mirrors: do_pages_stat, mm/migrate.c (2.6.18), over a range of addresses.
"""

import errno

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, U8
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task, VmArea
from numaemu_core.page_table import is_present
from numaemu_core.task_locks import down_read

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
