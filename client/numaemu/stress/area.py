"""A range of pages of a task whose contents are known: written, read and verified page by page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from numaemu.stress import pages
from numaemu.stress.pages import Verdict
from numaemu.stress.plan import FILES, PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numaemu.stress.board import Row
    from numaemu_core.columns import U8

    Read = Callable[[int, int], bytes]
    Write = Callable[[int, bytes], None]

AREA_NAMES: Final = (*(file.name for file in FILES), "private", "common")


@dataclass(slots=True)
class Area:
    """`words` and `who` are [pages]: what is known of each page, and who writes it; `base` is an address."""

    number: int
    base: int
    words: U8
    who: U8

    def __len__(self) -> int:
        return len(self.words)

    def address(self, page_index: int) -> int:
        """Where a page is."""
        return self.base + page_index * PAGE_BYTES

    def begin_write(self, first: int, count: int) -> bytes:
        """Pages are about to be written; gives their bytes, to be written before `end_write`."""
        part = slice(first, first + count)
        self.words[part] = pages.begun(self.words[part])
        return self._contents(first, count, pages.version_of(self.words[part])).tobytes()

    def end_write(self, first: int, count: int) -> None:
        """They are written."""
        part = slice(first, first + count)
        self.words[part] = pages.completed(self.words[part])

    def begin_drop(self, first: int, count: int) -> None:
        """Pages are about to be thrown away."""
        part = slice(first, first + count)
        self.words[part] = pages.dropping(self.words[part])

    def end_drop(self, first: int, count: int) -> None:
        """They read as zeros from now on."""
        part = slice(first, first + count)
        self.words[part] = pages.dropped(self.words[part])

    def _contents(self, first: int, count: int, versions: U8) -> U8:
        where = pages.places(self.number, first, count)
        return pages.contents(PAGE_BYTES, self.who[first : first + count], where, versions)

    def verdicts(self, found: bytes, first: int, words: U8) -> list[Verdict]:
        """Compare pages with what is known of them."""
        where = pages.places(self.number, first, len(words))
        return pages.judge(_rows(found), self.who[first : first + len(words)], where, words)

    def complaint(self, verdict: Verdict, found: bytes, first: int, position: int) -> str:
        """What is wrong with a page, for people."""
        page = first + position
        expected = " or ".join("zeros" if v == 0 else f"version {v}" for v in pages.may_hold(int(self.words[page])))
        what = f"{verdict.name.lower()}: page {page} of {AREA_NAMES[self.number]}"
        return f"{what}: expected {expected} by {int(self.who[page]):#x}, found {pages.told(_rows(found)[position])}"


def _rows(found: bytes) -> U8:
    return np.frombuffer(found, np.uint64).reshape(-1, PAGE_BYTES // 8)


def check(
    area: Area, first: int, count: int, read: Read, row: Row, complain: Callable[[str], None], *, still: bool
) -> None:
    """Read pages with one call and verify each; `read(first, count)` gives their bytes.

    `still`: nobody writes meanwhile, so that a page of which a write was begun and not completed is the torn page of a
    killed writer. Else others may write: a page that is being written, or was meanwhile, counts as overlapped unless it
    is as it may be by now.
    """
    part = slice(first, first + count)
    before = area.words[part].copy()
    found = read(first, count)
    after = area.words[part].copy()
    firm = (before == after) & (pages.settled(after) | still)
    for i, verdict in enumerate(area.verdicts(found, first, after)):
        if verdict is Verdict.RIGHT:
            row.count("reads_verified")
        elif not firm[i]:
            row.count("reads_overlapped")
        elif verdict is Verdict.TORN:
            row.count("reads_verified")
            row.count("torn")
        else:
            row.count(verdict.name.lower())
            complain(area.complaint(verdict, found, first, i))
