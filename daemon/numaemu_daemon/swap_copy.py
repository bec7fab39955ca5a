"""Copies between frames and swap slots, as the daemon asks for them: checked, counted, and harmless to repeat.

    ["write", ticket, pfns, slots]   frames to slots     answered by ["done", ticket, pages]
    ["read", ticket, slots, pfns]    slots to frames     answered by ["done", ticket, pages]

Page numbers are bytes of little-endian int64; slots from slot_count on are pages of the disk segment. Which frames and
slots may be copied is the daemon's business: it holds the page locks; only what would reach outside of the arrays is
refused here.
"""

from typing import Any

import numpy as np

from numaemu_core.columns import I8, Columns
from numaemu_core.fault_points import Reach, unarmed
from numaemu_core.runs import copy_reaching
from numaemu_daemon.bus_client import BusMessageError
from numaemu_daemon.copy_request import check_ticket, page_numbers


class SwapCopier:
    """Performs requests over the frames and the swap area of a machine."""

    def __init__(self, columns: Columns, reach: Reach = unarmed) -> None:
        """Nothing copied yet."""
        self._c = columns
        self._reach = reach
        self.pages_in = 0
        self.pages_out = 0
        self.messages = 0

    def perform(self, message: list[Any]) -> list[Any]:
        """Do what a message asks and return the answer.

        Raises:
            BusMessageError: it is no request, or reaches outside; nothing was copied.
        """
        match message:
            case ["write", ticket, pfns, slots]:
                pages = self._copy(ticket, self._pfns(pfns), self._slots(slots), out=True)
                self.pages_out += pages
            case ["read", ticket, slots, pfns]:
                pages = self._copy(ticket, self._pfns(pfns), self._slots(slots), out=False)
                self.pages_in += pages
            case [name, *rest]:
                raise BusMessageError(f"the swap node knows no {str(name)[:20]!r} with {len(rest)} arguments")
            case _:
                raise BusMessageError("an empty message")
        self.messages += 1
        return ["done", ticket, pages]

    def counters(self) -> dict[str, int]:
        """What was done since this process began."""
        return {"pages_in": self.pages_in, "pages_out": self.pages_out, "messages": self.messages}

    def _copy(self, ticket: object, pfns: I8, slots: I8, *, out: bool) -> int:
        check_ticket(ticket)
        if len(pfns) != len(slots):
            raise BusMessageError(f"{len(pfns)} frames for {len(slots)} slots")
        swap_slots = int(np.count_nonzero(slots < self._c.layout.slot_count))
        if 0 < swap_slots < len(slots):
            raise BusMessageError("slots of the swap area and of the disk in one request")
        copied = self._c.are_copied(slots)
        frames, pages = (self._c.frames, pfns[copied]), self._c.area(slots[copied])
        if out:
            copy_reaching(self._reach, "writing", pages, frames)
        else:
            copy_reaching(self._reach, "reading", frames, pages)
        return len(pfns)

    def _pfns(self, value: object) -> I8:
        return page_numbers(value, "pfns", 0, self._c.layout.frame_count)

    def _slots(self, value: object) -> I8:
        return page_numbers(value, "slots", 0, self._c.layout.slot_count + self._c.layout.disk_count)
