"""The loop: calls of the program come one by one, and each gets its answer; processes end; signals pass."""

import collections
import contextlib
import errno
import os
import select
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from numaemu.errors import MachineGone
from numaemu_core.errors import MmError, OutOfMemory
from numaemu_host import timerfd
from numaemu_run import target, vdso
from numaemu_run.abi import (
    BEGIN_CALL,
    EXEC_CALLS,
    EXIT_CALL,
    HOLE_CALLS,
    MREMAP_CALL,
    OPEN_CALLS,
    PATH_CALLS,
    POLICY_CALLS,
    QUICK_CALL,
    SYSINFO_CALL,
    Abi,
)
from numaemu_run.affinity import AffinityCalls
from numaemu_run.descriptors import NONE_LEFT
from numaemu_run.family import Family
from numaemu_run.fault_events import FaultEvents
from numaemu_run.files import Files
from numaemu_run.holes import Holes
from numaemu_run.kernel import Kernel
from numaemu_run.node_tree import NodeTree
from numaemu_run.paths import PathCalls
from numaemu_run.policy import PolicyCalls
from numaemu_run.processes import Thread
from numaemu_run.receiver import Receiver
from numaemu_run.seccomp import Listener, Notification
from numaemu_run.sysinfo import sysinfo

#: How often processes are looked at.
_LOOK_EVERY_S: Final = 0.5
#: So many calls are served before somebody looks at the time again.
_CALLS_A_STEP: Final = 64
_NONE: Final[AbstractSet[int]] = frozenset()


class Supervisor:
    """Serves the calls of a program and its descendants until it has ended."""

    def __init__(
        self,
        kernel: Kernel,
        tree: NodeTree,
        abi: Abi,
        listener: Listener,
        root: Path,
        events: FaultEvents | None,
        *,
        mounted: bool,
        exits: bool = False,
    ) -> None:
        """`root`: where the tree of nodes lies; `mounted`: it lies over the host's for the program.

        `events`: the program's page faults, where the host tells them. `exits`: remember where the pages of processes
        were when they ended, as far as these matter.
        """
        self._exits = exits
        self._listener = listener
        with contextlib.ExitStack() as stack:
            #: Everything but calls; as an epoll, so that a call waits no longer where there are more processes.
            self._news = stack.enter_context(select.epoll())
            self._next_look = timerfd.Timer()  # a timeout at each poll would cost every call
            stack.callback(self._next_look.close)
            self._news.register(self._next_look.fd, select.EPOLLIN)
            self._receiver = stack.enter_context(contextlib.closing(Receiver(listener)))
            self._received = self._receiver.calls
            self._descriptors = stack.pop_all()
        self._next_look.set(_LOOK_EVERY_S)
        #: The order matters: the listener is asked first, so that whoever ended before a call came is told with it.
        #: An epoll of both would cost each call 3 % more.
        self._poll = select.poll()
        self._poll.register(listener.fd, select.POLLIN)
        self._poll.register(self._news, select.POLLIN)
        #: What a poll gives while the program calls, and nothing else happens.
        self._calls_only = [(listener.fd, select.POLLIN)]
        self.family = Family(kernel, tree, self._news, events)
        #: How often each call came, and how often it was refused by the machine.
        self.calls: collections.defaultdict[str, int] = collections.defaultdict(int)
        self.refused: collections.Counter[str] = collections.Counter()
        #: Opens that were answered with a file of the machine.
        self.files_given = 0
        #: Programs whose vDSO could not be changed: it tells them the host's CPUs.
        self.unchanged_vdsos = 0
        self._abi = abi
        self._kernel = kernel
        self._services = {
            number: (name, self._service_of(name), name != QUICK_CALL) for name, number in abi.numbers.items()
        }
        self._files = Files(kernel, self.family, tree, root, mounted=mounted)
        self._paths = PathCalls(self._files, abi)
        self._holes = Holes(kernel, self.family)
        self._affinity = AffinityCalls(kernel, self.family, tree, abi)
        self._of_threads: dict[str, Callable[[Notification, Thread], int | None]] = {
            **PolicyCalls(kernel, self.family, listener.is_waiting).handlers,
            **self._affinity.handlers,
        }

    def _service_of(self, name: str) -> Callable[[str, Notification], None]:
        """What serves a call of that name."""
        if name in OPEN_CALLS:
            return self._serve_open
        if name in PATH_CALLS:
            return self._serve_path
        if name in EXEC_CALLS:
            return self._serve_exec
        if name in HOLE_CALLS:
            return self._serve_hole
        return {
            BEGIN_CALL: self._serve_begin,
            MREMAP_CALL: self._serve_mremap,
            SYSINFO_CALL: self._serve_sysinfo,
            EXIT_CALL: self._serve_exit,
            QUICK_CALL: self._serve_quick,
        }.get(name, self._serve_thread)

    def close(self) -> None:
        """Nobody is served any more; whoever is still known is forgotten."""
        with self._descriptors:
            self.family.close()

    def watch(self, fd: int) -> None:
        """Let `step` end when this becomes readable, too."""
        self._news.register(fd, select.EPOLLIN)

    def step(self, timeout_s: float | None = None) -> AbstractSet[int]:
        """Serve what has come, or wait for something; gives the watched descriptors that are readable.

        Comes back after `timeout_s` even if there was nothing, and now and then without.
        """
        timeout_ms = None if timeout_s is None else timeout_s * 1000
        for _ in range(_CALLS_A_STEP):
            ready = self._poll.poll(0 if self._received else timeout_ms)
            if ready != self._calls_only and (ready or not self._received):
                break
            self._serve(self._next_call())
        else:
            return _NONE
        if dict(ready).get(self._listener.fd, 0) & select.POLLHUP:  # nobody is left who could call
            self._poll.unregister(self._listener.fd)
        watched = self._see()
        if self._received or self._receiver.has_call():
            call = self._next_call()
            watched |= self._see()  # its number may be that of one who has ended meanwhile
            self._serve(call)
        return watched

    def _see(self) -> set[int]:
        """Everything but calls: ends, of which a call is to know (see `Family.known`); gives what is watched."""
        watched = set()
        with self._receiver:
            for fd, _ in self._news.poll(0):
                if fd == self._next_look.fd:
                    self._look()
                else:
                    watched |= set() if self.family.has_news(fd) else {fd}
        return watched

    def _look(self) -> None:
        """However many processes there are, looking takes a small part of the time."""
        began = time.monotonic()
        with self.family.troubles.confined():
            self.family.look_around()
            self._affinity.tell_who_asks_often()
        self._next_look.set(max(_LOOK_EVERY_S, (time.monotonic() - began) * 50))

    def _next_call(self) -> Notification | None:
        """The call that came first: one has. None: its thread died."""
        if not self._received:
            return self._listener.receive()
        call = self._received.popleft()
        return call if self._listener.is_waiting(call) else None

    def _serve(self, call: Notification | None) -> None:
        if call is None:
            return
        name, serve, takes_time = self._services[call.number]
        self.calls[name] += 1
        try:
            if takes_time:
                with self._receiver:
                    serve(name, call)
            else:
                serve(name, call)
        except ProcessLookupError:  # it died while we were at it
            self._listener.refuse(call, errno.ESRCH)
        except MmError as refused:
            self._refuse(name, call, refused.errno)
        except OSError as refused:
            if refused.errno in NONE_LEFT:
                self._give_up(name, call, refused)
            else:
                self._refuse(name, call, refused.errno or errno.EIO)
        except Exception as error:  # noqa: BLE001 - the calls of all others wait for us
            self._give_up(name, call, error)

    def _give_up(self, name: str, call: Notification, error: Exception) -> None:
        """It is our fault, and not the program's: what the host can answer it does.

        Without a descriptor left a call fails as the host's own can: a file that we were to give is not the host's.
        """
        self.family.troubles.note(error)
        none_left = isinstance(error, OSError) and error.errno in NONE_LEFT
        if name in POLICY_CALLS:
            self._refuse(name, call, errno.ENOMEM if none_left else errno.EIO)
        elif none_left and name in OPEN_CALLS:
            self._refuse(name, call, errno.ENFILE)
        else:
            self._listener.let_through(call)

    def _refuse(self, name: str, call: Notification, code: int) -> None:
        self.refused[f"{name} {errno.errorcode.get(code, code)}"] += 1
        self._listener.refuse(call, code)

    def _serve_open(self, name: str, call: Notification) -> None:
        try:
            opened = self._files.opened(name, call)
        except (PermissionError, MachineGone):  # what we may not look into, or cannot tell, is the host's business
            opened = None
        if opened is None:
            self._serve_hole(name, call)
            return
        fd, flags = opened
        self.files_given += 1
        try:
            self._listener.give_descriptor(call, fd, flags)
        finally:
            os.close(fd)

    def _serve_begin(self, _name: str, call: Notification) -> None:
        """A program begins: it is told the machine's CPUs by its vDSO, too."""
        try:
            vdso.change(self._abi, f"/proc/{call.tid}")
        except OSError:
            self.unchanged_vdsos += 1
        self._listener.let_through(call)

    def _serve_sysinfo(self, _name: str, call: Notification) -> None:
        try:
            self.family.look_at_all()
            told = sysinfo(self._kernel.machine.figures("meminfo"))
            if self._listener.is_waiting(call):
                target.write(call.tid, call.args[0], told)
        except (PermissionError, MachineGone):
            self._listener.let_through(call)
        else:
            self._listener.give(call, 0)

    def _serve_mremap(self, _name: str, call: Notification) -> None:
        """The host moves the memory; where to is found when it is looked at next."""
        with self.family.troubles.confined():
            self.family.note_mremap(call.tid, call.args[0], call.args[1], call.args[2])
        self._listener.let_through(call)

    def _serve_hole(self, name: str, call: Notification) -> None:
        with self.family.troubles.confined():
            self._holes.note(name, call)
        self._listener.let_through(call)

    def _serve_exec(self, _name: str, call: Notification) -> None:
        with self.family.troubles.confined():
            self.family.note_exec(call.tid)
        self._listener.let_through(call)

    def _serve_exit(self, _name: str, call: Notification) -> None:
        with self.family.troubles.confined():
            if self.family.is_met(call.tid) or (self._exits and self.family.matters(call.tid)):
                thread = self.family.thread(call.tid)
                self.family.settle(thread)
                if self._exits:
                    self.family.note_exit(thread.process)
            else:
                self.family.counts.ended_unmet += 1
        self._listener.let_through(call)

    def _serve_path(self, name: str, call: Notification) -> None:
        value = self._paths.answer(name, call)
        if value is None:
            self._listener.let_through(call)
        else:
            self._listener.give(call, value)

    def _serve_quick(self, name: str, call: Notification) -> None:
        """Nobody else is received meanwhile, unless the thread is to be met."""
        thread = self.family.known(call.tid)
        if thread is None:
            with self._receiver:
                self._serve_thread(name, call)
        else:
            self._listener.give(call, self._affinity.getcpu(call, thread))

    def _serve_thread(self, name: str, call: Notification) -> None:
        thread = self.family.known(call.tid)
        if thread is None:
            thread = self.family.thread(call.tid)
            if not self._listener.is_waiting(call):  # that took a while: it may be that of another one by now
                return
        try:
            value = self._of_threads[name](call, thread)
        except OutOfMemory:
            self.family.kill(thread.process)
            return
        if value is None:
            self._listener.let_through(call)
        else:
            self._listener.give(call, value)
