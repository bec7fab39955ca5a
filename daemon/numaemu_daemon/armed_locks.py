"""The daemon's half of the locks, where tests want to hear of each lock that it has just got (`fault_points`)."""

from collections.abc import Sequence

from numaemu_core.columns import Columns
from numaemu_core.fault_points import Reach
from numaemu_core.layout import Layout
from numaemu_core.lock_stats import LockStats
from numaemu_core.locks import Key, Mode
from numaemu_daemon.process_locks import ProcessLocks
from numaemu_host.ofdlock import OfdLock
from numaemu_host.robust import MutexTable


class ArmedLocks(ProcessLocks):
    """As its base; `reach` is told while the lock is held."""

    def __init__(
        self,
        layout: Layout,
        columns: Columns,
        mutexes: MutexTable,
        semaphores: OfdLock,
        stats: LockStats,
        reach: Reach,
    ) -> None:
        """See the base."""
        super().__init__(layout, columns, mutexes, semaphores, stats)
        self._reach = reach

    def try_spin(self, keys: Sequence[Key]) -> bool:
        """Take all of them or none."""
        taken = super().try_spin(keys)
        if taken:
            for rank in dict.fromkeys(rank for rank, _ in keys):
                self._reach(f"lock.{rank.name.lower()}")
        return taken

    def try_sem(self, mm_id: int, mode: Mode) -> bool:
        """Take an mm's semaphore for this process."""
        taken = super().try_sem(mm_id, mode)
        if taken:
            self._reach(f"lock.mmap_sem_{mode.value}")
        return taken
