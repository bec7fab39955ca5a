"""Calls that wait for room in the journal: those of a client that dies meanwhile are not made."""

import errno
from collections.abc import Callable, Generator
from typing import Any

import pytest

from numaemu_core import files, fork, limits
from numaemu_core.admission import make_admission
from numaemu_core.effects import Effect
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.performer import machine_in_memory
from numaemu_core.topology import uniform
from numaemu_core.wire import Request, unpack_reply
from numaemu_daemon.calls import Calls
from numaemu_daemon.clients import AccessSlots, Client, Connection
from numaemu_daemon.permissions import Permissions

WRITE = 4096


class Shelf:
    """A scheduler that begins nothing by itself."""

    def __init__(self) -> None:
        self.begun: list[tuple[Generator[Effect, Any, Any], Callable[[Any, MmError | None], None]]] = []

    def start(
        self,
        body: Generator[Effect, Any, Any],
        done: Callable[[Any, MmError | None], None],
        _window: int | None = None,
    ) -> None:
        self.begun.append((body, done))

    def share(self) -> None:
        """As `Scheduler.share`: steps have no length here."""

    def finish(self) -> None:
        """The first that has begun is over."""
        body, done = self.begun.pop(0)
        body.close()
        done(0, None)


class House:
    """Calls, and the client whose calls they are."""

    def __init__(self) -> None:
        self.k: Kernel = machine_in_memory(uniform(1, "1M", "1M", "swap-v3", 4096))
        self.client = Client(None, 10, 0, 0, b"", number=1)
        self.shelf = Shelf()
        permissions = Permissions(self.k, make_admission([], []), self.owner_of)
        self.calls = Calls(self.k, self.shelf, AccessSlots(self.k.c), "boot", self, permissions)  # type: ignore[arg-type]  # all that calls need of a scheduler
        self.pids = [fork.attach(self.k, 0, [], None, 1).pid for _ in range(2)]
        self.client.tasks.update(self.pids)
        files.create_file(self.k, "f", "tmpfs", WRITE)
        self.answers: dict[int, bytes] = {}

    def status(self) -> dict[str, Any]:
        return {}

    def owner_of(self, pid: int) -> Client | None:
        return self.client if pid in self.client.tasks else None

    def leave(self, client: Client) -> None:
        self.calls.end_tasks(client)

    def write(self, number: int, pid: int) -> None:
        """A call of a connection of its own."""
        request = Request(1, "file_write", [pid, "f", 0, bytes(WRITE)], None)
        self.calls.serve(Connection(number, b"x", self.client), request, self._send)

    def _send(self, connection: Connection, body: bytes) -> None:
        self.answers[connection.number] = body


def test_writes_of_a_task_that_has_ended_do_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of writes that wait for room, those of the task that ends are refused, and the next of another begins."""
    monkeypatch.setattr(limits, "JOURNALLED_WRITES_BYTES", 8 * WRITE)
    house = House()
    ending, staying = house.pids
    for number in range(8):
        house.write(number, staying)
    assert len(house.shelf.begun) == 8
    for number, pid in enumerate([ending, ending, staying], start=8):
        house.write(number, pid)
    assert len(house.shelf.begun) == 8
    house.k.tasks[ending].exiting = True
    house.shelf.finish()
    assert sorted(house.answers) == [0, 8, 9]
    with pytest.raises(MmError) as refused:
        unpack_reply(house.answers[8])
    assert refused.value.errno == errno.ESRCH
    assert len(house.shelf.begun) == 8
    while house.shelf.begun:
        house.shelf.finish()
    assert sorted(house.answers) == list(range(11))
    assert unpack_reply(house.answers[10])[2] == 0
