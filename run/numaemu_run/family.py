"""Emulated tasks that follow real threads: who is whose child, who has which policy and CPU, who has ended.

Threads are met when they call, and their relatives before a policy changes: a child that has not called yet has the
policy that its parent had when it was born, as none has changed since.
"""

import collections
import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from numaemu.errors import MachineGone
from numaemu.task import Task
from numaemu_core.errors import OutOfMemory
from numaemu_core.nodemask import first_node
from numaemu_core.views import pages_by_node
from numaemu_run.kernel import Kernel
from numaemu_run.mirror import Mirror, count
from numaemu_run.node_tree import NodeTree
from numaemu_run.pagemap import Runs
from numaemu_run.procfs import PAGE_SIZE, Status, children_of, faults_of, name_of, status_of, threads_of
from numaemu_run.shares import as_runs, shares


@dataclass(slots=True, eq=False)
class Thread:
    """A real thread and the task that stands for it."""

    tid: int
    process: "Process"
    task: Task
    #: The CPUs that it may run on, as a mask, and the one that it counts as running on.
    cpus: int
    cpu: int
    #: Its directory under /proc: of this thread, whoever gets its number later.
    place: int
    #: Has it set a policy, or taken one over?
    has_policy: bool = False
    #: Its page faults when they were last looked at.
    faults: int = 0

    def is_alive(self) -> bool:
        """Is its number still its own?"""
        return os.access("comm", os.F_OK, dir_fd=self.place)


@dataclass(slots=True, eq=False)
class Process:
    """A real process: its threads and its address space."""

    pid: int
    pidfd: int
    mirror: Mirror
    threads: dict[int, Thread] = field(default_factory=dict)
    #: It, or an ancestor, has given ranges of memory policies of their own.
    binds: bool = False
    #: It is killed, and may not know it yet.
    doomed: bool = False

    @property
    def leader(self) -> Thread:
        """Its first thread, or any one that is left."""
        return self.threads.get(self.pid) or next(iter(self.threads.values()))


@dataclass(frozen=True, slots=True)
class Exited:
    """A process that has ended by itself: its name, and how many of its pages were on each node then."""

    pid: int
    name: str
    pages_by_node: dict[int, int]


@dataclass(slots=True)
class Counts:
    """What a report tells of placement."""

    processes: int = 0
    threads: int = 0
    pages_placed: int = 0
    #: Of these, placed while threads of the process had different policies: whose page it was is not known.
    pages_ambiguous: int = 0
    #: Processes that were killed as the machine had no memory for them.
    killed: int = 0


#: Processes that are remembered when they have ended: the last ones.
_EXITED_MAX: Final = 1000


class Family:
    """All threads and processes of a run."""

    def __init__(self, kernel: Kernel, tree: NodeTree, poll: select.poll) -> None:
        """`poll` is told of a descriptor for each process, readable when that has ended."""
        self.counts: Final = Counts()
        #: The last processes that have ended by themselves, if `note_exit` was told of them.
        self.exited: Final[collections.deque[Exited]] = collections.deque(maxlen=_EXITED_MAX)
        self._kernel = kernel
        self._tree = tree
        self._poll = poll
        self._processes: dict[int, Process] = {}
        self._threads: dict[int, Thread] = {}
        self._by_pidfd: dict[int, Process] = {}
        #: Children of ours that are none of the program's: the machine.
        self._strangers: set[int] = set()

    def __iter__(self) -> Iterator[Process]:
        """The processes that are known."""
        return iter(list(self._processes.values()))

    # -- meeting -------------------------------------------------------------------------------------------------------

    def thread(self, tid: int) -> Thread:
        """The thread of that number, which may be new to us.

        Raises:
            ProcessLookupError: it is gone. OSError: the machine refuses (EAGAIN: it has too many tasks).
        """
        known = self._threads.get(tid)
        if known is not None:
            if known.is_alive():
                return known
            self._forget_thread(known)
        return self._meet(tid)

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

    def _meet(self, tid: int) -> Thread:
        status = status_of(tid)
        process = self._processes.get(status.tgid)
        if process is not None and self._has_ended(process):
            self._forget(process)
            process = None
        if process is None:
            process = self._meet_process(status)
            if tid in process.threads:
                return process.threads[tid]
        leader = process.leader
        task = self._kernel.machine.attach(leader.cpu, status.capabilities, share_mm=leader.task.pid, remote=True)
        self._take_user(task, status)
        self._kernel.copy_policy(leader.task, task)
        return self._add(tid, process, task, leader)

    def _meet_process(self, status: Status, parent: Process | None = None) -> Process:
        """A process of which no thread was known, with its first one; `parent` unless the host knows another."""
        pid = status.tgid
        pidfd = os.pidfd_open(pid)
        try:
            parent = self._parent(status.parent) or parent or next(iter(self._processes.values()), None)
            task, mirror = self._task_of(pid, status, parent)
            process = Process(pid, pidfd, mirror, binds=parent is not None and parent.binds)
            self._add(pid, process, task, None if parent is None else parent.leader)
        except BaseException:
            os.close(pidfd)
            raise
        self._processes[pid] = self._by_pidfd[pidfd] = process
        self._poll.register(pidfd, select.POLLIN)
        self.counts.processes += 1
        return process

    def _parent(self, pid: int) -> Process | None:
        """The process of that number; it is met, if it is one of the run."""
        if pid <= 1 or pid == os.getpid():
            return None
        with contextlib.suppress(ProcessLookupError):
            return self.thread(pid).process
        return None

    def _task_of(self, pid: int, status: Status, parent: Process | None) -> tuple[Task, Mirror]:
        """A fork of its parent's task, or, if it has executed a program since, a new one with its policy."""
        if parent is not None:
            mirror = parent.mirror.twin(pid)
            if mirror is not None:
                return parent.leader.task.fork(), mirror
        cpu = min(self._tree.cpu_node) if parent is None else parent.leader.cpu
        task = self._kernel.machine.attach(cpu, status.capabilities, remote=True)
        self._take_user(task, status)
        if parent is not None:
            self._kernel.copy_policy(parent.leader.task, task)
        return task, Mirror(self._kernel, pid)

    def _take_user(self, task: Task, status: Status) -> None:
        """The machine asks who a task is when it is to move the pages of another one."""
        if status.uid:
            self._kernel.call(task, "setuid", status.uid)
            self._kernel.call(task, "set_dumpable", 1)

    def _add(self, tid: int, process: Process, task: Task, elder: Thread | None) -> Thread:
        cpus = self._tree.cpus if elder is None else elder.cpus
        cpu = first_node(cpus) if elder is None else elder.cpu
        place = os.open(f"/proc/{process.pid}/task/{tid}", os.O_PATH | os.O_CLOEXEC)
        thread = Thread(tid, process, task, cpus, cpu, place, elder is not None and elder.has_policy)
        process.threads[tid] = self._threads[tid] = thread
        self.counts.threads += 1
        return thread

    # -- looking -------------------------------------------------------------------------------------------------------

    def settle(self, thread: Thread) -> None:
        """What its process has done so far is in the machine, as if this thread had done it; its relatives are known.

        Raises:
            ProcessLookupError: it is gone. OutOfMemory: the machine has no frame for one of its pages.
        """
        self.look(thread)
        process = thread.process
        for tid in threads_of(process.pid):
            if tid not in process.threads:
                with contextlib.suppress(ProcessLookupError):
                    self._meet(tid)
        for pid in children_of(process.pid):
            if pid not in self._processes:
                with contextlib.suppress(ProcessLookupError, OutOfMemory):
                    self.settle(self.thread(pid))
        self._meet_orphans(process)

    def look(self, thread: Thread, address: int | None = None) -> None:
        """The pages of its process are in the machine; `address` is what this thread asks for. As `settle`.

        Where threads would have them on different nodes, those are as the threads have faulted: see `shares`.
        """
        process = thread.process
        if process.doomed:
            raise ProcessLookupError(f"process {process.pid} is killed")
        members = process.threads.values()
        if len(members) == 1 or not any(one.has_policy or one.cpu != thread.cpu for one in members):
            placed = process.mirror.settle(thread.task)
            self.counts.pages_placed += placed
            if placed and len(members) > 1:
                self._new_faults(process)  # those count no more
            return

        def share(added: Runs) -> Iterator[tuple[Task, Runs]]:
            asked = None if address is None else address // PAGE_SIZE
            faults = self._new_faults(process)
            if sum(number > 0 for number in faults.values()) > 1:
                self.counts.pages_ambiguous += count(added)
            for tid, runs in shares(added, faults, thread.tid, asked).items():
                yield process.threads[tid].task, as_runs(runs)

        self.counts.pages_placed += process.mirror.settle(thread.task, share)

    @staticmethod
    def _new_faults(process: Process) -> dict[int, int]:
        """How often each thread has faulted since this was asked last."""
        found = {}
        for thread in process.threads.values():
            with contextlib.suppress(ProcessLookupError):
                now = faults_of(process.pid, thread.tid)
                found[thread.tid], thread.faults = now - thread.faults, now
        return found

    def note_mremap(self, tid: int, start: int, old_length: int, new_length: int) -> None:
        """A thread is about to move or resize memory, whose policies go along. As `look`."""
        thread = self._threads.get(tid)
        if thread is not None and thread.process.binds:
            self.look(thread)
            thread.process.mirror.expect_move(start, old_length, new_length)

    def look_at_all(self) -> None:
        """The same for every process that can be looked at."""
        for process in self:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self.look(process.leader)

    def kill(self, process: Process) -> None:
        """The machine has no memory for it: SIGKILL, as from the OOM killer."""
        process.doomed = True
        self.counts.killed += 1
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)

    # -- the end -------------------------------------------------------------------------------------------------------

    def note_exit(self, process: Process) -> None:
        """It is about to end, and was just settled: remember where its pages are."""
        if process.doomed:
            return
        with contextlib.suppress(OSError):  # somebody has killed it meanwhile
            found = pages_by_node(self._kernel.machine.numa_maps(process.leader.task.pid))
            self.exited.append(Exited(process.pid, name_of(process.pid), found))

    def has_news(self, fd: int) -> bool:
        """A descriptor became readable: was it that of a process, which has ended then?"""
        process = self._by_pidfd.get(fd)
        if process is None:
            return False
        self._forget(process)
        return True

    def _has_ended(self, process: Process) -> bool:
        poll = select.poll()
        poll.register(process.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _forget(self, process: Process) -> None:
        self._meet_orphans(process)
        for thread in list(process.threads.values()):
            self._forget_thread(thread)
        self._poll.unregister(process.pidfd)
        del self._processes[process.pid], self._by_pidfd[process.pidfd]
        os.close(process.pidfd)

    def _meet_orphans(self, process: Process) -> None:
        """Children that somebody has left are ours now: those of this process are met while its policy is theirs.

        Whose they were is not known; they may also be those of another process of the same process group or session.
        """
        children = children_of(os.getpid(), os.getpid())
        self._strangers &= set(children)
        for pid in children:
            if pid in self._processes or pid in self._strangers:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError, MachineGone):
                status = status_of(pid)
                if status.filtered:
                    self._meet_process(status, self._likely_parent(pid, process))
                else:
                    self._strangers.add(pid)

    def _likely_parent(self, pid: int, otherwise: Process) -> Process:
        for relation in (os.getpgid, os.getsid):
            mark = relation(pid)
            for process in (otherwise, *self):
                with contextlib.suppress(ProcessLookupError):
                    if relation(process.pid) == mark:
                        return process
        return otherwise

    def _forget_thread(self, thread: Thread) -> None:
        """Its task ends; the memory of the process goes with the last one."""
        with contextlib.suppress(MachineGone):
            thread.task.close()
        os.close(thread.place)
        del self._threads[thread.tid], thread.process.threads[thread.tid]
