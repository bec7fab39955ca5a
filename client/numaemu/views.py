"""The shared arrays of a machine as a client sees them: views over mapped segments, or over plain memory for tests.

Two kinds of view lie over the same cells. Single cells go through memoryviews, because an index into one costs a third
of an index into a numpy array; ranges go through numpy. All columns are flat but `pins` and `frame_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from mmap import mmap

    import numpy.typing as npt

    from numaemu_core.columns import U1, U4, U8
    from numaemu_core.layout import Layout
    from numaemu_host.robust import MutexTable

#: Columns that a client needs, wherever they lie.
COLUMNS = ("pte", "accessed", "dirty", "mm_epoch", "window", "pin_count", "pins", "needs_recovery", "generation")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Views:
    """What the hit path, the range path and pins read and write. Whoever holds it keeps the memory mapped.

    An entry of `pte` without its low bits is an offset into `frames`, in bytes: the pools lie back to back, by
    ascending node.
    """

    layout: Layout
    #: Bytes of all frames: for short copies, for long ones, and as rows of a page each.
    frames: mmap
    frame_bytes: U1
    frame_rows: U1
    #: Page-table entries by flat index; written by the daemon alone.
    ptes: memoryview
    pte: U8
    #: Accessed and dirty, by the same index; a client sets them inside a window.
    accessed: memoryview
    accessed_array: U1
    dirty: memoryview
    dirty_array: U1
    #: By mm: moves whenever one of its tables is freed.
    epochs: memoryview
    #: By access slot: odd while its thread is inside a window.
    windows: memoryview
    #: By access slot: records in use, and the records (pfn + 1, 0 for none).
    pin_counts: memoryview
    pins: U4
    #: By mutex: 1 if its holder died and the daemon has not yet repaired what it protects.
    needs_recovery: memoryview
    mutexes: MutexTable
    #: Element 0 counts the kernel daemons that have taken calls.
    generation: memoryview


def make_views(layout: Layout, columns: Mapping[str, npt.NDArray[Any]], frames: mmap, mutexes: MutexTable) -> Views:
    """Views over arrays: `columns` holds those of `COLUMNS`, `frames` all pools back to back."""
    frame_bytes = np.frombuffer(frames, np.uint8)
    flat = {name: columns[name].reshape(-1) for name in COLUMNS}
    return Views(
        layout=layout,
        frames=frames,
        frame_bytes=frame_bytes,
        frame_rows=frame_bytes.reshape(-1, layout.topology.page_size),
        ptes=_cells(flat["pte"]),
        pte=flat["pte"],
        accessed=_cells(flat["accessed"]),
        accessed_array=flat["accessed"],
        dirty=_cells(flat["dirty"]),
        dirty_array=flat["dirty"],
        epochs=_cells(flat["mm_epoch"]),
        windows=_cells(flat["window"]),
        pin_counts=_cells(flat["pin_count"]),
        pins=columns["pins"],
        needs_recovery=_cells(flat["needs_recovery"]),
        mutexes=mutexes,
        generation=_cells(flat["generation"]),
    )


def _cells(array: npt.NDArray[Any]) -> memoryview:
    """The same cells one by one."""
    return memoryview(array)  # type: ignore[arg-type] # an array is a buffer, which its types do not say for 3.11
