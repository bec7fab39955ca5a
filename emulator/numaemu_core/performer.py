"""A performer of kernel tasks in one process: runs them against one another in an order drawn from a seed.

It keeps what the daemon's loop keeps (who waits for what) and does in memory what other processes do there. Every
interleaving of tasks at their yields is one number, and can be replayed from it. Simulated clients are tasks, too: they
open windows, read entries and touch bytes with yields in between, or a missing shootdown could never be found.

With `faults` copies fail as they fail on a real machine: whoever copies dies somewhere in the middle, or after the last
byte and before its answer, and its successor is asked again. Nothing else comes of it: a copier never says no.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numaemu_core.columns import I8, U1, columns_in_memory, zeros
from numaemu_core.effects import (
    Breathe,
    CopyPages,
    DownSem,
    Effect,
    Nap,
    ReadPages,
    Shootdown,
    SpinBusy,
    WaitCopies,
    WaitPageLocks,
    WaitWriteback,
    WritePages,
)
from numaemu_core.errors import BugError, MmError
from numaemu_core.journal import Journal, Truth
from numaemu_core.kernel import Kernel
from numaemu_core.layout import layout_of
from numaemu_core.locks import Key, Mode, NoHost
from numaemu_core.page_flags import PG_WRITEBACK
from numaemu_core.reclaim import kswapd
from numaemu_core.runs import copy_rows
from numaemu_core.swap_state import end_swap_write
from numaemu_core.topology import Topology

JOURNAL_BYTES = 1 << 18
#: Steps after which a run that has not ended is called a livelock.
STEPS_MAX = 200_000
#: Steps that a shootdown waits for an open window before it calls it a straggler.
WINDOW_BOUND_STEPS = 60
#: With faults, one of so many copies is cut short.
COPIES_A_FAULT = 6


def open_windows(k: Kernel, mm_ids: frozenset[int]) -> dict[int, int]:
    """Access slots of these mms that are inside a window, with their counters."""
    slots = np.flatnonzero((k.c.window_mm > 0) & (k.c.window & np.uint64(1) != 0))
    return {s: int(k.c.window[s]) for s in slots.tolist() if int(k.c.window_mm[s]) - 1 in mm_ids}


def machine_in_memory(topology: Topology, allocate: Callable[[int], Any] = zeros) -> Kernel:
    """A machine just switched on, in memory of this process alone."""
    layout = layout_of(topology)
    k = Kernel(layout, columns_in_memory(layout, allocate), Journal(zeros(JOURNAL_BYTES)), NoHost())
    k.journal.snapshot_from(k.truth)
    return k


@dataclass(slots=True)
class Running:
    """A task of the performer: a generator, what it waits for, and how it ended."""

    number: int
    name: str
    body: Generator[Effect | None, Any, Any]
    ready: Callable[[], tuple[bool, Any]] | None = None
    value: Any = None
    result: Any = None
    error: MmError | None = None
    done: bool = False


class SeededHost(NoHost):
    """Other processes, in the shape of a coin: a spin lock is sometimes busy."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        """`draw(n)` gives a number below n."""
        self.draw = draw

    def try_spin(self, keys: Sequence[Key]) -> bool:
        """Busy in one of eight."""
        del keys
        return self.draw(8) > 0


class Performer:
    """A whole machine in one process, its tasks run in a seeded order (seed None: each runs as far as it can)."""

    def __init__(
        self,
        topology: Topology,
        seed: int | None = None,
        allocate: Callable[[int], Any] = zeros,
        kernel: Kernel | None = None,
        *,
        faults: bool = False,
        fenced: bool = True,
    ) -> None:
        """A machine just switched on; `allocate` gives its memory: so many bytes, all zero, as a buffer.

        Or one whose daemon was recovered, which has a `kernel`. `faults`: copiers die; with a seed only. Not `fenced`:
        clients take pte locks instead of windows, and no shootdown waits.
        """
        self._state = (seed or 0) * 2 + 1
        self.seed = seed
        self._faults = faults and seed is not None
        self._fenced = fenced
        #: Copies that were cut short.
        self.copies_cut = 0
        self.k = kernel or machine_in_memory(topology, allocate)
        if seed is not None:
            self.k.locks.host = SeededHost(self.draw)
        self.k.spawn = self.start
        self.k.wake_kswapd = self._wake_kswapd
        #: Nodes whose kswapd is awake.
        self._awake: set[int] = set()
        self.tasks: list[Running] = []
        self._writes: list[WritePages] = []
        self._next = 1
        self._steps = 0

    def close(self) -> None:
        """The machine is over; its memory goes with the last reference to it, not when somebody looks for circles."""
        for task in self.tasks:
            task.body.close()
        self.tasks.clear()
        self.k.spawn = lambda _name, body: body.close()
        self.k.wake_kswapd = lambda _nid: None
        self.k.journal.snapshot_from(Truth)

    def draw(self, below: int) -> int:
        """The next number of the seed's sequence, less than `below` (xorshift of 64 bits)."""
        x = self._state
        x ^= x << 13 & (1 << 64) - 1
        x ^= x >> 7
        x ^= x << 17 & (1 << 64) - 1
        self._state = x
        return (x >> 11) % below

    # -- running -------------------------------------------------------------------------------------------------------

    def start(self, name: str, body: Generator[Any, Any, Any]) -> Running:
        """Add a task; it runs with the others."""
        task = Running(self._next, name, body)
        self._next += 1
        self.tasks.append(task)
        return task

    def call(self, body: Generator[Any, Any, Any]) -> Any:  # noqa: ANN401 - whatever the task returns
        """Run one task to its end, with whatever else is there, and give its result.

        Raises:
            MmError: the task was refused.
        """
        task = self.start("call", body)
        self.run(until=lambda: task.done)
        # An error refers to frames, and these to the task: it goes alone.
        error, task.error = task.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return task.result

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Run until every task has ended and every write is done (or `until` holds).

        Raises:
            BugError: nothing can go on (a deadlock), or it goes on for ever.
        """
        idle = 0
        last_step = self._steps + STEPS_MAX
        while not (until() if until else not self.tasks and not self._writes):
            self._steps += 1
            if self._steps > last_step:
                raise BugError(f"seed {self.seed}: no end after {STEPS_MAX} steps: {self._stuck()}")
            idle = 0 if self._step() else idle + 1
            if idle > 64 * (len(self.tasks) + 1) + 4 * WINDOW_BOUND_STEPS:
                raise BugError(f"seed {self.seed}: nothing can go on: {self._stuck()}")

    def _stuck(self) -> str:
        return ", ".join(f"{task.name} {task.number}" for task in self.tasks)

    def _step(self) -> bool:
        """One step of one task, or one write; False when the draw fell on a task that sleeps."""
        choices = len(self.tasks) + (1 if self._writes else 0)
        at = self.draw(choices) if self.seed is not None else self._first_ready()
        if at >= len(self.tasks):
            if self._writes:
                self._finish_write(self.draw(len(self._writes)) if self.seed is not None else 0)
                return True
            return False
        task = self.tasks[at]
        if task.ready is not None:
            self.k.locks.current = task.number
            awake, value = task.ready()
            if not awake:
                return False
            task.ready, task.value = None, value
        self._resume(task)
        return True

    def _first_ready(self) -> int:
        """Without a seed: tasks in turn, the writes when all of them sleep."""
        for _ in range(len(self.tasks)):
            task = self.tasks[0]
            self.k.locks.current = task.number
            if task.ready is None:
                return 0
            awake, value = task.ready()
            if awake:
                task.ready, task.value = None, value
                return 0
            self.tasks.append(self.tasks.pop(0))
        return len(self.tasks)

    def _resume(self, task: Running) -> None:
        self.k.locks.current = task.number
        try:
            effect = task.body.send(task.value)
        except StopIteration as end:
            task.result = end.value
            self._end(task)
        except MmError as error:
            task.error = error
            self._end(task)
        else:
            task.value = None
            if effect is not None:
                self.k.locks.check_yield(task.number, waits_for_lock=isinstance(effect, WaitPageLocks))
                self._perform(task, effect)

    def _end(self, task: Running) -> None:
        task.done = True
        self.tasks.remove(task)
        self.k.locks.check_end(task.number)

    # -- effects -------------------------------------------------------------------------------------------------------

    def _perform(self, task: Running, effect: Effect) -> None:
        k = self.k
        match effect:
            case Breathe() | SpinBusy():
                pass
            case Nap():
                self._nap(task)
            case DownSem(mm_id, mode):
                awake, task.value = self._try_sem(mm_id, mode)
                if not awake:
                    task.ready = lambda: self._try_sem(mm_id, mode)
            case WaitPageLocks(pfns):
                task.ready = lambda: (bool((k.c.page_lock_owner[pfns] == 0).any()), None)
            case WaitWriteback(pfns):
                task.ready = lambda: (not (k.c.pg_flags[pfns] & PG_WRITEBACK).any(), None)
            case Shootdown(mm_ids):
                self._shootdown(task, mm_ids)
            case WritePages():
                self._writes.append(effect)
            case CopyPages() | ReadPages():
                pass  # made while somebody waits for it
            case WaitCopies(copies):
                task.ready = lambda: (all(map(self._copy, copies)), None)

    def _wake_kswapd(self, nid: int) -> None:
        if nid not in self._awake:
            self._awake.add(nid)
            self.start(f"kswapd{nid}", self._kswapd(nid))

    def _kswapd(self, nid: int) -> Generator[Any, Any, None]:
        yield from kswapd(self.k, nid)
        self._awake.discard(nid)

    def _nap(self, task: Running) -> None:
        """Behind all others, until a write has ended; at once when none is on its way."""
        written = self.k.writes_ended
        self.tasks.remove(task)
        self.tasks.append(task)
        task.ready = lambda: (self.k.writes_ended > written or not self._writes, None)

    def _try_sem(self, mm_id: int, mode: Mode) -> tuple[bool, Any]:
        guard = self.k.locks.try_sem(mm_id, mode)
        return guard is not None, guard

    def _shootdown(self, task: Running, mm_ids: frozenset[int]) -> None:
        waiting = open_windows(self.k, mm_ids) if self._fenced else {}
        last_step = self._steps + WINDOW_BOUND_STEPS

        def closed() -> tuple[bool, Any]:
            for slot, counter in list(waiting.items()):
                if int(self.k.c.window[slot]) != counter:
                    del waiting[slot]
            return not waiting or self._steps > last_step, dict(waiting)

        task.ready = closed

    def _copy(self, copy: CopyPages | ReadPages) -> bool:
        frames = self.k.c.frames
        if not copy.done:
            match copy:
                case ReadPages(slots, pfns):
                    read = self.k.c.are_copied(slots)
                    copy.done = self._copied(frames, pfns[read], *self.k.c.area(slots[read]))
                case CopyPages(_, source, target):
                    copy.done = self._copied(frames, target, frames, source)
        return copy.done

    def _finish_write(self, at: int) -> None:
        effect = self._writes[at]
        written = self.k.c.are_copied(effect.slots)
        if self._copied(*self.k.c.area(effect.slots[written]), self.k.c.frames, effect.pfns[written]):
            del self._writes[at]
            end_swap_write(self.k, effect.pfns)

    def _copied(self, target: U1, rows: I8, source: U1, source_rows: I8) -> bool:
        """Copy rows; False: whoever copied has died, having done some of it, and it is to be done again."""
        if not self._faults or self.draw(COPIES_A_FAULT):
            copy_rows(target, rows, source, source_rows)
            return True
        self.copies_cut += 1
        copy_part(target, rows, source, source_rows, self.draw)
        return False


def copy_part(target: U1, rows: I8, source: U1, source_rows: I8, draw: Callable[[int], int]) -> None:
    """What a copier does that dies: some of the rows, and half of the next one; or all of them."""
    done = draw(len(rows) + 1)
    copy_rows(target, rows[:done], source, source_rows[:done])
    if done < len(rows):
        half = target.shape[1] // 2
        target[rows[done], :half] = source[source_rows[done], :half]
