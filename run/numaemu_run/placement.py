"""New pages of a process become those of the thread that has touched them, under its policy and on its node.

Where all threads are under one policy it does not matter which one that was. Where it does, the host's record of faults
tells, if we may have it; without, it is a guess from how often each thread has faulted.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np

from numaemu.task import Task
from numaemu_core.distinct import distinct
from numaemu_run.fault_events import NO_TOUCHES, FaultEvents, now_ns
from numaemu_run.mirror import count
from numaemu_run.pagemap import Runs
from numaemu_run.processes import Counts, Process, Thread
from numaemu_run.procfs import PAGE_SIZE, faults_of
from numaemu_run.shares import as_runs, shares
from numaemu_run.telling import notice
from numaemu_run.touches import touched_by, unsettled

#: Faults that are kept for one process until it is looked at: 32 bytes each.
_TOUCHES_MAX: Final = 1 << 21


class Placement:
    """Of all processes of a run."""

    def __init__(
        self,
        counts: Counts,
        processes: Mapping[int, Process],
        events: FaultEvents | None,
        toucher: Callable[[Process, int], Thread],
    ) -> None:
        """`events`: the faults, where the host tells them; `toucher` knows the thread of a number."""
        self._counts = counts
        self._processes = processes
        self._events = events
        self._toucher = toucher

    def begin(self) -> None:
        """Threads of a process are about to differ: from now on who touches a page may matter."""
        if self._events is not None:
            try:
                self._events.begin()
            except OSError as error:
                self._events = None
                notice(f"page faults are not recorded: {error.strerror}; whose a page is may be a guess")

    def place(self, thread: Thread, address: int | None) -> None:
        """What its process has touched is in the machine then; `address` is what this thread asks for.

        Raises:
            OutOfMemory: the machine has no frame for some page. What `Mirror.settle` raises.
        """
        process = thread.process
        if process.is_under_one_policy():
            placed = process.mirror.settle(thread.task, thread.tid)
            if placed and len(process.threads) > 1:
                _new_faults(process)  # those count no more
            process.touches.clear()
        else:
            began = now_ns()
            placed = process.mirror.settle(thread.task, thread.tid, lambda new: self._shared_out(thread, new, address))
            since, process.looked_at_ns = process.looked_at_ns, began
            process.touches = [unsettled(one, since, began, process.mirror.held) for one in process.touches]
        self._counts.pages_placed += placed

    def _shared_out(self, thread: Thread, added: Runs, address: int | None) -> Iterator[tuple[Task, Runs]]:
        """New pages, each with the task of the thread that has touched it."""
        process = thread.process
        self.collect()
        touches = np.concatenate([NO_TOUCHES, *process.touches])
        touched, left = touched_by(added, touches)
        for tid, runs in touched.items():
            yield self._toucher(process, tid).task, runs
        faults = _new_faults(process)
        if not len(left):
            return
        silent = len(process.threads) - len(faults)  # they have ended, and nobody knows how often they had faulted
        ordered = np.sort(touches["tid"])
        tids = distinct(ordered)
        times = np.diff(np.searchsorted(ordered, tids), append=len(ordered))
        for tid, known in zip(tids.tolist(), times.tolist(), strict=True):
            faults[tid] = faults.get(tid, 0) - known
        if silent + sum(number > 0 for number in faults.values()) > 1:
            self._counts.pages_ambiguous += count(left)
        asked = None if address is None else address // PAGE_SIZE
        for tid, parts in shares(left, faults, thread.tid, asked).items():
            yield self._toucher(process, tid).task, as_runs(parts)

    def collect(self) -> None:
        """Give each process its own of what was recorded since."""
        if self._events is None:
            return
        touches = self._events.take()
        for pid in distinct(touches["pid"]).tolist():
            process = self._processes.get(pid)
            if process is not None and not process.is_under_one_policy():
                process.touches.append(touches[touches["pid"] == pid])
                while sum(map(len, process.touches)) > _TOUCHES_MAX:
                    del process.touches[0]


def _new_faults(process: Process) -> dict[int, int]:
    """How often each thread has faulted since this was asked last."""
    found = {}
    for thread in process.threads.values():
        with contextlib.suppress(ProcessLookupError):
            now = faults_of(process.pid, thread.tid)
            found[thread.tid], thread.faults = now - thread.faults, now
    return found
