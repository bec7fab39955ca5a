"""Scattered frames as one flat array: mapped run by run into one range of this process."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np

from numaemu_core.layout import pool_name
from numaemu_host.memfd import Reservation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numaemu.attachment import Attachment
    from numaemu_core.columns import I8, U1
    from numaemu_core.layout import Layout


class FrameArray:
    """Frames in the order of their list, as `bytes`: flat, uint8, to be written to if `writable`.

    OSError(ENOMEM) if the host allows no more mappings.
    """

    def __init__(self, attachment: Attachment, pfns: I8, *, writable: bool) -> None:
        """Map the frames `pfns` of a machine; at least one."""
        page_size = attachment.layout.topology.page_size
        self._range = Reservation(len(pfns) * page_size)
        try:
            for at, node, frame, count in _runs(attachment.layout, pfns):
                fd = attachment.fds[pool_name(node)]
                self._range.map_at(at * page_size, fd, frame * page_size, count * page_size, writable=writable)
            self.bytes: U1 = np.frombuffer(self._range.view(writable=writable), np.uint8)
        except BaseException:
            self._range.close()
            raise
        # Every array that a program makes of it leads back to it: when none is left, the range can go.
        weakref.finalize(self.bytes, self._range.close).atexit = False

    def withdraw(self) -> None:
        """Take the frames away: the range reads as zeros from now on, and a write to it is a fault of the host."""
        self._range.reset()


def _runs(layout: Layout, pfns: I8) -> Iterator[tuple[int, int, int, int]]:
    """Longest stretches of neighbouring frames of one node: place in `pfns`, node, first frame in its pool, length."""
    firsts = np.array([first for first, _ in layout.node_pfns.values()])
    nodes = np.array(list(layout.node_pfns))
    owner = np.searchsorted(firsts, pfns, "right") - 1
    cuts = np.flatnonzero((np.diff(pfns) != 1) | (np.diff(owner) != 0)) + 1
    starts = np.concatenate(([0], cuts))
    ends = np.concatenate((cuts, [len(pfns)]))
    frames = pfns[starts] - firsts[owner[starts]]
    counts = ends - starts
    return zip(starts.tolist(), nodes[owner[starts]].tolist(), frames.tolist(), counts.tolist(), strict=True)
