"""A machine in the memory of this process, for one program: the core alone, run by its performer."""

from __future__ import annotations

import contextlib
import errno
import mmap
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from numaemu.ranges import usable_prefix
from numaemu.replay.host import MEMLOCK_BYTES, SIGKILL, Killed, Refused
from numaemu_core import files as core_files
from numaemu_core import fork, limits, memory
from numaemu_core.errors import BusError, MmError, OutOfMemory, SegmentationFault
from numaemu_core.fsck import fsck
from numaemu_core.performer import Performer
from numaemu_core.syscalls import SYSCALLS
from numaemu_core.sysctl import write_sysctl
from numaemu_core.uapi import CAPABILITIES, RLIMIT_MEMLOCK
from numaemu_core.wire import CALLS

if TYPE_CHECKING:
    from numaemu_core.mm_types import Mm, Task
    from numaemu_core.topology import Topology

#: Linux's value: the module has no name for it before Python 3.13.
_MAP_NORESERVE: Final = 0x4000
_WORD_BYTES: Final = 8


def _untouched(size_bytes: int) -> mmap.mmap:
    """Memory that takes room page by page, as it is touched, and is given back whole.

    From the heap it would be cleared by hand and kept, and where numpy asks for huge pages 2 MiB would come at a touch.
    """
    found = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    with contextlib.suppress(OSError):  # a kernel that has no huge pages
        found.madvise(mmap.MADV_NOHUGEPAGE)
    return found


class InMemory:
    """One machine; nothing of it outlives the program."""

    def __init__(self, topology: Topology) -> None:
        """Switch it on."""
        self._performer = Performer(topology, allocate=_untouched)
        self._k = self._performer.k
        self._page_size = topology.page_size

    def attach(self) -> int:
        """A process on the first CPU with every capability."""
        first_cpu = min(self._k.cpu_node)
        task = fork.attach(self._k, first_cpu, sorted(CAPABILITIES), None)
        self.call(task.pid, "setrlimit", RLIMIT_MEMLOCK, MEMLOCK_BYTES)
        return task.pid

    def fork(self, pid: int) -> int:
        """The pid of its child."""
        child = self.call(pid, "fork")
        return int(child.pid)

    def call(self, pid: int, name: str, *args: Any) -> Any:  # noqa: ANN401 - as Host
        """A system call, checked as the protocol checks it."""
        if name not in SYSCALLS:
            raise Refused(errno.ENOSYS)
        try:
            task = self._living_task(pid)
            checked = [check(value) for check, value in zip(CALLS[name][1:], args, strict=True)]
            result = self._performer.call(SYSCALLS[name](self._k, task, *checked))
        except OutOfMemory:
            raise Killed(SIGKILL) from None
        except MmError as refusal:
            raise Refused(refusal.errno) from None
        self._performer.run()
        return result

    def _living_task(self, pid: int) -> Task:
        task = fork.task_of(self._k, pid)
        if task.killed:
            raise Killed(SIGKILL)
        return task

    def machine(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - as Host
        """create_file and sysctl."""
        try:
            if name == "create_file":
                return core_files.create_file(self._k, *args).i_ino
            return write_sysctl(self._k, *args)
        except MmError as refusal:
            raise Refused(refusal.errno) from None

    # -- touching ------------------------------------------------------------------------------------------------------

    def touch(self, pid: int, addr: int, pages: int, values: list[int] | None) -> tuple[str, list[int]]:
        """Access what is there, run by run, and fault in what is not."""
        task = self._living_task(pid)
        if addr % self._page_size:
            return self._touch_across(task, addr, pages, values)
        written = None if values is None else np.array(values, np.int64)
        marks = ""
        found: list[int] = []
        # Memory that is short may be gone again before it is accessed: less is asked for, until it stays.
        ask_pages = limits.FAULT_REQUEST_PAGES
        while len(marks) < pages:
            done = len(marks)
            here = addr + done * self._page_size
            good = self._access(task.mm, here, None if written is None else written[done:], pages - done, found)
            if good:
                marks += "." * good
                ask_pages = limits.FAULT_REQUEST_PAGES
                continue
            try:
                self._fault(task, here, min(pages - done, ask_pages), write=written is not None)
                ask_pages = max(ask_pages // 2, 1)
            except SegmentationFault as fault:
                bad = self._refused_pages(task.mm, here, pages - done)
                marks += ("B" if isinstance(fault, BusError) else "S") * bad
                found += [-2] * bad
        self._performer.run()
        return marks, [] if written is not None else found

    def _touch_across(self, task: Task, addr: int, pages: int, values: list[int] | None) -> tuple[str, list[int]]:
        """The same from the middle of a page on: what counts as the ends of a page may lie in two."""
        marks, found = "", []
        for number in range(pages):
            start = addr + number * self._page_size
            new = b"" if values is None else struct.pack("<q", values[number])
            try:
                ends = [self._access_word(task, at, new) for at in (start, start + self._page_size - _WORD_BYTES)]
                marks += "."
                found.append(ends[0] if ends[0] == ends[1] else -1)
            except SegmentationFault as fault:
                marks += "B" if isinstance(fault, BusError) else "S"
                found.append(-2)
        self._performer.run()
        return marks, [] if values is not None else found

    def _access_word(self, task: Task, addr: int, new: bytes) -> int:
        """Read 8 bytes anywhere, or write `new`: not a byte of it where one of their pages may not be accessed."""
        k, first = self._k, addr // self._page_size
        vpns = np.arange(first, (addr + _WORD_BYTES - 1) // self._page_size + 1)
        while True:
            flats = k.tables.walk(task.mm.pgd, vpns)
            entries = np.where(flats >= 0, k.c.pte[flats], np.uint64(0))
            good = usable_prefix(entries, write=bool(new))
            if good == len(vpns):
                break
            self._fault(task, (first + good) * self._page_size, 1, write=bool(new))
        k.c.accessed[flats] = 1
        body = b""
        for flat, entry, vpn in zip(flats.tolist(), entries.tolist(), vpns.tolist(), strict=True):
            low = max(addr - vpn * self._page_size, 0)
            high = min(addr + _WORD_BYTES - vpn * self._page_size, self._page_size)
            cells = k.c.frames[entry >> k.page_shift, low:high]
            if new:
                k.c.dirty[flat] = 1
                cells[:] = np.frombuffer(new, np.uint8)[len(body) : len(body) + high - low]
            body += cells.tobytes()
        return int.from_bytes(body, "little", signed=True)

    def _fault(self, task: Task, addr: int, pages: int, *, write: bool) -> None:
        try:
            self._performer.call(memory.sys_fault(self._k, task, addr, pages * self._page_size, write=write))
        except OutOfMemory:
            raise Killed(SIGKILL) from None

    def _access(self, mm: Mm, addr: int, values: np.ndarray | None, pages: int, found: list[int]) -> int:
        """Read the ends of the pages that are there from `addr` on into `found`, or write them; gives how many."""
        k = self._k
        first = addr // self._page_size
        flats = k.tables.walk(mm.pgd, np.arange(first, first + min(pages, limits.FAULT_REQUEST_PAGES)))
        entries = np.where(flats >= 0, k.c.pte[flats], np.uint64(0))
        good = usable_prefix(entries, write=values is not None)
        pfns = (entries[:good] >> np.uint64(k.page_shift)).astype(np.int64)
        k.c.accessed[flats[:good]] = 1
        cells = k.c.frames.view(np.int64)
        if values is None:
            first_words = cells[pfns, 0]
            found += np.where(first_words == cells[pfns, -1], first_words, -1).tolist()
        else:
            k.c.dirty[flats[:good]] = 1
            values = values[:good]
            # What is there already is not written: a page of zeros takes no memory of the host.
            other = (cells[pfns, 0] != values) | (cells[pfns, -1] != values)
            cells[pfns[other], 0] = cells[pfns[other], -1] = values[other]
        return good

    def _refused_pages(self, mm: Mm, addr: int, pages: int) -> int:
        """How many pages from one that was refused share its fate: up to the next mapping, or to the end of its own."""
        vma = mm.vmas.find_vma(addr)
        if vma is None:
            return pages
        end = vma.vm_start if vma.vm_start > addr else vma.vm_end
        return min(pages, (end - addr) // self._page_size)

    # -- the end -------------------------------------------------------------------------------------------------------

    def fsck(self) -> list[str]:
        """Check it."""
        self._performer.run()
        return fsck(self._k)

    def close(self) -> None:
        """Give its memory back."""
        self._performer.close()
        del self._performer, self._k
