"""A machine on TCP: keys, the way in, and the lease that tells the machine that this process lives.

Both sides prove themselves with CURVE keys before a byte of ours is read: the machine's public key is known here
beforehand, and ours there. No host tells either side of the other's death: a thread says a word every few seconds, and
who hears nothing for LEASE_S takes the other for gone.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from numaemu.attachment import Attachment
from numaemu.connection import Connection, Peer, shared_context
from numaemu.errors import MachineGone
from numaemu_core import limits
from numaemu_core.errors import PeerError
from numaemu_core.layout import layout_of
from numaemu_core.topology import from_dict
from numaemu_core.wire import pack_request, unpack_reply
from numaemu_host.keyfile import public_key, read_keys, write_keys

if TYPE_CHECKING:
    from numaemu.connection import Init

#: How long the way in may take; and how long nobody may be there, as a daemon may just be coming back.
_ANSWER_S: Final = 10.0
_NOBODY_S: Final = 3.0
_WORD_S: Final = limits.LEASE_S / 5
_HEARTBEAT_MS: Final = 2000
_SLICE_MS: Final = 100
_KEYS: Final = "expected `key` (or NUMAEMU_KEY), a file of `numaemu key`, and `server_key` (or NUMAEMU_SERVER_KEY), "
_KEYS_TOO: Final = "the public key that `numaemu up --listen` printed"


@dataclass(frozen=True, slots=True)
class Curve:
    """The keys of a connection, in Z85."""

    server: str
    public: str
    secret: str = field(repr=False)

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Let a socket use them, before it connects."""
        socket.curve_serverkey = self.server.encode()
        socket.curve_publickey, socket.curve_secretkey = self.public.encode(), self.secret.encode()
        socket.heartbeat_ivl, socket.heartbeat_timeout = _HEARTBEAT_MS, int(limits.LEASE_S * 1000)


def check_curve() -> None:
    """OSError(EOPNOTSUPP) if the ZeroMQ of this Python knows no CURVE."""
    if not zmq.has("curve"):
        raise OSError(errno.EOPNOTSUPP, "the ZeroMQ of this Python was built without CURVE, and TCP needs it")


def make_keys(path: str) -> str:
    """A new file with a pair of keys, for this user's eyes only; gives the public one. FileExistsError, OSError."""
    check_curve()
    public = "-"
    while public.startswith("-"):  # it would be taken for an option
        public, secret = (key.decode() for key in zmq.curve_keypair())
    write_keys(path, public, secret)
    return public


def attach_over_tcp(endpoint: str, key: str | None, server_key: str | None) -> Attachment:
    """Become a client of the machine at tcp://HOST:PORT; `key` is the path of our keys, `server_key` its public one.

    Raises:
        PermissionError: one of the keys is wrong. ConnectionRefusedError: nobody is there. TimeoutError: no answer.
        ValueError, OSError: no such keys, or no CURVE in this Python. PeerError: it speaks nonsense.
    """
    check_curve()
    key, server_key = key or os.environ.get("NUMAEMU_KEY"), server_key or os.environ.get("NUMAEMU_SERVER_KEY")
    if not key or not server_key:
        raise ValueError(_KEYS + _KEYS_TOO)
    curve = Curve(public_key(server_key), *read_keys(key))
    answer = _joined(endpoint, curve)
    try:
        layout = layout_of(from_dict(answer["topology"]))
        lease = Lease(str(answer["machine"]))
        peer = Peer(endpoint, answer["boot_id"], answer["token"], lease, TcpWayBack(), curve)
    except (KeyError, TypeError):
        raise PeerError(f"the machine at {endpoint} speaks another version: {answer!r}") from None
    lease.begin(peer)
    return Attachment(peer, layout, None, {}, lease, fenced=False)


def _joined(endpoint: str, curve: Curve) -> dict[str, Any]:
    """What the machine says to a new client."""
    socket = shared_context().socket(zmq.DEALER)
    monitor = socket.get_monitor_socket()
    try:
        socket.linger = 0
        curve.apply(socket)
        socket.connect(endpoint)
        socket.send(pack_request("", 1, "join", []))
        body = _first_answer(socket, monitor, endpoint)
    except zmq.ZMQError as error:
        raise OSError(error.errno, f"{endpoint}: {error.strerror}") from None
    finally:
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)
    _, _, answer = unpack_reply(body)
    if not isinstance(answer, dict):
        raise PeerError(f"the machine at {endpoint} answered {answer!r}")
    return answer


def _first_answer(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes], endpoint: str) -> bytes:
    began = time.monotonic()
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(monitor, zmq.POLLIN)
    there = False
    while (waited_s := time.monotonic() - began) < _ANSWER_S:
        ready = dict(poller.poll(_SLICE_MS))
        if socket in ready:
            return socket.recv()
        if monitor in ready:
            event = recv_monitor_message(monitor)["event"]
            there = there or event == zmq.EVENT_CONNECTED
            _check_handshake(event, endpoint)
        if not there and waited_s > _NOBODY_S:
            raise ConnectionRefusedError(f"no machine is at {endpoint}")
    raise TimeoutError(f"no answer from {endpoint} in {_ANSWER_S:g} s")


def _check_handshake(event: int, endpoint: str) -> None:
    """PermissionError if that was the end of a handshake."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        raise PermissionError(errno.EACCES, f"the machine at {endpoint} does not admit this key")
    if event in {zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL}:
        raise PermissionError(
            errno.EACCES, f"{endpoint} ended the handshake: its key is not the server key that was given"
        )


class TcpWayBack:
    """To a daemon that is new, or over a connection that was cut: who asks once more is told that it is a stranger."""

    generation = 0

    def complain(self) -> None:
        """Init is out of reach: those who are near it complain."""

    def is_over(self, generation: int) -> bool:  # noqa: ARG002 - as every way back has it
        """Nobody tells."""
        return False

    def renew(self, seen: int, token: bytes, init: Init | Lease) -> None:  # noqa: ARG002 - as above
        """The token is all that is needed. MachineGone if the machine has ended, or was let go."""
        if init.has_ended():
            raise MachineGone(init.name)

    def close(self) -> None:
        """Nothing is open."""


class Lease:
    """The thread that says that this process lives; it knows whether the machine does."""

    #: It ends by itself where nothing is heard: nobody has to be asked how long to wait.
    given_up: Final = False

    def __init__(self, name: str) -> None:
        """Of the machine `name`; nothing is said yet."""
        self.name = name
        self._owner = os.getpid()
        self._closing = threading.Event()
        self._ended = False
        self._heard = time.monotonic()

    def begin(self, peer: Peer) -> None:
        """Say that we live from now on."""
        self._thread = threading.Thread(target=self._keep, args=(peer,), name="numaemu-lease", daemon=True)
        self._thread.start()

    def has_ended(self, waited_s: float = 0) -> bool:  # noqa: ARG002 - as Init has it
        """Was nothing heard for so long that the lease must be over?"""
        return self._ended or time.monotonic() - self._heard > limits.LEASE_S

    def _keep(self, peer: Peer) -> None:
        try:
            connection = Connection(peer)
            try:
                while not self._closing.wait(_WORD_S):
                    connection.call("alive", [])
                    self._heard = time.monotonic()
                connection.call("leave", [])
            finally:
                connection.close()
        except Exception:  # noqa: BLE001 - whatever it is, nobody says any more that we live
            self._ended = True

    def close(self) -> None:
        """Leave the machine, as far as it answers; in a forked child, which has not the thread, do nothing."""
        if os.getpid() == self._owner:
            self._closing.set()
            self._thread.join(_NOBODY_S)
            self._ended = True
