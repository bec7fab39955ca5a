"""mlock and its siblings: pages that are faulted in and stay. Mirrors: mm/mlock.c (2.6.15, 6.1)."""

import errno

from numaemu_core import limits
from numaemu_core.effects import KernelTask
from numaemu_core.errors import BusError, MmError, OutOfMemory
from numaemu_core.gup import populate_vma_range
from numaemu_core.intents import note, noted
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import VM_ACCESS_FLAGS, VM_LOCKED, VM_LOCKONFAULT, Mm, Task, VmArea
from numaemu_core.mmap import page_align
from numaemu_core.rlimit import can_do_mlock, locked_bytes, may_lock
from numaemu_core.task_locks import down_write
from numaemu_core.uapi import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, MLOCK_ONFAULT
from numaemu_core.vma_flags import change_flags, each_vma

_LOCK_FLAGS = VM_LOCKED | VM_LOCKONFAULT


def sys_mlock(k: Kernel, task: Task, start: int, length: int) -> KernelTask[int]:
    """Fault a range in and keep it: its pages cannot be unmapped.

    Raises:
        MmError: EPERM (the limit is 0), ENOMEM (over RLIMIT_MEMLOCK; a hole: what lies before it is locked; a page that
            cannot be faulted in), EAGAIN (no frame), EINVAL (the range wraps).
    """
    return (yield from _do_mlock(k, task, start, length, VM_LOCKED))


def sys_mlock2(k: Kernel, task: Task, start: int, length: int, flags: int) -> KernelTask[int]:
    """mlock; with MLOCK_ONFAULT pages are kept from their first touch on, and none is faulted in (4.4).

    Raises:
        MmError: as sys_mlock; EINVAL: other flags; ENOSYS: the kernel has no such call.
    """
    if not k.profile.mlock_on_fault:
        raise MmError(errno.ENOSYS, "mlock2 came in 4.4")
    if flags & ~MLOCK_ONFAULT:
        raise MmError(errno.EINVAL, f"flags {flags:#x} are not MLOCK_ONFAULT")
    bits = _LOCK_FLAGS if flags & MLOCK_ONFAULT else VM_LOCKED
    return (yield from _do_mlock(k, task, start, length, bits))


def sys_munlock(k: Kernel, task: Task, start: int, length: int) -> KernelTask[int]:
    """Undo mlock for a range.

    Raises:
        MmError: ENOMEM (a hole; what lies before it is unlocked), EINVAL (the range wraps).
    """
    start, end = _lock_span(k, start, length)
    with (yield from down_write(task.mm)):
        whole = _apply_lock_flags(k, task.mm, start, end, 0)
    if not whole:
        raise MmError(errno.ENOMEM, "the range has a hole")
    return 0


def _lock_span(k: Kernel, start: int, length: int) -> tuple[int, int]:
    """The whole pages of a range; a length that wraps is none."""
    size = page_align(k, length + (start & (k.page_size - 1)))
    start &= -k.page_size
    if start + size >= 1 << 64:
        raise MmError(errno.EINVAL, "the range wraps around")
    return start, start + size


def _do_mlock(k: Kernel, task: Task, start: int, length: int, bits: int) -> KernelTask[int]:
    if not can_do_mlock(task):
        raise MmError(errno.EPERM, "RLIMIT_MEMLOCK is 0")
    size = page_align(k, length + (start & (k.page_size - 1)))
    start &= -k.page_size
    end = start + size
    mm = task.mm
    with (yield from down_write(mm)):
        changed: list[tuple[int, int]] = []
        if (locked := noted(k)) is not None:
            whole, changed = locked[1], locked[2]
        else:
            already = 0 if k.profile.mlock_counts_twice else locked_bytes(mm, start, min(end, limits.TASK_SIZE_BYTES))
            if not may_lock(k, task, end - start - already):
                raise MmError(errno.ENOMEM, f"RLIMIT_MEMLOCK is {task.rlimit_memlock} bytes")
            if end >= 1 << 64:
                raise MmError(errno.EINVAL, "the range wraps around")
            with k.journal.together():
                whole = _apply_lock_flags(k, mm, start, end, bits, changed)
                note(k, ["locked", whole, changed])
        if not whole and not k.profile.mlock_populates_as_it_goes:
            raise MmError(errno.ENOMEM, "the range has a hole")
        for span in changed if k.profile.mlock_populates_as_it_goes else [(start, end)]:
            for vma in mm.vmas.overlapping(*span):
                yield from _populate(k, task, vma, *span)
    if not whole:
        raise MmError(errno.ENOMEM, "the range has a hole")
    return 0


def _apply_lock_flags(
    k: Kernel, mm: Mm, start: int, end: int, bits: int, changed: list[tuple[int, int]] | None = None
) -> bool:
    """Set or clear the lock flags up to the first hole; False where there was one (apply_vma_lock_flags).

    `changed` gets the spans whose flags were others.
    """

    def fixup(vma: VmArea) -> VmArea:
        vm_flags = vma.vm_flags & ~_LOCK_FLAGS | bits
        if vm_flags != vma.vm_flags and changed is not None:
            changed.append((max(start, vma.vm_start), min(end, vma.vm_end)))
        return change_flags(k, vma, start, end, vm_flags)

    try:
        return each_vma(mm, start, end, fixup)
    finally:
        k.journal.vmas(mm, start, min(end, limits.TASK_SIZE_BYTES))


def _populate(k: Kernel, task: Task, vma: VmArea, start: int, end: int) -> KernelTask[None]:
    """Fault a locked range in (__mm_populate); what cannot be is refused in today's kernels, left alone in 2.6.15."""
    try:
        if not vma.vm_flags & VM_ACCESS_FLAGS and k.profile.mlock_reports_faults and not vma.vm_flags & VM_LOCKONFAULT:
            raise MmError(errno.ENOMEM, "a mapping without rights cannot be faulted in")
        yield from populate_vma_range(k, task, vma, start, end)
    except OutOfMemory:
        if k.profile.mlock_reports_faults:
            raise MmError(errno.EAGAIN, "no frame is left") from None
    except BusError as error:
        if k.profile.mlock_reports_faults:
            raise MmError(errno.ENOMEM, error.detail) from None


def sys_mlockall(k: Kernel, task: Task, flags: int) -> KernelTask[int]:
    """Lock everything that is mapped (MCL_CURRENT), everything that will be (MCL_FUTURE), from its touch on (ONFAULT).

    Raises:
        MmError: EINVAL (no flag, or others), EPERM (the limit is 0), ENOMEM (more is mapped than the limit allows).
    """
    known = MCL_CURRENT | MCL_FUTURE | (MCL_ONFAULT if k.profile.mlock_on_fault else 0)
    if not flags or flags & ~known or flags == MCL_ONFAULT:
        raise MmError(errno.EINVAL, f"flags {flags:#x} are not MCL_CURRENT, MCL_FUTURE or both")
    if not can_do_mlock(task):
        raise MmError(errno.EPERM, "RLIMIT_MEMLOCK is 0")
    mm = task.mm
    bits = _LOCK_FLAGS if flags & MCL_ONFAULT else VM_LOCKED
    with (yield from down_write(mm)):
        total = sum(vma.vm_end - vma.vm_start for vma in mm.vmas)
        if flags & MCL_CURRENT and not may_lock(k, task, total - locked_bytes(mm)):
            raise MmError(errno.ENOMEM, f"RLIMIT_MEMLOCK is {task.rlimit_memlock} bytes")
        mm.def_flags = bits if flags & MCL_FUTURE else 0
        k.journal.mm(mm)
        if flags & MCL_CURRENT:
            changed: list[tuple[int, int]] = []
            spans = [(vma.vm_start, vma.vm_end) for vma in mm.vmas]
            for span in spans:
                _apply_lock_flags(k, mm, *span, bits, changed)
            for span in changed if k.profile.mlock_populates_as_it_goes else spans:
                for vma in mm.vmas.overlapping(*span):
                    yield from _populate_quietly(k, task, vma, *span)
    return 0


def _populate_quietly(k: Kernel, task: Task, vma: VmArea, start: int, end: int) -> KernelTask[None]:
    try:
        yield from populate_vma_range(k, task, vma, start, end)
    except (OutOfMemory, BusError):
        return


def sys_munlockall(k: Kernel, task: Task) -> KernelTask[int]:
    """Unlock everything, now and in future."""
    mm = task.mm
    with (yield from down_write(mm)):
        mm.def_flags = 0
        k.journal.mm(mm)
        for start, end in [(vma.vm_start, vma.vm_end) for vma in mm.vmas]:
            _apply_lock_flags(k, mm, start, end, 0)
    return 0
