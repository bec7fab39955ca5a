"""Init's socket: who may come in, and their messages one by one, without ever waiting for anybody."""

import contextlib
import os
import selectors
import socket
from collections.abc import Callable
from typing import Any

from numaemu_daemon.handshake import HandshakeError, close_all, message_of
from numaemu_daemon.logs import Event, Log
from numaemu_daemon.process_table import Managed
from numaemu_host import fdsock

#: More than all children of the largest machine and a few who ask for the status.
CONNECTIONS_MAX = 256


class Connection:
    """One peer; `process` is set once it has said hello and was believed."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        """`pid` is the kernel's word on who it is."""
        self.sock = sock
        self.pid = pid
        self.process: Managed | None = None
        self.closed = False


Handler = Callable[[Connection, dict[str, Any], list[int]], None]


class Doorman:
    """Accepts connections of this user and hands each checked message to the handler.

    The handler takes over the descriptors of a message by removing them from the list; what stays is closed here.
    A HandshakeError of the handler closes the connection.
    """

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector, handler: Handler, log: Log) -> None:
        """Listen on a socket that is bound."""
        self._listener = listener
        self._selector = selector
        self._handler = handler
        self._log = log
        self._connections: set[Connection] = set()
        listener.settimeout(0)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it went away again, or we are short of descriptors for a moment
            return
        pid, uid, _ = fdsock.peer_credentials(sock)
        if uid not in {0, os.getuid()} or len(self._connections) >= CONNECTIONS_MAX:
            self._log.warning(Event.PEER_REFUSED, peer_pid=pid, reason=f"uid {uid}, {len(self._connections)} here")
            sock.close()
            return
        sock.settimeout(0)
        connection = Connection(sock, pid)
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self.read(connection))

    def read(self, connection: Connection) -> bool:
        """Handle one message; whether there may be another."""
        if connection.closed:
            return False
        fds: list[int] = []
        try:
            received, fds = fdsock.recv(connection.sock)
            self._handler(connection, message_of(received), fds)
        except BlockingIOError:
            return False
        except EOFError:
            self.close(connection)
        except (OSError, ValueError, HandshakeError) as error:
            self._log.warning(Event.PEER_REFUSED, peer_pid=connection.pid, reason=str(error))
            self.close(connection)
        finally:
            close_all(fds)
        return not connection.closed

    def drain(self, connection: Connection) -> None:
        """Handle what a peer said before it died, and close."""
        while self.read(connection):
            pass
        self.close(connection)

    def close(self, connection: Connection) -> None:
        """Forget a peer."""
        if connection.closed:
            return
        connection.closed = True
        self._connections.discard(connection)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection.sock)
        connection.sock.close()

    def close_all(self) -> None:
        """Forget all peers and stop listening."""
        for connection in list(self._connections):
            self.close(connection)
        self._selector.unregister(self._listener)
        self._listener.close()
