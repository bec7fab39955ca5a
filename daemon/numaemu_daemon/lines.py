"""Faults and short questions come on lines: sockets of the client's threads, which the loop reads without ZeroMQ.

A fault is a trap, not a call: it may be taken twice, nothing about it is journalled, and what it costs is felt by every
access. So it is with a question that changes nothing. Two threads of ZeroMQ less on its way take half of its time. A
line carries the messages of docs/protocol.md, one in a packet; who breaks its rules is hung up on, and may send the
same as calls.
"""

import contextlib
import functools
import socket
from collections.abc import Callable
from typing import Final

from numaemu_core import limits
from numaemu_core.errors import MmError
from numaemu_core.wire import Request, WireError, fits_line, unpack_request
from numaemu_daemon.clients import Client, Connection
from numaemu_daemon.guests import descriptors

#: Bytes of a packet that are read: what comes on a line is far shorter.
_PACKET_BYTES: Final = 4096


class Lines:
    """The lines of all clients."""

    def __init__(
        self,
        boot_id: str,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        take: Callable[[Connection, Request, int], None],
    ) -> None:
        """`take(connection, request, bytes)` has a request wait for its turn."""
        self._boot_id = boot_id
        self._watch = watch
        self._unwatch = unwatch
        self._take = take
        self._lines_max = descriptors() // 4
        #: How many there are.
        self.count = 0

    def has_room(self, client: Client) -> bool:
        """May the client have another line?"""
        return len(client.lines) < limits.MAX_CONNECTIONS_PER_CLIENT and self.count < self._lines_max

    def open(self, client: Client, sock: socket.socket) -> None:
        """A thread of a client has a line from now on."""
        connection = Connection(0, b"", client, line=sock)
        client.lines.add(connection)
        self.count += 1
        self._watch(sock.fileno(), functools.partial(self._receive, connection))

    def close(self, connection: Connection) -> None:
        """Hang up; what is on its way gets no answer."""
        sock, connection.line = connection.line, None
        if sock is not None:
            connection.client.lines.discard(connection)
            self.count -= 1
            self._unwatch(sock.fileno())
            sock.close()

    def client_gone(self, client: Client) -> None:
        """Hang up on all of its threads."""
        for connection in list(client.lines):
            self.close(connection)

    def _receive(self, connection: Connection) -> None:
        assert connection.line is not None
        try:
            body = connection.line.recv(_PACKET_BYTES)
            if not body:
                self.close(connection)
                return
            request = unpack_request(body, self._boot_id)
        except BlockingIOError:
            return
        except (OSError, MmError, WireError):
            self.close(connection)
            return
        # One at a time, each with a number of its own: whoever sends more does not play by the rules.
        is_next = connection.waiting is None and request.request_id > connection.last_request
        if not fits_line(request.name, request.args) or not is_next:
            self.close(connection)
        else:
            self._take(connection, request, len(body))


def answer(line: socket.socket, body: bytes) -> None:
    """Send an answer. A thread that is gone, or does not read, is not waited for."""
    with contextlib.suppress(OSError):
        line.send(body)
