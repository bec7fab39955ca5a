"""What /proc/PID/maps and /proc/PID/pagemap tell.

Mirrors: show_map_vma and pagemap_read, fs/proc/task_mmu.c (6.1).
"""

import errno
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE, Task, VmArea
from numaemu_core.page_flags import PAGE_MAPPING_FILE
from numaemu_core.page_table import is_migration, is_present, is_swapped
from numaemu_core.task_locks import down_read

_RIGHTS: Final = (VM_READ, VM_WRITE, VM_EXEC)
#: Pages that one pagemap answers for.
PAGEMAP_PAGES_MAX = limits.MESSAGE_BYTES_MAX // 8


def sys_maps(k: Kernel, task: Task) -> KernelTask[str]:
    """A line for each VMA: its span, rights, offset in bytes, inode and path."""
    with (yield from down_read(task.mm)):
        return "".join(_show_map_vma(k, vma) for vma in task.mm.vmas)


def _show_map_vma(k: Kernel, vma: VmArea) -> str:
    flags = vma.vm_flags
    rights = "".join(letter if flags & bit else "-" for letter, bit in zip("rwx", _RIGHTS, strict=True))
    rights += "s" if flags & VM_MAYSHARE else "p"
    line = f"{vma.vm_start:08x}-{vma.vm_end:08x} {rights}"
    if vma.vm_file is None:
        return f"{line} 00000000 00:00 0\n"
    return f"{line} {vma.vm_pgoff << k.page_shift:08x} 00:01 {vma.vm_file.i_ino} {vma.vm_file.name}\n"


def sys_pagemap(k: Kernel, task: Task, addr: int, length: int) -> KernelTask[str]:
    """A letter for each page of a range: P anonymous, F of a file or shared memory, S in swap, `.` none.

    The zero page is present and of no file: P.

    Raises:
        MmError: EINVAL: more pages than one answer holds, or beyond the address space.
    """
    first = addr >> k.page_shift
    end = (addr + length + k.page_size - 1) >> k.page_shift if length else first
    if end - first > PAGEMAP_PAGES_MAX or end > 1 << (limits.TABLE_LEVELS * limits.TABLE_SHIFT):
        raise MmError(errno.EINVAL, f"{end - first} pages at {addr:#x}: at most {PAGEMAP_PAGES_MAX}")
    marks = np.full(end - first, ord("."), np.uint8)
    with (yield from down_read(task.mm)):
        _, vpns, entries = k.tables.used_entries(task.mm.pgd, first, end)
        at = vpns - first
        mapped = is_present(entries)
        pfns = (entries[mapped] >> np.uint64(k.page_shift)).astype(np.int64)
        of_file = k.c.mapping[pfns] & PAGE_MAPPING_FILE != 0
        marks[at[mapped]] = np.where(of_file, ord("F"), ord("P"))
        marks[at[is_swapped(entries) | is_migration(entries)]] = ord("S")
    return marks.tobytes().decode()
