"""The clients of a machine: processes, their connections, their access slots, the tasks they own.

A *client* is a process that came to the descriptor socket; the kernel of the host says who it is. A *connection* is one
of its threads on the ZeroMQ endpoint, bound to the client by the token that the descriptor socket gave.
"""

import errno
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from numaemu_core import limits
from numaemu_core.admission import ROOT
from numaemu_core.columns import Columns
from numaemu_core.errors import MmError
from numaemu_host import pidfd


@dataclass(slots=True, eq=False)
class Client:
    """One process that uses the machine. `pid` and `uid` are the host's word on it; over TCP there is no pid: 0."""

    #: None until it has come back to a new kernel daemon.
    sock: socket.socket | None
    pid: int
    uid: int
    pidfd: int
    token: bytes
    #: Who it is in the machine: `admission.ROOT` for the owner's clients, else the number of another user.
    user: int = ROOT
    #: It does not map the memory.
    remote: bool = False
    #: Pids of emulated tasks that it owns.
    tasks: set[int] = field(default_factory=set)
    #: Its access slots, by number, each with the pid of its task.
    slots: dict[int, int] = field(default_factory=dict)
    connections: list["Connection"] = field(default_factory=list)
    #: Its threads' lines for faults.
    lines: set["Connection"] = field(default_factory=set)
    greeted: bool = False
    #: Its number in the journal, once it is greeted.
    number: int = 0
    #: It has died or closed its machine: what is still on its way for it is undone.
    gone: bool = False
    #: Its calls that run just now, and the bytes of all its requests that wait or run.
    running: int = 0
    request_bytes: int = 0

    @property
    def leased(self) -> bool:
        """It came over TCP: the host tells nothing of its death."""
        return self.pidfd < 0


@dataclass(slots=True, eq=False)
class Connection:
    """One thread of a client. It has at most one call on its way."""

    number: int
    identity: bytes
    client: Client
    #: The last request and its answer, repeated when the request is; None while it is on its way. After a death of the
    #: daemon these are the last ones that the journal has.
    last_request: int = 0
    last_reply: bytes | None = None
    #: The descriptor of the connection, -1 where that is not known.
    descriptor: int = -1
    #: The request that waits for its turn or runs, and its bytes; None if there is none.
    waiting: int | None = None
    #: Others came while it did: they were refused.
    pipelined: bool = False
    request_bytes: int = 0
    #: The last request of which a daemon has died, and how many have.
    fatal_request: int = 0
    deaths: int = 0
    #: The socket of a line for faults, which has no number, no identity and no descriptor here.
    line: socket.socket | None = None

    def deaths_of(self, request_id: int) -> int:
        """How many daemons have died of that request."""
        return self.deaths if request_id == self.fatal_request else 0


class AccessSlots:
    """Which slot belongs to whom. The daemon hands slots out; only their thread moves the counter."""

    def __init__(self, columns: Columns) -> None:
        """All free."""
        self._c = columns
        self._window = memoryview(columns.window)  # type: ignore[arg-type]  # an array is a buffer
        self._free = list(range(limits.MAX_ACCESS_SLOTS - 1, -1, -1))
        self._owner: dict[int, Client] = {}
        self._of_mm: dict[int, set[int]] = {}

    def recover(self, clients: dict[int, Client]) -> None:
        """After a death of the daemon: slots are whose they were, those of others are free; clients by number."""
        for slot in range(limits.MAX_ACCESS_SLOTS):
            if not self._c.window_mm[slot]:
                continue
            client = clients.get(int(self._c.window_client[slot]))
            if client is None:
                void_slot(self._c, slot)
                continue
            self._free.remove(slot)
            self._owner[slot] = client
            self._of_mm.setdefault(int(self._c.window_mm[slot]) - 1, set()).add(slot)
            client.slots[slot] = int(self._c.window_task[slot])

    def take(self, client: Client, pid: int, mm_id: int) -> int:
        """A slot for a thread of a client that touches the memory of task `pid`.

        Raises:
            MmError: EAGAIN: too many threads.
        """
        if not self._free:
            raise MmError(errno.EAGAIN, f"a machine has at most {limits.MAX_ACCESS_SLOTS} threads that touch memory")
        slot = self._free.pop()
        self._c.window_client[slot] = client.number
        self._c.window_task[slot] = pid
        self._c.window_mm[slot] = mm_id + 1
        self._owner[slot] = client
        self._of_mm.setdefault(mm_id, set()).add(slot)
        client.slots[slot] = pid
        return slot

    def give_back(self, slot: int) -> None:
        """The slot is nobody's: closed, its pins void."""
        client = self._owner.pop(slot)
        del client.slots[slot]
        mm_id = int(self._c.window_mm[slot]) - 1
        self._of_mm[mm_id].discard(slot)
        void_slot(self._c, slot)
        self._free.append(slot)

    def open_windows(self, mm_ids: frozenset[int]) -> dict[int, int]:
        """Slots of these mms that are inside a window now, with their counters."""
        found: dict[int, int] = {}
        for mm_id in mm_ids:
            for slot in self._of_mm.get(mm_id, ()):
                counter = self._window[slot]
                if counter & 1:
                    found[slot] = counter
        return found

    def still_open(self, waiting: dict[int, int]) -> dict[int, int]:
        """Those of `waiting` whose window has not moved and whose owner lives."""
        return {s: n for s, n in waiting.items() if self._window[s] == n and s in self._owner}

    def any_stopped(self, mm_id: int) -> bool:
        """Is a process stopped that has an access slot of this mm?"""
        owners = {self._owner[slot].pid for slot in self._of_mm.get(mm_id, ())}
        return any(map(pidfd.is_stopped, owners))

    def owner(self, slot: int) -> Client | None:
        """Whose slot it is."""
        return self._owner.get(slot)


def void_slot(columns: Columns, slot: int) -> None:
    """Nobody is in that slot: no window is open, nothing is pinned."""
    columns.pin_count[slot] = 0
    columns.window_mm[slot] = 0
    columns.window[slot] = (int(columns.window[slot]) | 1) + 1


def new_client(sock: socket.socket, credentials: tuple[int, int, int], *, remote: bool) -> Client:
    """A client that has just come to a descriptor socket; `remote`: to that of other users."""
    pid, uid, _ = credentials
    client = Client(sock, pid, uid, pidfd.open_pidfd(pid), secrets.token_bytes(limits.TOKEN_BYTES), remote=remote)
    client.user = uid if remote else ROOT
    return client


def leased_client(user: int) -> Client:
    """A client that has just come over TCP."""
    token = secrets.token_bytes(limits.TOKEN_BYTES)
    return Client(None, 0, user, -1, token, user, remote=True, greeted=True)


def close_client(client: Client, close: Callable[[int], None]) -> None:
    """Let go of its descriptors."""
    if client.sock is not None:
        client.sock.close()
    if client.pidfd >= 0:
        close(client.pidfd)
