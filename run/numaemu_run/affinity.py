"""Calls about the CPUs of a thread. Emulated CPUs are numbers: where the thread really runs stays the host's business.

A thread counts as running on one CPU until it is forbidden to; that CPU's node is where its local pages come from.
Source: kernel/sched/syscalls.c, kernel/sys.c (6.12).
"""

import contextlib
import errno
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from numaemu_core.nodemask import first_node
from numaemu_run import target, vdso
from numaemu_run.abi import Abi
from numaemu_run.family import Family
from numaemu_run.image import may_have_one_memory
from numaemu_run.kernel import Kernel
from numaemu_run.node_tree import NodeTree
from numaemu_run.processes import Process, Thread
from numaemu_run.procfs import Status, live_threads_of, status_of
from numaemu_run.seccomp import Notification

#: A CPU and its node.
_PLACE: Final = struct.Struct("=II")
_WORD_BYTES: Final = 8
#: Who asks so many times between two looks is told, until it moves.
_OFTEN: Final = 100
#: Bytes of a mask that are looked at: no machine has more CPUs.
_MASK_BYTES_MAX: Final = 1024 // 8


class AffinityCalls:
    """Serves them for the threads of a family. Each gives what the call returns, None: what the host says."""

    def __init__(self, kernel: Kernel, family: Family, tree: NodeTree, abi: Abi) -> None:
        """CPUs are those of the tree."""
        self._kernel = kernel
        self._family = family
        self._tree = tree
        self._abi = abi
        self._pairs = target.PairWriter()
        self._places = {cpu: _PLACE.pack(cpu, node) for cpu, node in tree.cpu_node.items()}
        self.handlers: Final[Mapping[str, Callable[[Notification, Thread], int | None]]] = MappingProxyType(
            {
                "getcpu": self.getcpu,
                "sched_getaffinity": self._sched_getaffinity,
                "sched_setaffinity": self._sched_setaffinity,
            }
        )

    def getcpu(self, call: Notification, thread: Thread) -> int:
        """The system call. OSError: EFAULT."""
        args = call.args
        thread.process.cpu_questions += 1
        self._pairs.write(call.tid, args[0], args[1], self._places[thread.cpu])
        return 0

    def _sched_getaffinity(self, call: Notification, thread: Thread) -> int | None:
        """None: of a thread outside of the run the host tells."""
        pid, length, mask_at, *_ = call.args
        length &= (1 << 32) - 1
        if length * 8 < self._tree.cpu_bits or length % _WORD_BYTES:
            raise OSError(errno.EINVAL, f"a mask of {length} bytes")
        whose = self._family.named(thread, pid)
        if whose is None:
            return None
        room = min(length, -(-self._tree.cpu_bits // 64) * _WORD_BYTES)
        target.write(call.tid, mask_at, whose.cpus.to_bytes(room, "little"))
        return room

    def _sched_setaffinity(self, call: Notification, thread: Thread) -> int:
        pid, length, mask_at, *_ = call.args
        body = target.read(call.tid, mask_at, min(length & (1 << 32) - 1, _MASK_BYTES_MAX))
        cpus = int.from_bytes(body, "little") & self._tree.cpus
        whose = self._family.named(thread, pid)
        if whose is None:
            raise OSError(errno.ESRCH, f"thread {pid} does not run on this machine")
        if whose is not thread and not _may_set(status_of(thread.tid), status_of(whose.tid)):
            raise OSError(errno.EPERM, f"thread {pid} is another user's")
        if not cpus:
            raise OSError(errno.EINVAL, "no CPU of the mask is there")
        self._family.settle_before_change(whose)
        stays = cpus >> whose.cpu & 1
        if not stays:
            with contextlib.suppress(ProcessLookupError):  # who has ended asks no more
                vdso.ask(self._abi, whose.folder)
        whose.cpus = cpus
        if not stays:
            whose.cpu = first_node(cpus)
            self._kernel.call(whose.task, "set_cpu", whose.cpu)
        return 0

    def tell_who_asks_often(self) -> None:
        """Processes whose threads all count as running on one CPU need not ask again until one of them does not."""
        for process in self._family:
            asked, process.cpu_questions = process.cpu_questions, 0
            if asked >= _OFTEN and process.executor is None:
                with self._family.troubles.confined():
                    self._tell(process)

    def _tell(self, process: Process) -> None:
        """Tell a process its CPU, if all who have its memory count as running on that one."""
        live = set(live_threads_of(process.pid))
        threads = [thread for tid, thread in process.threads.items() if tid in live]
        if len({thread.cpu for thread in threads}) != 1:
            return
        cpu = threads[0].cpu
        others = [one for other in self._family if other is not process for one in other.threads.values()]
        if not any(one.cpu != cpu and may_have_one_memory(one.tid, threads[0].tid) for one in others):
            vdso.tell(self._abi, threads[0].folder, cpu, self._tree.cpu_node[cpu])


def _may_set(asker: Status, whose: Status) -> bool:
    """As check_same_owner, and CAP_SYS_NICE."""
    return asker.uid in {whose.uid, whose.real_uid} or "CAP_SYS_NICE" in asker.capabilities
