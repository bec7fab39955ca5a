"""The pte lock of a table, as a client takes it: to pin, and for every access where the host refuses membarrier.

If the last holder died with it, the table is marked for the daemon to repair; until it has, the lock counts as busy.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from numaemu_host.robust import MutexState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numaemu.views import Views


@contextmanager
def pte_lock(views: Views, table: int, timeout_s: float = 0.0) -> Iterator[bool]:
    """Hold the pte lock of a table, waiting at most `timeout_s` seconds; False, and nothing held, if it stayed busy.

    OSError(EDEADLK) if this thread holds it already.
    """
    index = views.layout.pte_mutex + table
    state = views.mutexes.lock(index, timeout_s)
    if state is MutexState.BUSY:
        yield False
        return
    try:
        if state is MutexState.OWNER_DIED:
            views.needs_recovery[index] = 1
            views.mutexes.make_consistent(index)
        yield not views.needs_recovery[index]
    finally:
        views.mutexes.unlock(index)
