"""A machine in the memory of this process, for one program: the core alone, run by its performer."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from numaemu.replay.host import Killed, Refused
from numaemu_core import files as core_files
from numaemu_core import fork, memory
from numaemu_core.errors import BusError, MmError, OutOfMemory, SegmentationFault
from numaemu_core.fsck import fsck
from numaemu_core.performer import Performer
from numaemu_core.syscalls import SYSCALLS
from numaemu_core.sysctl import write_sysctl
from numaemu_core.uapi import CAPABILITIES
from numaemu_core.wire import CALLS

if TYPE_CHECKING:
    from numaemu_core.topology import Topology

_SIGKILL: Final = 9
#: RLIMIT_MEMLOCK of every process of a program.
MEMLOCK_BYTES: Final = 64 << 20


class InMemory:
    """One machine; nothing of it outlives the program."""

    def __init__(self, topology: Topology) -> None:
        """Switch it on."""
        self._performer = Performer(topology)
        self._k = self._performer.k
        self._page_size = topology.page_size

    def attach(self) -> int:
        """A process on the first CPU with every capability."""
        first_cpu = min(self._k.cpu_node)
        task = fork.attach(self._k, first_cpu, sorted(CAPABILITIES), None)
        task.rlimit_memlock = MEMLOCK_BYTES
        return task.pid

    def fork(self, pid: int) -> int:
        """The pid of its child."""
        child = self.call(pid, "fork")
        return int(child.pid)

    def call(self, pid: int, name: str, *args: Any) -> Any:  # noqa: ANN401 - as Host
        """A system call, checked as the protocol checks it."""
        try:
            task = fork.task_of(self._k, pid)
            checked = [check(value) for check, value in zip(CALLS[name][1:], args, strict=True)]
            result = self._performer.call(SYSCALLS[name](self._k, task, *checked))
        except KeyError:
            raise Refused(errno.ENOSYS) from None
        except OutOfMemory:
            raise Killed(_SIGKILL) from None
        except MmError as refusal:
            raise Refused(refusal.errno) from None
        self._performer.run()
        return result

    def machine(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - as Host
        """create_file and sysctl."""
        try:
            if name == "create_file":
                return core_files.create_file(self._k, *args).i_ino
            return write_sysctl(self._k, *args)
        except MmError as refusal:
            raise Refused(refusal.errno) from None

    def touch(self, pid: int, addr: int, pages: int, values: list[int] | None) -> tuple[str, list[int]]:
        """Fault the pages in, run by run, then read or write their ends."""
        task = fork.task_of(self._k, pid)
        marks = ["."] * pages
        done = 0
        while done < pages:
            body = memory.sys_fault(
                self._k,
                task,
                addr + done * self._page_size,
                (pages - done) * self._page_size,
                write=values is not None,
            )
            try:
                done += self._performer.call(body) // self._page_size
            except OutOfMemory:
                raise Killed(_SIGKILL) from None
            except SegmentationFault as fault:
                marks[done] = "B" if isinstance(fault, BusError) else "S"
                done += 1
        self._performer.run()
        return "".join(marks), self._ends(task.mm.pgd, addr, np.array([mark == "." for mark in marks]), values)

    def _ends(self, pgd: int, addr: int, good: np.ndarray, values: list[int] | None) -> list[int]:
        """Read the first and last 8 bytes of each page that is there, or write them."""
        k = self._k
        first = addr // self._page_size
        flats = k.tables.walk(pgd, np.arange(first, first + len(good))[good])
        pfns = (k.c.pte[flats] >> np.uint64(k.page_shift)).astype(np.int64)
        cells = k.c.frames.view(np.int64)
        k.c.accessed[flats] = 1
        if values is not None:
            k.c.dirty[flats] = 1
            cells[pfns, 0] = cells[pfns, -1] = np.array(values)[good]
            return []
        found = np.full(len(good), -2)
        found[good] = np.where(cells[pfns, 0] == cells[pfns, -1], cells[pfns, 0], -1)
        return found.tolist()

    def fsck(self) -> list[str]:
        """Check it."""
        self._performer.run()
        return fsck(self._k)

    def close(self) -> None:
        """Nothing stays behind."""
