"""The bus as a node process or the swap node sees it: one DEALER to the kernel daemon, one poll for all that may come.

The daemon binds `bus.ipc` a little after its peers connect, and ZeroMQ keeps trying. Init's end and SIGTERM are in the
same poll, so an idle process sleeps until there is something to do.
"""

import math
import os
from types import TracebackType
from typing import Any, Final, Self

import msgpack
import zmq

from numaemu_core import limits
from numaemu_daemon.child import Child
from numaemu_daemon.logs import Event
from numaemu_daemon.options import BUS_SOCKET
from numaemu_daemon.stop_request import StopRequest

_RECONNECT_MS: Final = 10
_RECONNECT_MAX_MS: Final = 500
_MS_PER_S: Final = 1000
#: What a log line shows of an error.
_LINE_MAX: Final = 200


class BusMessageError(Exception):
    """A message on the bus is not what it must be; it is logged and dropped."""


class BusClient:
    """Messages from and to the kernel daemon."""

    def __init__(self, child: Child) -> None:
        """Connect, take over SIGTERM, and say hello."""
        self._child = child
        self._stop = StopRequest()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._poller.register(child.init_pidfd, zmq.POLLIN)
        self._poller.register(child.socket.fileno(), zmq.POLLIN)
        self._poller.register(self._stop.fd, zmq.POLLIN)
        self._socket = self._connected()

    def _connected(self) -> "zmq.Socket[bytes]":
        """A socket to the kernel daemon of now, or the next one, which hears hello."""
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.maxmsgsize = limits.MESSAGE_BYTES_MAX
        socket.reconnect_ivl = _RECONNECT_MS
        socket.reconnect_ivl_max = _RECONNECT_MAX_MS
        # The daemon bounds what is under way by what it asks; an answer that is dropped would be waited for for ever.
        socket.sndhwm = 0
        socket.connect(f"ipc://{self._child.directory / BUS_SOCKET}")
        self._poller.register(socket, zmq.POLLIN)
        nid = -1 if self._child.nid is None else self._child.nid
        socket.send(msgpack.packb(["hello", self._child.role, nid, os.getpid(), self._child.bus_key]), zmq.NOBLOCK)
        return socket

    def __enter__(self) -> Self:
        """Connected already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close without waiting for what was not sent."""
        self._context.destroy(linger=0)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for a message, at most `timeout_s` (None: as long as it takes); False if this process shall end."""
        timeout_ms = None if timeout_s is None else math.ceil(timeout_s * _MS_PER_S)
        events = dict(self._poller.poll(timeout_ms))
        if self._child.socket.fileno() in events:
            self._let_go_of_a_dead_daemon()
        return not self._stop.asked and self._child.init_pidfd not in events

    def _let_go_of_a_dead_daemon(self) -> None:
        """What the last daemon has asked and was not done is never done; what was done is not answered."""
        generation = self._child.hear()
        if generation is not None:
            self._poller.unregister(self._socket)
            self._socket.close(0)
            self._socket = self._connected()
            self._child.fenced(generation)

    def send(self, message: list[Any]) -> None:
        """Send a message; never waits."""
        self._socket.send(msgpack.packb(message), zmq.NOBLOCK)

    def receive(self) -> list[Any] | None:
        """The next message that has arrived, None if there is none; what is no message is logged and dropped."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            try:
                return _checked(frames)
            except BusMessageError as error:
                self.refuse(error)

    def refuse(self, error: BusMessageError) -> None:
        """Log that a message was dropped."""
        self._child.log.warning(Event.MESSAGE_DROPPED, reason=str(error)[:_LINE_MAX])


def _checked(frames: list[bytes]) -> list[Any]:
    if len(frames) != 1 or len(frames[0]) > limits.MESSAGE_BYTES_MAX:
        raise BusMessageError(f"{len(frames)} frames of {sum(map(len, frames))} bytes")
    try:
        message = msgpack.unpackb(frames[0], raw=False, strict_map_key=True)
    except Exception as error:  # noqa: BLE001 - msgpack raises many kinds on garbage; all mean the same
        raise BusMessageError(f"no msgpack: {type(error).__name__}") from None
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise BusMessageError("expected an array that begins with a name")
    return message
