"""Messages with descriptors over a Unix socket: one packet, one message, one msgpack body.

Rules:

* SOCK_SEQPACKET: a message arrives whole or not at all, and the end of the peer is seen as such.
* A body is at most `MAX_BODY` bytes. A large one travels in a sealed memfd beside the packet, as an unprivileged
  socket's buffer holds less than that.
* At most `MAX_FDS` descriptors go with a message. What the receiver gets is close-on-exec and its own to close; where
  `recv` raises, it has closed them.
* Nothing of the peer is believed: a body that is malformed, too long or can still change is an error.
"""

import array
import errno
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Sequence

import msgpack

MAX_BODY = 1 << 20
"""Bytes that a message may have once it is packed."""

MAX_FDS = 200
"""Descriptors that may go with a message."""

_BACKLOG = 1024
_RETRY_S = 0.005
_INLINE_BYTES = 64 * 1024
# The first byte of a packet: the body follows, or it is in the first descriptor.
_INLINE = b"i"
_IN_MEMFD = b"m"
_INT_BYTES = array.array("i").itemsize
_CONTROL_BYTES = socket.CMSG_LEN((MAX_FDS + 1) * _INT_BYTES)
_FROZEN = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_UCRED = struct.Struct("iII")


def listen(path: str | os.PathLike[str]) -> socket.socket:
    """A listening socket at `path`. OSError(EADDRINUSE) if the path exists: its owner removes a stale one first."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.bind(os.fspath(path))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: str | os.PathLike[str], timeout_s: float) -> socket.socket:
    """A socket connected to the listener at `path`; `timeout_s` seconds bound this call and each later one on it.

    TimeoutError if the listener has no room in that time; ConnectionRefusedError or FileNotFoundError at once if there
    is none.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _connect_within(sock, os.fspath(path), timeout_s)
        sock.settimeout(timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_within(sock: socket.socket, path: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    sock.settimeout(0)
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:  # the backlog is full, and no poll tells when it has room
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{path} accepted no connection in {timeout_s} s") from None
        time.sleep(_RETRY_S)


def send(sock: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    """Send a message and duplicates of `fds`, which stay the caller's.

    ValueError if it is too long or has too many descriptors, TypeError if msgpack cannot pack it, BrokenPipeError if
    the peer is gone, TimeoutError or BlockingIOError as the socket is set; then nothing was sent.
    """
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_BODY:
        raise ValueError(f"a message of {len(body)} bytes is longer than {MAX_BODY}")
    if len(fds) > MAX_FDS:
        raise ValueError(f"{len(fds)} descriptors are more than {MAX_FDS}")
    if len(body) <= _INLINE_BYTES:
        _send_packet(sock, _INLINE + body, fds)
        return
    carrier = _frozen_memfd(body)
    try:
        _send_packet(sock, _IN_MEMFD, (carrier, *fds))
    finally:
        os.close(carrier)


def _send_packet(sock: socket.socket, packet: bytes, fds: Sequence[int]) -> None:
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], control, socket.MSG_NOSIGNAL)


def _frozen_memfd(body: bytes) -> int:
    """A memfd that holds the body and can never change."""
    fd = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        written = 0
        while written < len(body):
            written += os.write(fd, body[written:])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FROZEN)
    except BaseException:
        os.close(fd)
        raise
    return fd


def recv(sock: socket.socket) -> tuple[object, list[int]]:
    """Receive a message and its descriptors, which are the caller's to close.

    EOFError if the peer is gone; OSError(EMSGSIZE) if the message was cut, or descriptors were lost (too many, or this
    process may not open so many); ValueError if it is malformed; TimeoutError or BlockingIOError as the socket is set.
    """
    try:
        packet, control, flags, _ = sock.recvmsg(1 + _INLINE_BYTES, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        raise EOFError("the peer is gone") from None
    fds = _received_fds(control)
    try:
        _check_whole(packet, flags)
        return msgpack.unpackb(_take_body(packet, fds)), fds
    except BaseException:
        _close_all(fds)
        raise


def _check_whole(packet: bytes, flags: int) -> None:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise OSError(errno.EMSGSIZE, "the message or its descriptors were cut")
    if not packet:
        raise EOFError("the peer is gone")


def _received_fds(control: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return fds.tolist()


def _take_body(packet: bytes, fds: list[int]) -> bytes:
    """The packed body; a descriptor that carried it is closed and taken out of the list."""
    tag = packet[:1]
    if tag == _INLINE:
        return packet[1:]
    if tag != _IN_MEMFD or not fds:
        raise ValueError("a packet of an unknown kind")
    carrier = fds.pop(0)
    try:
        return _read_frozen(carrier)
    finally:
        os.close(carrier)


def _read_frozen(fd: int) -> bytes:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # not a memfd
        seals = 0
    size = os.fstat(fd).st_size
    if seals & _FROZEN != _FROZEN or size > MAX_BODY:
        raise ValueError("the body of a message is not sealed, or too long")
    body = os.pread(fd, size, 0)
    if len(body) != size:
        raise ValueError("the body of a message cannot be read")
    return body


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def continue_at_hangup(sock: socket.socket) -> None:
    """When the peer closes, or dies, the host sends this process SIGCONT, which also reaches one that is stopped.

    For a socket on which nothing else ever comes. OSError where the host does not know how.
    """
    fcntl.fcntl(sock, fcntl.F_SETSIG, signal.SIGCONT)
    fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_ASYNC)


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """The pid, uid and gid of the peer as it connected (or listened), by the kernel's word.

    The pid is 0 if the peer is in another pid namespace that cannot be seen from here.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid
