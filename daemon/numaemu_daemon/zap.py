"""Who may connect: the ZeroMQ authentication of the daemon's endpoints.

Without a ZAP domain, raw bytes that pretend to be the oldest protocol version reach the application unauthenticated.
On this host the answer rests on the kernel's word about the peer, which libzmq hands over as `localhost:UID:GID:PID`;
on TCP on the key with which the peer has finished a CURVE handshake. An address on TCP says nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import zmq
from zmq.utils import z85

#: The domains: of the owner's endpoints, of that of other users, of that on TCP.
DOMAIN: Final = b"numaemu"
VISITORS: Final = b"numaemu-visitors"
TCP: Final = b"numaemu-tcp"
ENDPOINT: Final = "inproc://zeromq.zap.01"
_REQUEST_FRAMES: Final = 6
_KEY_BYTES: Final = 32
#: Before the number of a user who came over TCP.
_LEASED: Final = "key "


@dataclass(frozen=True, slots=True)
class Guard:
    """Who is admitted: users of the host by their uids, and keys (Z85) with the users that they stand for."""

    owners: Collection[int]
    visitors: Collection[int] = ()
    keys: Mapping[str, int] = field(default_factory=dict)

    def user(self, domain: bytes, address: bytes, mechanism: bytes, credentials: list[bytes]) -> int | None:
        """The user that a peer is, None if it is not admitted there."""
        if domain == TCP:
            if mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != _KEY_BYTES:
                return None
            return self.keys.get(z85.encode(credentials[0]).decode())
        uid = peer_uid(address)
        admitted = {DOMAIN: self.owners, VISITORS: self.visitors}.get(domain, ())
        return uid if mechanism == b"NULL" and uid in admitted else None


def open_handler(context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
    """The socket on which libzmq asks; there is one a context."""
    handler = context.socket(zmq.REP)
    handler.linger = 0
    handler.bind(ENDPOINT)
    return handler


def answer(handler: "zmq.Socket[bytes]", guard: Guard) -> None:
    """Answer the questions that wait; the user goes with each message of a peer that is admitted."""
    while handler.poll(0):
        frames = handler.recv_multipart()
        request_id, domain, user = b"", b"", None
        if len(frames) >= _REQUEST_FRAMES:
            _, request_id, domain, address, _, mechanism, *credentials = frames
            user = guard.user(domain, address, mechanism, credentials)
        status, text = (b"200", b"OK") if user is not None else (b"400", b"not a user of this machine")
        name = b"" if user is None else f"{_LEASED if domain == TCP else ''}{user}".encode()
        handler.send_multipart([b"1.0", request_id, status, text, name, b""])


def sender_of(frame: zmq.Frame) -> tuple[int, bool]:
    """The user who sent a message, as the handler has told libzmq, and whether it came over TCP."""
    name = str(frame.get("User-Id"))
    return int(name.removeprefix(_LEASED)), name.startswith(_LEASED)


def peer_uid(address: bytes) -> int:
    """The user in an ipc peer's address, -1 where it names none."""
    parts = address.split(b":")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else -1
