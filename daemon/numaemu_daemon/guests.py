"""Connections on the endpoint of the calls: how many there are, whose they are, and the end of those that go too far.

ZeroMQ admits any number, keeps them for ever and tells nobody. Its monitor names the descriptor of each connection as
it comes and goes; the host says whose it is. A connection is ended by shutting its descriptor down: ZeroMQ then cleans
up after it as if the peer had gone. A descriptor's number may be another connection's meanwhile; it is compared with
the process that is meant, so that a mistake hits nobody else.
"""

import os
import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zmq

from numaemu_core import limits
from numaemu_daemon.logs import Event, Log
from numaemu_host import fdsock

_EVENT: Final = struct.Struct("=HI")
_GONE: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
#: Events that one turn of the loop takes.
_EVENTS_PER_TURN: Final = 32


@dataclass(slots=True)
class Guest:
    """One connection."""

    pid: int
    since: float
    greeted: bool = False
    strikes: int = 0


class Guests:
    """All connections of one endpoint, by descriptor."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        router: "zmq.Socket[bytes]",
        clock: Callable[[], float],
        log: Log,
        *,
        stranger_s: float | None = limits.STRANGER_S,
    ) -> None:
        """Watch `router`, before it is bound. `socket` is readable when somebody came or went.

        `stranger_s`: how long a connection may be silent before its hello; None: for ever.
        """
        self._stranger_s = stranger_s
        self._room = min(limits.MAX_CONNECTIONS, descriptors() // 2)
        self._router = router
        self._clock = clock
        self._log = log
        self._guests: dict[int, Guest] = {}
        self._of_process: Counter[int] = Counter()
        self._strangers: dict[int, Guest] = {}
        self._strangers_of_process: Counter[int] = Counter()
        #: Processes whose connections were dropped: how many, and until when none may come.
        self._barred: dict[int, tuple[int, float]] = {}
        self.dropped = 0
        #: Called with the descriptor of a connection that is over.
        self.went: Callable[[int], None] = lambda _descriptor: None
        endpoint = f"inproc://guests-{id(self):x}"
        router.monitor(endpoint, zmq.EVENT_ACCEPTED | _GONE)
        self.socket = context.socket(zmq.PAIR)
        self.socket.rcvhwm = 0  # the thread that delivers messages must never wait for us
        self.socket.linger = 0
        self.socket.connect(endpoint)

    def close(self) -> None:
        """No longer watch: first of all, as ZeroMQ would wait for somebody to take the last events."""
        self._router.disable_monitor()
        self.socket.close(0)

    def receive(self) -> None:
        """Take note of who came and went."""
        for _ in range(_EVENTS_PER_TURN):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event, descriptor = _EVENT.unpack(frames[0])
            if event == zmq.EVENT_ACCEPTED:
                self._went(descriptor)
                self._came(descriptor)
            else:
                self._went(descriptor)

    def _came(self, descriptor: int) -> None:
        pid = _pid_at(descriptor)
        if pid is None:  # gone already
            return
        guest = self._guests[descriptor] = self._strangers[descriptor] = Guest(pid, self._clock())
        self._of_process[pid] += 1
        self._strangers_of_process[pid] += 1
        if self._is_one_too_many(pid):
            self._drop(descriptor, guest)

    def _is_one_too_many(self, pid: int) -> bool:
        barred = self._barred.get(pid)
        return (
            (barred is not None and barred[0] >= limits.DROPS_OF_PROCESS)
            or self._of_process[pid] > limits.CONNECTIONS_PER_PROCESS
            or self._strangers_of_process[pid] > limits.STRANGERS_PER_PROCESS
            or len(self._strangers) > limits.MAX_STRANGERS
            or len(self._guests) > self._room
        )

    def _went(self, descriptor: int) -> None:
        guest = self._guests.pop(descriptor, None)
        if guest is not None:
            self._of_process -= Counter({guest.pid: 1})
            self._no_stranger(descriptor, guest)
            self.went(descriptor)

    def _no_stranger(self, descriptor: int, guest: Guest) -> None:
        if self._strangers.pop(descriptor, None) is not None:
            self._strangers_of_process -= Counter({guest.pid: 1})

    def greeted(self, descriptor: int) -> None:
        """It has said hello as a client."""
        guest = self._guests.get(descriptor)
        if guest is not None:
            guest.greeted = True
            guest.strikes = 0
            self._no_stranger(descriptor, guest)

    def strike(self, descriptor: int) -> bool:
        """A message of this connection is refused; False: there were too many, it is dropped and gets no answer."""
        guest = self._guests.get(descriptor)
        if guest is None:
            return True
        guest.strikes += 1
        allowed = limits.STRIKES_OF_CLIENT if guest.greeted else limits.STRIKES_OF_STRANGER
        if guest.strikes == allowed + 1:
            count, _ = self._barred.get(guest.pid, (0, 0.0))
            self._barred[guest.pid] = count + 1, self._clock() + limits.BARRED_S
            self._drop(descriptor, guest)
        return guest.strikes <= allowed

    def expire(self) -> float | None:
        """Drop who has not said hello in time; gives the seconds until the next one is due, None if there is none."""
        if not self._strangers and not self._barred:
            return None
        now = self._clock()
        self._barred = {pid: entry for pid, entry in self._barred.items() if entry[1] > now}
        waits_s = [until - now for _, until in self._barred.values()]
        if self._stranger_s is not None:
            for descriptor, guest in list(self._strangers.items()):  # the oldest first
                wait_s = guest.since + self._stranger_s - now
                if wait_s > 0:
                    waits_s.append(wait_s)
                    break
                self._no_stranger(descriptor, guest)  # once is enough
                self._drop(descriptor, guest)
        return min(waits_s, default=None)

    def _drop(self, descriptor: int, guest: Guest) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # the first of them, and ever fewer: a log is not to be flooded
            self._log.warning(Event.CONNECTION_DROPPED, peer_pid=guest.pid, dropped=self.dropped)
        shut_down(descriptor, guest.pid)


def descriptors() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def _pid_at(descriptor: int) -> int | None:
    """Whose connection it is, by the host's word; 0 where that does not say, None if it is no socket any more."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            return fdsock.peer_credentials(sock)[0] if sock.family == socket.AF_UNIX else 0
    except OSError:
        return None


def shut_down(descriptor: int, pid: int) -> None:
    """End the connection of ZeroMQ behind a descriptor, if it is one of that process."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            theirs = fdsock.peer_credentials(sock)[0] if sock.family == socket.AF_UNIX else 0
            if theirs == pid:
                sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is gone already
        return
