"""A node's copy engine: pages of any node come to frames of this one, as the daemon asks; harmless to repeat.

    ["copy", ticket, source, target]    answered by ["done", ticket, pages]

Which frames may be copied is the daemon's business: it holds the page locks; what would reach outside is refused here.
"""

from typing import Any

from numaemu_core.columns import Columns
from numaemu_core.fault_points import Reach, unarmed
from numaemu_core.runs import copy_reaching
from numaemu_daemon.bus_client import BusMessageError
from numaemu_daemon.copy_request import check_ticket, page_numbers


class FrameCopier:
    """Performs requests over the frames of a machine, for one node."""

    def __init__(self, columns: Columns, nid: int, reach: Reach = unarmed) -> None:
        """Nothing copied yet."""
        self._c = columns
        self._reach = reach
        self._first, self._end = columns.layout.node_pfns.get(nid, (0, 0))
        self.pages = 0

    def perform(self, ticket: object, source: object, target: object) -> list[Any]:
        """Copy, and return the answer.

        Raises:
            BusMessageError: it is no request, or reaches outside; nothing was copied.
        """
        check_ticket(ticket)
        old = page_numbers(source, "source", 0, self._c.layout.frame_count)
        new = page_numbers(target, "target", self._first, self._end)
        if len(old) != len(new):
            raise BusMessageError(f"{len(old)} frames for {len(new)}")
        copy_reaching(self._reach, "copying", (self._c.frames, new), (self._c.frames, old))
        self.pages += len(new)
        return ["done", ticket, len(new)]
