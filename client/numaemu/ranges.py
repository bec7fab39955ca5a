"""The range path: many pages a window, as a few numpy expressions and copies in runs; and faults between windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from numaemu_core import limits
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.runs import copy_bytes

if TYPE_CHECKING:
    from numaemu.views import Views
    from numaemu.walk import PageWalk
    from numaemu_core.columns import U1, U8

#: Bytes that one window copies at most: some 200 µs, so that whoever waits for it waits no longer.
RANGE_BYTES: Final = 1 << 21

_CAN_READ = np.uint64(PTE_PRESENT | PTE_READABLE)
_CAN_WRITE = np.uint64(PTE_PRESENT | PTE_WRITABLE)


class Access(Protocol):
    """What `access` does, for whoever is inside a window."""

    def __call__(self, walk: PageWalk, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
        """See `access`."""


class Step(Protocol):
    """Opens a window, does what `access` does and closes it; gives how many bytes from `addr` on that was."""

    def __call__(self, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
        """See the class."""


class Fault(Protocol):
    """Asks the daemon to make [addr, addr + length) accessible, and gives when at least the first page is.

    Raises:
        SegmentationFault, OutOfMemory: the first page may not be accessed so, or can get no frame.
    """

    def __call__(self, addr: int, length: int, *, write: bool) -> object:
        """See the class."""


def transfer(
    step: Step, fault: Fault, page_shift: int, addr: int, data: U1 | None, length: int, *, write: bool
) -> None:
    """Copy between memory and `data`, or only touch if that is None, window by window, faulting in what is not there.

    Raises:
        SegmentationFault, OutOfMemory: from `fault`; what lies before that page is done.
    """
    offset_mask = (1 << page_shift) - 1
    done = 0
    ask_pages = limits.FAULT_REQUEST_PAGES
    while done < length:
        here = addr + done
        moved = step(here, None if data is None else data[done:], length - done, write=write)
        if moved:
            done += moved
            ask_pages = min(2 * ask_pages, limits.FAULT_REQUEST_PAGES)
            continue
        fault(here, min(length - done, (ask_pages << page_shift) - (here & offset_mask)), write=write)
        # A range larger than memory pushes out its own head before it is copied: ask for less and less until it stays.
        ask_pages = max(ask_pages // 2, 1)


def access(walk: PageWalk, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
    """Access the pages that are there at the head of [addr, addr + length); gives how many bytes that was.

    With `data` (at least `length` bytes) at most RANGE_BYTES are copied, out of it if `write`, else into it; without,
    the pages only count as accessed. To be called inside a window.
    """
    walk.refresh()
    page_shift = walk.views.layout.page_shift
    offset = addr & ((1 << page_shift) - 1)
    room = RANGE_BYTES if data is not None else limits.FAULT_REQUEST_PAGES << page_shift
    length = min(length, room - offset)
    first_vpn = addr >> page_shift
    pieces = walk.pieces(first_vpn, ((addr + length - 1) >> page_shift) + 1)
    entries = walk.entries(pieces)
    count = usable_prefix(entries, write=write)
    if not count:
        return 0
    mark(walk.views, pieces, count, write=write)
    length = min(length, (count << page_shift) - offset)
    if data is not None:
        pfns = (entries[:count] >> np.uint64(page_shift)).astype(np.int64)
        copy_bytes(walk.views.frame_rows, pfns, offset, data[:length], write=write)
    return length


def usable_prefix(entries: U8, *, write: bool) -> int:
    """How many entries from the first on allow the access."""
    need = _CAN_WRITE if write else _CAN_READ
    refused = entries & need != need
    first = int(refused.argmax()) if len(refused) else 0
    return first if len(refused) and refused[first] else len(refused)


def mark(views: Views, pieces: list[slice], count: int, *, write: bool) -> None:
    """Set accessed, and for a write dirty, of the first `count` entries."""
    for piece in pieces:
        part = slice(piece.start, min(piece.stop, piece.start + count))
        views.accessed_array[part] = 1
        if write:
            views.dirty_array[part] = 1
        count -= part.stop - part.start
        if not count:
            break
