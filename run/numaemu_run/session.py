"""A whole run: a machine, its tree of nodes, the program, its supervisor, and what is told at the end."""

import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Self

from numaemu.errors import MachineGone
from numaemu.machine import Machine, connect
from numaemu.private import boot
from numaemu_core.topology import Topology
from numaemu_run import child, seccomp
from numaemu_run.abi import Abi, abi_of_host
from numaemu_run.kernel import Kernel
from numaemu_run.node_tree import NodeTree
from numaemu_run.procfs import PAGE_SIZE, children_of, descendants_of, status_of
from numaemu_run.supervisor import Supervisor

#: Signals that are for the program: whoever sends one to us means it.
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGWINCH)
#: Signals that the terminal sends to the program as well.
_LEFT_TO_PROGRAM: Final = (signal.SIGINT, signal.SIGQUIT)
#: What is left of the program has so long to end by itself.
_GRACE_S: Final = 2.0


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
        self._stack = contextlib.ExitStack()
        try:
            self.machine: Machine = self._stack.enter_context(_machine(topology, name))
            _check_page_size(self.machine.topology)
            self.tree = NodeTree(self.machine.topology)
            self._root = Path(tempfile.mkdtemp(prefix="numaemu-run-"))
            self._stack.callback(shutil.rmtree, self._root, ignore_errors=True)
            self._root.chmod(0o755)  # the program may become another user
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
            StartError: it could not be executed, or the host refuses the filter.
        """
        began = time.monotonic()
        strangers = frozenset(children_of(os.getpid()))
        seccomp.become_subreaper()
        started = child.start(
            command,
            {**environment, "NUMAEMU_MACHINE": self.machine.name},
            self._abi,
            self._root,
            mount=self._mount,
        )
        self.mounted = started.mounted
        self.pid = started.pid
        with _many_descriptors(), _signals_passed_to(started.pid), _woken_by_signals() as woken:
            kernel = Kernel(self.machine)
            supervisor = Supervisor(
                kernel, self.tree, self._abi, started.listener, self._root, mounted=started.mounted, exits=self._exits
            )
            self.supervisor = supervisor
            supervisor.watch(woken)
            before, struck_before = _pages_by_node(self.machine), _faults_struck(self.machine)
            try:
                code = _serve(supervisor, started.pid, woken)
                _end_the_rest(supervisor, woken, strangers)
            finally:
                started.listener.close()
        started.check_executed()
        started.socket.close()
        try:
            after, struck = _pages_by_node(self.machine), _faults_struck(self.machine)
        except MachineGone as gone:
            sys.stderr.write(f"numaemu run: {gone}: what the program asked after that was not answered\n")
        else:
            self.pages_by_node = {node: count - before.get(node, 0) for node, count in after.items()}
            self.faults_struck = {fault: count - struck_before[fault] for fault, count in struck.items()}
        self.seconds = time.monotonic() - began
        return Outcome(code)

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


def _serve(supervisor: Supervisor, pid: int, woken: int) -> int:
    """Until the program has ended; gives how. Its orphans, which are our children, are reaped on the way."""
    while (code := _reaped(pid)) is None:
        while woken not in supervisor.step():
            pass
        _drain(woken)
    return code


def _reaped(pid: int) -> int | None:
    """Wait for all children that have ended; gives how `pid` has, None: it has not."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return None
        if not ended:
            return None
        if ended == pid and not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)


def _end_the_rest(supervisor: Supervisor, woken: int, strangers: AbstractSet[int]) -> None:
    """What the program has left behind ends with it: without us its calls would fail."""
    deadline = time.monotonic() + _GRACE_S
    asked: set[int] = set()
    while left := _left(strangers):
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in left:
            if number == signal.SIGKILL or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        if woken in supervisor.step():
            _drain(woken)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


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


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 512):
            pass


@contextlib.contextmanager
def _many_descriptors() -> Iterator[None]:
    """As many descriptors as may be: each process and thread of the program takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _woken_by_signals() -> Iterator[int]:
    """A descriptor that becomes readable with each signal."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def _signals_passed_to(pid: int) -> Iterator[None]:
    """Signals go to the program."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def ignore(_number: int, _frame: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    before |= {number: signal.signal(number, ignore) for number in (*_LEFT_TO_PROGRAM, signal.SIGCHLD)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
