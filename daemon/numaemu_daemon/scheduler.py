"""The daemon's performer: runs kernel tasks for real, in turn, and does what they yield.

A task that sleeps is in exactly one list, by what it sleeps for; a list is looked at when something of its kind has
changed. Nothing in here waits: `step` does what can be done now and says how long the loop may sleep.
"""

import functools
import platform
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from numaemu_core import limits
from numaemu_core.columns import I8
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
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Mode
from numaemu_core.memory import release_quarantine
from numaemu_core.page_flags import PG_WRITEBACK
from numaemu_daemon.clients import AccessSlots
from numaemu_host import membarrier, pidfd

#: Stores of another processor are seen in the order in which they were made.
TOTAL_STORE_ORDER = platform.machine() in {"x86_64", "AMD64", "i686"}
#: How long the loop sleeps while it waits for something that no descriptor tells: a window, another process's lock.
BUSY_POLL_MS = 1
#: Turns of the loop that try a busy spin lock again at once, before one that sleeps.
SPINS_BEFORE_SLEEP = 32
#: How often it looks whether quarantined frames are free, while there are any.
QUARANTINE_POLL_MS = 100


class Copiers(Protocol):
    """The way to the processes that copy pages: answers come back by `done`."""

    def write(self, pfns: I8, slots: I8) -> None:
        """Copy frames to slots."""

    def read(self, slots: I8, pfns: I8, done: Callable[[], None]) -> None:
        """Copy slots to frames."""

    def copy(self, nid: int, source: I8, target: I8, done: Callable[[], None]) -> None:
        """Copy frames to frames of a node."""


@dataclass(slots=True, eq=False)
class Running:
    """A kernel task on its way."""

    number: int
    body: Generator[Effect, Any, Any]
    done: Callable[[Any, MmError | None], None]
    value: Any = None
    #: The access slot that the calling thread had open when it asked: never waited for.
    window: int | None = None


@dataclass(slots=True, eq=False)
class _Flight:
    """A shootdown that waits for windows."""

    task: Running
    waiting: dict[int, int]
    since: float


@dataclass(slots=True, eq=False)
class _Napping:
    """A task that naps until a time, or until more writes have ended."""

    task: Running
    until: float
    writes: int


class Scheduler:
    """All kernel tasks of the machine."""

    def __init__(
        self, k: Kernel, slots: AccessSlots, copiers: Copiers, clock: Callable[[], float], *, fenced: bool
    ) -> None:
        """`fenced`: clients use windows, made safe by membarrier; else they take pte locks and need no shootdown."""
        self._k = k
        self._slots = slots
        self._copiers = copiers
        self._clock = clock
        self._fenced = fenced
        self._ready: deque[Running] = deque()
        self._spinning: list[Running] = []
        self._on_sems: list[tuple[Running, int, Mode]] = []
        self._on_pages: list[tuple[Running, Effect]] = []
        self._on_copies: list[tuple[Running, tuple[CopyPages | ReadPages, ...]]] = []
        self._in_flight: list[_Flight] = []
        self._napping: list[_Napping] = []
        k.spawn = lambda _name, body: self.start(body, lambda _result, _refusal: None)
        self._next = 1
        #: Until when long tasks go in short steps; 0: they do not.
        self._shared_until = 0.0
        self._spins = 0
        #: Access slots whose thread waits for an answer from inside its window: stragglers at once.
        self.asking: Counter[int] = Counter()
        #: Tasks that have not ended.
        self.active = 0
        self.shootdowns = 0
        self.stragglers = 0

    def sleeping(self) -> dict[str, int]:
        """How many kernel tasks wait for what: other processes' locks, mmap_sem, pages, windows that close."""
        return {
            "spin_locks": len(self._spinning),
            "mmap_sem": len(self._on_sems),
            "pages": len(self._on_pages),
            "windows": len(self._in_flight),
            "memory": len(self._napping),
        }

    def start(
        self,
        body: Generator[Effect, Any, Any],
        done: Callable[[Any, MmError | None], None],
        window: int | None = None,
    ) -> None:
        """Take up a kernel task; `done(result, refusal)` is called when it ends."""
        task = Running(self._next, body, done, window=window)
        self._next = self._next % 0xFFFFFFFF + 1
        self.active += 1
        if window is not None:
            self.asking[window] += 1
        self._ready.append(task)

    def share(self) -> None:
        """Somebody calls: if a task is on its way, it goes in short steps for a while."""
        if self.active:
            self._k.batch_pages = limits.SHARED_BATCH_PAGES
            self._shared_until = self._clock() + limits.SHARED_S

    def step(self) -> int | None:
        """Run every task that can run once; gives the milliseconds that the loop may sleep, None for any time."""
        if self._shared_until and self._clock() > self._shared_until:
            self._shared_until, self._k.batch_pages = 0.0, limits.BATCH_PAGES
        self._ready.extend(self._spinning)
        self._spinning.clear()
        self._wake()
        for _ in range(len(self._ready)):
            self._resume(self._ready.popleft())
        self._wake()
        if self._ready:
            return 0
        if self._spinning:  # a spin lock is held for microseconds; only a holder that sleeps is worth a sleep
            self._spins += 1
            return 0 if self._spins % SPINS_BEFORE_SLEEP else BUSY_POLL_MS
        if self._in_flight or self._on_sems or self._napping:
            return BUSY_POLL_MS
        return QUARANTINE_POLL_MS if self._k.quarantine.entries else None

    # -- waking --------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._napping:
            now = self._clock()
            over = [nap.until <= now or nap.writes != self._k.writes_ended for nap in self._napping]
            self._ready.extend(nap.task for nap, done in zip(self._napping, over, strict=True) if done)
            self._napping = [nap for nap, done in zip(self._napping, over, strict=True) if not done]
        if self._on_sems:
            self._on_sems = [entry for entry in self._on_sems if not self._got_sem(*entry)]
        if self._on_pages and self._k.pages_changed:
            self._k.pages_changed = False
            self._on_pages = [entry for entry in self._on_pages if not self._pages_free(*entry)]
        if self._in_flight:
            self._in_flight = [flight for flight in self._in_flight if not self._landed(flight)]
        if self._k.quarantine.entries:
            self._start_quarantine_task()

    def _got_sem(self, task: Running, mm_id: int, mode: Mode) -> bool:
        self._k.locks.current = task.number
        task.value = self._k.locks.try_sem(mm_id, mode)
        if task.value is None:
            return False
        self._ready.append(task)
        return True

    def _pages_free(self, task: Running, effect: Effect) -> bool:
        c = self._k.c
        match effect:
            case WaitPageLocks(pfns):
                free = bool((c.page_lock_owner[pfns] == 0).any())
            case WaitWriteback(pfns):
                free = not (c.pg_flags[pfns] & PG_WRITEBACK).any()
            case _:
                raise AssertionError(effect)
        if free:
            self._ready.append(task)
        return free

    def _landed(self, flight: _Flight) -> bool:
        """Have the windows closed, or is what is still open a straggler?"""
        waiting = self._slots.still_open(flight.waiting)
        age = self._clock() - flight.since
        late = {slot: counter for slot, counter in waiting.items() if self._is_straggler(flight.task, slot, age)}
        flight.waiting = waiting
        if len(late) < len(waiting):
            return False
        if not TOTAL_STORE_ORDER:
            membarrier.barrier()  # what was done inside a window is seen before what is read after its end
        self.stragglers += len(late)
        flight.task.value = late
        self._ready.append(flight.task)
        return True

    def _is_straggler(self, task: Running, slot: int, age: float) -> bool:
        if slot == task.window or self.asking[slot] > 0 or age > limits.WINDOW_BOUND_RUNNING_S:
            return True
        owner = self._slots.owner(slot)
        return age > limits.WINDOW_BOUND_STOPPED_S and owner is not None and pidfd.is_stopped(owner.pid)

    def _start_quarantine_task(self) -> None:
        held = self._k.quarantine.entries
        if any(not self._slots.still_open(entry.waits) for entry in held):
            self.start(release_quarantine(self._k), lambda _result, _refusal: None)

    # -- running -------------------------------------------------------------------------------------------------------

    def _resume(self, task: Running) -> None:
        """Run one task up to where it has to wait."""
        locks = self._k.locks
        while True:
            locks.current = task.number
            try:
                effect = task.body.send(task.value)
            except StopIteration as end:
                self._end(task, end.value, None)
                return
            except MmError as error:
                self._end(task, None, error)
                return
            task.value = None
            locks.check_yield(task.number, waits_for_lock=type(effect) is WaitPageLocks)
            if not self._perform(task, effect):
                return

    def _end(self, task: Running, result: Any, refusal: MmError | None) -> None:  # noqa: ANN401 - any call's result
        self._k.locks.check_end(task.number)
        self.active -= 1
        if task.window is not None:
            self.asking[task.window] -= 1
        task.done(result, refusal)

    def _perform(self, task: Running, effect: Effect) -> bool:
        """Do what a task asks for; True: it can go on at once."""
        match effect:
            case DownSem(mm_id, mode):
                task.value = self._k.locks.try_sem(mm_id, mode)
                if task.value is not None:
                    return True
                self._on_sems.append((task, mm_id, mode))
            case Shootdown(mm_ids):
                return self._shootdown(task, mm_ids)
            case WritePages(pfns, slots):
                self._copiers.write(pfns, slots)
                return True
            case ReadPages() | CopyPages() | WaitCopies():
                return self._copy(task, effect)
            case WaitPageLocks() | WaitWriteback():
                if self._pages_free(task, effect):
                    return False
                self._on_pages.append((task, effect))
            case SpinBusy():
                self._spinning.append(task)
            case Nap():
                self._napping.append(_Napping(task, self._clock() + limits.NAP_S, self._k.writes_ended))
            case Breathe():
                self._ready.append(task)
        return False

    def _copy(self, task: Running, effect: CopyPages | ReadPages | WaitCopies) -> bool:
        match effect:
            case ReadPages(slots, pfns):
                self._copiers.read(slots, pfns, functools.partial(self._copied, effect))
            case CopyPages(nid, source, target):
                self._copiers.copy(nid, source, target, functools.partial(self._copied, effect))
            case WaitCopies(copies) if not all(copy.done for copy in copies):
                self._on_copies.append((task, copies))
                return False
        return True

    def _copied(self, copy: CopyPages | ReadPages) -> None:
        copy.done = True
        over = [task for task, copies in self._on_copies if all(one.done for one in copies)]
        self._on_copies = [entry for entry in self._on_copies if entry[0] not in over]
        self._ready.extend(over)

    def _shootdown(self, task: Running, mm_ids: frozenset[int]) -> bool:
        """After the barrier every client sees the entries that were written, or has its window open.

        Without it they hold the pte lock inside the window: whoever was passed over for want of an end has one open.
        """
        self.shootdowns += 1
        if self._fenced:
            membarrier.barrier()
        waiting = self._slots.open_windows(mm_ids)
        if not waiting:
            task.value = waiting
            return True
        self._in_flight.append(_Flight(task, waiting, self._clock()))
        return False
