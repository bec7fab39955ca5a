"""The kernel of a machine for this daemon: a new one, or that of a daemon that died, recovered.

Recovery runs before anything is listened to. It waits for windows as a shootdown does, within the same bounds; whoever
is late then is a straggler.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import Columns
from numaemu_core.journal import Journal, Truth
from numaemu_core.kernel import Kernel
from numaemu_core.recovery import recover
from numaemu_daemon.child import Child
from numaemu_daemon.comeback import Comeback, living_clients, void_slots_of_the_dead
from numaemu_daemon.logs import Event
from numaemu_daemon.process_locks import ProcessLocks
from numaemu_daemon.scheduler import BUSY_POLL_MS, TOTAL_STORE_ORDER
from numaemu_daemon.segments import MappedMachine
from numaemu_host import membarrier, pidfd


@dataclass(slots=True)
class Machine:
    """A kernel, and whom it goes on for."""

    kernel: Kernel
    truth: Truth = field(default_factory=Truth)
    living: Comeback = field(default_factory=Comeback)


def machine_for(
    child: Child, machine: MappedMachine, locks: ProcessLocks, journal: Journal, *, fenced: bool
) -> Machine:
    """The kernel of the machine whose memory is mapped."""
    columns = machine.columns

    def prepare(table: int) -> None:
        machine.mutexes.initialise(child.layout.pte_mutex + table)

    if not child.restarted:
        kernel = Kernel(child.layout, columns, journal, locks)
        kernel.reach = child.reach
        kernel.journal.snapshot_from(kernel.truth)
        kernel.tables.prepare = prepare
        return Machine(kernel)
    begun_at = time.monotonic()
    living = living_clients(journal.replay())
    void_slots_of_the_dead(columns, living)
    late: dict[int, int] = {}

    def wait() -> dict[int, int]:
        if fenced:
            late.update(_wait_for_windows(columns, living, time.monotonic))
        else:
            locks.fence_tables(int(columns.tables_made[0]))
        return late

    kernel, truth = recover(child.layout, columns, journal, locks, wait, prepare, child.reach)
    locks.repair_all()
    child.log.info(
        Event.KERNEL_RECOVERED,
        tasks=len(kernel.tasks),
        clients=len(living.clients),
        redone=sum(call is not None for _, call, _ in truth.calls.values()),
        stragglers=len(late),
        seconds=round(time.monotonic() - begun_at, 3),
    )
    return Machine(kernel, truth, living)


def _wait_for_windows(columns: Columns, living: Comeback, clock: Callable[[], float]) -> dict[int, int]:
    """Wait until every window that is open now has closed, within the bounds; gives the stragglers."""
    membarrier.barrier()
    window = columns.window
    odd = np.flatnonzero((window & np.uint64(1) != 0) & (columns.window_mm > 0))
    waiting = {slot: int(window[slot]) for slot in odd.tolist()}
    since = clock()
    while True:
        waiting = {slot: counter for slot, counter in waiting.items() if int(window[slot]) == counter}
        age = clock() - since
        late = {slot: counter for slot, counter in waiting.items() if _is_late(columns, living, slot, age)}
        if len(late) == len(waiting):
            break
        time.sleep(BUSY_POLL_MS / 1000)
    if not TOTAL_STORE_ORDER:
        membarrier.barrier()
    return late


def _is_late(columns: Columns, living: Comeback, slot: int, age: float) -> bool:
    if age > limits.WINDOW_BOUND_RUNNING_S:
        return True
    client = living.clients[int(columns.window_client[slot])]
    return age > limits.WINDOW_BOUND_STOPPED_S and pidfd.is_stopped(client.pid)
