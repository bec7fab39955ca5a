"""Free frames made clean ahead of need: zeroed by their node while nobody waits for them.

A freed frame counts as free at once and keeps its old bytes; an allocation that finds only such frames must zero them
itself. Rule: the bytes are zero before `free_state` says clean, and both happen under the zone lock, so a cleaner that
is killed in between leaves a frame that is unclean.
"""

import enum
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, Columns
from numaemu_core.fault_points import Reach, unarmed
from numaemu_core.page_flags import FREE_CLEAN, FREE_UNCLEAN
from numaemu_core.runs import clear_rows
from numaemu_daemon.logs import Event, Log
from numaemu_host.robust import MutexState, MutexTable

#: Frames cleaned under one hold of the zone lock: allocations wait for no more than this.
NODE_CLEAN_BATCH_PAGES: Final = 64
#: The daemon holds a zone lock for microseconds; past this, other things come first.
_LOCK_WAIT_S: Final = 0.05


class Progress(enum.Enum):
    """What came of one step."""

    MORE = "more"
    """There may be more to clean."""
    DONE = "done"
    """A whole round over the zone found nothing unclean."""
    BLOCKED = "blocked"
    """The zone lock is not to be had now."""


class Cleaner:
    """Cleans the free frames of one node, a batch a step. `pages` and `batches` count since it was made."""

    def __init__(self, columns: Columns, mutexes: MutexTable, nid: int, log: Log, reach: Reach = unarmed) -> None:
        """For a node that may have no memory at all."""
        self._c = columns
        self._mutexes = mutexes
        self._nid = nid
        self._log = log
        self._reach = reach
        self._lock_index = columns.layout.zone_mutex + nid
        self._first, self._end = columns.layout.node_pfns.get(nid, (0, 0))
        self._cursor = self._first
        #: Frames seen unclean without the lock, which are looked at again under it.
        self._seen: I8 = NO_INDEXES
        #: Frames to look at before the round is over.
        self._unseen = 0
        self.pages = 0
        self.batches = 0

    def begin(self) -> None:
        """Frames may have become unclean: go round the whole zone once more."""
        self._unseen = self._end - self._first

    def step(self) -> Progress:
        """Look at some frames, or clean a batch of those found."""
        if not len(self._seen):
            if not self._unseen:
                return Progress.DONE
            self._look()
            if not len(self._seen):
                return Progress.MORE
        if not self._lock():
            return Progress.BLOCKED
        try:
            self._reach("cleaning.zone_locked")
            self._clean(self._seen[:NODE_CLEAN_BATCH_PAGES])
            self._reach("cleaning.cleaned")
        finally:
            self._mutexes.unlock(self._lock_index)
        self._reach("cleaning.over")
        self._seen = self._seen[NODE_CLEAN_BATCH_PAGES:]
        return Progress.MORE

    def _look(self) -> None:
        end = min(self._cursor + limits.SCAN_CHUNK_MAX, self._end)
        self._seen = np.flatnonzero(self._c.free_state[self._cursor : end] == FREE_UNCLEAN) + self._cursor
        self._unseen = max(0, self._unseen - (end - self._cursor))
        self._cursor = end if end < self._end else self._first
        if len(self._seen):
            self.begin()

    def _clean(self, pfns: I8) -> None:
        """Clean those of `pfns` that are still free and unclean; the zone lock is held."""
        pfns = pfns[self._c.free_state[pfns] == FREE_UNCLEAN]
        clear_rows(self._c.frames, pfns)
        self._reach("cleaning.zeroed")
        self._c.free_state[pfns] = FREE_CLEAN
        self._c.cleaned[self._nid] += len(pfns)
        self.pages += len(pfns)
        self.batches += 1

    def _lock(self) -> bool:
        """Take the zone lock, unless it is busy or waits for the daemon to repair what it protects."""
        index = self._lock_index
        state = self._mutexes.lock(index, _LOCK_WAIT_S)
        if state is MutexState.BUSY:
            return False
        if state is MutexState.OWNER_DIED:
            self._c.needs_recovery[index] = 1
            self._mutexes.make_consistent(index)
            self._log.warning(Event.LOCK_OWNER_DIED, index=index)
        if self._c.needs_recovery[index]:
            self._mutexes.unlock(index)
            return False
        return True
