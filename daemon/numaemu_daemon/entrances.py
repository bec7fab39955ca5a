"""Where clients come in: one ROUTER with up to three endpoints, and the descriptor sockets beside those on this host.

libzmq takes a socket's options as they are when it binds, so each endpoint has a ZAP domain of its own, and that on TCP
has CURVE. The user whom ZAP has admitted goes with each message.
"""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq

from numaemu_daemon import zap
from numaemu_daemon.child import Child
from numaemu_daemon.options import DESCRIPTOR_SOCKET, KERNEL_SOCKET, StartError
from numaemu_daemon.visitor_dir import SOCKET_MODE
from numaemu_host import fdsock
from numaemu_host.keyfile import read_keys

#: A peer on TCP that says nothing for so long is gone, as far as its connection goes.
_HEARTBEAT_MS: Final = 2000
_HEARTBEAT_TIMEOUT_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Listener:
    """A descriptor socket, and the users who are admitted there; `remote`: they get a token and no descriptor."""

    sock: socket.socket
    uids: frozenset[int]
    remote: bool


def bind(child: Child, router: "zmq.Socket[bytes]") -> None:
    """Bind the endpoints of the machine. ZMQError, OSError: one of them is taken, or the key file cannot be read."""
    router.zap_domain = zap.DOMAIN
    router.bind(f"ipc://{child.directory / KERNEL_SOCKET}")
    if child.visitors is not None:
        router.zap_domain = zap.VISITORS
        path = child.visitors / KERNEL_SOCKET
        router.bind(f"ipc://{path}")
        path.chmod(SOCKET_MODE)
    if child.admission.listen:
        if not zmq.has("curve"):
            raise StartError("the ZeroMQ of this Python was built without CURVE, and TCP needs it")
        public, secret = read_keys(child.admission.server_key)
        router.zap_domain = zap.TCP
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = public.encode(), secret.encode()
        router.heartbeat_ivl, router.heartbeat_timeout = _HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS
        router.bind(child.admission.listen)


def listeners(child: Child) -> list[Listener]:
    """The descriptor sockets: the owner's, and that of other users."""
    found = [Listener(_listen(child.directory), frozenset({child.owner_uid}), remote=False)]
    if child.visitors is not None:
        found.append(Listener(_listen(child.visitors), child.admission.uids, remote=True))
        (child.visitors / DESCRIPTOR_SOCKET).chmod(SOCKET_MODE)
    return found


def _listen(directory: Path) -> socket.socket:
    path = directory / DESCRIPTOR_SOCKET
    path.unlink(missing_ok=True)  # a daemon that died leaves it
    return fdsock.listen(path)


def guard(child: Child) -> zap.Guard:
    """Whom ZAP admits where."""
    return zap.Guard({child.owner_uid}, child.admission.uids, child.admission.keys)
