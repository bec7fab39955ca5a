"""A whole run: a machine, its tree of nodes, the program, its supervisor, and what is told at the end."""

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Self

from numaemu.errors import MachineGone
from numaemu.machine import Machine, connect
from numaemu.private import boot
from numaemu_core.topology import Topology
from numaemu_run import child, descriptors, seccomp, signals
from numaemu_run.abi import Abi, abi_of_host
from numaemu_run.fault_events import FaultEvents
from numaemu_run.kernel import Kernel
from numaemu_run.node_tree import NodeTree, huge_page_sizes
from numaemu_run.procfs import PAGE_SIZE, children_of, descendants_of, status_of
from numaemu_run.run_folder import run_folder
from numaemu_run.supervisor import Supervisor
from numaemu_run.telling import notice

#: What is left of the program has so long to end by itself.
_GRACE_S: Final = 2.0
#: What does not end so long after it was killed never will: it hangs in the host's kernel.
_KILLED_S: Final = 5.0
#: A machine that is stopped is waited for so long when the run is to end: nobody may ever continue it.
_STOPPED_S: Final = 2.0
#: How often it is looked for meanwhile, while its calls are answered, and when they are no more.
_STEP_S: Final = 0.2
_PAUSE_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the program ended: as `os.waitstatus_to_exitcode` says, minus the signal if one ended it."""

    code: int


class Session:
    """One run. A context manager: leaving it ends what is left of the program, and a private machine."""

    def __init__(self, topology: Topology | None, name: str | None, *, mount: bool = True, exits: bool = False) -> None:
        """On a machine of that description, which ends with the run, or on the running one of that name.

        `mount`: use a mount namespace if the host allows it; `exits`: look once more at every process that ends, also
        at one that has made no call.

        Raises:
            OSError, ValueError, NumaemuFailure: there is no such machine, or it does not start.
        """
        self._abi: Abi = abi_of_host()
        seccomp.check_sizes(self._abi)
        self._mount = mount
        self._exits = exits
        self._passing: signals.Passing | None = None
        self._ended_at: float | None = None
        self._gave_up = False
        self._stack = contextlib.ExitStack()
        try:
            self.machine: Machine = self._stack.enter_context(_machine(topology, name))
            self.machine.give_up_when(self._is_too_long)
            self.machine.while_waiting(self._pass_signals)
            _check_page_size(self.machine.topology)
            self.tree = NodeTree(self.machine.topology, huge_page_sizes())
            with signals.held():  # one that ends us is not to come between
                self._root = self._stack.enter_context(run_folder())
            self.tree.write(self._root)
        except BaseException:
            self._stack.close()
            raise
        self.mounted = False
        #: The program's first process, once it runs.
        self.pid: int | None = None
        #: Pages that the machine allocated on each node during the run.
        self.pages_by_node: dict[int, int] = {}
        #: How often each fault on demand of the machine struck during the run, by its text.
        self.faults_struck: dict[str, int] = {}
        self.seconds = 0.0
        self.supervisor: Supervisor | None = None

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> Outcome:
        """Run it to its end.

        Raises:
            StartError: it could not be executed, or the host refuses the filter. MachineGone: the machine has ended.
        """
        began = time.monotonic()
        strangers = frozenset(children_of(os.getpid()))
        # The first call also makes the connection: ZeroMQ ends us if it lacks descriptors.
        before, struck_before = _pages_by_node(self.machine), _faults_struck(self.machine)
        with seccomp.subreaper(), signals.held() as mask:
            started = child.start(
                command,
                {**environment, "NUMAEMU_MACHINE": self.machine.name},
                self._abi,
                self._root,
                mount=self._mount,
                mask=mask,
            )
            self.mounted = started.mounted
            self.pid = started.pid
            try:
                with descriptors.many(), signals.passed_to(started.pid) as passing:
                    self._passing = passing
                    code = self._supervise(started, passing, strangers)
            except BaseException:
                self._ended_at = time.monotonic()
                started.listener.close()  # there may be no descriptor left to look for it
                started.socket.close()
                _kill_the_rest(strangers)
                raise
            started.listener.close()
        with started.socket:
            started.check_executed()
        try:
            after, struck = _pages_by_node(self.machine), _faults_struck(self.machine)
        except MachineGone as gone:
            how = f"the machine {self.machine.name!r} is stopped, and nobody waits for it" if self._gave_up else gone
            notice(f"{how}: what the program asked after that was not answered")
        else:
            self.pages_by_node = {node: count - before.get(node, 0) for node, count in after.items()}
            self.faults_struck = {fault: count - struck_before[fault] for fault, count in struck.items()}
        self.seconds = time.monotonic() - began
        return Outcome(code)

    def _pass_signals(self) -> None:
        """Nobody else does in the middle of a call of ours."""
        if self._ended_at is None and self._passing is not None:
            self._passing.take_sent()

    def _is_too_long(self, waited_s: float) -> bool:
        """The machine is stopped: shall nobody wait for it any more? Asked in the middle of a call of ours."""
        since = self._ended_at
        if since is None and self._passing is not None:
            since = self._passing.told_to_end_at
        self._gave_up = since is not None and min(waited_s, time.monotonic() - since) > _STOPPED_S
        return self._gave_up

    def _supervise(self, started: child.Started, passing: signals.Passing, strangers: AbstractSet[int]) -> int:
        """Until the program has ended, and what it has left; gives how."""
        events = None
        with contextlib.suppress(OSError):  # then it is a guess who has touched a page
            events = FaultEvents(self._abi, started.pid)
        with contextlib.ExitStack() as stack:
            if events:
                stack.enter_context(contextlib.closing(events))
            self.supervisor = supervisor = Supervisor(
                Kernel(self.machine),
                self.tree,
                self._abi,
                started.listener,
                self._root,
                events,
                mounted=started.mounted,
                exits=self._exits,
            )
            stack.enter_context(contextlib.closing(supervisor))
            for fd in passing.fds:
                supervisor.watch(fd)
            code = _serve(supervisor, started.pid, passing)
            self._ended_at = time.monotonic()
            _end_the_rest(supervisor, passing, strangers)
        return code

    def close(self) -> None:
        """End the machine, if it is of this run alone."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _check_page_size(topology: Topology) -> None:
    if topology.page_size != PAGE_SIZE:
        raise ValueError(
            f"the machine has pages of {topology.page_size} bytes, the host of {PAGE_SIZE}: a program runs on pages of "
            "the host's size only"
        )


def _machine(topology: Topology | None, name: str | None) -> Machine:
    if name is not None:
        return connect(name)
    assert topology is not None
    return boot(topology={**topology.as_dict(), "preallocate": False})


def _pages_by_node(machine: Machine) -> dict[int, int]:
    """Pages that each node has given so far: as asked for, or in place of another one."""
    return {node: counters[_NUMA_HIT] + counters[_NUMA_MISS] for node, counters in machine.figures("numastat")}


def _faults_struck(machine: Machine) -> dict[str, int]:
    found: dict[str, int] = machine.status()["faults_struck"]
    return found


#: Places in the counters of numastat.
_NUMA_HIT: Final = 0
_NUMA_MISS: Final = 1


def _serve(supervisor: Supervisor, pid: int, passing: signals.Passing) -> int:
    """Until the program has ended; gives how. Its orphans, which are our children, are reaped on the way."""
    while True:
        statuses = _reaped()
        if (status := statuses.get(pid)) is not None:
            if not os.WIFSTOPPED(status):
                return os.waitstatus_to_exitcode(status)
            passing.stop_as(os.WSTOPSIG(status))
        while not passing.take(supervisor.step()):
            pass


def _reaped() -> dict[int, int]:
    """Wait for all children that have ended or stopped; gives the last status of each."""
    found = {}
    with contextlib.suppress(ChildProcessError):
        while (one := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
            found[one[0]] = one[1]
    return found


def _end_the_rest(supervisor: Supervisor, passing: signals.Passing, strangers: AbstractSet[int]) -> None:
    """What the program has left behind ends with it: without us its calls would fail."""
    killing_at = time.monotonic() + _GRACE_S
    asked: set[int] = set()
    while left := _left(strangers):
        now = time.monotonic()
        if now > killing_at + _KILLED_S:
            notice(f"left behind, as they do not even end when killed: {', '.join(map(str, left))}")
            return
        for pid in left:
            if now >= killing_at:
                _send(pid, signal.SIGKILL)
            elif pid not in asked:
                asked.add(pid)
                _send(pid, signal.SIGTERM)
        passing.take(supervisor.step(_STEP_S if now >= killing_at else min(_STEP_S, killing_at - now)))
        _reaped()


def _kill_the_rest(strangers: AbstractSet[int]) -> None:
    """The same, when nobody is left who could answer its calls."""
    deadline = time.monotonic() + _KILLED_S
    while (left := _left(strangers)) and time.monotonic() < deadline:
        for pid in left:
            _send(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
        _reaped()


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _left(strangers: AbstractSet[int]) -> list[int]:
    """What there is of the program. `strangers`: children that were there before it: the machine."""
    found = []
    for first in children_of(os.getpid()):
        if first not in strangers:
            for pid in (first, *descendants_of(first)):
                with contextlib.suppress(ProcessLookupError):
                    if status_of(pid).filtered:
                        found.append(pid)
    return found


def end_as(outcome: Outcome) -> int:
    """The exit code for ours; if a signal has ended the program, one ends us, too, so that whoever waits sees it."""
    if outcome.code >= 0:
        return outcome.code
    number = -outcome.code
    sys.stdout.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
