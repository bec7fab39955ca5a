"""The half of the kernel daemon's locks that excludes other processes.

Robust mutexes for what spins, byte-range locks of open file descriptions for mmap_sem. The daemon never sleeps in
either: it tries, and other kernel tasks run. A client that holds a lock longer than the bound of an open window (a
short one if it is stopped) is not waited for: the call goes on without its lock, after the epoch has moved, so that the
client undoes what it was doing.
"""

from collections.abc import Callable, Sequence

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import Columns
from numaemu_core.layout import Layout
from numaemu_core.lock_stats import LockStats
from numaemu_core.locks import Key, Mode, Rank
from numaemu_host import pidfd
from numaemu_host.ofdlock import OfdLock
from numaemu_host.robust import MutexState, MutexTable

#: A lock of a node or of the swap map is held for microseconds by whoever lives.
_REPAIR_WAIT_S = 0.05


class ProcessLocks:
    """HostLocks over the mutex table and the semaphore file."""

    def __init__(
        self, layout: Layout, columns: Columns, mutexes: MutexTable, semaphores: OfdLock, stats: LockStats
    ) -> None:
        """Waits for spin locks and dead holders are counted in `stats`, which has the clock."""
        self._first = {
            Rank.PTE: layout.pte_mutex,
            Rank.LRU: layout.lru_mutex,
            Rank.SWAP: layout.swap_mutex,
            Rank.ZONE: layout.zone_mutex,
        }
        self._columns = columns
        self._mutexes = mutexes
        self._semaphores = semaphores
        self._clock = stats.clock
        self._stats = stats
        #: Is a process stopped that uses this mm? Nobody knows who holds an mmap_sem.
        self.users_stopped: Callable[[int], bool] = lambda _mm_id: False
        #: Called with role and node of the process that has been in the way for long.
        self.silent: Callable[[str, int | None], None] = lambda _role, _nid: None
        #: When a lock was first found busy, while it stays so.
        self._busy_since: dict[Key, float] = {}
        #: Locks that the current holder goes on without.
        self._without: set[Key] = set()

    @property
    def recoveries(self) -> int:
        """Locks whose holder had died, since boot."""
        return sum(stat.recoveries for stat in self._stats.classes)

    def try_spin(self, keys: Sequence[Key]) -> bool:
        """Take all of them or none."""
        taken: list[Key] = []
        without: set[Key] = set()
        for key in keys:
            base = self._first.get(key[0])
            if base is None:
                continue
            state = self._mutexes.trylock(base + key[1])
            if state is MutexState.BUSY:
                if self._overdue(key) and key[0] is Rank.PTE:
                    self._columns.mm_epoch += np.uint64(1)  # whosever table it is: who pins there begins anew
                    without.add(key)
                    continue
                self.spin_unlock(taken)
                return False
            if state is MutexState.OWNER_DIED or self._columns.needs_recovery[base + key[1]]:
                self._repair(base + key[1], owner_died=state is MutexState.OWNER_DIED)
            taken.append(key)
        self._without |= without
        if self._busy_since:
            self._no_longer_busy(keys)
        return True

    def _no_longer_busy(self, keys: Sequence[Key]) -> None:
        for key in keys:
            since = self._busy_since.pop(key, None)
            if since is not None:
                self._stats.classes[key[0]].waited(self._clock() - since)

    def spin_unlock(self, keys: Sequence[Key]) -> None:
        """Drop them."""
        for key in keys:
            base = self._first.get(key[0])
            if base is None:
                continue
            if key in self._without:
                self._without.discard(key)
                continue
            self._mutexes.unlock(base + key[1])

    def try_sem(self, mm_id: int, mode: Mode) -> bool:
        """Take an mm's semaphore for this process."""
        take = self._semaphores.try_write if mode is Mode.WRITE else self._semaphores.try_read
        key = (Rank.MMAP_SEM, mm_id)
        if take(mm_id):
            self._busy_since.pop(key, None)
            return True
        if self._overdue(key):
            self._busy_since.pop(key, None)
            self._columns.mm_epoch[mm_id] += np.uint64(1)
            return True
        return False

    def drop_sem(self, mm_id: int) -> None:
        """Drop it for this process."""
        self._semaphores.unlock(mm_id)

    def repair_all(self) -> None:
        """Repair every lock that is marked, and those of nodes and swap if their holder died: after a recovery, say."""
        shared = self._first[Rank.PTE]
        marked = np.flatnonzero(self._columns.needs_recovery).tolist()
        for mutex in sorted({*range(shared), *marked}):
            state = self._mutexes.lock(mutex, _REPAIR_WAIT_S)
            if state is MutexState.BUSY:
                continue
            if state is MutexState.OWNER_DIED or self._columns.needs_recovery[mutex]:
                self._repair(mutex, owner_died=state is MutexState.OWNER_DIED)
            self._mutexes.unlock(mutex)

    def fence_tables(self, tables: int) -> None:
        """Without membarrier: everybody who was in an access of one of these tables has left it now."""
        for table in range(1, tables):
            mutex = self._first[Rank.PTE] + table
            state = self._mutexes.lock(mutex, limits.WINDOW_BOUND_RUNNING_S)
            if state is MutexState.BUSY:
                continue
            if state is MutexState.OWNER_DIED:
                self._repair(mutex, owner_died=True)
            self._mutexes.unlock(mutex)

    def _overdue(self, key: Key) -> bool:
        now = self._clock()
        since = self._busy_since.get(key)
        if since is None:
            self._busy_since[key] = since = now
            if key[0] is not Rank.MMAP_SEM:  # whose waits the lock table counts, task by task
                self._stats.classes[key[0]].contended += 1
        age = now - since
        if age > limits.SILENCE_S and key[0] in (Rank.LRU, Rank.ZONE, Rank.SWAP):
            self.silent(*(("swap", None) if key[0] is Rank.SWAP else ("node", key[1])))
        if age > limits.WINDOW_BOUND_RUNNING_S:
            return True
        return age > limits.WINDOW_BOUND_STOPPED_S and self._holder_is_stopped(key)

    def _holder_is_stopped(self, key: Key) -> bool:
        if key[0] is Rank.MMAP_SEM:
            return self.users_stopped(key[1])
        return pidfd.is_stopped(self._mutexes.owner(self._first[key[0]] + key[1]))

    def _repair(self, mutex: int, *, owner_died: bool) -> None:
        """The holder died inside. Whatever it guards is whole after each single store of its other takers.

        A node process turns a frame clean only when its bytes are; a client's pins are void with it.
        """
        if owner_died:
            self._mutexes.make_consistent(mutex)
        self._columns.needs_recovery[mutex] = 0
        _, rank = max((base, rank) for rank, base in self._first.items() if base <= mutex)
        self._stats.classes[rank].recoveries += 1
