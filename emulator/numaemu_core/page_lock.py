"""The page lock (PG_locked): a column that says which kernel task owns a frame, changed under the zone lock.

Node processes read it. A task that holds page locks only tries further ones.
"""

import numpy as np

from numaemu_core.columns import I8, Bool
from numaemu_core.effects import KernelTask, WaitPageLocks
from numaemu_core.kernel import Kernel
from numaemu_core.lock_stats import PAGE
from numaemu_core.mmzone import free_pages, zone_lock_keys
from numaemu_core.task_locks import spin_lock


def trylock_pages(k: Kernel, pfns: I8) -> KernelTask[Bool]:
    """Lock those frames that nobody has locked; True for each that the task has now. No frame stands twice."""
    with (yield from spin_lock(k, zone_lock_keys(k, pfns))):
        got = k.c.page_lock_owner[pfns] == 0
        k.c.page_lock_owner[pfns[got]] = k.locks.current
    k.locks.count_pages(int(np.count_nonzero(got)))
    k.reach("lock.page")
    return np.asarray(got)


def lock_some_pages(k: Kernel, pfns: I8) -> KernelTask[Bool]:
    """Sleep until at least one of these frames could be locked (lock_page, for many); the task holds no page lock."""
    while True:
        got = yield from trylock_pages(k, pfns)
        if got.any():
            return got
        yield from wait_on_pages_locked(k, pfns)


def wait_on_pages_locked(k: Kernel, pfns: I8) -> KernelTask[None]:
    """Sleep until at least one of these frames is not locked; it may be again by then."""
    stats = k.locks.stats
    began = stats.clock()
    stats.classes[PAGE].contended += 1
    yield WaitPageLocks(pfns)
    stats.classes[PAGE].waited(stats.clock() - began)


def lock_new_pages(k: Kernel, pfns: I8) -> KernelTask[Bool]:
    """Lock frames that were just allocated; those that somebody else has locked are free again, and False.

    Whoever slept for the lock of a page without a reference of it may find it gone, and hold for a moment the lock of a
    frame that is another's by then. In Linux the reference keeps the frame.
    """
    got = yield from trylock_pages(k, pfns)
    yield from free_pages(k, pfns[~got])
    return got


def leave_pages_locked(k: Kernel, pfns: I8) -> None:
    """This task's page locks stay until another task takes them over: they are not its own any more."""
    k.locks.count_pages(-len(pfns))


def take_over_pages(k: Kernel, pfns: I8) -> KernelTask[None]:
    """Page locks that another task has left locked are this task's."""
    with (yield from spin_lock(k, zone_lock_keys(k, pfns))):
        k.c.page_lock_owner[pfns] = k.locks.current
    k.locks.count_pages(len(pfns))


def unlock_pages(k: Kernel, pfns: I8) -> KernelTask[None]:
    """Drop page locks of this task."""
    if not len(pfns):
        return
    with (yield from spin_lock(k, zone_lock_keys(k, pfns))):
        assert (k.c.page_lock_owner[pfns] == k.locks.current).all()
        k.c.page_lock_owner[pfns] = 0
    k.locks.count_pages(-len(pfns))
    k.pages_changed = True
