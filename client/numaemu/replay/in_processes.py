"""A machine of real processes, for one program: every call goes through the library."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, Any, Final

import numaemu as nm
from numaemu.private import boot
from numaemu.replay.host import MEMLOCK_BYTES, SIGKILL, Killed, Refused
from numaemu_core.uapi import CAPABILITIES, RLIMIT_MEMLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numaemu.task import Task
    from numaemu_core.topology import Topology

#: Longer ranges are faulted in as a whole before they are touched page by page.
_SINGLE_PAGES_MAX: Final = 64
_WORD: Final = struct.Struct("<q")


class InProcesses:
    """A private machine that lives as long as the program."""

    def __init__(self, topology: Topology) -> None:
        """Start it; it takes the host's memory only where the program touches it."""
        self._machine = boot(topology={**topology.as_dict(), "preallocate": False})
        self._first_cpu = min(cpu for node in topology.nodes for cpu in node.cpus)
        self._page_size = topology.page_size
        self._tasks: dict[int, Task] = {}

    def attach(self) -> int:
        """A process on the first CPU with every capability."""
        task = self._machine.attach(cpu=self._first_cpu, capabilities=CAPABILITIES)
        task.setrlimit(RLIMIT_MEMLOCK, MEMLOCK_BYTES)
        self._tasks[task.pid] = task
        return task.pid

    def fork(self, pid: int) -> int:
        """The pid of its child."""
        with _refusals_told():
            child = self._tasks[pid].fork()
        self._tasks[child.pid] = child
        return child.pid

    def call(self, pid: int, name: str, *args: Any) -> Any:  # noqa: ANN401 - as Host
        """A system call as it stands."""
        with _refusals_told():
            if name == "exit":
                self._tasks.pop(pid).close()
                return 0
            try:
                return self._tasks[pid]._call(name, *args)  # noqa: SLF001 - the calls as the protocol has them
            except nm.SegmentationFault as fault:
                raise Refused(fault.errno) from None

    def machine(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - as Host
        """A call of the machine."""
        with _refusals_told():
            return self._machine._calls.call(name, *args)  # noqa: SLF001 - as above

    # -- touching ------------------------------------------------------------------------------------------------------

    def touch(self, pid: int, addr: int, pages: int, values: list[int] | None) -> tuple[str, list[int]]:
        """Touch page after page through the mapped memory."""
        task = self._tasks[pid]
        if pages > _SINGLE_PAGES_MAX:
            with _refusals_told(), contextlib.suppress(nm.SegmentationFault):
                task.touch(addr, pages * self._page_size, write=values is not None)
        marks: list[str] = []
        found: list[int] = []
        for number in range(pages):
            at = addr + number * self._page_size
            try:
                with _refusals_told():
                    if values is None:
                        found.append(self._read_ends(task, at))
                    else:
                        self._write_ends(task, at, values[number])
            except nm.SegmentationFault as fault:
                marks.append("B" if isinstance(fault, nm.BusError) else "S")
                if values is None:
                    found.append(-2)
            else:
                marks.append(".")
        return "".join(marks), found

    def _write_ends(self, task: Task, at: int, value: int) -> None:
        body = _WORD.pack(value)
        task.write(at, body)
        task.write(at + self._page_size - _WORD.size, body)

    def _read_ends(self, task: Task, at: int) -> int:
        first, last = (task.read(at + offset, _WORD.size) for offset in (0, self._page_size - _WORD.size))
        return int(_WORD.unpack(first)[0]) if first == last else -1

    # -- the end -------------------------------------------------------------------------------------------------------

    def fsck(self) -> list[str]:
        """Check it."""
        return self._machine.fsck()

    def close(self) -> None:
        """End it."""
        self._machine.close()


@contextlib.contextmanager
def _refusals_told() -> Iterator[None]:
    """What the library raises, as a program is told of it; faults of an access pass."""
    try:
        yield
    except nm.OutOfMemory:
        raise Killed(SIGKILL) from None
    except OSError as refusal:
        raise Refused(refusal.errno or 0) from None
