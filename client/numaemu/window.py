"""The hit path: a page that is there is read and written without a message, a lock or a system call.

Each thread that touches a task's memory has an access slot: a counter in shared memory, odd while the thread is inside
a *window*. The daemon changes entries first, then waits until every window that was open has closed, and only then
reuses frames and tables. So inside a window what an entry says stays true, and the order below must not change:

    counter odd -> epoch -> entry -> accessed (and dirty) byte -> bytes -> counter even

* Accessed and dirty are set before the bytes are touched: a writer killed in between leaves a page that counts as
  dirty, never a written page that counts as clean.
* The store that opens a window stands inside the `try` that closes it, and closing cannot raise, so that no exception
  and no signal leaves a window open.
* A signal handler or a finalizer may run in the middle of a window of its own thread and access memory too: it finds
  `odd` at 0, leaves the counter alone, and stands under the protection of the window around it. `odd` is 0 before the
  counter is odd, and is set before that is even; in between the interpreter runs no handler, so that none ever sees 0
  around an even counter.
* Nothing waits inside a window: faults are asked for outside (but for those of a handler, which carry the slot).

Why functions made by functions: the name of an enclosing function costs a tenth less of a hit than an attribute, and a
call less at each hit counts for more: one function a task finds what belongs to its thread by itself. Why the frames
are an `mmap`: a slice of it is the bytes, where a slice of a view is a view.
"""

from __future__ import annotations

import operator
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from numaemu.ranges import access, transfer
from numaemu.walk import PageWalk
from numaemu_core.page_table import PTE_READABLE, PTE_WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer

    from numaemu.ranges import Access, Fault, Step
    from numaemu.views import Views
    from numaemu_core.columns import U1

    Read = Callable[[int, int], bytes]
    Write = Callable[[int, ReadableBuffer], None]


class Window:
    """One thread's access to one task's memory: where it stands, and the general path. Only that thread may use it.

    `counter[0]` is the counter in shared memory, `odd` the number that opens the next window, 0 inside of one.
    """

    __slots__ = (
        "__weakref__",
        "_page_shift",
        "counter",
        "fault",
        "flats",
        "odd",
        "pin_guard",
        "seen",
        "slot",
        "walk",
    )

    def __init__(self, views: Views, slot: int, mm_id: int, pgd: int, fault: Fault) -> None:
        """Windows in access slot `slot` on mm `mm_id`, whose top table is `pgd`."""
        self.counter = views.windows[slot : slot + 1]
        # Even, even if the last owner of the slot was torn away in the middle.
        begin = self.counter[0] + (self.counter[0] & 1)
        self.counter[0] = begin
        self.odd: int = begin + 1
        self.slot = slot
        #: Held while the pin records of the slot change: a pin may be undone by another thread.
        self.pin_guard = threading.RLock()
        self.walk = PageWalk(views, mm_id, pgd)
        self.flats = self.walk.flats
        #: The epoch in which `flats` was filled.
        self.seen = self.walk.refresh()
        self.fault = fault
        self._page_shift = views.layout.page_shift

    @property
    def inside(self) -> bool:
        """Is a window open?"""
        return not self.odd

    def in_window(self, work: Access, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
        """Open a window, unless one is open around this, do `work` in it, and close it."""
        number = self.odd
        if not number:
            return work(self.walk, addr, data, length, write=write)
        counter = self.counter
        try:
            self.odd = 0
            counter[0] = number
            return work(self.walk, addr, data, length, write=write)
        finally:
            self.odd = number + 2
            counter[0] = number + 1

    def _step(self, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
        return self.in_window(access, addr, data, length, write=write)

    def read(self, addr: int, n: int) -> bytes:
        """`n` bytes from `addr`. SegmentationFault, OutOfMemory; ValueError for a negative `n`."""
        return self._read_by(self._step, addr, n)

    def write(self, addr: int, data: ReadableBuffer) -> None:
        """Copy all bytes of a buffer. SegmentationFault, OutOfMemory: what lies before is written."""
        self._write_by(self._step, addr, byte_view(data))

    def _read_by(self, step: Step, addr: int, n: int) -> bytes:
        if n < 0:
            raise ValueError(f"the number of bytes may not be negative, got {n}")
        target = np.empty(n, np.uint8)
        transfer(step, self.fault, self._page_shift, addr, target, n, write=False)
        return target.tobytes()

    def _write_by(self, step: Step, addr: int, source: memoryview) -> None:
        if len(source):
            data = np.frombuffer(source, np.uint8)
            transfer(step, self.fault, self._page_shift, addr, data, len(data), write=True)

    def read_into(self, addr: int, target: U1) -> None:
        """Fill `target`, a flat array of bytes, from `addr`. On SegmentationFault, OutOfMemory the head is filled."""
        transfer(self._step, self.fault, self._page_shift, addr, target, len(target), write=False)

    def touch(self, addr: int, length: int, *, write: bool) -> None:
        """Access every page of [addr, addr + length), changing no byte. SegmentationFault, OutOfMemory, ValueError."""
        if length < 0:
            raise ValueError(f"a length may not be negative, got {length}")
        transfer(self._step, self.fault, self._page_shift, addr, None, length, write=write)

    def shut(self) -> bool:
        """Let no window open any more: a later access raises ValueError. False if one is open; then nothing was done.

        Between the look and the release no other thread runs: the interpreter does not switch there.
        """
        if self.inside:
            return False
        self.counter.release()
        return True


class Here(threading.local):
    """A thread's way into the memory of one task, once it has one."""

    window: Any


def make_read(views: Views, mm_id: int, here: Here, new_window: Callable[[], Window]) -> Read:
    """The function that reads, for all threads: every line down to the last `return` is paid by every hit.

    What is not within one page that is there is left to `Window.read`.
    """
    page_shift = views.layout.page_shift
    page_size = 1 << page_shift
    offset_mask = page_size - 1
    frame_mask = -page_size
    epoch = views.epochs[mm_id : mm_id + 1]
    ptes, accessed, frames = views.ptes, views.accessed, views.frames

    def read(addr: int, n: int) -> bytes:
        try:
            window = here.window
        except AttributeError:
            window = new_window()
        offset = addr & offset_mask
        while offset + n <= page_size and n > 0 and (number := window.odd):
            counter = window.counter
            try:
                window.odd = 0
                counter[0] = number
                if epoch[0] != window.seen:
                    window.seen = window.walk.refresh()
                try:
                    at = window.flats[addr >> page_shift]
                except KeyError:
                    at = window.walk.flat(addr >> page_shift)
                entry = ptes[at]
                if entry & PTE_READABLE:  # it stands beside PRESENT only
                    accessed[at] = 1
                    at = (entry & frame_mask) + offset
                    return frames[at : at + n]
            except TypeError:  # numbers of numpy: the sum of two kinds of whole numbers is none
                break
            finally:
                window.odd = number + 2
                counter[0] = number + 1
            window.fault(addr, n, write=False)
        return window.read(operator.index(addr), operator.index(n))

    return read


def make_write(views: Views, mm_id: int, here: Here, new_window: Callable[[], Window]) -> Write:
    """The function that writes, in the same way."""
    page_shift = views.layout.page_shift
    page_size = 1 << page_shift
    offset_mask = page_size - 1
    frame_mask = -page_size
    epoch = views.epochs[mm_id : mm_id + 1]
    ptes, accessed, dirty, frames = views.ptes, views.accessed, views.dirty, views.frames

    def write(addr: int, data: ReadableBuffer) -> None:
        try:
            window = here.window
        except AttributeError:
            window = new_window()
        source: bytes | memoryview = data if type(data) is bytes else byte_view(data)
        n = len(source)
        offset = addr & offset_mask
        while offset + n <= page_size and n and (number := window.odd):
            counter = window.counter
            try:
                window.odd = 0
                counter[0] = number
                if epoch[0] != window.seen:
                    window.seen = window.walk.refresh()
                try:
                    at = window.flats[addr >> page_shift]
                except KeyError:
                    at = window.walk.flat(addr >> page_shift)
                entry = ptes[at]
                if entry & PTE_WRITABLE:  # it stands beside PRESENT only
                    accessed[at] = 1
                    dirty[at] = 1
                    at = (entry & frame_mask) + offset
                    frames[at : at + n] = source
                    return
            finally:
                window.odd = number + 2
                counter[0] = number + 1
            window.fault(addr, n, write=True)
        window.write(addr, source)

    return write


def byte_view(data: ReadableBuffer) -> memoryview:
    """The bytes of any contiguous buffer, a copy of those of any other."""
    view = memoryview(data)
    if view.nbytes == 0:
        return memoryview(b"")
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
