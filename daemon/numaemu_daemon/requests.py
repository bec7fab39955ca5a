"""The endpoint of the calls: requests of connections that have said hello wait for their turn, others are refused.

A connection has one call at a time on its way. A client has a turn before any other has a second one; who goes beyond
a limit gets an errno, and who goes on with it loses the connection.
"""

import errno
from collections.abc import Callable
from typing import Any, Final

import zmq

from numaemu_core import limits
from numaemu_core.admission import ROOT
from numaemu_core.errors import MmError
from numaemu_core.intents import too_many
from numaemu_core.kernel import Kernel
from numaemu_core.wire import Request, StrangerError, WireError, pack_refusal, pack_reply, unpack_request
from numaemu_daemon import lines, zap
from numaemu_daemon.calls import Calls
from numaemu_daemon.clients import Client, Connection
from numaemu_daemon.guests import Guests
from numaemu_daemon.leases import Leases
from numaemu_daemon.logs import Event, Log
from numaemu_daemon.turns import Turns

#: An identity that ZeroMQ has drawn: a zero, and a number that the peer is not told.
_IDENTITY_BYTES: Final = 5


class Requests:
    """What comes in on the ROUTER, and the connections behind it."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a daemon that requests need
        self,
        k: Kernel,
        router: "zmq.Socket[bytes]",
        guests: Guests,
        clients: dict[bytes, Client],
        calls: Calls,
        boot_id: str,
        log: Log,
        leases: Leases,
        join: Callable[[int], dict[str, Any]],
    ) -> None:
        """`guests` watches the router; `clients` are all, by token; `join` takes in a user who comes over TCP."""
        self._k = k
        self._router = router
        self._guests = guests
        self._clients = clients
        self._calls = calls
        self._boot_id = boot_id
        self._log = log
        self._leases = leases
        self._join = join
        self._connections: dict[bytes, Connection] = {}
        self._by_descriptor: dict[int, Connection] = {}
        guests.went = self._hung_up
        #: Connections of clients of the last daemon, by number, until they say hello again.
        self.returning: dict[int, Connection] = {}
        self.next_connection = 1
        #: Requests that wait for their turn.
        self.turns: Turns[Client, tuple[Connection, Request]] = Turns()
        #: Those that want the machine at rest.
        self.checks: list[tuple[Connection, Request]] = []
        #: What was on its way when the last daemon died is being finished.
        self.finishing = True
        self.refused = 0
        self._begun = 0
        #: Answers that could not be sent.
        self.unheard = 0

    @property
    def resting(self) -> bool:
        """Nothing is begun any more, until what is on its way has ended."""
        return bool(self.checks) or self.finishing

    def connections(self) -> int:
        """How many have said hello."""
        return len(self._connections)

    def client_gone(self, client: Client) -> None:
        """Forget its connections, and what it had waiting."""
        self.turns.forget(client)
        for connection in client.connections:
            self._connections.pop(connection.identity, None)
            self.returning.pop(connection.number, None)
            self._k.journal.append(["hung_up", connection.number])

    def receive(self) -> None:
        """Take some of what has come: requests of clients wait for their turn, those of strangers are answered."""
        for _ in range(limits.RECEIVED_PER_TURN):
            identity = self._router.recv()
            connection = self._connections.get(identity)
            if connection is None:
                self._receive_of_stranger(identity)
            else:
                body = self._router.recv()
                if self._router.get(zmq.RCVMORE):  # a good deal faster than the attribute
                    self._refuse_client(connection, self._too_many_frames(), 0)
                else:
                    self._request(connection, body)
            events = self._router.get(zmq.EVENTS)
            if not (isinstance(events, int) and events & zmq.POLLIN):
                return

    def _too_many_frames(self) -> WireError:
        """Drop the other frames of a message, one by one: there may be any number of them."""
        while self._router.rcvmore:
            self._router.recv()
        return WireError("expected one frame")

    def _receive_of_stranger(self, identity: bytes) -> None:
        """A connection that is not known may say hello. Its descriptor comes with the message."""
        frame = self._router.recv(copy=False)
        descriptor = int(frame.get(zmq.SRCFD))
        try:
            if self._router.rcvmore:
                raise self._too_many_frames()
            request = unpack_request(frame.bytes, self._boot_id)
            sender = zap.sender_of(frame)
            if request.name == "join" and sender[1]:
                answer = self._join(sender[0])
                self._post(identity, pack_reply(self._boot_id, request.request_id, answer))
                return
            if request.name != "hello":
                self._refuse(identity, descriptor, StrangerError("say hello first"), request.request_id)
                return
        except MmError as refusal:
            self._refuse(identity, descriptor, refusal, refusal.request_id)
        except WireError as refusal:
            self._refuse(identity, descriptor, refusal, 0)
        else:
            self._connect(identity, descriptor, sender, request)

    def _request(self, connection: Connection, body: bytes) -> None:
        """A request of a client waits for its turn; one that was sent before is answered or ignored."""
        if connection.client.leased:
            self._leases.heard(connection.client)
        try:
            request = unpack_request(body, self._boot_id)
        except MmError as refusal:
            self._refuse_client(connection, refusal, refusal.request_id)
            return
        except WireError as refusal:
            self._refuse_client(connection, refusal, 0)
            return
        client, number = connection.client, request.request_id
        if request.name == "hello":  # its answer was lost
            self._send(connection, pack_reply(self._boot_id, number, connection.number))
        elif number <= connection.last_request:
            if number == connection.last_request and connection.last_reply is not None:
                self._send(connection, connection.last_reply)
        elif connection.waiting is not None:
            if number != connection.waiting:
                connection.pipelined = True
                self._refuse_client(
                    connection, MmError(errno.EAGAIN, "a call of this connection is on its way"), number
                )
        elif client.request_bytes + len(body) > limits.REQUEST_BYTES_PER_CLIENT:
            self._refuse_client(
                connection, MmError(errno.EAGAIN, "too many bytes of this client are on their way"), number
            )
        else:
            self.take(connection, request, len(body))

    def take(self, connection: Connection, request: Request, body_bytes: int) -> None:
        """A request of so many bytes waits for its turn, unless that is now."""
        client = connection.client
        connection.waiting, connection.request_bytes = request.request_id, body_bytes
        client.request_bytes += body_bytes
        alone = not self.turns and client.running < limits.RUNNING_CALLS_PER_CLIENT
        # At once: nobody else waits; or others may be waiting for the window that the caller is in.
        if (alone or request.window is not None) and not self.resting and self._begun < limits.SERVED_PER_TURN:
            self._begun += 1
            self._begin(connection, request)
        else:
            self.turns.add(client, (connection, request))

    def new_round(self) -> None:
        """The loop has come round."""
        self._begun = 0

    def serve_turns(self) -> None:
        """Begin a request of each client in turn, of no more than a few: what they need runs between two rounds."""
        for _ in range(min(len(self.turns), limits.SERVED_PER_TURN)):
            if not self.turns or self.resting:
                return
            self._begin(*self.turns.take()[1])

    def _begin(self, connection: Connection, request: Request) -> None:
        client = connection.client
        client.running += 1
        if client.running >= limits.RUNNING_CALLS_PER_CLIENT:
            self.turns.pause(client)
        refusal = too_many(connection.deaths_of(request.request_id))
        if request.name == "fsck" and client.user == ROOT and refusal is None:
            self.checks.append((connection, request))
        else:
            self._calls.serve(connection, request, self.answer)

    def answer(self, connection: Connection, body: bytes) -> None:
        """A call that had its turn is over."""
        client = connection.client
        client.running -= 1
        client.request_bytes -= connection.request_bytes
        connection.waiting, connection.request_bytes = None, 0
        self.turns.go_on(client)
        if not connection.pipelined:
            self._guests.forgive(connection.descriptor)
        connection.pipelined = False
        self._send(connection, body)

    def answer_again(self, connection: Connection, body: bytes) -> None:
        """A call that was on its way when the last daemon died is over."""
        connection.waiting = None
        self._send(connection, body)

    def _hung_up(self, descriptor: int) -> None:
        """A connection is over: nobody else has its identity, and its thread may go on with another one."""
        connection = self._by_descriptor.pop(descriptor, None)
        if connection is not None and connection.descriptor == descriptor:
            self._connections.pop(connection.identity, None)
            connection.identity, connection.descriptor = b"", -1

    def _connect(self, identity: bytes, descriptor: int, sender: tuple[int, bool], request: Request) -> None:
        """Bind an identity to the client of the token, for a connection that is new or goes on.

        `sender` is the user and whether it came over TCP, by ZAP's word: a token is good only for the user whom it was
        given to.
        """
        token, number = request.args
        client = self._clients.get(token)
        if len(identity) != _IDENTITY_BYTES or identity[0]:
            no = MmError(errno.EACCES, "who chooses an identity may have chosen another's")
            self._refuse(identity, descriptor, no, request.request_id)
            return
        if client is None or (client.uid, client.leased) != sender:
            self._refuse(identity, descriptor, MmError(errno.EACCES, "no client has that token"), request.request_id)
            return
        connection = self._connection_of(client, number)
        if connection is None:
            connection = Connection(self.next_connection, identity, client, last_request=request.request_id)
            self.next_connection += 1
            client.connections.append(connection)
            self._k.journal.append(["connection", connection.number, client.number])
            connection.last_reply = pack_reply(self._boot_id, request.request_id, connection.number)
            self._forget_idle(client)
        connection.identity, connection.descriptor = identity, descriptor
        self._by_descriptor[descriptor] = connection
        self._connections[identity] = connection
        self._guests.greeted(descriptor)
        self._send(connection, pack_reply(self._boot_id, request.request_id, connection.number))

    def _connection_of(self, client: Client, number: int | None) -> Connection | None:
        """The connection of that number, if it is this client's: of the last daemon, or one that was cut."""
        if number is None:
            return None
        returning = self.returning.get(number)
        if returning is not None and returning.client is client:
            return self.returning.pop(number)
        known = next((one for one in client.connections if one.number == number), None)
        if known is not None:
            self._connections.pop(known.identity, None)
        return known

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
            self.returning.pop(oldest.number, None)
            self._k.journal.append(["hung_up", oldest.number])

    def _send(self, connection: Connection, body: bytes) -> None:
        if connection.line is not None:
            lines.answer(connection.line, body)
        elif connection.identity:  # else it has not come back yet, and will ask
            self._post(connection.identity, body)

    def _refuse_client(self, connection: Connection, refusal: Exception, request_id: int) -> None:
        self._refuse(connection.identity, connection.descriptor, refusal, request_id)

    def _refuse(self, identity: bytes, descriptor: int, refusal: Exception, request_id: int) -> None:
        """Say no, unless that was said too often: then the connection is over."""
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # the first of them, and ever fewer: a log is not to be flooded
            self._log.info(Event.REQUEST_REFUSED, reason=str(refusal), request=request_id, refused=self.refused)
        if self._guests.strike(descriptor):
            self._post(identity, pack_refusal(self._boot_id, request_id, refusal))

    def _post(self, identity: bytes, body: bytes) -> None:
        try:
            self._router.send_multipart([identity, body], zmq.NOBLOCK)
        except zmq.ZMQError as error:  # gone, or it never reads: nobody else waits for it
            self.unheard += 1
            if self.unheard & (self.unheard - 1) == 0:
                self._log.info(Event.REPLY_DROPPED, reason=str(error), unheard=self.unheard)
