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
  `inside` set, leaves the counter alone, and stands under the protection of the window around it. `inside` is set
  before the counter is odd and cleared before it is even; in between the interpreter runs no handler, so that none
  ever sees it set around an even counter.
* Nothing waits inside a window: faults are asked for outside (but for those of a handler, which carry the slot).

Why functions made by functions: the name of an enclosing function costs a tenth less of a hit than an attribute. Why
`struct`: cutting bytes out of a buffer with it takes two thirds of the time of a slice and `tobytes`.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
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

#: Functions that cut so many bytes out of a buffer, by their number.
_CUTTERS: dict[int, Callable[[Any, int], tuple[bytes]]] = {}


@dataclass(slots=True)
class Turn:
    """Where one thread stands: whether it is inside a window, and the number that opens the next one."""

    counter: memoryview
    odd: int
    inside: bool = False


class Window:
    """One thread's access to one task's memory. Only that thread may use it, but for `shut`.

    `turn` says where the thread stands. `read(addr, n)` gives bytes, `write(addr, data)` copies all bytes of a buffer;
    both raise SegmentationFault and OutOfMemory, and ValueError for a negative `n`.
    """

    __slots__ = ("__weakref__", "_fault", "_page_shift", "_step", "pin_guard", "read", "slot", "turn", "walk", "write")

    def __init__(self, views: Views, slot: int, mm_id: int, pgd: int, fault: Fault) -> None:
        """Windows in access slot `slot` on mm `mm_id`, whose top table is `pgd`."""
        counter = views.windows[slot : slot + 1]
        # Even, even if the last owner of the slot was torn away in the middle.
        begin = counter[0] + (counter[0] & 1)
        counter[0] = begin
        self.slot = slot
        #: Held while the pin records of the slot change: a pin may be undone by another thread.
        self.pin_guard = threading.RLock()
        self.walk = PageWalk(views, mm_id, pgd)
        self._fault = fault
        self._page_shift = views.layout.page_shift
        self.turn = Turn(counter, begin + 1)
        self._step = self._make_step()
        self.read: Read = self._make_read()
        self.write: Write = self._make_write()

    def _make_step(self) -> Step:
        return window_step(self.walk, self.turn, access)

    def _make_read(self) -> Read:
        return _make_read(self.walk, self.turn, self._step, self._fault)

    def _make_write(self) -> Write:
        return _make_write(self.walk, self.turn, self._step, self._fault)

    def read_into(self, addr: int, target: U1) -> None:
        """Fill `target`, a flat array of bytes, from `addr`. On SegmentationFault, OutOfMemory the head is filled."""
        transfer(self._step, self._fault, self._page_shift, addr, target, len(target), write=False)

    def touch(self, addr: int, length: int, *, write: bool) -> None:
        """Access every page of [addr, addr + length), changing no byte. SegmentationFault, OutOfMemory, ValueError."""
        if length < 0:
            raise ValueError(f"a length may not be negative, got {length}")
        transfer(self._step, self._fault, self._page_shift, addr, None, length, write=write)

    def shut(self) -> bool:
        """Let no window open any more: a later access raises ValueError. False if one is open; then nothing was done.

        Between the look and the release no other thread runs: the interpreter does not switch there.
        """
        if self.turn.inside:
            return False
        self.turn.counter.release()
        return True


def _make_read(walk: PageWalk, turn: Turn, step: Step, fault: Fault) -> Read:
    """The function that reads: every line down to the last is paid by every hit."""
    page_shift = walk.views.layout.page_shift
    page_size = 1 << page_shift
    offset_mask = page_size - 1
    frame_mask = -page_size
    counter, epoch, flats, cutters = turn.counter, walk.epoch, walk.flats, _CUTTERS
    ptes, accessed, frames = walk.views.ptes, walk.views.accessed, walk.views.frames
    seen = walk.refresh()

    def read(addr: int, n: int) -> bytes:
        nonlocal seen
        offset = addr & offset_mask
        while offset + n <= page_size and n > 0 and not turn.inside:
            try:
                turn.inside = True
                counter[0] = turn.odd
                if epoch[0] != seen:
                    seen = walk.refresh()
                try:
                    at = flats[addr >> page_shift]
                    cut = cutters[n]
                except KeyError:
                    at = walk.flat(addr >> page_shift)
                    cut = cutters[n] = struct.Struct(f"{n}s").unpack_from
                entry = ptes[at]
                if entry & PTE_READABLE:  # it stands beside PRESENT only
                    accessed[at] = 1
                    return cut(frames, (entry & frame_mask) + offset)[0]
            finally:
                turn.inside = False
                counter[0] = turn.odd + 1
                turn.odd += 2
            fault(addr, n, write=False)
        if n < 0:
            raise ValueError(f"the number of bytes may not be negative, got {n}")
        target = np.empty(n, np.uint8)
        transfer(step, fault, page_shift, addr, target, n, write=False)
        return target.tobytes()

    return read


def _make_write(walk: PageWalk, turn: Turn, step: Step, fault: Fault) -> Write:
    """The function that writes, in the same way."""
    page_shift = walk.views.layout.page_shift
    page_size = 1 << page_shift
    offset_mask = page_size - 1
    frame_mask = -page_size
    counter, epoch, flats = turn.counter, walk.epoch, walk.flats
    ptes, accessed, dirty, frames = walk.views.ptes, walk.views.accessed, walk.views.dirty, walk.views.frames
    seen = walk.refresh()

    def write(addr: int, data: ReadableBuffer) -> None:
        nonlocal seen
        source: bytes | memoryview = data if type(data) is bytes else byte_view(data)
        n = len(source)
        offset = addr & offset_mask
        while offset + n <= page_size and n and not turn.inside:
            try:
                turn.inside = True
                counter[0] = turn.odd
                if epoch[0] != seen:
                    seen = walk.refresh()
                try:
                    at = flats[addr >> page_shift]
                except KeyError:
                    at = walk.flat(addr >> page_shift)
                entry = ptes[at]
                if entry & PTE_WRITABLE:  # it stands beside PRESENT only
                    accessed[at] = 1
                    dirty[at] = 1
                    at = (entry & frame_mask) + offset
                    frames[at : at + n] = source
                    return
            finally:
                turn.inside = False
                counter[0] = turn.odd + 1
                turn.odd += 2
            fault(addr, n, write=True)
        if n:
            transfer(step, fault, page_shift, addr, np.frombuffer(source, np.uint8), n, write=True)

    return write


def window_step(walk: PageWalk, turn: Turn, work: Access) -> Step:
    """The function that opens a window, does `work` in it and closes it, for the range path."""
    counter = turn.counter

    def step(addr: int, data: U1 | None, length: int, *, write: bool) -> int:
        if turn.inside:
            return work(walk, addr, data, length, write=write)
        try:
            turn.inside = True
            counter[0] = turn.odd
            return work(walk, addr, data, length, write=write)
        finally:
            turn.inside = False
            counter[0] = turn.odd + 1
            turn.odd += 2

    return step


def byte_view(data: ReadableBuffer) -> memoryview:
    """The bytes of any contiguous buffer, a copy of those of any other."""
    view = memoryview(data)
    if view.nbytes == 0:
        return memoryview(b"")
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
