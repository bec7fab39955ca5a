"""Init's loop: starts the processes, hands them their memory, restarts who dies, and takes all down.

One poll waits for init's socket, the pidfds of all processes, the pidfd of the owner and the signals that end the
machine; nothing here waits for a child, so a stopped one stops nobody else.
"""

import enum
import os
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from numaemu_core import limits
from numaemu_core.layout import Layout
from numaemu_daemon import handshake, process_status
from numaemu_daemon.child import ChildConfig, child_main
from numaemu_daemon.doorman import Connection, Doorman
from numaemu_daemon.forkserver import ChildStarter
from numaemu_daemon.handshake import HandshakeError
from numaemu_daemon.logs import Event, Log
from numaemu_daemon.options import Options
from numaemu_daemon.process_table import KERNEL, NODE, SWAP, Managed, end_all
from numaemu_daemon.segments import all_names, allocated_bytes, owned_names, owner_name, segment_bytes
from numaemu_daemon.stop_request import StopRequest
from numaemu_host import fdsock, pidfd
from numaemu_host.fault_board import VARIABLE as FAULT_BOARD

#: The machine must be ready by then, and later the more memory it has.
BOOT_WAIT_S: Final = 30.0
BOOT_WAIT_S_PER_GIB: Final = 2.0
#: How long a process may go on with what a dead kernel daemon has asked for.
FENCE_WAIT_S: Final = 5.0
#: Kernel daemons that fail one after the other before they serve: then the machine ends.
KERNEL_TRIES: Final = 5
#: Somebody who waits for a process says so again within this time, or waits no longer.
WANTED_S: Final = 1.0
#: How often init looks whether a process that others wait for is stopped.
STOPPED_POLL_S: Final = 0.05
#: How often it looks so at the kernel daemon of a machine with users who cannot say that they wait: other users of the
#: host and those on TCP do not reach init's socket.
GUESTS_POLL_S: Final = 1.0
_GIB: Final = 1 << 30


class Phase(enum.Enum):
    """Where the machine is."""

    STARTING = "starting"
    UP = "up"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class Machine:
    """What is started: `mains` are the modules of the roles, whose `main` a child calls."""

    options: Options
    layout: Layout
    boot_id: str
    mains: dict[str, str]
    #: The secret of the bus; it crosses pipes to children only.
    bus_key: bytes = field(default_factory=lambda: secrets.token_bytes(limits.TOKEN_BYTES), repr=False)


@dataclass(slots=True)
class Verdict:
    """Why the machine ends: an error before it was ready, or after it."""

    reason: str = ""
    exit_code: int = 0


@dataclass(slots=True)
class _State:
    """What changes while the machine runs."""

    phase: Phase = Phase.STARTING
    verdict: Verdict = field(default_factory=Verdict)
    #: Duplicates of all descriptors by name.
    segments: dict[str, int] = field(default_factory=dict)
    go_given: bool = False
    #: Counts the kernel daemons.
    generation: int = 1
    #: When processes that still listen to a dead kernel daemon are killed; None while there are none.
    fence_deadline: float | None = None
    #: When it was last looked whether processes are stopped that others wait for; None while nobody waits.
    looked_at: float | None = None
    #: When it is looked next on behalf of those who cannot say so; None: the machine admits none.
    guests_look_at: float | None = None


class Supervisor:
    """Runs one machine from the first process to the last."""

    def __init__(
        self, machine: Machine, starter: ChildStarter, listener: socket.socket, log: Log, announce: Callable[[], None]
    ) -> None:
        """Over a bound listener; `announce` is called when the machine is ready."""
        self._machine = machine
        self._starter = starter
        self._log = log
        self._announce = announce
        self._begun_at = time.monotonic()
        gib = allocated_bytes(machine.layout) / _GIB
        self._boot_deadline = self._begun_at + BOOT_WAIT_S + BOOT_WAIT_S_PER_GIB * gib
        self._s = _State()
        if machine.options.admission.uids or machine.options.admission.listen:
            self._s.guests_look_at = self._begun_at + GUESTS_POLL_S
        self._selector = selectors.DefaultSelector()
        self._door = Doorman(listener, self._selector, self._handle, log)
        layout = machine.layout
        roles = [(KERNEL, None), *((NODE, node.id) for node in layout.topology.nodes), (SWAP, None)]
        self._children = [Managed(role, nid, tuple(owned_names(layout, owner_name(role, nid)))) for role, nid in roles]
        self._helpers = [Managed(role) for role in starter.helper_pids()]
        for process in (*self._children, *self._helpers):
            process.hurried = FAULT_BOARD in os.environ

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, stop: StopRequest, owner_pidfd: int | None) -> Verdict:
        """Bring the machine up, keep it up, take it down when told to; says why it ended."""
        self._selector.register(stop.fd, selectors.EVENT_READ, lambda: self._stopped(stop))
        if owner_pidfd is not None:
            self._selector.register(owner_pidfd, selectors.EVENT_READ, lambda: self._end("the owner has ended"))
        try:
            self._watch_helpers()
            for child in self._children:
                if self._s.phase is not Phase.ENDING:
                    self._start(child)
            while self._s.phase is not Phase.ENDING:
                for key, _ in self._selector.select(self._timeout()):
                    key.data()
                self._run_due()
        finally:
            self._take_down()
        return self._s.verdict

    def _timeout(self) -> float | None:
        if self._s.phase is Phase.ENDING:
            return 0
        due = [process.due_at for process in (*self._children, *self._helpers) if process.due_at is not None]
        if self._s.fence_deadline is not None:  # what waits for the fences is not due before
            kernels = [child.due_at for child in self._children if child.role == KERNEL]
            due = [at for at in due if at not in kernels] + [self._s.fence_deadline]
        if self._s.phase is Phase.STARTING:
            due.append(self._boot_deadline)
        if self._s.looked_at is not None:
            due.append(self._s.looked_at + STOPPED_POLL_S)
        if self._s.guests_look_at is not None:
            due.append(self._s.guests_look_at)
        silent = self._door.expire()
        if silent is not None:
            due.append(silent)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _run_due(self) -> None:
        now = time.monotonic()
        if self._s.phase is Phase.STARTING and now >= self._boot_deadline:
            missing = ", ".join(child.name for child in self._children if not child.up)
            self._end(f"not ready in time: {missing}", 1)
        for helper in self._helpers:
            if helper.due_at is not None and now >= helper.due_at:
                self._watch_helpers()
        self._look_at_fences(now)
        self._look_for_guests(now)
        self._look_at_wanted(now)
        for child in self._children:
            fenced = child.role != KERNEL or self._s.fence_deadline is None
            if self._s.phase is not Phase.ENDING and child.due_at is not None and now >= child.due_at and fenced:
                self._start(child)

    def _wanted(self, role: object, nid: object) -> None:
        """Somebody waits for the process of that role."""
        now = time.monotonic()
        for child in self._children:
            if (child.role, child.nid) == (role, nid) and child.alive:
                child.wanted_until = now + WANTED_S
                self._s.looked_at = self._s.looked_at if self._s.looked_at is not None else now

    def _look_for_guests(self, now: float) -> None:
        """Who cannot reach init is taken to wait for a kernel daemon that is stopped."""
        if self._s.guests_look_at is None or now < self._s.guests_look_at:
            return
        self._s.guests_look_at = now + GUESTS_POLL_S
        for child in self._children:
            if child.role == KERNEL and child.alive and pidfd.is_stopped(child.pid):
                self._wanted(child.role, child.nid)

    def _look_at_wanted(self, now: float) -> None:
        """Kill who is stopped while others wait for it: its successor goes on. Who is stopped and not missed stays.

        It must have been stopped at every look over the bound: if init itself was stopped, it begins to look anew.
        """
        last = self._s.looked_at
        if last is None or now < last + STOPPED_POLL_S:
            return
        wanted = [child for child in self._children if child.alive and (child.wanted_until > now or child.unfenced)]
        self._s.looked_at = now if wanted else None
        for child in self._children:
            if child not in wanted or not pidfd.is_stopped(child.pid):
                child.stopped_since = None
            elif child.stopped_since is None or now - last > limits.PROCESS_STOPPED_BOUND_S:
                child.stopped_since = now
            elif now - child.stopped_since >= limits.PROCESS_STOPPED_BOUND_S:
                reason = f"others waited for it for {now - child.stopped_since:.2g} s while it was stopped"
                self._log.warning(Event.PROCESS_KILLED, child=child.name, child_pid=child.pid, reason=reason)
                child.stopped_since = None
                child.killed_stopped += 1
                child.send_signal(signal.SIGKILL)

    def _look_at_fences(self, now: float) -> None:
        """A new kernel daemon comes when nobody works for the last one any more; who is stopped is killed for it."""
        if self._s.fence_deadline is None:
            return
        late = [child for child in self._children if child.unfenced]
        if not late:
            self._s.fence_deadline = None
        elif now >= self._s.fence_deadline:
            self._s.fence_deadline = now + FENCE_WAIT_S
            for child in late:
                reason = "it goes on with what a dead kernel daemon has asked for"
                self._log.warning(Event.PROCESS_KILLED, child=child.name, child_pid=child.pid, reason=reason)
                child.send_signal(signal.SIGKILL)

    def _stopped(self, stop: StopRequest) -> None:
        self._end(f"signal {signal.Signals(stop.signal_number).name}" if stop.asked else "a signal")

    def _end(self, reason: str, exit_code: int = 0) -> None:
        """The machine is to end; the first reason counts. Before it was ready, every reason is a failure."""
        if self._s.phase is Phase.ENDING:
            return
        failed = exit_code or self._s.phase is Phase.STARTING
        self._s.verdict = Verdict(reason, 1 if failed else 0)
        self._log.info(Event.MACHINE_GOING_DOWN, reason=reason, was=self._s.phase.value)
        self._s.phase = Phase.ENDING

    def _take_down(self) -> None:
        for process in end_all(self._children):
            self._log.warning(Event.PROCESS_KILLED, child=process.name, child_pid=process.pid, reason="SIGTERM ignored")
        self._door.close_all()
        self._selector.close()
        for process in (*self._children, *self._helpers):
            if process.alive:
                os.close(process.pidfd)
                process.pidfd = -1
        handshake.close_all(list(self._s.segments.values()))

    # -- processes -----------------------------------------------------------------------------------------------------

    def _start(self, child: Managed) -> None:
        options = self._machine.options
        config = ChildConfig(
            role=child.role,
            nid=child.nid,
            main=self._machine.mains[child.role],
            directory=str(options.directory),
            machine=options.name,
            boot_id=self._machine.boot_id,
            topology=options.topology,
            init_pid=os.getpid(),
            generation=self._s.generation,
            admission=options.admission,
            visitors=str(options.visitors or ""),
            bus_key=self._machine.bus_key,
        )
        now = time.monotonic()
        try:
            child.started(self._starter.start(child_main, config), now)
        except OSError as error:
            child.died(now)
            self._log.error(Event.PROCESS_NOT_STARTED, child=child.name, reason=str(error), pause_s=child.pause_s)
            if self._s.phase is Phase.STARTING:
                self._end(f"{child.name} could not be started: {error}", 1)
            return
        self._watch(child, self._child_died)

    def _watch(self, process: Managed, died: Callable[[Managed], None]) -> None:
        self._selector.register(process.pidfd, selectors.EVENT_READ, lambda: died(process))

    def _forget(self, process: Managed) -> None:
        self._selector.unregister(process.pidfd)
        process.died(time.monotonic())

    def _child_died(self, child: Managed) -> None:
        if not child.alive or self._s.phase is Phase.ENDING:
            return
        if child.connection is not None:
            self._door.drain(child.connection)
            child.connection = None
        lived_s = round(time.monotonic() - child.started_at, 3)
        self._forget(child)
        self._log.warning(
            Event.PROCESS_DIED, child=child.name, child_pid=child.pid, lived_s=lived_s, pause_s=child.pause_s
        )
        if self._s.phase is Phase.STARTING:
            self._end(f"{child.name} died while the machine started{child.failure and ': '}{child.failure}", 1)
        elif child.role == KERNEL:
            self._kernel_died(child)

    def _kernel_died(self, kernel: Managed) -> None:
        """Have the others let go of it; its successor recovers the machine from the memory that init keeps."""
        self._log.error(Event.KERNEL_DIED, child_pid=kernel.pid, generation=self._s.generation)
        if kernel.fruitless >= KERNEL_TRIES:
            self._end(f"the kernel daemon cannot be recovered{kernel.failure and ': '}{kernel.failure}", 1)
            return
        self._s.generation += 1
        self._s.fence_deadline = time.monotonic() + FENCE_WAIT_S
        self._s.looked_at = self._s.looked_at if self._s.looked_at is not None else time.monotonic()
        for child in self._children:
            if child is not kernel and child.connection is not None:
                child.unfenced = True
                try:
                    fdsock.send(child.connection.sock, {"fence": self._s.generation})
                except OSError:  # it does not read, or is dead: both end in a restart
                    child.send_signal(signal.SIGKILL)

    def _watch_helpers(self) -> None:
        """See to it that forkserver and tracker live, and watch those that are new."""
        now = time.monotonic()
        try:
            self._starter.ensure_running()
            pids = self._starter.helper_pids()
            for helper in self._helpers:
                if not helper.alive:
                    helper.started(pids[helper.role], now)
                    helper.up = True
                    self._watch(helper, self._helper_died)
        except OSError as error:
            for helper in self._helpers:
                if not helper.alive:
                    helper.died(now)
                    self._log.error(Event.PROCESS_NOT_STARTED, child=helper.role, reason=str(error))

    def _helper_died(self, helper: Managed) -> None:
        if helper.alive:
            self._forget(helper)
            self._log.warning(Event.HELPER_DIED, child=helper.role, child_pid=helper.pid, pause_s=helper.pause_s)

    # -- messages ------------------------------------------------------------------------------------------------------

    def _handle(self, connection: Connection, message: dict[str, Any], fds: list[int]) -> None:
        if self._s.phase is Phase.ENDING:
            return
        child = connection.process
        match message:
            case {"command": command}:
                self._command(connection, command)
            case {"hello": role, "node": nid, "pid": pid} if child is None:
                self._hello(connection, role, nid, pid)
            case {"created": names} if child is not None:
                self._created(child, names, fds)
            case {"up": True} if child is not None:
                self._up(child)
            case {"fenced": int(generation)} if child is not None:
                if generation == self._s.generation:
                    child.unfenced = False
            case {"done": done} if child is not None:
                child.done = handshake.counters_of(done)
            case {"watch": int(pid)} if child is None and pid == connection.pid:
                connection.process = next((one for one in self._children if one.alive and one.pid == pid), None)
            case {"waits_for": role, "node": nid}:
                self._wanted(role, nid)
            case {"failed": line} if child is not None:
                child.failure = handshake.line_of(line)
            case _:
                raise HandshakeError(f"unexpected message with keys {sorted(message)}")

    def _hello(self, connection: Connection, role: object, nid: object, pid: object) -> None:
        """Believe a child that is the process we started: that one still lives, so nobody else has its pid."""
        child = next((child for child in self._children if (child.role, child.nid) == (role, nid)), None)
        if child is None or not child.alive or child.connection is not None or not child.pid == pid == connection.pid:
            raise HandshakeError(f"hello of pid {connection.pid}, which was not started as {role!r} {nid!r}")
        connection.process = child
        child.connection = connection
        self._log.info(Event.PROCESS_STARTED, child=child.name, child_pid=child.pid, restarts=child.restarts)
        if self._s.phase is Phase.STARTING:
            handshake.send_segments(connection.sock, {"create": True}, {})
        else:
            self._send_memory(child, {"create": False})

    def _created(self, child: Managed, names: object, fds: list[int]) -> None:
        """Keep the descriptors of what a child made; when nothing is missing, every child gets all of it."""
        if self._s.phase is not Phase.STARTING or names != list(child.owned) or len(fds) != len(child.owned):
            raise HandshakeError(f"{child.name} created {names!r}, expected {child.owned}")
        if any(name in self._s.segments for name in child.owned):
            raise HandshakeError(f"{child.name} created its segments twice")
        for name, fd in zip(child.owned, fds, strict=True):
            if os.fstat(fd).st_size != segment_bytes(self._machine.layout, name):
                raise HandshakeError(f"{child.name} created {name} with {os.fstat(fd).st_size} bytes")
        self._s.segments |= zip(child.owned, fds, strict=True)
        fds.clear()
        self._give_go()

    def _give_go(self) -> None:
        wanted = all_names(self._machine.layout)
        everyone = all(child.connection is not None for child in self._children)
        if self._s.go_given or not everyone or any(name not in self._s.segments for name in wanted):
            return
        self._s.go_given = True
        for child in self._children:
            self._send_memory(child, {"go": True})

    def _send_memory(self, child: Managed, head: dict[str, object]) -> None:
        assert child.connection is not None
        try:
            handshake.send_segments(child.connection.sock, head, self._s.segments)
        except OSError as error:  # it is dead, or does not read: both end in a restart
            self._log.warning(Event.PROCESS_KILLED, child=child.name, child_pid=child.pid, reason=str(error))
            child.send_signal(signal.SIGKILL)

    def _up(self, child: Managed) -> None:
        child.up = True
        self._log.info(Event.PROCESS_UP, child=child.name, child_pid=child.pid)
        if self._s.phase is Phase.STARTING and all(other.up for other in self._children):
            self._s.phase = Phase.UP
            self._log.info(Event.MACHINE_READY, seconds=round(time.monotonic() - self._begun_at, 3))
            self._announce()

    def _command(self, connection: Connection, command: object) -> None:
        match command:
            case "status":
                handshake.answer(connection.sock, self.status())
            case "down":
                handshake.answer(connection.sock, {"ok": True})
                self._end("told to go down")
            case _:
                handshake.answer(connection.sock, {"error": "commands are status and down"})

    def status(self) -> dict[str, Any]:
        """The machine and its processes as `status` shows them."""
        rows = [process_status.process_row(p, self._s.segments) for p in (*self._helpers, *self._children)]
        return {
            "machine": self._machine.options.name,
            "boot_id": self._machine.boot_id,
            "generation": self._s.generation,
            **self._machine.options.topology.told_faults(),
            "processes": [process_status.init_row(), *rows],
        }
