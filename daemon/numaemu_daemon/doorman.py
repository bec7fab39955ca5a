"""Init's socket: who may come in, and their messages one by one, without ever waiting for anybody.

A child that is started again has to get in, whoever else is there: who is no child and says nothing for a while has to
go, and the longest silent one at once where there is no room.
"""

import contextlib
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from numaemu_daemon.handshake import HandshakeError, close_all, message_of
from numaemu_daemon.logs import Event, Log
from numaemu_daemon.process_table import Managed
from numaemu_host import fdsock

#: More than all children of the largest machine, each with a second one that watches, and a few who ask for the status.
CONNECTIONS_MAX = 512
#: Connections of one process that is no child, and how long it may be silent.
CONNECTIONS_PER_PROCESS = 64
SILENT_S = 10.0
_PAUSE_S = 0.1


class Connection:
    """One peer; `process` is set once it has said hello and was believed."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        """`pid` is the kernel's word on who it is."""
        self.sock = sock
        self.pid = pid
        self.process: Managed | None = None
        self.closed = False
        self.heard_at = time.monotonic()


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
        #: All of them; those that are no child's, the longest silent first.
        self._connections: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}
        self._of_process: Counter[int] = Counter()
        #: When the listener is heard again: the host had no descriptor left.
        self._deaf_until: float | None = None
        self.refused = 0
        listener.settimeout(0)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:  # it went away again
            return
        except OSError:  # we are short of descriptors, and the listener would be readable all the time
            self._selector.unregister(self._listener)
            self._deaf_until = time.monotonic() + _PAUSE_S
            return
        pid, uid, _ = fdsock.peer_credentials(sock)
        if len(self._connections) >= CONNECTIONS_MAX:
            self._make_room()
        crowded = len(self._connections) >= CONNECTIONS_MAX or self._of_process[pid] >= CONNECTIONS_PER_PROCESS
        if uid not in {0, os.getuid()} or crowded:
            self._refused(pid, f"uid {uid}, {self._of_process[pid]} of its process here")
            sock.close()
            return
        sock.settimeout(0)
        connection = Connection(sock, pid)
        self._connections.add(connection)
        self._strangers[connection] = None
        self._of_process[pid] += 1
        self._selector.register(sock, selectors.EVENT_READ, lambda: self.read(connection))

    def read(self, connection: Connection) -> bool:
        """Handle one message; whether there may be another."""
        if connection.closed:
            return False
        fds: list[int] = []
        try:
            received, fds = fdsock.recv(connection.sock)
            self._heard(connection)
            self._handler(connection, message_of(received), fds)
        except BlockingIOError:
            return False
        except EOFError:
            self.close(connection)
        except (OSError, ValueError, HandshakeError) as error:
            self._refused(connection.pid, str(error))
            self.close(connection)
        finally:
            close_all(fds)
        return not connection.closed

    def _make_room(self) -> None:
        silent = next((one for one in self._strangers if one.process is None), None)
        if silent is not None:
            self.close(silent)

    def _heard(self, connection: Connection) -> None:
        connection.heard_at = time.monotonic()
        if self._strangers.pop(connection, connection) is None and connection.process is None:
            self._strangers[connection] = None

    def _refused(self, pid: int, reason: str) -> None:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # the first of them, and ever fewer: a log is not to be flooded
            self._log.warning(Event.PEER_REFUSED, peer_pid=pid, reason=reason, refused=self.refused)

    def expire(self) -> float | None:
        """Close connections that are silent and no child's; gives when to look again (monotonic), None: no need."""
        now = time.monotonic()
        due = None
        if self._deaf_until is not None and self._deaf_until <= now:
            self._deaf_until = None
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        for connection in list(self._strangers):
            if connection.process is not None:  # it has become one
                del self._strangers[connection]
            elif connection.heard_at + SILENT_S <= now:
                self.close(connection)
            else:
                due = connection.heard_at + SILENT_S
                break
        return min((at for at in (due, self._deaf_until) if at is not None), default=None)

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
        self._strangers.pop(connection, None)
        self._of_process -= Counter({connection.pid: 1})
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection.sock)
        connection.sock.close()

    def close_all(self) -> None:
        """Forget all peers and stop listening."""
        for connection in list(self._connections):
            self.close(connection)
        if self._deaf_until is None:
            self._selector.unregister(self._listener)
        self._listener.close()
