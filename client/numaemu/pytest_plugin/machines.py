"""The machines of one session of pytest: made when a test needs one of that shape, kept for the next such test."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from numaemu import places
from numaemu.errors import MachineGone
from numaemu.machine import Machine, connect
from numaemu.private import boot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numaemu_core.topology import Topology

#: Machines that are kept: each is some processes. The one that was used least recently goes.
_KEPT_MAX: Final = 4
#: How long the tasks of processes that have just ended may take to go.
_PATIENCE_S: Final = 5.0
_PAUSE_S: Final = 0.01


class _Kept(NamedTuple):
    """A machine that is ours, and where it is: the environment says so only as long as no test changes it."""

    machine: Machine
    place: str


class Machines:
    """Machines by their topology. A test gets a handle of its own, and with it tasks of its own."""

    def __init__(self) -> None:
        """None yet."""
        self._kept: dict[Topology, _Kept] = {}

    @contextlib.contextmanager
    def lend(self, topology: Topology, *, fresh: bool) -> Iterator[tuple[Machine, str]]:
        """A handle of a machine of that shape, and its directory, for one test; `fresh`: nobody else gets that one.

        At the end the handle is closed, and so are the tasks that were made by it. Tasks that are there still fail the
        test. A machine that has them, or files, or that has ended, is not lent again.
        """
        lent = _boot(topology) if fresh else self._take(topology)
        reusable, tasks = False, 0
        try:
            with connect(lent.place) as handle:
                yield handle, lent.place
            reusable, tasks = _look_at(lent.machine)
        finally:
            if fresh:
                lent.machine.close()
            elif not reusable:
                self._drop(topology)
        if tasks:
            what = "a task" if tasks == 1 else f"{tasks} tasks"
            pytest.fail(f"the test has left {what} on its machine: of processes that it has not ended", pytrace=False)

    def _take(self, topology: Topology) -> _Kept:
        kept = self._kept.pop(topology, None)
        if kept is None:
            while len(self._kept) >= _KEPT_MAX:
                self._drop(next(iter(self._kept)))
            kept = _boot(topology)
        self._kept[topology] = kept  # in the order in which they were used
        return kept

    def _drop(self, topology: Topology) -> None:
        self._kept.pop(topology).machine.close()

    def close(self) -> None:
        """End all of them."""
        with contextlib.ExitStack() as stack:
            for kept in self._kept.values():
                stack.callback(kept.machine.close)
            self._kept.clear()


def _boot(topology: Topology) -> _Kept:
    machine = boot(topology=topology.as_dict())
    return _Kept(machine, str(places.machine_dir(machine.name)))


def _look_at(machine: Machine) -> tuple[bool, int]:
    """Is it as good as new, and how many tasks are left on it? Processes that have just ended are given time."""
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while (status := machine.status())["tasks"] and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        for node in machine.topology.nodes:
            machine.set_interleave_weight(node.id, 0)
    except FileNotFoundError:  # a kernel that knows no weights
        pass
    except (MachineGone, OSError):
        return False, 0
    return not status["tasks"] and not status["files"], status["tasks"]
