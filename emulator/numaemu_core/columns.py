"""The shared arrays of a machine as numpy views: built from mapped segments, or from plain memory for tests.

`Columns` only names cells; rules about them live in the modules that bear Linux's names. Arrays that every access
indexes by a flat entry number (`table * 512 + index`) are kept flat.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from numaemu_core.layout import POOL_PREFIX, Layout, SegmentLayout

U1 = npt.NDArray[np.uint8]
I2 = npt.NDArray[np.int16]
U2 = npt.NDArray[np.uint16]
U4 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint64]
I8 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

#: The shortest way to say "none of them".
NO_INDEXES: Final[I8] = np.empty(0, np.int64)


def column_views(segment: SegmentLayout, buffer: Any) -> dict[str, npt.NDArray[Any]]:  # noqa: ANN401 - any buffer
    """The columns of one segment as arrays over its buffer."""
    views: dict[str, npt.NDArray[Any]] = {}
    for column in segment.columns:
        flat = np.frombuffer(buffer, column.dtype, math.prod(column.shape), column.offset)
        views[column.name] = flat.reshape(column.shape)
    return views


class Cells:
    """Some columns as memoryviews: a single cell costs a third of what numpy asks."""

    def __init__(self, columns: "Columns") -> None:
        """Views of the same memory."""
        self.pte = cells_of(columns.pte)
        self.accessed = cells_of(columns.accessed)
        self.dirty = cells_of(columns.dirty)
        self.free_state = cells_of(columns.free_state)
        self.lru_state = cells_of(columns.lru_state)
        self.lru_stamp = cells_of(columns.lru_stamp)
        self.pg_flags = cells_of(columns.pg_flags)
        self.mapcount = cells_of(columns.mapcount)
        self.mapping = cells_of(columns.mapping)
        self.index = cells_of(columns.index)


def cells_of(column: npt.NDArray[Any]) -> "memoryview[int]":
    """A column as a memoryview of the same memory."""
    return memoryview(column)  # type: ignore[arg-type]  # an array is a buffer


class Columns:
    """Every shared column of the machine by name, and all frames as one array of pages."""

    def __init__(self, layout: Layout, buffers: Mapping[str, Any], frames: Any) -> None:  # noqa: ANN401 - any buffer
        """Views over `buffers` (a buffer a segment); `frames` holds all pools back to back."""
        views: dict[str, npt.NDArray[Any]] = {}
        for name in ("swap_map", "ptes", "pte_bits", "frames", "control", "locks"):
            views |= column_views(layout.segments[name], buffers[name])
        page_size = layout.topology.page_size
        self.layout = layout
        self.frames: U1 = _pages(frames, layout.frame_count, page_size)
        self.swap: U1 = _pages(buffers["swap"], layout.slot_count, page_size)
        self.disk: U1 = _pages(buffers["disk"], layout.disk_count, page_size)
        self.swap_count: U2 = views["swap_count"]
        self.slot_mapping: U4 = views["slot_mapping"]
        self.slot_index: U8 = views["slot_index"]
        self.slot_hosted: U1 = views["slot_hosted"]
        self.pte_tables: U8 = views["pte"]
        self.pte: U8 = self.pte_tables.reshape(-1)
        self.accessed: U1 = views["accessed"].reshape(-1)
        self.dirty: U1 = views["dirty"].reshape(-1)
        self.free_state: U1 = views["free_state"]
        self.page_lock_owner: U4 = views["page_lock_owner"]
        self.lru_state: U2 = views["lru_state"]
        self.lru_stamp: U8 = views["lru_stamp"]
        self.pg_flags: U2 = views["pg_flags"]
        self.mapcount: U4 = views["mapcount"]
        self.mapping: U4 = views["mapping"]
        self.index: U8 = views["index"]
        self.private: U4 = views["private"]
        self.moving_to: U4 = views["moving_to"]
        self.numastat: I8 = views["numastat"]
        self.watermarks: I8 = views["watermarks"]
        self.cleaned: I8 = views["cleaned"]
        self.vm_events: I8 = views["vm_events"]
        self.fault_strikes: I8 = views["fault_strikes"]
        self.generation: U8 = views["generation"]
        self.tables_made: U8 = views["tables_made"]
        self.mm_epoch: U8 = views["mm_epoch"]
        self.window: U8 = views["window"]
        self.window_mm: U8 = views["window_mm"]
        self.window_client: U8 = views["window_client"]
        self.window_task: U8 = views["window_task"]
        self.pin_count: U8 = views["pin_count"]
        self.pins: U4 = views["pins"]
        self.needs_recovery: U1 = views["needs_recovery"]
        self.cells = Cells(self)

    def area(self, slots: I8) -> tuple[U1, I8]:
        """Where slots lie, all in the swap area or all on the disk segment: the pages, and the row of each slot."""
        if len(slots) and int(slots[0]) >= self.layout.slot_count:
            return self.disk, slots - self.layout.slot_count
        return self.swap, slots

    def are_copied(self, slots: I8) -> Bool:
        """Which of these slots have bytes: pages of the host's processes leave none there (PG_HOSTED)."""
        if len(slots) and int(slots[0]) >= self.layout.slot_count:
            return np.ones(len(slots), np.bool_)
        return self.slot_hosted[slots] == 0


def _pages(buffer: Any, count: int, page_size: int) -> U1:  # noqa: ANN401 - any buffer
    return np.frombuffer(buffer, np.uint8, count * page_size).reshape(-1, page_size)


def zeros(size_bytes: int) -> U1:
    """That many bytes of this process, all zero."""
    return np.zeros(size_bytes, np.uint8)


def columns_in_memory(layout: Layout, allocate: Callable[[int], Any] = zeros) -> Columns:
    """The same arrays over memory of this process alone; `allocate` gives so many bytes, all zero, as a buffer."""
    buffers = {
        name: allocate(segment.size) for name, segment in layout.segments.items() if not name.startswith(POOL_PREFIX)
    }
    return Columns(layout, buffers, allocate(layout.frame_count * layout.topology.page_size))
