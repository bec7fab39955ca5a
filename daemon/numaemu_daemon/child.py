"""What every process below init does first, and what its role is handed then.

A child connects to init's socket, makes the segments that it owns or gets them back, waits until it has the descriptors
of all, and calls the `main` of its role, which calls `Child.ready` once it serves.
"""

import contextlib
import importlib
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from numaemu_core import limits
from numaemu_core.admission import Admission
from numaemu_core.fault_points import FAULT_POINTS, Reach, unarmed
from numaemu_core.layout import Layout, layout_of
from numaemu_core.topology import Topology
from numaemu_daemon import handshake, logs, segments
from numaemu_daemon.handshake import HandshakeError
from numaemu_daemon.logs import Event, Log
from numaemu_daemon.options import INIT_SOCKET
from numaemu_daemon.stop_request import ignore_terminal
from numaemu_host import fdsock, pidfd
from numaemu_host.fault_board import FaultBoard

#: Counters are told init no more often than this.
REPORT_INTERVAL_S: Final = 1.0
_CONNECT_WAIT_S: Final = 10.0
_COMM_MAX: Final = 15


@dataclass(frozen=True, slots=True)
class ChildConfig:
    """What a child is started with; it crosses a pipe. `main` is the module whose `main(child)` is the role."""

    role: str
    nid: int | None
    main: str
    directory: str
    machine: str
    boot_id: str
    topology: Topology
    init_pid: int
    #: Counts the kernel daemons that the machine has had.
    generation: int = 1
    #: Whom the machine admits beside its owner, and the directory for other users, "" for none.
    admission: Admission = field(default_factory=Admission)
    visitors: str = ""
    #: What processes of the machine know, and nobody else: proves on the bus that one is there.
    bus_key: bytes = field(default=b"", repr=False)


@dataclass(slots=True)
class Child:
    """One process of the machine, as its role's `main` gets it.

    `fds` are the descriptors of all segments by name; `init_pidfd` becomes readable when init ends, and then this
    process must end too; `restarted` says that a predecessor has died and its memory is as it left it.
    """

    role: str
    nid: int | None
    directory: Path
    machine: str
    boot_id: str
    topology: Topology
    layout: Layout
    fds: dict[str, int]
    init_pid: int
    init_pidfd: int
    socket: socket.socket
    restarted: bool
    owner_uid: int
    log: Log
    #: Counts the kernel daemons that the machine has had.
    generation: int = 1
    #: Told what steps it reaches: nobody, but in tests.
    reach: Reach = unarmed
    #: Whom the machine admits beside its owner, and the directory for other users, None for none.
    admission: Admission = field(default_factory=Admission)
    visitors: Path | None = None
    #: Proves on the bus that this is a process of the machine.
    bus_key: bytes = field(default=b"", repr=False)
    _told: dict[str, int] = field(default_factory=dict)
    _told_at: float = 0.0
    _waited_at: dict[tuple[str, int | None], float] = field(default_factory=dict)

    def ready(self) -> None:
        """Tell init that this process serves."""
        self._tell({"up": True})

    def report(self, done: Mapping[str, int]) -> float | None:
        """Tell init these counters, if they changed and the last time is long enough ago.

        Returns the seconds after which to call again, None if init knows all.
        """
        if done == self._told:
            return None
        now = time.monotonic()
        wait_s = self._told_at + REPORT_INTERVAL_S - now
        if wait_s > 0:
            return wait_s
        self._told_at = now
        if not self._tell({"done": dict(done)}):
            return REPORT_INTERVAL_S
        self._told = dict(done)
        return None

    def waits_for(self, role: str, nid: int | None) -> None:
        """Tell init that this process waits for another: if that is stopped, it is killed and started again."""
        now = time.monotonic()
        if now - self._waited_at.get((role, nid), 0.0) >= limits.SILENCE_S:
            self._waited_at[role, nid] = now
            self._tell({"waits_for": role, "node": nid})

    def fenced(self, generation: int) -> None:
        """Tell init that nothing that an earlier kernel daemon has asked for is done any more."""
        self._tell({"fenced": generation})

    def hear(self) -> int | None:
        """Which generation of the kernel daemon init says is about to come, None if it says nothing; never waits."""
        try:
            received, fds = fdsock.recv(self.socket)
        except (OSError, EOFError):  # nothing there; that init is gone is told by its pidfd
            return None
        handshake.close_all(fds)
        return handshake.generation_of(received)

    def _tell(self, message: dict[str, object]) -> bool:
        """Whether it was sent: init may be stopped, and that it is gone is told by its pidfd."""
        try:
            fdsock.send(self.socket, message)
        except OSError:
            return False
        return True


def child_main(config: ChildConfig) -> None:
    """The whole life of a child."""
    ignore_terminal()
    _set_name(f"numaemu:{segments.owner_name(config.role, config.nid)}")
    log = logs.configure(config.machine, config.role, config.nid)
    try:
        init_pidfd = pidfd.open_pidfd(config.init_pid)
        sock = fdsock.connect(Path(config.directory) / INIT_SOCKET, _CONNECT_WAIT_S)
        end_of_init = fdsock.connect(Path(config.directory) / INIT_SOCKET, _CONNECT_WAIT_S)
    except OSError as error:  # init is gone, or has just ended
        log.warning(Event.PROCESS_ENDING, reason=f"no init: {error}")
        sys.exit(1)
    with sock, end_of_init:
        with contextlib.suppress(OSError):  # so that a process that is stopped then ends, too
            fdsock.continue_at_hangup(end_of_init)
            fdsock.send(end_of_init, {"watch": os.getpid()})
        try:
            child = _join(config, sock, init_pidfd, log)
            importlib.import_module(config.main).main(child)
        except EOFError:
            log.warning(Event.PROCESS_ENDING, reason="init is gone")
            sys.exit(1)
        except Exception as error:
            log.critical(Event.PROCESS_FAILED, exc_info=True)
            with contextlib.suppress(OSError):
                fdsock.send(sock, {"failed": f"{type(error).__name__}: {error}"})
            sys.exit(1)
    log.info(Event.PROCESS_ENDING, reason="asked to")


def _join(config: ChildConfig, sock: socket.socket, init_pidfd: int, log: Log) -> Child:
    """Say hello, and get or make the memory. EOFError if init is gone; that an answer comes proves it is not."""
    if fdsock.peer_credentials(sock)[0] != config.init_pid:
        raise HandshakeError("the socket of init belongs to another process")
    # Init answers when the others are ready too, however long that takes; its end is seen as the end of the stream.
    sock.settimeout(None)
    layout = layout_of(config.topology)
    fdsock.send(sock, {"hello": config.role, "node": config.nid, "pid": os.getpid()})
    message, fds = _receive(sock)
    create = message.get("create")
    if create is True:
        handshake.close_all(fds)
        _create(sock, layout, segments.owner_name(config.role, config.nid))
        message, fds = _receive(sock)
    memory = handshake.receive_segments(sock, message, fds, segments.all_names(layout))
    sock.settimeout(0)
    return Child(
        role=config.role,
        nid=config.nid,
        directory=Path(config.directory),
        machine=config.machine,
        boot_id=config.boot_id,
        topology=config.topology,
        layout=layout,
        fds=memory,
        init_pid=config.init_pid,
        init_pidfd=init_pidfd,
        socket=sock,
        restarted=create is not True,
        owner_uid=os.getuid(),
        log=log,
        generation=config.generation,
        reach=reach_of_environment(),
        admission=config.admission,
        visitors=Path(config.visitors) if config.visitors else None,
        bus_key=config.bus_key,
    )


def reach_of_environment() -> Reach:
    """Who is told of the steps that this process reaches: nobody, unless the machine was started for tests of that."""
    board = FaultBoard.of_environment(list(FAULT_POINTS))
    return unarmed if board is None else board.reach


def _receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    received, fds = fdsock.recv(sock)
    return handshake.message_of(received), fds


def _create(sock: socket.socket, layout: Layout, owner: str) -> None:
    """Make what this process owns and give init a duplicate; all of it comes back with the rest."""
    made = segments.create_owned(layout, owner)
    try:
        fdsock.send(sock, {"created": list(made)}, list(made.values()))
    finally:
        handshake.close_all(list(made.values()))


def _set_name(name: str) -> None:
    """The name that ps and top show; without it all children look like the forkserver."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name[:_COMM_MAX], encoding="ascii")
