"""The daemon's side of the bus to node processes and the swap node: a ROUTER that they connect to.

Messages are msgpack arrays: `["hello", role, node, pid, key]`, `["done", ticket, pages]`, `["balance", node]` and
`["asleep", node]` come in; `["clean"]`, `["kswapd"]`, `["balanced", pages]`,
`["write", ticket, pfns, slots]`, `["read", ticket, slots, pfns]` and `["copy", ticket, source, target]` go out, page
numbers as bytes of little-endian int64. A request to copy is kept until it is answered, and sent again when the process
that it went to has a successor: copies can be repeated. An answer counts only if it comes from the process that was
asked last, or a copy could be repeated after its answer was taken. The key is known to the machine's own processes
only: the host would let any process of the owner connect, and whoever passed for the swap node could lose pages.
"""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np
import zmq

from numaemu_core import limits
from numaemu_core.columns import I8
from numaemu_daemon.guests import Guests
from numaemu_daemon.logs import Event, Log

#: The swap node among the peers; node processes are there under their node ids.
_SWAP: Final = -1
#: Messages that one turn of the loop takes, so that calls are served between them.
MESSAGES_PER_TURN: Final = 16


@dataclass(frozen=True, slots=True)
class _Request:
    """A copy that was asked for and is not yet confirmed."""

    peer: int
    body: bytes
    done: Callable[[], None]
    since: float


class Bus:
    """Messages to and from the processes that own memory."""

    def __init__(self, socket: "zmq.Socket[bytes]", guests: Guests, key: bytes, log: Log) -> None:
        """Over a bound ROUTER, watched by `guests`; `key` is what the machine's processes prove themselves with."""
        self.socket = socket
        self.guests = guests
        self._key = key
        self._log = log
        self._peers: dict[int, bytes] = {}
        self._ticket = 0
        self._asked: dict[int, _Request] = {}
        #: Messages that were dropped.
        self.dropped = 0
        #: Called with the frames of a write that the swap node has confirmed.
        self.written: Callable[[I8], None] = lambda _pfns: None
        #: Called with what a node process says of its kswapd, and when it says hello: a word and its node.
        self.node_asks: Callable[[str, int], None] = lambda _verb, _nid: None
        #: Called with role and node of a process that has owed an answer for long.
        self.silent: Callable[[str, int | None], None] = lambda _role, _nid: None

    @property
    def copies(self) -> int:
        """Requests to copy that are not yet confirmed."""
        return len(self._asked)

    def look_for_silent(self) -> int | None:
        """Complain of processes that have owed an answer for long; gives the milliseconds until the next look.

        None: nobody owes one.
        """
        if not self._asked:
            return None
        late = time.monotonic() - limits.SILENCE_S
        for peer in {request.peer for request in self._asked.values() if request.since < late}:
            self.silent(*(("swap", None) if peer == _SWAP else ("node", peer)))
        return int(limits.SILENCE_S * 1000)

    def write(self, pfns: I8, slots: I8) -> None:
        """Copy frames to slots; `written` is called when it is done."""
        self._ask(_SWAP, "write", pfns, slots, lambda: self.written(pfns))

    def read(self, slots: I8, pfns: I8, done: Callable[[], None]) -> None:
        """Copy slots to frames; `done` is called then."""
        self._ask(_SWAP, "read", slots, pfns, done)

    def copy(self, nid: int, source: I8, target: I8, done: Callable[[], None]) -> None:
        """Copy frames to frames of a node, by its process; `done` is called then."""
        self._ask(nid, "copy", source, target, done)

    def tell_to_clean(self, nid: int) -> bool:
        """A node has unclean frames; False while its process is not there."""
        return self.tell_node(nid, ["clean"])

    def tell_node(self, nid: int, message: list[Any]) -> bool:
        """Send to a node process; False while it is not there."""
        identity = self._peers.get(nid)
        if identity is not None:
            self._send(identity, msgpack.packb(message))
        return identity is not None

    def _ask(self, peer: int, verb: str, first: I8, second: I8, done: Callable[[], None]) -> None:
        self._ticket += 1
        body = msgpack.packb([verb, self._ticket, _packed(first), _packed(second)])
        self._asked[self._ticket] = _Request(peer, body, done, time.monotonic())
        if peer in self._peers:
            self._send(self._peers[peer], body)

    def _greet(self, peer: int, role: str, identity: bytes, pid: int) -> None:
        """A process is there: it is asked what its predecessor has not confirmed."""
        self._peers[peer] = identity
        repeated = [request.body for request in self._asked.values() if request.peer == peer]
        self._log.info(Event.NODE_CONNECTED, peer_role=role, nid=peer, peer_pid=pid, repeated=len(repeated))
        for body in repeated:
            self._send(identity, body)

    def _send(self, identity: bytes, body: bytes) -> None:
        try:
            self.socket.send_multipart([identity, body], zmq.NOBLOCK)
        except zmq.ZMQError as error:  # it has just died; what it was asked is asked again of its successor
            self._log.warning(Event.REPLY_DROPPED, reason=str(error))

    def receive(self) -> int:
        """Take what has come, at most MESSAGES_PER_TURN; gives how many messages."""
        for count in range(MESSAGES_PER_TURN):
            try:
                identity = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return count
            frame, parts = self.socket.recv(copy=False), 1
            while self.socket.rcvmore:
                self.socket.recv()  # dropped one by one: there may be any number
                parts += 1
            message, descriptor = _unpacked(frame.bytes) if parts == 1 else None, int(frame.get(zmq.SRCFD))
            if not self._take(identity, message) and not self._admit(identity, message, descriptor):
                self._drop(descriptor)
        return MESSAGES_PER_TURN

    def _admit(self, identity: bytes, message: object, descriptor: int) -> bool:
        """Somebody says hello, and has the key."""
        match message:
            case ["hello", "swap", _, int(pid), bytes(key)] if hmac.compare_digest(key, self._key):
                self._greet(_SWAP, "swap", identity, pid)
            case ["hello", "node", int(nid), int(pid), bytes(key)] if hmac.compare_digest(key, self._key):
                self._greet(nid, "node", identity, pid)
                self.node_asks("hello", nid)
            case _:
                return False
        self.guests.greeted(descriptor)
        return True

    def _take(self, identity: bytes, message: object) -> bool:
        """A message of a process that has been admitted; False: it is none."""
        match message:
            case ["balance" | "asleep" as verb, int(nid)] if self._peers.get(nid) == identity:
                self.node_asks(verb, nid)
            case ["done", int(ticket), _]:
                request = self._asked.get(ticket)
                if request is not None and self._peers.get(request.peer) == identity:
                    del self._asked[ticket]
                    request.done()
            case _:
                return False
        return True

    def _drop(self, descriptor: int) -> None:
        """What nobody of the machine says is dropped, and who says it often."""
        self.dropped += 1
        self.guests.strike(descriptor)
        if self.dropped & (self.dropped - 1) == 0:  # the first of them, and ever fewer: a log is not to be flooded
            reason = "unknown shape, or not from a process of the machine"
            self._log.warning(Event.MESSAGE_DROPPED, reason=reason, dropped=self.dropped)


def _unpacked(body: bytes) -> object:
    try:
        return msgpack.unpackb(body)
    except Exception:  # noqa: BLE001 - msgpack raises many kinds on garbage; all mean the same
        return None


def _packed(numbers: I8) -> bytes:
    return np.ascontiguousarray(numbers, "<i8").tobytes()
