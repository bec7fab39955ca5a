"""Emulated tasks that follow real threads: who is whose child, who has which policy and CPU, who has ended.

Threads are met when they call, and their children before a policy changes: one that has not called yet has the policy
that its parent had when it was born, as none has changed since.
"""

import collections
import contextlib
import os
import select
import signal
from collections.abc import Iterator
from typing import Final

from numaemu.task import Task
from numaemu_core.errors import OutOfMemory
from numaemu_core.nodemask import first_node
from numaemu_core.views import pages_by_node
from numaemu_host.pidfd import started_at, ticks_now
from numaemu_run.ancestors import Ancestors
from numaemu_run.descriptors import kept
from numaemu_run.fault_events import FaultEvents
from numaemu_run.image import have_one_memory, image_of
from numaemu_run.kernel import Kernel
from numaemu_run.mirror import Mirror
from numaemu_run.node_tree import NodeTree
from numaemu_run.orphans import Orphans, likely_parent
from numaemu_run.placement import Placement
from numaemu_run.processes import Counts, Exited, Process, Thread
from numaemu_run.procfs import (
    Status,
    children_of,
    forker_of,
    live_threads_of,
    name_of,
    speaker_of,
    status_of,
    threads_of,
)
from numaemu_run.shared_objects import SharedObjects
from numaemu_run.telling import notice
from numaemu_run.trouble import Troubles

#: Processes that are remembered when they have ended: the last ones.
_EXITED_MAX: Final = 1000
_PID_MASK: Final = (1 << 32) - 1


class Family:
    """All threads and processes of a run."""

    def __init__(self, kernel: Kernel, tree: NodeTree, news: select.epoll, events: FaultEvents | None) -> None:
        """`news` is told of a descriptor for each process, readable when that has ended.

        `events`: the faults of all of them, where the host tells them.
        """
        self.counts: Final = Counts()
        #: What went wrong with single processes.
        self.troubles: Final = Troubles()
        #: The last processes that have ended by themselves, if `note_exit` was told of them.
        self.exited: Final[collections.deque[Exited]] = collections.deque(maxlen=_EXITED_MAX)
        self._kernel = kernel
        self._tree = tree
        self._news = news
        self._processes: dict[int, Process] = {}
        self._threads: dict[int, Thread] = {}
        self._by_pidfd: dict[int, Process] = {}
        self._orphans = Orphans(self.troubles)
        self.objects = SharedObjects(kernel, self._processes)
        self._ancestors = Ancestors(self._processes)
        self._placement = Placement(self.counts, self._processes, events, self._toucher)

    def __iter__(self) -> Iterator[Process]:
        """The processes that are known."""
        return iter(list(self._processes.values()))

    # -- meeting -------------------------------------------------------------------------------------------------------

    def known(self, tid: int) -> Thread | None:
        """Who calls with that number just now, if there is no doubt; None: see `thread`.

        There is none about the first thread of a process that executes no program: if that had ended, the poll that
        told of the call would have told of that, too, and it would be forgotten.
        """
        thread = self._threads.get(tid)
        if thread is not None and tid == thread.process.pid and thread.process.executor is None:
            return thread
        return None

    def thread(self, tid: int) -> Thread:
        """The thread of that number, which may be new to us.

        Raises:
            ProcessLookupError: it is gone. OSError: the machine refuses (EAGAIN: it has too many tasks).
        """
        known = self._threads.get(tid)
        if known is None:
            return self._meet(tid)
        if not known.is_alive():
            self._part_with(known)
            return self._meet(tid)
        if known.process.executor is not None:
            self._see_whether_executed(known.process, tid)
            return self._threads.get(tid) or self._meet(tid)
        return known

    def named(self, caller: Thread, pid: int) -> Thread | None:
        """The thread that a call of another one names by its number, 0: the caller. None: it is none of this run."""
        pid &= _PID_MASK
        if pid in {0, caller.tid}:
            return caller
        with contextlib.suppress(ProcessLookupError):
            if self.is_member(pid):
                return self.thread(pid)
        return None

    def is_met(self, tid: int) -> bool:
        """Has this thread made a call, or has a relative that has?"""
        return tid in self._threads

    def is_member(self, tid: int) -> bool:
        """Is it a thread of this run, met or not?"""
        try:
            status = status_of(tid)
            while status.filtered and status.tgid not in self._processes and status.parent != os.getpid():
                status = status_of(status.parent)
        except ProcessLookupError:
            return False
        return status.filtered

    def matters(self, tid: int) -> bool:
        """Is it of the program's first process, one that is met, or one that may have another policy than the default?

        Raises:
            ProcessLookupError: it is gone.
        """
        status = status_of(tid)
        if status.parent == os.getpid() or status.tgid in self._processes:
            return True
        ancestor = self._ancestors.nearest(status)
        return ancestor is not None and (
            ancestor.binds or any(one.policy or one.cpus != self._tree.cpus for one in ancestor.threads.values())
        )

    def _meet(self, tid: int) -> Thread:
        """A new thread, and before it those of its ancestors that are new: the eldest first."""
        line = [status_of(tid)]
        with contextlib.suppress(ProcessLookupError):  # one of them ends: the others are nobody's, as it seems
            while not self._is_known(line[-1].tgid) and line[-1].parent not in {0, 1, os.getpid()}:
                line.append(status_of(speaker_of(line[-1].parent)))
        *elders, youngest = reversed(line)
        for status in elders:
            with self.troubles.confined():
                self._join(status)
        return self._join(youngest)

    def _is_known(self, pid: int) -> bool:
        """Is it a process that was met, and not another one that has its number now?"""
        process = self._processes.get(pid)
        if process is not None and _has_ended(process):
            self._forget(process)
            return False
        return process is not None

    def _join(self, status: Status) -> Thread:
        """A thread whose elders are known."""
        process = self._processes.get(status.tgid)
        if process is None:
            return self._meet_process(status)
        if status.tid in process.threads:
            return process.threads[status.tid]
        leader = process.leader
        task = self._attach(leader, status, share_mm=leader.task)
        return self._add(status, process, task, leader)

    def _meet_process(self, status: Status, guess: Thread | None = None) -> Thread:
        """A process of which no thread was known, with its first one; `guess`: its parent, if the host knows none."""
        parent = self._forker(status) or guess or next((one.leader for one in self), None)
        pidfd = kept(os.pidfd_open(status.tgid))
        try:
            borrows = parent is not None and have_one_memory(status.tid, parent.tid)
            task, mirror = self._task_of(status, parent, borrows=borrows)
            binds = parent is not None and parent.process.binds
            process = Process(status.tgid, pidfd, mirror, binds=binds, borrows=borrows)
            thread = self._add(status, process, task, parent)
        except BaseException:
            os.close(pidfd)
            raise
        self._processes[process.pid] = self._by_pidfd[pidfd] = process
        self._news.register(pidfd, select.EPOLLIN)
        self.counts.processes += 1
        return thread

    def _forker(self, status: Status) -> Thread | None:
        """The thread that has forked a process; None: its parent is not of the run."""
        parent = self._processes.get(status.parent)
        if parent is None:
            return None
        tid = None if len(parent.threads) == 1 else forker_of(parent.pid, status.tgid)
        return parent.leader if tid is None else parent.threads.get(tid, parent.leader)

    def _task_of(self, status: Status, parent: Thread | None, *, borrows: bool) -> tuple[Task, Mirror]:
        """A fork of its parent's task, or, if it has executed a program since, a new one with its policy."""
        if parent is not None and borrows:
            return self._attach(parent, status, share_mm=parent.task), parent.process.mirror
        if parent is not None:
            if not parent.process.mirror.areas:  # never looked at: its pages would count again for each child
                with self.troubles.confined():
                    self.look(parent)
            mirror = parent.process.mirror.twin(status.tid)
            if mirror is not None:
                fork = self._kernel.fork(parent.task)
                if _rights(status) == parent.rights:
                    return fork, mirror
                try:  # it has become another user
                    return self._attach(parent, status, share_mm=fork), mirror
                finally:
                    fork.close()
        mirror = Mirror(self._kernel, self.objects, status.tid)
        return self._attach(parent, status), mirror

    def _attach(self, elder: Thread | None, status: Status, share_mm: Task | None = None) -> Task:
        """A new task with the CPU and the policy of an elder, and the rights of a thread."""
        cpu = min(self._tree.cpu_node) if elder is None else elder.cpu
        shared = None if share_mm is None else share_mm.pid
        # The machine asks who a task is when it is to move the pages of another one.
        task = self._kernel.machine.attach(cpu, status.capabilities, share_mm=shared, remote=True, uid=status.uid)
        try:
            if elder is not None:
                self._kernel.copy_policy(elder.task, task)
        except BaseException:
            task.close()
            raise
        return task

    def renew(self, thread: Thread) -> None:
        """Its task has the rights that the thread has now. To be called before the machine asks for them.

        Raises:
            ProcessLookupError: it is gone. OSError: the machine refuses.
        """
        status = status_of(thread.tid)
        if thread.rights != _rights(status):
            old, thread.task = thread.task, self._attach(thread, status, share_mm=thread.task)
            thread.rights = _rights(status)
            old.close()

    def _add(self, status: Status, process: Process, task: Task, elder: Thread | None) -> Thread:
        if process.is_crowded() and process.is_under_one_policy():  # else what they have touched comes first
            self._forget_ended_threads(process)
        cpus = self._tree.cpus if elder is None else elder.cpus
        cpu = first_node(cpus) if elder is None else elder.cpu
        try:
            place = kept(os.open(f"/proc/{process.pid}/task/{status.tid}", os.O_PATH | os.O_CLOEXEC))
        except OSError as error:
            task.close()
            if isinstance(error, FileNotFoundError):
                raise ProcessLookupError(f"thread {status.tid} is gone") from None
            raise
        policy = 0 if elder is None else elder.policy
        thread = Thread(status.tid, process, task, cpus, cpu, place, policy, rights=_rights(status))
        process.threads[status.tid] = self._threads[status.tid] = thread
        self.counts.threads += 1
        if not process.is_under_one_policy():
            self._placement.begin()
        return thread

    # -- executing -----------------------------------------------------------------------------------------------------

    def note_exec(self, tid: int) -> None:
        """A thread is about to execute a program: if that succeeds, it takes the place of the first one.

        Raises:
            ProcessLookupError: it is gone.
        """
        thread = self._threads.get(tid)
        process = self._processes.get(status_of(tid).tgid) if thread is None else thread.process
        if process is not None:
            process.executor = tid

    def _see_whether_executed(self, process: Process, asker: int) -> None:
        """If the process executes another program by now, its first thread is the one that has executed it."""
        try:
            executed = not image_of(process.pid, process.mirror.image).is_still(process.mirror.image)
        except ProcessLookupError:  # its first thread has ended: it would be there again
            executed = False
        if not executed:
            if asker == process.executor:  # it was refused
                process.executor = None
            return
        executor, process.executor = process.threads.get(process.executor or 0), None
        first = process.threads.get(process.pid)
        if executor is not None and executor is not first:
            if first is None:
                status = status_of(process.pid)
                first = self._add(status, process, self._attach(executor, status, executor.task), executor)
            first.task, executor.task = executor.task, first.task
            first.cpus, first.cpu, first.policy = executor.cpus, executor.cpu, executor.policy
            first.rights = executor.rights
        self._forget_ended_threads(process)
        process.touches.clear()
        first = process.leader
        if process.borrows:
            status, lent = status_of(first.tid), first.task
            process.mirror, process.borrows = Mirror(self._kernel, self.objects, first.tid), False
            first.task, first.rights = self._attach(first, status), _rights(status)
            lent.close()
        self.renew(first)

    # -- looking -------------------------------------------------------------------------------------------------------

    def settle_before_change(self, thread: Thread) -> None:
        """`settle`, as the policy or the CPU of this thread alone is about to change."""
        if len(threads_of(thread.process.pid)) > 1:
            self._placement.begin()
        self.settle(thread)

    def settle(self, thread: Thread, *, all_descendants: bool = False) -> None:
        """What its process has done so far is in the machine, as if this thread had done it; its children are known.

        Theirs take after them, whenever that is. `all_descendants`: they may have touched shared memory. Not those that
        are born meanwhile: they may be without end.

        Raises:
            ProcessLookupError: it is gone, or was killed as the machine has no frame for one of its pages.
        """
        self.look(thread)
        met, began = [thread.process], ticks_now()
        for process in met:  # it may grow
            for pid in children_of(process.pid, *self._meet_threads(process)):
                if pid not in self._processes and started_at(pid) <= began:
                    with self.troubles.confined():
                        child = self.thread(speaker_of(pid))
                        met += [child.process] if all_descendants else []
                        self.look(child)
        self._meet_orphans(thread.process)

    def _meet_threads(self, process: Process) -> list[int]:
        """All that have not ended are known then; gives their numbers."""
        live = live_threads_of(process.pid)
        for tid in live:
            if tid not in process.threads:
                with self.troubles.confined():
                    self._meet(tid)
        return live

    def look(self, thread: Thread, address: int | None = None) -> None:
        """The pages of its process are in the machine; `address` is what this thread asks for. As `settle`.

        Threads that have ended since it was looked at last are forgotten after that: some of the pages are theirs.
        """
        process = thread.process
        if process.doomed:
            raise ProcessLookupError(f"process {process.pid} is killed")
        if process.executor is not None:
            self._see_whether_executed(process, thread.tid)
        live = live_threads_of(process.pid) if len(process.threads) > 1 else [thread.tid]
        if process.threads.keys().isdisjoint(live):
            self._forget_ended_threads(process, live)
        if thread.tid not in live or thread.tid not in process.threads:
            thread = next((process.threads[tid] for tid in live if tid in process.threads), process.leader)
        try:
            self._placement.place(thread, address)
        except OutOfMemory:
            self.kill(process)
            raise ProcessLookupError(f"process {process.pid} is killed") from None
        if len(process.threads) > 1:
            self._forget_ended_threads(process, live)

    def look_around(self) -> None:
        """See what has come into memory, where it is clear whose policy it came under."""
        self._placement.collect()
        for process in self:
            with self.troubles.confined():
                if len(process.threads) == 1 or process.touches or process.is_crowded():
                    self.settle(process.leader)
        self._look_at_objects()

    def _look_at_objects(self) -> None:
        with self.troubles.confined(), contextlib.suppress(OutOfMemory):  # who is killed may not know it yet
            if anyone := next((process for process in self if not process.doomed), None):
                self.objects.look(anyone.leader.task)

    def note_mremap(self, tid: int, start: int, old_length: int, new_length: int) -> None:
        """A thread is about to move or resize memory, whose policies go along. As `look`."""
        thread = self._threads.get(tid)
        if thread is not None and thread.process.binds:
            self.look(thread)
            thread.process.mirror.expect_move(start, old_length, new_length)

    def look_at_all(self) -> None:
        """The same for every process that can be looked at."""
        for process in self:
            with self.troubles.confined():
                self.look(process.leader)

    def kill(self, process: Process) -> None:
        """The machine has no memory for it: SIGKILL, as from the OOM killer."""
        notice(f"out of memory: killed process {process.pid}")
        process.doomed = True
        self.counts.killed += 1
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)

    # -- the end -------------------------------------------------------------------------------------------------------

    def note_exit(self, process: Process) -> None:
        """It is about to end, and was just settled: remember where its pages are. OSError: somebody has killed it."""
        found = pages_by_node(self._kernel.machine.numa_maps(process.leader.task.pid))
        self.exited.append(Exited(process.pid, name_of(process.pid), found))

    def has_news(self, fd: int) -> bool:
        """A descriptor became readable: was it that of a process, which has ended then?"""
        process = self._by_pidfd.get(fd)
        if process is None:
            return False
        self._forget(process)
        return True

    def close(self) -> None:
        """The run is over: whoever is still known is forgotten, with the descriptors and tasks that stand for him."""
        for process in self:
            self._let_go(process)

    def _forget(self, process: Process) -> None:
        with self.troubles.confined():
            self._meet_orphans(process)
        self._let_go(process)

    def _let_go(self, process: Process) -> None:
        if len(self._processes) == 1:
            self._look_at_objects()
        del self._processes[process.pid], self._by_pidfd[process.pidfd]
        for thread in list(process.threads.values()):
            self._forget_thread(thread)
        self._news.unregister(process.pidfd)
        os.close(process.pidfd)

    def _meet_orphans(self, process: Process) -> None:
        """Children that somebody has left are met while the policy of this process is theirs, if it was this one."""
        for status in self._orphans.new(self._processes):
            with self.troubles.confined():
                self._meet_process(status, likely_parent(status.tgid, [process, *self]).leader)

    def _toucher(self, process: Process, tid: int) -> Thread:
        """Who has touched pages with that number; gone before it was met, it was under the policy of the first one."""
        if tid not in process.threads:
            with self.troubles.confined():
                self._meet(tid)
        return process.threads.get(tid, process.leader)

    def _forget_ended_threads(self, process: Process, live: list[int] | None = None) -> None:
        """Threads that have ended while their process has not."""
        left = set(live_threads_of(process.pid) if live is None else live)
        if left:
            for thread in [thread for tid, thread in process.threads.items() if tid not in left]:
                self._forget_thread(thread)
            process.threads_expected = max(process.threads_expected, 2 * len(process.threads))

    def _part_with(self, thread: Thread) -> None:
        """Its number is another one's by now. What it has touched comes first, unless its process has ended, too."""
        if not _has_ended(thread.process):
            with self.troubles.confined():
                self.look(thread)
        if self._threads.get(thread.tid) is thread:
            self._forget_thread(thread)

    def _forget_thread(self, thread: Thread) -> None:
        """Its task ends; the memory goes with the last one of the process: unless that has ended, another is met."""
        process = thread.process
        del process.threads[thread.tid]
        if self._threads.get(thread.tid) is thread:
            del self._threads[thread.tid]
        with self.troubles.confined():
            if not process.threads and self._processes.get(process.pid) is process:
                status = status_of(speaker_of(process.pid))
                self._add(status, process, self._attach(thread, status, thread.task), thread)
        with self.troubles.confined():
            thread.task.close()
        os.close(thread.place)


def _has_ended(process: Process) -> bool:
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _rights(status: Status) -> tuple[int, frozenset[str]]:
    return status.uid, status.capabilities
