"""The kernel daemon's endpoints and its one loop.

Descriptor socket: a client says hello and gets the memory's descriptors and a token; the socket stays open for as long
as it uses the machine. ZeroMQ ROUTER: its threads' calls. One epoll holds every raw descriptor (sockets, pidfds), so
that the poller looks at a handful of things however many clients there are.
"""

import contextlib
import errno
import functools
import math
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from numaemu_core import limits
from numaemu_core.admission import Admission
from numaemu_core.errors import MmError
from numaemu_core.fsck import fsck
from numaemu_core.intents import Caller, blamed
from numaemu_core.journal import Truth
from numaemu_core.kernel import Kernel
from numaemu_core.wire import VERSION, pack_reply
from numaemu_daemon import zap
from numaemu_daemon.bus import Bus
from numaemu_daemon.calls import Calls
from numaemu_daemon.clients import AccessSlots, Client, close_client, leased_client, new_client
from numaemu_daemon.comeback import Comeback, client_row
from numaemu_daemon.entrances import Listener
from numaemu_daemon.guests import Guests, descriptors
from numaemu_daemon.leases import Leases
from numaemu_daemon.lines import Lines
from numaemu_daemon.logs import Event, Log
from numaemu_daemon.permissions import Permissions
from numaemu_daemon.requests import Requests
from numaemu_daemon.scheduler import Scheduler
from numaemu_host import fdsock

#: How long no new client is taken where the host has no descriptor left.
_PAUSE_S = 0.1
#: How long the loop stays awake for another call; on a lone processor the caller could not make it meanwhile.
_LINGER_S = 1e-4 if len(os.sched_getaffinity(0)) > 1 else 0.0
#: Rounds of a loop that never sleeps between two looks at peers whose time may be over.
_ROUNDS_BETWEEN_LOOKS = 64


class Server:
    """Takes requests, runs kernel tasks, sends answers."""

    def __init__(  # noqa: PLR0913 - the parts of a daemon, put together in one place
        self,
        k: Kernel,
        *,
        sockets: tuple["zmq.Socket[bytes]", Bus, "zmq.Socket[bytes]"],
        guests: Guests,
        listeners: Sequence[Listener],
        scheduler: Scheduler,
        slots: AccessSlots,
        hello: Callable[[Client], tuple[dict[str, Any], list[int]]],
        boot_id: str,
        generation: int,
        guard: zap.Guard,
        admission: Admission,
        report: Callable[[dict[str, int]], float | None],
        recoveries: Callable[[], int],
        repair_locks: Callable[[], None],
        serves: Callable[[], None],
        log: Log,
    ) -> None:
        """`sockets`: clients' ROUTER, bus, ZAP handler; `guests` watches the first.

        `hello` gives the answer on a descriptor socket.

        `report` takes what was done so far, and gives the seconds after which it wants to be told again; `recoveries`
        counts the locks whose holder had died, `repair_locks` looks for more of them; `serves` is called once calls are
        taken.
        """
        self._k = k
        self._router, self._bus, self._zap = sockets
        bus = self._bus
        self._guests = guests
        self._listeners = listeners
        self._scheduler = scheduler
        self._slots = slots
        self._hello = hello
        self._boot_id = boot_id
        self._generation = generation
        self._guard = guard
        self._report = report
        self._recoveries = recoveries
        self._repair_locks = repair_locks
        self._serves = serves
        self._log = log
        permissions = Permissions(k, admission, self.owner_of)
        self._calls = Calls(k, scheduler, slots, boot_id, self, permissions)
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._poller = zmq.Poller()
        # Faults, which come by the epoll, are begun first: others have a round's length of patience.
        for item in (self._epoll.fileno(), self._router, bus.socket, self._zap, guests.socket, bus.guests.socket):
            self._poller.register(item, zmq.POLLIN)
        self._clients: dict[bytes, Client] = {}
        #: Clients that came over TCP.
        self._leases = Leases(time.monotonic)
        self._requests = Requests(
            k, self._router, guests, self._clients, self._calls, boot_id, log, self._leases, self._join
        )
        self._lines = Lines(boot_id, self.watch, self.unwatch, self._requests.take)
        self._next_client = 1
        #: Clients that have not said hello on the descriptor socket, the oldest first, and when they came.
        self._silent: dict[Client, float] = {}
        self._of_process: Counter[int] = Counter()
        self._clients_max = min(limits.MAX_CLIENTS, descriptors() // 8)
        #: When new clients are taken again.
        self._paused_until: float | None = None
        self._rounds = 0
        self._linger_s = 0.0
        self.stopping = False
        self._listen()

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
        self._requests.next_connection = truth.marks.get("connection", 1)
        self._next_client = truth.marks.get("client", 1)
        self._requests.returning = living.connections
        for client in living.clients.values():
            self._clients[client.token] = client
            if client.leased:
                self._leases.heard(client)
                continue
            self._of_process[client.pid] += 1
            self.watch(client.pidfd, functools.partial(self._gone, client, dead=True))
        self._slots.recover(living.clients)
        self._calls.redo(living.connections, truth, self._requests.answer_again)
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
            "connections": self._requests.connections(),
            "fault_lines": self._lines.count,
            "tasks": len(self._k.tasks),
            "files": len(self._k.files),
            "calls": self._calls.served,
            "refused": self._requests.refused,
            "dropped": self._guests.dropped + self._bus.guests.dropped,
            "lock_recoveries": self._recoveries(),
            "locks": self._k.locks.stats.as_dict(),
            "faults_struck": self._k.strikes.counts(),
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
            if self._requests.resting:
                self._check_at_rest()
            if self._requests.turns and not self._requests.resting:
                timeout = 0
            events = self._poller.poll(0) if timeout == 0 else self._next_events(timeout)
            self._requests.new_round()
            for item, _ in events:
                self._take(item)
            if self._requests.turns:
                self._requests.serve_turns()
            self._rounds += 1
            if not self._rounds % _ROUNDS_BETWEEN_LOOKS:  # else it does so before it sleeps
                self._before_sleep(None)

    def _next_events(self, timeout_ms: int | None) -> list[tuple[Any, int]]:
        """What has come. After an event it looks for the next one for a moment before it sleeps.

        A caller often has another call at once; to be woken up for it takes longer than to wait for it, more of the
        processor's time included.
        """
        until = time.monotonic() + self._linger_s
        events = self._poller.poll(0)
        while not events and time.monotonic() < until:
            events = self._poller.poll(0)
        events = events or self._poller.poll(self._before_sleep(timeout_ms))
        self._linger_s = _LINGER_S if events else 0.0
        return events

    def _take(self, item: object) -> None:
        if item is self._router:
            self._requests.receive()
        elif item is self._bus.socket:
            self._bus.receive()
        elif item is self._zap:
            zap.answer(self._zap, self._guard)
        elif item is self._guests.socket:
            self._guests.receive()
        elif item is self._bus.guests.socket:
            self._bus.guests.receive()
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
        waits_s = [wait_s for wait_s in (self._report(done), self._look_after_peers()) if wait_s is not None]
        times = [timeout_ms, self._bus.look_for_silent(), *(math.ceil(1000 * wait_s) for wait_s in waits_s)]
        return min((ms for ms in times if ms is not None), default=None)

    def _look_after_peers(self) -> float | None:
        """Hang up on those whose time is over; gives the seconds until there may be others, None if there are none."""
        self._end_leases()
        found = (self._guests.expire(), self._bus.guests.expire(), self._expire(), self._leases.next_look_s())
        return min((wait_s for wait_s in found if wait_s is not None), default=None)

    # -- fsck ----------------------------------------------------------------------------------------------------------

    def _check_at_rest(self) -> None:
        """Once nothing is on its way any more, check, answer, and let the others go on."""
        if self._scheduler.active or self._bus.copies:
            return
        if self._requests.finishing:
            self._requests.finishing = False
            self._serves()
        checks, self._requests.checks = self._requests.checks, []
        if not checks:
            return
        self._repair_locks()
        connection, request = checks[0]
        with blamed(self._k, Caller(connection.number, request.request_id)):
            self._k.reach("fsck.begun")
            found = fsck(self._k)
        for connection, request in checks:
            connection.last_request = request.request_id
            connection.last_reply = pack_reply(self._boot_id, request.request_id, found)
            self._requests.answer(connection, connection.last_reply)

    # -- clients come and go -------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for listener in self._listeners:
            self.watch(listener.sock.fileno(), functools.partial(self._accept, listener))

    def _accept(self, listener: Listener) -> None:
        try:
            sock, _ = listener.sock.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}:
                self._pause()
            return  # else it went away
        sock.settimeout(0)  # a client that does not read must not stop us
        pid, uid, _ = credentials = fdsock.peer_credentials(sock)
        if uid not in listener.uids:
            sock.close()
            return
        if len(self._clients) >= self._clients_max and self._silent:
            self._gone(next(iter(self._silent)), dead=False)
        if len(self._clients) >= self._clients_max or self._of_process[pid] >= limits.CLIENTS_PER_PROCESS:
            with contextlib.suppress(OSError):
                fdsock.send(sock, {"error": "too many clients, of this process or in all"})
            sock.close()
            return
        try:
            client = new_client(sock, credentials, remote=listener.remote)
        except OSError:  # it has died already, or there is no descriptor left
            sock.close()
            return
        self._clients[client.token] = client
        self._silent[client] = time.monotonic()
        self._of_process[client.pid] += 1
        self.watch(sock.fileno(), lambda: self._greet(client))
        self.watch(client.pidfd, lambda: self._gone(client, dead=True))
        self._log.debug(Event.CLIENT_CONNECTED, client_pid=client.pid, client_uid=client.uid)

    def _pause(self) -> None:
        """No descriptor is left: the listener would be readable all the time, and nothing could be done about it."""
        if self._paused_until is None:
            for listener in self._listeners:
                self.unwatch(listener.sock.fileno())
            self._log.warning(Event.DESCRIPTORS_SHORT, clients=len(self._clients))
        self._paused_until = time.monotonic() + _PAUSE_S

    def _expire(self) -> float | None:
        """Hang up on clients that say nothing, and take new ones again; gives the seconds to the next time, if any."""
        if not self._silent and self._paused_until is None:
            return None
        now, waits_s = time.monotonic(), []
        if self._paused_until is not None:
            if self._paused_until <= now:
                self._paused_until = None
                self._listen()
            else:
                waits_s.append(self._paused_until - now)
        for client, since in list(self._silent.items()):
            if since + limits.STRANGER_S > now:
                waits_s.append(since + limits.STRANGER_S - now)
                break
            self._gone(client, dead=False)
        return min(waits_s, default=None)

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
            known = isinstance(message, dict) and message.get("version") == VERSION and not client.greeted
            match message:
                case {"hello": "client", "token": token} if known:
                    self._welcome_back(client, token)
                    return
                case {"hello": "faults", "token": token} if known:
                    self._open_line(client, token)
                    return
                case {"hello": "client", **wishes} if known:
                    client.greeted = True
                    client.remote = client.remote or wishes.get("remote") is True
                case _:
                    fdsock.send(client.sock, {"error": f"expected a hello of version {VERSION}"})
                    self._gone(client, dead=False)
                    return
            self._silent.pop(client, None)
            self._enlist(client)
            answer, segments = self._hello(client)
            fdsock.send(client.sock, answer, segments)
        except OSError:
            self._gone(client, dead=False)

    def _enlist(self, client: Client) -> None:
        """A client is known from now on, also to the journal."""
        client.number = self._next_client
        self._next_client += 1
        self._k.journal.append(["client", client.number, client_row(client)])

    def _join(self, user: int) -> dict[str, Any]:
        """Somebody comes over TCP, and gets a token. MmError: EAGAIN: too many with one key, or in all."""
        if self._leases.of_user(user) >= limits.LEASES_PER_USER or len(self._clients) >= self._clients_max:
            raise MmError(errno.EAGAIN, f"at most {limits.LEASES_PER_USER} clients may use one key")
        client = leased_client(user)
        self._clients[client.token] = client
        self._enlist(client)
        self._leases.heard(client)
        self._log.info(Event.CLIENT_CONNECTED, client_pid=0, client_uid=user)
        return self._hello(client)[0]

    def _end_leases(self) -> None:
        """Clients on TCP that were silent for too long are gone."""
        for client in self._leases.over():
            self._gone(client, dead=True)

    def leave(self, client: Client) -> None:
        """A client lets the machine go."""
        self._gone(client, dead=False)

    def _welcome_back(self, stranger: Client, token: object) -> None:
        """Somebody says that it is a client of the last daemon: its process must be the same."""
        client = self._client_of(stranger, token)
        if client is None:
            return
        sock = self._taken_from(stranger)
        if client.sock is not None:  # it did not hear the answer to its first attempt
            self.unwatch(client.sock.fileno())
            client.sock.close()
        client.sock = sock
        self.watch(sock.fileno(), lambda: self._greet(client))
        self._log.info(Event.CLIENT_BACK, client_pid=client.pid, tasks=len(client.tasks))
        fdsock.send(sock, {"version": VERSION, "again": self._generation})

    def _open_line(self, stranger: Client, token: object) -> None:
        """A thread of a client wants a line."""
        client = self._client_of(stranger, token)
        if client is None:
            return
        sock = self._taken_from(stranger)
        if self._lines.has_room(client):
            self._lines.open(client, sock)
            fdsock.send(sock, {"version": VERSION})
        else:
            with contextlib.closing(sock):
                fdsock.send(sock, {"error": "too many lines, of this process or in all"})

    def _client_of(self, stranger: Client, token: object) -> Client | None:
        """The client with that token, which must be of the same process; else there is none, and the stranger goes."""
        client = self._clients.get(token) if isinstance(token, bytes) else None
        if client is not None and (client.pid, client.uid) == (stranger.pid, stranger.uid):
            return client
        assert stranger.sock is not None
        fdsock.send(stranger.sock, {"error": "no client has that token"})
        self._gone(stranger, dead=False)
        return None

    def _taken_from(self, stranger: Client) -> socket.socket:
        """The socket of somebody who has turned out to be known: the stranger is no more."""
        sock, stranger.sock = stranger.sock, None
        assert sock is not None
        del self._clients[stranger.token]
        self._forget_process(stranger)
        self.unwatch(stranger.pidfd)
        self.unwatch(sock.fileno())
        close_client(stranger, os.close)
        return sock

    def _gone(self, client: Client, *, dead: bool) -> None:
        """A client has ended, or closed its machine: its tasks exit, its locks and pins are void."""
        if self._clients.pop(client.token, None) is None:
            return
        client.gone = True
        self._forget_process(client)
        self._log.info(Event.CLIENT_GONE, client_pid=client.pid, dead=dead, tasks=len(client.tasks))
        if client.sock is not None:
            self.unwatch(client.sock.fileno())
        if client.leased:
            self._leases.forget(client)
        else:
            self.unwatch(client.pidfd)
        if client.number:
            self._k.journal.append(["client_gone", client.number])
        close_client(client, os.close)
        self._requests.client_gone(client)
        self._lines.client_gone(client)
        for slot in list(client.slots) if dead else []:
            self._slots.give_back(slot)
        self._calls.end_tasks(client)
        for slot, pid in list(client.slots.items()):
            if pid not in self._k.tasks:
                self._slots.give_back(slot)
        self._calls.release_pins()

    def _forget_process(self, client: Client) -> None:
        self._silent.pop(client, None)
        if not client.leased:
            self._of_process -= Counter({client.pid: 1})

    def owner_of(self, pid: int) -> Client | None:
        """The client whose task it is, None where nobody has it."""
        return next((client for client in self._clients.values() if pid in client.tasks), None)
