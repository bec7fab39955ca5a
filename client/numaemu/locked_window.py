"""The way into memory where the host refuses membarrier: under the pte lock of the table, not by the window alone.

Without membarrier the daemon cannot know that it sees a counter which a client has just made odd. So each access holds
the mutex under which the daemon changes the entries of that table: slower by some microseconds, and as correct.

* The walk is done again once the mutex is held: before, the table may have been freed and given to another mm.
* One table at a time, and inside a window the mutex is only tried: waiting is done outside.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from numaemu.pte_lock import pte_lock
from numaemu.ranges import access
from numaemu.walk import INDEX, SHIFT
from numaemu.window import Window

if TYPE_CHECKING:
    from numaemu.walk import PageWalk
    from numaemu_core.columns import U1

_PAUSE_S: Final = 0.0002
#: Tries before the daemon is asked instead: it knows if the table has to be repaired, or if the machine has ended.
_TRIES: Final = 500
_BUSY: Final = -1


class LockedWindow(Window):
    """A `Window` whose every access also holds the pte lock of the page's table."""

    __slots__ = ()

    def _step(self, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
        for _ in range(_TRIES):
            moved = self.in_window(locked_access, addr, data, length, write=write)
            if moved != _BUSY:
                return moved
            time.sleep(_PAUSE_S)
        return 0


def locked_access(walk: PageWalk, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
    """As `access`, for the pages of the first table only and under its pte lock; -1 if that is busy just now."""
    walk.refresh()
    page_shift = walk.views.layout.page_shift
    vpn = addr >> page_shift
    table = walk.base(vpn) >> SHIFT
    if not table:
        return 0
    length = min(length, (((vpn | INDEX) + 1) << page_shift) - addr)
    try:
        with pte_lock(walk.views, table) as held:
            walk.refresh()
            if not held or walk.base(vpn) >> SHIFT != table:
                return _BUSY
            return access(walk, addr, data, length, write=write)
    except OSError as error:
        if error.errno != errno.EDEADLK:
            raise
    # A signal handler inside an access of its own thread: the lock is held around it.
    return access(walk, addr, data, length, write=write)
