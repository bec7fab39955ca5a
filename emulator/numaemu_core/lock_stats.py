"""What was counted of the locks, by class: how often taken, who had to wait, for how long, and dead holders.

The idea is that of /proc/lock_stat (kernel/locking/lockdep_proc.c). Time comes from whoever performs kernel tasks: the
core has no clock, and without one all times are 0.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: The classes by number: that of a rank (`locks.Rank`) is the rank; mmap_sem for writing has one of its own.
CLASSES: Final = ("mmap_sem.read", "page", "i_mmap", "anon_vma", "pte", "lru", "swap", "zone", "mmap_sem.write")
MMAP_SEM_READ: Final = 0
PAGE: Final = 1
MMAP_SEM_WRITE: Final = 8


@dataclass(slots=True)
class LockStat:
    """One class of locks since boot; times in seconds."""

    #: How often a lock was taken. The page locks of a task count as one, from its first to its last.
    taken: int = 0
    #: How often one was not to be had at once: another task had it, or another process.
    contended: int = 0
    #: How often its holder had died with it.
    recoveries: int = 0
    #: Sum and longest of the waits that are over.
    wait_s: float = 0.0
    wait_max_s: float = 0.0
    #: Sum and longest of the times that one was held.
    hold_s: float = 0.0
    hold_max_s: float = 0.0

    def waited(self, seconds: float) -> None:
        """A wait is over."""
        self.wait_s += seconds
        self.wait_max_s = max(self.wait_max_s, seconds)

    def dropped(self, seconds: float) -> None:
        """A lock was held for so long."""
        self.taken += 1
        self.hold_s += seconds
        if seconds > self.hold_max_s:  # noqa: PLR1730 - faster than max, and each fault comes here
            self.hold_max_s = seconds


class LockStats:
    """The figures of all classes; a class is a number, an index into CLASSES."""

    __slots__ = ("classes", "clock")

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that only grow."""
        self.clock = clock
        self.classes = [LockStat() for _ in CLASSES]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """By the name of the class, in the order of the locks."""
        by_name = {name: dataclasses.asdict(stat) for name, stat in zip(CLASSES, self.classes, strict=True)}
        first = "mmap_sem.read", "mmap_sem.write"
        return {name: by_name[name] for name in (*first, *(name for name in CLASSES if name not in first))}
