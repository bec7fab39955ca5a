"""Who may connect: the ZeroMQ authentication of the daemon's endpoints.

Without a ZAP domain, raw bytes that pretend to be the oldest protocol version reach the application unauthenticated.
The answer rests on the kernel's word about the peer, which libzmq hands over as `localhost:UID:GID:PID`.
"""

from collections.abc import Collection
from typing import Final

import zmq

DOMAIN: Final = b"numaemu"
ENDPOINT: Final = "inproc://zeromq.zap.01"
_REQUEST_FRAMES: Final = 6


def open_handler(context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
    """The socket on which libzmq asks; there is one a context."""
    handler = context.socket(zmq.REP)
    handler.linger = 0
    handler.bind(ENDPOINT)
    return handler


def answer(handler: "zmq.Socket[bytes]", uids: Collection[int]) -> None:
    """Answer the questions that wait: these users may connect."""
    while handler.poll(0):
        frames = handler.recv_multipart()
        request_id, address = (frames[1], frames[3]) if len(frames) >= _REQUEST_FRAMES else (b"", b"")
        allowed = peer_uid(address) in uids
        status, text = (b"200", b"OK") if allowed else (b"400", b"not a user of this machine")
        handler.send_multipart([b"1.0", request_id, status, text, b"", b""])


def peer_uid(address: bytes) -> int:
    """The user in an ipc peer's address, -1 where it names none."""
    parts = address.split(b":")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else -1
