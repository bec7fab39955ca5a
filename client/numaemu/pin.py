"""Pins: all pages of a mapping held in their frames, and seen through one array.

A pin is a hazard record: `pfn + 1` in the row of the thread's access slot, which only this side writes. It is written
under the pte lock while the entry maps the frame; whoever takes an entry away does so under the same lock and looks at
all rows afterwards. So a frame that is recorded while its entry is present stays where it is. The steps:

1. fault all pages in, for writing if the mapping allows it (that also breaks copy-on-write);
2. with mmap_sem held for reading, table by table under its pte lock: record the frames of the pages that are there;
3. pages that went away meanwhile: let go of mmap_sem, fault them in, go on from there (what is recorded stays put);
4. look at the mm's epoch again: if it moved, the tables may not have been its own any more: undo all, begin anew;
5. map the frames, run by run, into one range of this process.

Nothing is asked of the daemon while mmap_sem is held: a writer may queue for it there.
"""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from numaemu.fault_points import reach
from numaemu.frame_array import FrameArray
from numaemu.pte_lock import pte_lock
from numaemu.ranges import mark, usable_prefix
from numaemu.walk import PageWalk
from numaemu_core import limits
from numaemu_core.errors import SegmentationFault
from numaemu_host.ofdlock import OfdLock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numaemu.task import Task
    from numaemu.window import Window
    from numaemu_core.columns import I8, U1

#: How long a pin may take in all before it gives up.
PIN_S: Final = 5.0
_LOCK_S: Final = 0.05
_PAUSE_S: Final = 0.001


@contextmanager
def pinned(task: Task, start: int, length: int) -> Iterator[U1]:
    """Pin [start, start + length) for the length of a `with`; gives the array. Errors: see `Mapping.pin`."""
    pin = Pin(task, start, length)
    try:
        yield pin.take()
    finally:
        pin.undo()


class PinRow:
    """The pin records of one access slot: where the next ones go."""

    def __init__(self, window: Window) -> None:
        """The row of a window's slot. It keeps the window, and so the slot, from going to another thread."""
        self.window = window
        self._views = window.walk.views
        self._row = self._views.pins[window.slot]

    @property
    def used(self) -> int:
        """Records up to the last one in use."""
        count: int = self._views.pin_counts[self.window.slot]
        return count

    def append(self, pfns: I8) -> slice:
        """Record frames; the count last, so that whoever reads it finds them. Gives where they are."""
        with self.window.pin_guard:
            used = self.used
            self._row[used : used + len(pfns)] = pfns + 1
            reach("pin.recorded")
            self._views.pin_counts[self.window.slot] = used + len(pfns)
        return slice(used, used + len(pfns))

    def clear(self, spans: list[slice]) -> None:
        """Take records back. Pins end in any order, so the count only goes down to the last one that is left."""
        with self.window.pin_guard:
            for span in spans:
                self._row[span] = 0
            left = np.flatnonzero(self._row[: self.used])
            self._views.pin_counts[self.window.slot] = int(left[-1]) + 1 if len(left) else 0


class Pin:
    """One pin of a range, from `take` to `undo`, both by any thread."""

    def __init__(self, task: Task, start: int, length: int) -> None:
        """Nothing is pinned yet. OSError(ENOMEM) if a thread may not pin so much."""
        self._task = task
        self._start = start
        self._length = length
        self._page_shift: int = task.attachment.layout.page_shift
        self._first_vpn = start >> self._page_shift
        self._count = -(-length >> self._page_shift)
        self._row = PinRow(task.window())
        if self._row.used + self._count > limits.MAX_PINS_PER_SLOT:
            raise OSError(
                errno.ENOMEM, f"a thread may pin {limits.MAX_PINS_PER_SLOT} pages, asked for {self._count} more"
            )
        self._spans: list[slice] = []
        self._pfns: list[I8] = []
        self._array: FrameArray | None = None

    def take(self) -> U1:
        """Pin, and give the array. Errors: see `Mapping.pin`; nothing is pinned then once `undo` was called."""
        self._task.note_pin(self)
        deadline = time.monotonic() + PIN_S
        write = self._fault_in(self._first_vpn)
        while not self._record_all(deadline, write=write):
            self._forget()
            if time.monotonic() >= deadline:
                raise OSError(errno.EBUSY, f"the address space of task {self._task.pid} changed for {PIN_S:g} s on end")
            write = self._fault_in(self._first_vpn)
        reach("pin.pinned")
        attachment = self._task.attachment
        self._array = FrameArray(attachment, np.concatenate(self._pfns), writable=write)
        return self._array.bytes[: self._length]

    def undo(self) -> None:
        """Withdraw the array and clear the records; a second call does nothing."""
        if self._array is not None:
            self._array.withdraw()
            self._array = None
        self._forget()
        self._task.drop_pin(self)

    def _forget(self) -> None:
        self._row.clear(self._spans)
        self._spans.clear()
        self._pfns.clear()

    def _fault_in(self, first_vpn: int) -> bool:
        """Fault in the pages from `first_vpn` on; whether for writing."""
        addr = first_vpn << self._page_shift
        length = self._start + self._length - addr
        try:
            self._task.touch(addr, length, write=True)
        except SegmentationFault:
            self._task.touch(addr, length, write=False)
            return False
        return True

    def _record_all(self, deadline: float, *, write: bool) -> bool:
        """Record every page; False if the mm's tables changed on the way, and all has to be done again."""
        views, mm_id = self._row.window.walk.views, self._task.mm_id
        epoch = views.epochs[mm_id]
        done = 0
        begun = time.monotonic()
        while done < self._count:
            more = self._record_some(done, deadline, write=write)
            done += more
            if done < self._count:
                if time.monotonic() >= deadline:
                    raise OSError(errno.ENOMEM, f"{self._count} pages did not stay in memory together for {PIN_S:g} s")
                if not more:
                    self._task.waits(time.monotonic() - begun)
                    time.sleep(_PAUSE_S)
                if self._fault_in(self._first_vpn + done) != write:
                    return False
        return bool(views.epochs[mm_id] == epoch)

    def _record_some(self, done: int, deadline: float, *, write: bool) -> int:
        """Record the pages from number `done` on, up to the first that is not there; gives how many."""
        begun = time.monotonic()
        sem = OfdLock(self._task.attachment.fds["mmap_sem"])
        try:
            while not sem.try_read(self._task.mm_id):
                self._task.waits(time.monotonic() - begun)
                if time.monotonic() >= deadline:
                    raise OSError(errno.EBUSY, f"the address space of task {self._task.pid} was locked for {PIN_S:g} s")
                time.sleep(_PAUSE_S)
            reach("pin.sem_held")
            # A walk of its own: what a window remembers is only good inside a window.
            walk = self._row.window.walk.anew()
            before = done
            for piece in walk.pieces(self._first_vpn + done, self._first_vpn + self._count):
                recorded = self.record_piece(walk, piece, write=write)
                done += recorded
                if recorded < piece.stop - piece.start:
                    break
            return done - before
        finally:
            sem.close()

    def record_piece(self, walk: PageWalk, piece: slice, *, write: bool) -> int:
        """Record the head of one table's entries that is there, under its lock."""
        with pte_lock(walk.views, piece.start // limits.PTRS_PER_TABLE, _LOCK_S) as held:
            if not held:
                return 0
            entries = walk.entries([piece])
            reach("pin.pte_locked")
            count = usable_prefix(entries, write=write)
            if count:
                pfns = (entries[:count] >> np.uint64(self._page_shift)).astype(np.int64)
                self._spans.append(self._row.append(pfns))
                self._pfns.append(pfns)
                mark(walk.views, [piece], count, write=write)
                reach("pin.counted")
        return count
