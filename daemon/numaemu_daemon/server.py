"""The kernel daemon's endpoints and its one loop.

Descriptor socket: a client says hello and gets the memory's descriptors and a token; the socket stays open for as long
as it uses the machine. ZeroMQ ROUTER: its threads' calls. One epoll holds every raw descriptor (sockets, pidfds), so
that the poller looks at a handful of things however many clients there are.
"""

import errno
import functools
import math
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import zmq

from numaemu_core import limits
from numaemu_core.errors import MmError
from numaemu_core.fsck import fsck
from numaemu_core.journal import Truth
from numaemu_core.kernel import Kernel
from numaemu_core.wire import VERSION, Request, StrangerError, WireError, pack_refusal, pack_reply, unpack_request
from numaemu_daemon import zap
from numaemu_daemon.bus import Bus
from numaemu_daemon.calls import Calls
from numaemu_daemon.clients import AccessSlots, Client, Connection, close_client, new_client
from numaemu_daemon.comeback import Comeback, client_row
from numaemu_daemon.logs import Event, Log
from numaemu_daemon.scheduler import Scheduler
from numaemu_host import fdsock

#: Requests that one turn of the loop takes, so that tasks run between them.
REQUESTS_PER_TURN = 64


class Server:
    """Takes requests, runs kernel tasks, sends answers."""

    def __init__(  # noqa: PLR0913 - the parts of a daemon, put together in one place
        self,
        k: Kernel,
        *,
        sockets: tuple["zmq.Socket[bytes]", Bus, "zmq.Socket[bytes]"],
        listener: socket.socket,
        scheduler: Scheduler,
        slots: AccessSlots,
        hello: Callable[[Client], tuple[dict[str, Any], list[int]]],
        boot_id: str,
        generation: int,
        uids: Collection[int],
        report: Callable[[dict[str, int]], float | None],
        recoveries: Callable[[], int],
        repair_locks: Callable[[], None],
        serves: Callable[[], None],
        log: Log,
    ) -> None:
        """`sockets`: clients' ROUTER, bus, ZAP handler; `hello` gives the answer on the descriptor socket.

        `report` takes what was done so far, and gives the seconds after which it wants to be told again; `recoveries`
        counts the locks whose holder had died, `repair_locks` looks for more of them; `serves` is called once calls are
        taken.
        """
        self._k = k
        self._router, self._bus, self._zap = sockets
        self._listener = listener
        self._scheduler = scheduler
        self._slots = slots
        self._hello = hello
        self._boot_id = boot_id
        self._generation = generation
        self._uids = uids
        self._report = report
        self._recoveries = recoveries
        self._repair_locks = repair_locks
        self._serves = serves
        self._log = log
        self._calls = Calls(k, scheduler, slots, boot_id, self)
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._poller = zmq.Poller()
        for item in (self._router, self._bus.socket, self._zap, self._epoll.fileno()):
            self._poller.register(item, zmq.POLLIN)
        self._clients: dict[bytes, Client] = {}
        self._connections: dict[bytes, Connection] = {}
        #: Connections of clients of the last daemon, by number, until they say hello again.
        self._returning: dict[int, Connection] = {}
        self._next_connection = self._next_client = 1
        #: What was on its way when the last daemon died is being finished; calls wait.
        self._finishing = True
        #: Requests that wait while fsck brings the machine to rest; None while none does.
        self._held: deque[tuple[Connection, Request]] | None = deque()
        self._checks: list[tuple[Connection, Request]] = []
        self.refused = 0
        self.stopping = False
        self.watch(listener.fileno(), self._accept)

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever the descriptor can be read."""
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        """No longer."""
        del self._handlers[descriptor]
        self._epoll.unregister(descriptor)

    def take_over(self, living: Comeback, truth: Truth) -> None:
        """Go on for the clients of the last daemon, and finish what it had begun."""
        self._next_connection = truth.marks.get("connection", 1)
        self._next_client = truth.marks.get("client", 1)
        self._returning = living.connections
        for client in living.clients.values():
            self._clients[client.token] = client
            self.watch(client.pidfd, functools.partial(self._gone, client, dead=True))
        self._slots.recover(living.clients)
        self._calls.redo(living.connections, truth, self._send)
        for number in living.dead:
            self._k.journal.append(["client_gone", number])
        for number, owner in list(truth.connections.items()):  # the journal follows its own records
            if owner not in living.clients:
                self._k.journal.append(["hung_up", number])
        orphans = [pid for pid, task in self._k.tasks.items() if task.owner not in living.clients]
        self._calls.end_tasks(Client(None, 0, 0, -1, b"", tasks=set(orphans), gone=True))

    def status(self) -> dict[str, Any]:
        """Numbers about the daemon itself."""
        return {
            "clients": len(self._clients),
            "connections": len(self._connections),
            "tasks": len(self._k.tasks),
            "calls": self._calls.served,
            "refused": self.refused,
            "lock_recoveries": self._recoveries(),
            "locks": self._k.locks.stats.as_dict(),
            "sleeping": self._scheduler.sleeping(),
            "copies": self._bus.copies,
            "shootdowns": self._scheduler.shootdowns,
            "stragglers": self._scheduler.stragglers,
            "quarantined": sum(len(held.pfns) for held in self._k.quarantine.entries),
        }

    # -- the loop ------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until `stopping`."""
        while not self.stopping:
            timeout = self._scheduler.step()
            if self._checks or self._finishing:
                self._check_at_rest()
            if timeout is None or timeout:
                timeout = self._before_sleep(timeout)
            for item, _ in self._poller.poll(timeout):
                self._take(item)

    def _take(self, item: object) -> None:
        if item is self._router:
            self._receive()
        elif item is self._bus.socket:
            self._bus.receive()
        elif item is self._zap:
            zap.answer(self._zap, self._uids)
        else:
            for descriptor, _ in self._epoll.poll(0):
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler()

    def _before_sleep(self, timeout_ms: int | None) -> int | None:
        """Nodes that were given frames back may clean them; init is told what was done. Gives how long to sleep.

        Nodes clean while no task is on its way: their zone lock and the processors are not in the way then.
        """
        for nid, zone in self._k.zones.items():
            if zone.freed and not self._scheduler.active and self._bus.tell_to_clean(nid):
                zone.freed = 0
        done = {"calls": self._calls.served, "shootdowns": self._scheduler.shootdowns, "tasks": len(self._k.tasks)}
        again_s = self._report(done)
        again_ms = None if again_s is None else math.ceil(1000 * again_s)
        times = [ms for ms in (timeout_ms, again_ms, self._bus.look_for_silent()) if ms is not None]
        return min(times, default=None)

    # -- requests ------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(REQUESTS_PER_TURN):
            frames = self._router.recv_multipart()
            if len(frames) == 2:  # noqa: PLR2004 - identity and body
                self._request(frames[0], frames[1])
            else:
                self._refuse(frames[0], WireError("expected one frame"), 0)
            events = self._router.get(zmq.EVENTS)
            if not (isinstance(events, int) and events & zmq.POLLIN):
                return

    def _request(self, identity: bytes, body: bytes) -> None:
        try:
            request = unpack_request(body, self._boot_id)
        except MmError as refusal:
            self._refuse(identity, refusal, refusal.request_id)
            return
        except WireError as refusal:
            self._refuse(identity, refusal, 0)
            return
        connection = self._connections.get(identity)
        if request.name == "hello":
            self._connect(identity, request)
        elif connection is None:
            self._refuse(identity, StrangerError("say hello first"), request.request_id)
        elif request.name == "fsck":
            self._checks.append((connection, request))
            self._held = self._held if self._held is not None else deque()
        elif self._held is not None:
            self._held.append((connection, request))
        else:
            self._calls.serve(connection, request, self._send)

    def _connect(self, identity: bytes, request: Request) -> None:
        """Bind an identity to the client of the token; once: a repeated hello is answered again."""
        known = self._connections.get(identity)
        if known is not None:
            self._send(known, pack_reply(self._boot_id, request.request_id, known.number))
            return
        token, number = request.args
        client = self._clients.get(token)
        if client is None:
            self._refuse(identity, MmError(errno.EACCES, "no client has that token"), request.request_id)
            return
        returning = self._returning.get(number)
        if returning is not None and returning.client is client:
            connection = self._returning.pop(number)
            connection.identity = identity
        else:
            connection = Connection(self._next_connection, identity, client, last_request=request.request_id)
            self._next_connection += 1
            client.connections.append(connection)
            self._k.journal.append(["connection", connection.number, client.number])
            connection.last_reply = pack_reply(self._boot_id, request.request_id, connection.number)
            self._forget_idle(client)
        self._connections[identity] = connection
        self._send(connection, pack_reply(self._boot_id, request.request_id, connection.number))

    def _forget_idle(self, client: Client) -> None:
        """Threads end without a word: of too many connections the oldest whose call is over goes.

        A thread that still has it is told that it is a stranger, and says hello once more.
        """
        if len(client.connections) <= limits.MAX_CONNECTIONS_PER_CLIENT:
            return
        oldest = next((one for one in client.connections if one.last_reply is not None), None)
        if oldest is not None:
            client.connections.remove(oldest)
            self._connections.pop(oldest.identity, None)
            self._returning.pop(oldest.number, None)
            self._k.journal.append(["hung_up", oldest.number])

    def _send(self, connection: Connection, body: bytes) -> None:
        if connection.identity:  # else it has not come back yet, and will ask
            self._post(connection.identity, body)

    def _refuse(self, identity: bytes, refusal: Exception, request_id: int) -> None:
        self.refused += 1
        self._log.info(Event.REQUEST_REFUSED, reason=str(refusal), request=request_id)
        self._post(identity, pack_refusal(self._boot_id, request_id, refusal))

    def _post(self, identity: bytes, body: bytes) -> None:
        try:
            self._router.send_multipart([identity, body], zmq.NOBLOCK)
        except zmq.ZMQError as error:  # gone, or it never reads: nobody else waits for it
            self._log.info(Event.REPLY_DROPPED, reason=str(error))

    # -- fsck ----------------------------------------------------------------------------------------------------------

    def _check_at_rest(self) -> None:
        """Once nothing is on its way any more, check, answer, and let the others go on."""
        if self._scheduler.active or self._bus.copies:
            return
        if self._finishing:
            self._finishing = False
            self._serves()
        if self._checks:
            self._repair_locks()
        found = fsck(self._k) if self._checks else []
        for connection, request in self._checks:
            connection.last_request = request.request_id
            self._send(connection, pack_reply(self._boot_id, request.request_id, found))
        self._checks.clear()
        held, self._held = self._held or deque(), None
        for connection, request in held:
            if not connection.client.gone:
                self._calls.serve(connection, request, self._send)

    # -- clients come and go -------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it went away, or we have no descriptor left
            return
        sock.settimeout(0)  # a client that does not read must not stop us
        credentials = fdsock.peer_credentials(sock)
        if credentials[1] not in self._uids:
            sock.close()
            return
        try:
            client = new_client(sock, credentials)
        except OSError:  # it has died already
            sock.close()
            return
        self._clients[client.token] = client
        self.watch(sock.fileno(), lambda: self._greet(client))
        self.watch(client.pidfd, lambda: self._gone(client, dead=True))
        self._log.info(Event.CLIENT_CONNECTED, client_pid=client.pid, client_uid=client.uid)

    def _greet(self, client: Client) -> None:
        """A client's descriptor socket has something: its hello, or its end."""
        assert client.sock is not None
        try:
            message, descriptors = fdsock.recv(client.sock)
        except BlockingIOError:
            return
        except (OSError, EOFError, ValueError):
            self._gone(client, dead=False)
            return
        try:
            for descriptor in descriptors:
                os.close(descriptor)
            right = isinstance(message, dict) and (message.get("hello"), message.get("version")) == ("client", VERSION)
            if right and isinstance(message, dict) and "token" in message and not client.greeted:
                self._welcome_back(client, message["token"])
                return
            if not right or client.greeted:
                fdsock.send(client.sock, {"error": f"expected a hello of version {VERSION}"})
                self._gone(client, dead=False)
                return
            client.greeted = True
            client.number = self._next_client
            self._next_client += 1
            self._k.journal.append(["client", client.number, client_row(client)])
            answer, segments = self._hello(client)
            fdsock.send(client.sock, answer, segments)
        except OSError:
            self._gone(client, dead=False)

    def _welcome_back(self, stranger: Client, token: object) -> None:
        """Somebody says that it is a client of the last daemon: its process must be the same."""
        client = self._clients.get(token) if isinstance(token, bytes) else None
        if client is None or (client.pid, client.uid) != (stranger.pid, stranger.uid):
            assert stranger.sock is not None
            fdsock.send(stranger.sock, {"error": "no client has that token"})
            self._gone(stranger, dead=False)
            return
        sock, stranger.sock = stranger.sock, None
        assert sock is not None
        del self._clients[stranger.token]
        self.unwatch(stranger.pidfd)
        self.unwatch(sock.fileno())
        close_client(stranger, os.close)
        if client.sock is not None:  # it did not hear the answer to its first attempt
            self.unwatch(client.sock.fileno())
            client.sock.close()
        client.sock = sock
        self.watch(sock.fileno(), lambda: self._greet(client))
        self._log.info(Event.CLIENT_BACK, client_pid=client.pid, tasks=len(client.tasks))
        fdsock.send(sock, {"version": VERSION, "again": self._generation})

    def _gone(self, client: Client, *, dead: bool) -> None:
        """A client has ended, or closed its machine: its tasks exit, its locks and pins are void."""
        if self._clients.pop(client.token, None) is None:
            return
        client.gone = True
        self._log.info(Event.CLIENT_GONE, client_pid=client.pid, dead=dead, tasks=len(client.tasks))
        if client.sock is not None:
            self.unwatch(client.sock.fileno())
        self.unwatch(client.pidfd)
        if client.number:
            self._k.journal.append(["client_gone", client.number])
        close_client(client, os.close)
        for connection in client.connections:
            self._connections.pop(connection.identity, None)
            self._returning.pop(connection.number, None)
            self._k.journal.append(["hung_up", connection.number])
        for slot in list(client.slots) if dead else []:
            self._slots.give_back(slot)
        self._calls.end_tasks(client)
        for slot, pid in list(client.slots.items()):
            if pid not in self._k.tasks:
                self._slots.give_back(slot)
        self._calls.release_pins()

    def owner_of(self, pid: int) -> Client | None:
        """The client whose task it is, None where nobody has it."""
        return next((client for client in self._clients.values() if pid in client.tasks), None)
