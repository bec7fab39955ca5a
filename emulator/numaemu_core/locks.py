"""The locks of the machine: their order, their in-process half, and the checker of the order.

Lock order, outermost first; a line may be taken while holding one above it:

    MMAP_SEM        an mm's VMA list and policies; sleeps; held across yields
      PAGE          a frame: unmapping, slot assignment, start of I/O; sleeps; held across yields
        I_MMAP      a file's list of VMAs
          ANON_VMA  an anon_vma's list of VMAs
            PTE     the entries of one pte table
              LRU   a node's LRU columns
              SWAP  the swap map (never together with LRU)
                ZONE    a node's free frames, counters, page-lock owners

Every lock has two halves. The half in this file knows which *kernel task* holds what: it queues, it checks the order,
and it is all there is where one process stands alone. The other half excludes other processes and is the business of a
`HostLocks`: it is taken by the first holder here and dropped by the last. Rules that the checker holds:

1. A rank is never taken while a later one is held; several locks of one rank only in one call, by ascending number.
2. Nothing from PTE downwards is held across a yield.
3. A task that holds page locks only tries further ones (`trylock_pages` never sleeps; `WAIT_PAGES` while holding page
   locks may wait for writeback, never for a lock).

I_MMAP and ANON_VMA guard lists that only the daemon has: their other half is empty. (The patch of 2005 takes
i_mmap_lock inside the pte lock, in `single_mm_mapping`, against the order; here that list is read while nothing else
runs.)
"""

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from numaemu_core.errors import BugError
from numaemu_core.lock_stats import MMAP_SEM_READ, MMAP_SEM_WRITE, PAGE, LockStats


class Rank(enum.IntEnum):
    """Classes of locks by their place in the order."""

    MMAP_SEM = 0
    PAGE = 1
    I_MMAP = 2
    ANON_VMA = 3
    PTE = 4
    LRU = 5
    SWAP = 6
    ZONE = 7


class Mode(enum.Enum):
    """How an mmap_sem is held."""

    READ = "read"
    WRITE = "write"


Key = tuple[Rank, int]


class HostLocks(Protocol):
    """The half of the locks that excludes other processes."""

    def try_spin(self, keys: Sequence[Key]) -> bool:
        """Take all of them or none; False when another process holds one. I_MMAP and ANON_VMA are nobody else's."""

    def spin_unlock(self, keys: Sequence[Key]) -> None:
        """Drop them."""

    def try_sem(self, mm_id: int, mode: Mode) -> bool:
        """Take an mm's semaphore for this process; False when another process holds it against us."""

    def drop_sem(self, mm_id: int) -> None:
        """Drop it for this process."""


class NoHost:
    """Alone in the world: nobody else to exclude."""

    def try_spin(self, keys: Sequence[Key]) -> bool:  # noqa: ARG002 - a Protocol's shape
        """Always taken."""
        return True

    def spin_unlock(self, keys: Sequence[Key]) -> None:
        """Nothing to drop."""

    def try_sem(self, mm_id: int, mode: Mode) -> bool:  # noqa: ARG002 - a Protocol's shape
        """Always taken."""
        return True

    def drop_sem(self, mm_id: int) -> None:
        """Nothing to drop."""


@dataclass(slots=True)
class Semaphore:
    """The in-process half of one mmap_sem: FIFO, so that readers never starve a writer."""

    readers: set[int] = field(default_factory=set)
    writer: int = 0
    waiters: deque[tuple[int, Mode]] = field(default_factory=deque)
    #: How the host's half is held for us, None while nobody here holds it.
    host_mode: Mode | None = None


@dataclass(slots=True)
class Held:
    """What one kernel task holds, and where it took it: the story that a refused order tells."""

    sems: dict[int, Mode] = field(default_factory=dict)
    spins: list[Key] = field(default_factory=list)
    page_locks: int = 0
    #: When it took the first of its page locks, and when it asked for the mmap_sem that it waits for.
    page_locks_since: float = 0.0
    sem_wanted_since: float = 0.0
    #: The last locks that it took, put into words only when an order is refused.
    story: deque[Sequence[Key]] = field(default_factory=lambda: deque(maxlen=16))


class SpinGuard:
    """Spin locks held: leaving the `with` drops them."""

    __slots__ = ("_keys", "_locks", "_since")

    def __init__(self, locks: "LockTable", keys: Sequence[Key], since: float) -> None:
        """Made by LockTable.try_spin; `since`: when they were taken."""
        self._locks = locks
        self._keys = keys
        self._since = since

    def __enter__(self) -> None:
        """Already held."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Drop them."""
        self._locks.spin_unlock(self._keys, self._since)


class SemGuard:
    """An mmap_sem held: leaving the `with` drops it."""

    __slots__ = ("_locks", "_mm_id", "_since", "_task")

    def __init__(self, locks: "LockTable", task: int, mm_id: int, since: float) -> None:
        """Made by LockTable.try_sem; `since`: when it was taken."""
        self._locks = locks
        self._task = task
        self._mm_id = mm_id
        self._since = since

    def __enter__(self) -> None:
        """Already held."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Drop it."""
        self._locks.up(self._task, self._mm_id, self._since)


class LockTable:
    """All locks of one process's kernel tasks. `current` is the number of the task that runs now."""

    def __init__(self, host: HostLocks) -> None:
        """No lock is held; `host` is the other half."""
        self.host = host
        #: Replaced by whoever has a clock.
        self.stats = LockStats(lambda: 0.0)
        self.current = 0
        self._held: dict[int, Held] = {}
        self._sems: dict[int, Semaphore] = {}

    def held(self, task: int) -> Held:
        """What a task holds."""
        if task not in self._held:
            self._held[task] = Held()
        return self._held[task]

    # -- spin locks ----------------------------------------------------------------------------------------------------

    def try_spin(self, keys: Sequence[Key]) -> SpinGuard | None:
        """Take `keys` (ascending) or nothing; None when another process is in the way."""
        held = self.held(self.current)
        self._check_spin_order(held, keys)
        if not self.host.try_spin(keys):
            return None
        held.spins.extend(keys)
        return SpinGuard(self, keys, self.stats.clock())

    def spin_unlock(self, keys: Sequence[Key], since: float) -> None:
        """Drop what try_spin took, at the time `since`."""
        held = self.held(self.current)
        del held.spins[len(held.spins) - len(keys) :]
        self.host.spin_unlock(keys)
        stats = self.stats
        seconds = stats.clock() - since
        for rank, _ in keys:
            stats.classes[rank].dropped(seconds)

    def _check_spin_order(self, held: Held, keys: Sequence[Key]) -> None:
        if len(keys) == 1 and not held.spins and keys[0][0] > Rank.PAGE:
            held.story.append(keys)
            return
        previous: Key = held.spins[-1] if held.spins else (Rank.PAGE, 0)
        nested = bool(held.spins)
        for key in keys:
            if key <= previous or (nested and key[0] == previous[0]):
                self._refuse(held, f"{_name(key)} after {_name(previous)}")
            if key[0] is Rank.SWAP and any(rank is Rank.LRU for rank, _ in [*held.spins, *keys]):
                self._refuse(held, f"{_name(key)} while holding an LRU lock")
            previous, nested = key, False
        held.story.append(keys)

    # -- mmap_sem ------------------------------------------------------------------------------------------------------

    def try_sem(self, mm_id: int, mode: Mode) -> SemGuard | None:
        """One attempt of the current task, in its turn; None: still queued."""
        task = self.current
        held = self.held(task)
        if held.sems or held.page_locks or held.spins:
            self._refuse(held, f"MMAP_SEM {mm_id} for {mode.value} while holding {self._in_words(held)}")
        sem = self._sems.setdefault(mm_id, Semaphore())
        stat = self.stats.classes[MMAP_SEM_WRITE if mode is Mode.WRITE else MMAP_SEM_READ]
        now = self.stats.clock()
        waits = any(waiter == task for waiter, _ in sem.waiters)
        if not waits:
            sem.waiters.append((task, mode))
            held.sem_wanted_since = now
        if not self._enter(sem, task, mm_id, mode):
            stat.contended += not waits
            return None
        if waits:
            stat.waited(now - held.sem_wanted_since)
        sem.waiters.remove((task, mode))
        if mode is Mode.WRITE:
            sem.writer = task
        else:
            sem.readers.add(task)
        held.sems[mm_id] = mode
        held.story.append([(Rank.MMAP_SEM, mm_id)])
        return SemGuard(self, task, mm_id, now)

    def _enter(self, sem: Semaphore, task: int, mm_id: int, mode: Mode) -> bool:
        """Whether it is this task's turn, and the process has the semaphore."""
        if not self._may_enter(sem, task, mode):
            return False
        if sem.host_mode is None:
            if not self.host.try_sem(mm_id, mode):
                return False
            sem.host_mode = mode
        return True

    @staticmethod
    def _may_enter(sem: Semaphore, task: int, mode: Mode) -> bool:
        if sem.writer:
            return False
        if mode is Mode.WRITE:
            return not sem.readers and sem.waiters[0][0] == task
        for waiter, wanted in sem.waiters:
            if waiter == task:
                return True
            if wanted is Mode.WRITE:
                return False
        raise BugError("a reader that does not wait in its own queue")

    def up(self, task: int, mm_id: int, since: float) -> None:
        """Drop an mmap_sem that was taken at the time `since`."""
        mode = self.held(task).sems.pop(mm_id)
        self.stats.classes[MMAP_SEM_WRITE if mode is Mode.WRITE else MMAP_SEM_READ].dropped(self.stats.clock() - since)
        sem = self._sems[mm_id]
        sem.readers.discard(task)
        if sem.writer == task:
            sem.writer = 0
        if not sem.readers and not sem.writer:
            sem.host_mode = None
            self.host.drop_sem(mm_id)
            if not sem.waiters:
                del self._sems[mm_id]

    # -- page locks ----------------------------------------------------------------------------------------------------

    def count_pages(self, count: int) -> None:
        """The current task has `count` page locks more, or less; `page_lock` is where they are.

        They come before everything that spins: the caller has just dropped the zone locks that guard the column.
        """
        held = self.held(self.current)
        if held.spins and count > 0:
            self._refuse(held, f"PAGE locks while holding {self._in_words(held)}")
        if not count:
            return
        if not held.page_locks:
            held.page_locks_since = self.stats.clock()
        held.page_locks += count
        if not held.page_locks:
            self.stats.classes[PAGE].dropped(self.stats.clock() - held.page_locks_since)

    # -- what the performer and fsck ask -------------------------------------------------------------------------------

    def check_yield(self, task: int, *, waits_for_lock: bool) -> None:
        """A task is about to yield: refuse what may not be held across it."""
        held = self._held.get(task)
        if held is None:
            return
        if held.spins:
            self._refuse(held, "a yield while holding " + ", ".join(_name(key) for key in held.spins))
        if waits_for_lock and held.page_locks:
            self._refuse(held, f"sleeping for a page lock while holding {held.page_locks}")

    def check_end(self, task: int) -> None:
        """A task has ended: it must hold nothing."""
        held = self._held.pop(task, None)
        if held is not None and (held.sems or held.spins or held.page_locks):
            self._refuse(held, f"task {task} ended holding {held.sems} {held.spins} {held.page_locks} page locks")

    def holders(self) -> dict[int, Held]:
        """Every task that holds something now."""
        return {task: held for task, held in self._held.items() if held.sems or held.spins or held.page_locks}

    @staticmethod
    def _in_words(held: Held) -> str:
        names = [f"MMAP_SEM {mm_id}" for mm_id in held.sems]
        names += [f"{held.page_locks} PAGE locks"] if held.page_locks else []
        return ", ".join([*names, *(_name(key) for key in held.spins)])

    def _refuse(self, held: Held, what: str) -> None:
        story = "; ".join("took " + ", ".join(_name(key) for key in keys[:4]) for keys in held.story) or "nothing"
        message = f"lock order: {what}. Before: {story}"
        raise BugError(message)


def _name(key: Key) -> str:
    return f"{key[0].name} {key[1]}"
