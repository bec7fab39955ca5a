"""Reading and writing the memory of a task for a client that does not map the frames: a *remote* one.

Mirrors: access_process_vm, kernel/ptrace.c (2.6.15), with the accessed and dirty bits that a processor would set. Only
the daemon writes entries, so an entry that is looked at and a frame that is copied between two yields belong together:
no page can be unmapped, migrated or evicted in the middle. Bits are set before the bytes are touched, as in a window.
"""

import errno

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import U1
from numaemu_core.effects import Breathe, KernelTask
from numaemu_core.errors import MmError, SegmentationFault
from numaemu_core.intents import note, noted
from numaemu_core.kernel import Kernel
from numaemu_core.memory import sys_fault
from numaemu_core.mm_types import Task
from numaemu_core.page_flags import PG_HOSTED
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.runs import copy_bytes

_CAN_READ = np.uint64(PTE_PRESENT | PTE_READABLE)
_CAN_WRITE = np.uint64(PTE_PRESENT | PTE_WRITABLE)


def sys_read(k: Kernel, task: Task, addr: int, length: int) -> KernelTask[bytes]:
    """Bytes from `addr` on: up to the first that cannot be read, and at most REMOTE_BYTES_MAX.

    Raises:
        SegmentationFault, OutOfMemory: not even the first byte can be read.
    """
    data = np.empty(min(length, limits.REMOTE_BYTES_MAX), np.uint8)
    done = yield from _access(k, task, addr, data, len(data), write=False)
    return data[:done].tobytes()


def sys_write(k: Kernel, task: Task, addr: int, data: bytes) -> KernelTask[int]:
    """Copy bytes to `addr`; gives how many: up to the first that cannot be written.

    What is written is noted: a call that runs again after a death of the daemon goes on behind it.

    Raises:
        SegmentationFault, OutOfMemory: not even the first byte can be written.
    """
    return (yield from _access(k, task, addr, np.frombuffer(data, np.uint8), len(data), write=True))


def sys_touch(k: Kernel, task: Task, addr: int, length: int, *, write: bool) -> KernelTask[int]:
    """Access each page of a range, changing no byte; gives how many bytes, of at most FAULT_REQUEST_PAGES pages.

    Raises:
        SegmentationFault, OutOfMemory: not even the first page can be accessed.
    """
    most = (limits.FAULT_REQUEST_PAGES << k.page_shift) - (addr & (k.page_size - 1))
    return (yield from _access(k, task, addr, None, min(length, most), write=write))


def _access(k: Kernel, task: Task, addr: int, data: U1 | None, length: int, *, write: bool) -> KernelTask[int]:
    """Copy between memory and `data`, or only touch if that is None, faulting in what is not there."""
    before = noted(k)
    done: int = 0 if before is None else before[1]
    ask_pages = limits.FAULT_REQUEST_PAGES
    while done < length:
        here = addr + done
        moved = _access_present(k, task, here, None if data is None else data[done:], length - done, write=write)
        if moved:
            done += moved
            ask_pages = min(2 * ask_pages, limits.FAULT_REQUEST_PAGES)
            if write and data is not None:
                note(k, ["wrote", done])
            if done < length:
                yield Breathe()
            continue
        most = (ask_pages << k.page_shift) - (here & (k.page_size - 1))
        # A range larger than memory pushes out its own head before it is copied: ask for less and less until it stays.
        ask_pages = max(ask_pages // 2, 1)
        try:
            yield from sys_fault(k, task, here, min(length - done, most), write=write)
        except MmError:
            if done:  # whoever asks for the rest is told
                return done
            raise
    return done


def _access_present(k: Kernel, task: Task, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
    """Access the pages that are there at the head of [addr, addr + length); gives how many bytes that was. No yield."""
    if task.exiting or task.mm.dead:
        raise MmError(errno.ESRCH, f"task {task.pid} has ended")
    if addr >= limits.TASK_SIZE_BYTES:
        raise SegmentationFault(addr)
    first = addr >> k.page_shift
    end = ((min(addr + length, limits.TASK_SIZE_BYTES) - 1) >> k.page_shift) + 1
    flats = k.tables.walk(task.mm.pgd, np.arange(first, end))
    need = _CAN_WRITE if write else _CAN_READ
    entries = k.c.pte[flats]
    missing = np.flatnonzero((flats < 0) | (entries & need != need))
    count = int(missing[0]) if len(missing) else end - first
    if not count:
        return 0
    k.c.accessed[flats[:count]] = 1
    if write:
        k.c.dirty[flats[:count]] = 1
    offset = addr & (k.page_size - 1)
    length = min(length, (count << k.page_shift) - offset)
    if data is not None:
        pfns = (entries[:count] >> np.uint64(k.page_shift)).astype(np.int64)
        if write:
            k.c.pg_flags[pfns] &= ~np.uint16(PG_HOSTED)
        copy_bytes(k.c.frames, pfns, offset, data[:length], write=write)
    return length
