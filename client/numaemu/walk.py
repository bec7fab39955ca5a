"""The walk through the four levels of a page table, as a client does it: reading only, remembering where entries lie.

Rules:

* Walk only inside an open window, or with the mm's mmap_sem or the table's pte lock held: else a table may be freed and
  reused underneath.
* What is remembered holds for one epoch of the mm: call `refresh` first, inside the same window.
* Table 0 stands for none and its entries are none, so a missing level needs no case of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from numaemu_core import limits

if TYPE_CHECKING:
    from numaemu.views import Views
    from numaemu_core.columns import U8

INDEX: Final = limits.PTRS_PER_TABLE - 1
SHIFT: Final = limits.TABLE_SHIFT
_UPPER_SHIFTS: Final = (3 * SHIFT, 2 * SHIFT, SHIFT)

#: Pages whose entries a thread remembers one by one, as a TLB does; past it, it begins anew.
TLB_PAGES: Final = 1 << 16


class PageWalk:
    """Walks of one mm by one thread.

    `flats` is for the hit path: the flat index of an entry by virtual page number, as far as it is remembered.
    """

    __slots__ = (
        "_bases",
        "_end_vpn",
        "_epoch_seen",
        "_page_shift",
        "_pgd",
        "_ptes",
        "epoch",
        "flats",
        "mm_id",
        "views",
    )

    def __init__(self, views: Views, mm_id: int, pgd: int) -> None:
        """Walks from table `pgd`, remembered for an epoch of mm `mm_id`."""
        self.views = views
        self.mm_id = mm_id
        self._ptes = views.ptes
        self._page_shift = views.layout.page_shift
        self._end_vpn = limits.TASK_SIZE_BYTES >> self._page_shift
        self._pgd = pgd
        #: The epoch as it is now: element 0.
        self.epoch = views.epochs[mm_id : mm_id + 1]
        self._epoch_seen: int = self.epoch[0]
        #: Flat index of entry 0 of a pte table, by virtual page number >> SHIFT.
        self._bases: dict[int, int] = {}
        self.flats: dict[int, int] = {}

    def anew(self) -> PageWalk:
        """The same, with nothing remembered."""
        return PageWalk(self.views, self.mm_id, self._pgd)

    def refresh(self) -> int:
        """Forget what was walked in an earlier epoch; gives the epoch."""
        epoch: int = self.epoch[0]
        if epoch != self._epoch_seen:
            self._bases.clear()
            self.flats.clear()
            self._epoch_seen = epoch
        return epoch

    def flat(self, vpn: int) -> int:
        """The flat index of a virtual page's entry; an entry of table 0, which is none, where a level is missing."""
        base = self.base(vpn)
        at = base + (vpn & INDEX)
        if base:
            if len(self.flats) >= TLB_PAGES:
                self.flats.clear()
            self.flats[vpn] = at
        return at

    def base(self, vpn: int) -> int:
        """The flat index of entry 0 of the pte table of a virtual page, 0 where a level is missing."""
        if not 0 <= vpn < self._end_vpn:
            return 0
        found = self._bases.get(vpn >> SHIFT)
        if found is not None:
            return found
        table = self._pgd
        for shift in _UPPER_SHIFTS:
            entry: int = self._ptes[(table << SHIFT) + (vpn >> shift & INDEX)]
            if not entry:
                return 0  # not remembered: the daemon adds tables without moving the epoch
            table = entry >> self._page_shift
        self._bases[vpn >> SHIFT] = table << SHIFT
        return table << SHIFT

    def pieces(self, first_vpn: int, end_vpn: int) -> list[slice]:
        """The flat indexes of virtual pages [first_vpn, end_vpn), a slice a table; it ends where a table is missing."""
        found = []
        vpn = first_vpn
        while vpn < end_vpn:
            base = self.base(vpn)
            if not base:
                break
            stop = min(end_vpn, (vpn | INDEX) + 1)
            low = base + (vpn & INDEX)
            found.append(slice(low, low + stop - vpn))
            vpn = stop
        return found

    def entries(self, pieces: list[slice]) -> U8:
        """A copy of the entries, as they are at this moment."""
        pte = self.views.pte
        if len(pieces) == 1:
            return pte[pieces[0]].copy()
        return np.concatenate([pte[piece] for piece in pieces]) if pieces else pte[:0]
