"""A machine of real processes, for one program: every call goes through the library."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numaemu as nm
from numaemu.private import boot
from numaemu.replay.host import MEMLOCK_BYTES, SIGKILL, Killed, Refused
from numaemu_core.uapi import CAPABILITIES, RLIMIT_MEMLOCK

if TYPE_CHECKING:
    from numaemu.task import Task
    from numaemu_core.topology import Topology


class InProcesses:
    """A private machine that lives as long as the program."""

    def __init__(self, topology: Topology) -> None:
        """Start it."""
        self._boot = boot(topology=topology.as_dict())
        self._machine = self._boot.__enter__()
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
        try:
            child = self._tasks[pid].fork()
        except OSError as refusal:
            raise Refused(refusal.errno or 0) from None
        self._tasks[child.pid] = child
        return child.pid

    def call(self, pid: int, name: str, *args: Any) -> Any:  # noqa: ANN401 - as Host
        """A system call as it stands."""
        try:
            if name == "exit":
                self._tasks.pop(pid).close()
                return 0
            return self._tasks[pid]._call(name, *args)  # noqa: SLF001 - the calls as the protocol has them
        except nm.OutOfMemory:
            raise Killed(SIGKILL) from None
        except OSError as refusal:
            raise Refused(refusal.errno or 0) from None

    def machine(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - as Host
        """A call of the machine."""
        try:
            return self._machine._calls.call(name, *args)  # noqa: SLF001 - as above
        except OSError as refusal:
            raise Refused(refusal.errno or 0) from None

    def touch(self, pid: int, addr: int, pages: int, values: list[int] | None) -> tuple[str, list[int]]:
        """Touch page after page through the mapped memory."""
        task = self._tasks[pid]
        marks: list[str] = []
        found: list[int] = []
        for number in range(pages):
            at = addr + number * self._page_size
            try:
                if values is None:
                    found.append(self._read_ends(task, at))
                else:
                    body = struct.pack("<q", values[number])
                    task.write(at, body)
                    task.write(at + self._page_size - len(body), body)
            except nm.OutOfMemory:
                raise Killed(SIGKILL) from None
            except nm.BusError:
                marks.append("B")
            except nm.SegmentationFault:
                marks.append("S")
            else:
                marks.append(".")
                continue
            if values is None:
                found.append(-2)
        return "".join(marks), found

    def _read_ends(self, task: Task, at: int) -> int:
        first, last = (struct.unpack("<q", task.read(at + offset, 8))[0] for offset in (0, self._page_size - 8))
        return int(first) if first == last else -1

    def fsck(self) -> list[str]:
        """Check it."""
        return self._machine.fsck()

    def close(self) -> None:
        """End it."""
        self._boot.__exit__(None, None, None)
