"""The daemon's performer: how long the steps of a task are that others wait for."""

from typing import Any

import numpy as np
import pytest

from numaemu_core import limits
from numaemu_core.columns import columns_in_memory
from numaemu_core.effects import Breathe, KernelTask
from numaemu_core.journal import Journal
from numaemu_core.kernel import Kernel
from numaemu_core.layout import layout_of
from numaemu_core.locks import NoHost
from numaemu_core.topology import uniform
from numaemu_daemon.clients import AccessSlots
from numaemu_daemon.scheduler import Scheduler

PAGE = 4096


class Machine:
    """A scheduler over a small machine in memory, with a clock that stands still."""

    def __init__(self) -> None:
        layout = layout_of(uniform(1, 64 * PAGE, 0, "swap-v3", PAGE))
        columns = columns_in_memory(layout)
        self.k = Kernel(layout, columns, Journal(np.zeros(1 << 20, np.uint8)), NoHost())
        self.now = 100.0
        no_copiers: Any = None
        self.scheduler = Scheduler(self.k, AccessSlots(columns), no_copiers, lambda: self.now, fenced=True)
        self.ended = 0

    def start(self, steps: int) -> None:
        """A call whose task has so many steps."""

        def body() -> KernelTask[None]:
            for _ in range(steps):
                yield Breathe()

        def done(_result: object, refusal: object) -> None:
            assert refusal is None
            self.ended += 1

        self.scheduler.share()
        self.scheduler.start(body(), done)


@pytest.fixture
def machine() -> Machine:
    """A machine at rest."""
    return Machine()


def test_a_task_alone_goes_in_long_steps(machine: Machine) -> None:
    """Nobody waits: calls one after the other go in steps as long as can be."""
    for _ in range(3):
        machine.start(2)
        while machine.scheduler.active:
            machine.scheduler.step()
        assert machine.k.batch_pages == limits.BATCH_PAGES
    assert machine.ended == 3


def test_steps_are_short_while_others_call(machine: Machine) -> None:
    """A call beside a task on its way shortens the steps, for a moment after the last such call."""
    machine.start(1000)
    machine.scheduler.step()
    for _ in range(3):
        machine.now += limits.SHARED_S * 0.9
        machine.start(1)
        machine.scheduler.step()
        assert machine.k.batch_pages == limits.SHARED_BATCH_PAGES
    machine.now += limits.SHARED_S * 1.1
    machine.scheduler.step()
    assert machine.k.batch_pages == limits.BATCH_PAGES
