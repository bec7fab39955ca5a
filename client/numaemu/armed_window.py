"""The hit path for tests that let a client die or stop in the middle of it: the steps of `window`, with a word at each.

The stores come in the same order as there; what the hit path gains by saying nothing, this one does without.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from numaemu.fault_points import reach
from numaemu.ranges import access
from numaemu.window import Window, byte_view
from numaemu_core.page_table import PTE_READABLE, PTE_WRITABLE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from numaemu.walk import PageWalk
    from numaemu_core.columns import U1


class ArmedWindow(Window):
    """A `Window` that says where it is."""

    __slots__ = ()

    def _step(self, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
        return self.in_window(armed_access, addr, data, length, write=write)

    def read(self, addr: int, n: int) -> bytes:
        """As `Window.read`."""
        one = partial(self.in_window, _read_one)
        return self._read_by(one if self._within_page(addr, n) else self._step, addr, n)

    def write(self, addr: int, data: ReadableBuffer) -> None:
        """As `Window.write`."""
        source, one = byte_view(data), partial(self.in_window, _write_one)
        self._write_by(one if self._within_page(addr, len(source)) else self._step, addr, source)

    def _within_page(self, addr: int, n: int) -> bool:
        page_size = 1 << self._page_shift
        return addr % page_size + n <= page_size


def armed_access(walk: PageWalk, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
    """`access`, and a word before and after."""
    reach("window.range_opened")
    moved = access(walk, addr, data, length, write=write)
    if moved:
        reach("window.range_copied")
    return moved


def _entry(walk: PageWalk, addr: int) -> tuple[int, int]:
    """The flat index of the entry of a page, and the entry."""
    walk.refresh()
    at = walk.flat(addr >> walk.views.layout.page_shift)
    return at, walk.views.ptes[at]


def _place(walk: PageWalk, addr: int, entry: int) -> int:
    """Where in the frames an address is."""
    page_size = walk.views.layout.topology.page_size
    return (entry & -page_size) + addr % page_size


def _read_one(walk: PageWalk, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
    """Read bytes of one page."""
    assert data is not None
    assert not write
    reach("window.read_opened")
    at, entry = _entry(walk, addr)
    if not entry & PTE_READABLE:
        return 0
    walk.views.accessed[at] = 1
    reach("window.read_accessed")
    place = _place(walk, addr, entry)
    data[:length] = walk.views.frame_bytes[place : place + length]
    reach("window.read_copied")
    return length


def _write_one(walk: PageWalk, addr: int, data: U1 | None, length: int, *, write: bool) -> int:
    """Write bytes of one page, in two halves."""
    assert data is not None
    assert write
    reach("window.write_opened")
    at, entry = _entry(walk, addr)
    if not entry & PTE_WRITABLE:
        return 0
    walk.views.accessed[at] = 1
    walk.views.dirty[at] = 1
    reach("window.write_dirtied")
    place, half = _place(walk, addr, entry), length // 2
    walk.views.frame_bytes[place : place + half] = data[:half]
    reach("window.write_torn")
    walk.views.frame_bytes[place + half : place + length] = data[half:length]
    reach("window.write_copied")
    return length
