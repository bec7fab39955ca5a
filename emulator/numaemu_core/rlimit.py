"""How much a task may lock and map. Mirrors: mm/mlock.c and may_expand_vm, mm/mmap.c (2.6.15, 6.1)."""

import errno

from numaemu_core import limits
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import VM_LOCKED, Mm, Task


def can_do_mlock(task: Task) -> bool:
    """May the task lock anything at all?"""
    return task.rlimit_memlock != 0 or "CAP_IPC_LOCK" in task.capabilities


def locked_bytes(mm: Mm, start: int = 0, end: int = limits.TASK_SIZE_BYTES) -> int:
    """How much of a range is locked (locked_vm, count_mm_mlocked_page_nr)."""
    spans = (vma for vma in mm.vmas.overlapping(start, end) if vma.vm_flags & VM_LOCKED)
    return sum(min(end, vma.vm_end) - max(start, vma.vm_start) for vma in spans)


def mapped_bytes(mm: Mm, start: int, end: int) -> int:
    """How much of a range is mapped (count_vma_pages_range)."""
    return sum(min(end, vma.vm_end) - max(start, vma.vm_start) for vma in mm.vmas.overlapping(start, end))


def may_lock(k: Kernel, task: Task, more_bytes: int) -> bool:
    """Is there room under RLIMIT_MEMLOCK, in pages?"""
    if task.rlimit_memlock is None or "CAP_IPC_LOCK" in task.capabilities:
        return True
    return locked_bytes(task.mm) + more_bytes <= task.rlimit_memlock & -k.page_size


def check_locking(k: Kernel, task: Task, more_bytes: int, locked: int, *, asked: bool) -> None:
    """May a new mapping be locked? `asked`: by MAP_LOCKED.

    Raises:
        MmError: EPERM (the limit is 0), EAGAIN (RLIMIT_MEMLOCK).
    """
    if asked and not can_do_mlock(task):
        raise MmError(errno.EPERM, "RLIMIT_MEMLOCK is 0")
    if locked and not may_lock(k, task, more_bytes):
        raise MmError(errno.EAGAIN, f"RLIMIT_MEMLOCK is {task.rlimit_memlock} bytes")


def check_address_space(task: Task, more_bytes: int) -> None:
    """Is there room under RLIMIT_AS (may_expand_vm)?

    Raises:
        MmError: ENOMEM.
    """
    if task.rlimit_as is None:
        return
    if sum(vma.vm_end - vma.vm_start for vma in task.mm.vmas) + more_bytes > task.rlimit_as:
        raise MmError(errno.ENOMEM, f"RLIMIT_AS is {task.rlimit_as} bytes")
