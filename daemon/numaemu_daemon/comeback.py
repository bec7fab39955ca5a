"""Clients of a daemon that died, as its successor finds them in the journal.

A client is known by its pid and by when that process began, so that a number that the host has given to another process
means nothing. Who lives keeps its tasks, its access slots and the answers that it may still ask for; it comes back to
the descriptor socket by itself. Who has died meanwhile is treated as if it died now.
"""

import os
from dataclasses import dataclass, field

import numpy as np

from numaemu_core.columns import Columns
from numaemu_core.journal import Truth
from numaemu_daemon.clients import Client, Connection, void_slot
from numaemu_host import pidfd


@dataclass(slots=True)
class Comeback:
    """Clients and connections that live on, by their numbers, and the numbers of those that do not."""

    clients: dict[int, Client] = field(default_factory=dict)
    connections: dict[int, Connection] = field(default_factory=dict)
    dead: list[int] = field(default_factory=list)


def client_row(client: Client) -> list[object]:
    """A client as the journal keeps it: [pid, when it began, uid, token, user, remote]."""
    began = pidfd.started_at(client.pid) if client.pid else 0
    return [client.pid, began, client.uid, client.token, client.user, client.remote]


def living_clients(truth: Truth) -> Comeback:
    """Look for the clients that the journal knows."""
    found = Comeback()
    for number, (pid, began, uid, token, user, remote) in truth.clients.items():
        descriptor = _same_process(pid, began) if pid else -1  # whoever came over TCP has a lease
        if descriptor is None:
            found.dead.append(number)
            continue
        client = Client(None, pid, uid, descriptor, token, user, remote, greeted=True, number=number)
        client.tasks = {task for task, row in truth.tasks.items() if row[-1] == number}
        found.clients[number] = client
    for number, owner in truth.connections.items():
        living = found.clients.get(owner)
        if living is not None:
            connection = connection_of(truth, number, living)
            living.connections.append(connection)
            found.connections[number] = connection
    return found


def connection_of(truth: Truth, number: int, client: Client) -> Connection:
    """A connection as the journal knows it: its last request, the answer, and how many daemons have died of it."""
    request, _, reply = truth.calls.get(number, (0, None, None))
    fatal_request, deaths = truth.fatal.get(number, (0, 0))
    return Connection(number, b"", client, request, reply, fatal_request=fatal_request, deaths=deaths)


def _same_process(pid: int, began: int) -> int | None:
    """A pidfd of the process, if it still is the one that it was."""
    try:
        descriptor = pidfd.open_pidfd(pid)
    except OSError:
        return None
    if pidfd.started_at(pid) == began and not pidfd.has_exited(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def void_slots_of_the_dead(columns: Columns, living: Comeback) -> None:
    """Windows and pins of clients that are no more count no longer."""
    for slot in np.flatnonzero(columns.window_mm).tolist():
        if int(columns.window_client[slot]) not in living.clients:
            void_slot(columns, slot)
