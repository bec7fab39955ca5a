"""An emulated address space that follows that of a real process: its mappings, and which of its pages have memory.

Nothing is told when a program maps or touches memory. `settle` looks, and tells the machine what has changed since: new
pages are placed by the policies of that moment. So it is called before a policy changes, and before somebody asks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from numaemu.task import Task
from numaemu_core import limits
from numaemu_core.uapi import MREMAP_FIXED, MREMAP_MAYMOVE
from numaemu_run.image import image_of
from numaemu_run.kernel import Kernel
from numaemu_run.pagemap import (
    NO_RUNS,
    Runs,
    are_present,
    difference,
    exclusive_runs,
    holds,
    inside,
    intersection,
    joined,
    present_runs,
    union,
)
from numaemu_run.procfs import PAGE_SIZE, Area, areas_of, maps_of
from numaemu_run.shared_objects import SharedObjects

#: Ranges that one call tells.
_RANGES_PER_CALL: Final = 4096
#: Nobody runs out of memory for so many.
_FEW_PAGES: Final = 256
#: Areas that grow in place.
_GROWING: Final = ("[heap]", "[stack]")
_ADDRESS_END: Final = 1 << 47
_NO_END: Final = _ADDRESS_END // PAGE_SIZE
_EVERYTHING: Final = np.array([[0, _NO_END]], np.int64)

#: What is the same memory as long as it stays mapped: the shared object, and what part of it lies at address 0.
_Kind = tuple[str, int]
_PRIVATE: Final[_Kind] = ("", 0)
#: From new pages to those that have touched them.
Share = Callable[[Runs], Iterable[tuple[Task, Runs]]]


class Mirror:
    """What the machine has been told of one address space."""

    def __init__(self, kernel: Kernel, objects: SharedObjects, tid: int) -> None:
        """Of the process of a thread; nothing is told yet.

        Raises:
            ProcessLookupError: it is gone.
        """
        self._kernel = kernel
        self._objects = objects
        #: The program that was executed when it was last settled.
        self.image = image_of(tid)
        self._text = b""
        #: The mappings when it was last settled, ascending.
        self.areas: list[Area] = []
        self._told: Mapping[_Kind, Runs] = MappingProxyType({})
        self._mapped: Runs = NO_RUNS
        #: Pages that it had when it was last settled.
        self.held: Runs = NO_RUNS
        #: Pages that were only read.
        self._zeros: Runs = NO_RUNS
        #: Pages that it may have in common with a process that was forked from it, or that it was forked from.
        self._common: Runs = NO_RUNS
        #: What an mremap was asked to do since it was settled: first page, end, length in pages.
        self._move: tuple[int, int, int] | None = None

    def twin(self, tid: int) -> "Mirror | None":
        """That of a process forked from this one, by a thread of it; None: it has executed another program since.

        What the machine's fork does not copy is told when the child is looked at: pages of shared objects, which it has
        to touch by itself, and those that were only read.
        """
        other = Mirror(self._kernel, self._objects, tid)
        if not other.image.is_still(self.image):
            return None
        private = difference(self.held, _pages([area for area in self.areas if area.name]))
        other._text, other.areas, other._told = self._text, self.areas, self._told
        other._mapped, other.held = self._mapped, private
        self._common = other._common = private
        return other

    def settle(self, task: Task, tid: int, share: Share | None = None) -> int:
        """Bring the machine up to date, with `task` as the thread that did it; gives how many pages were placed.

        `tid`: a thread of it that has not ended: others have no memory to look at. `share` says which of the new pages
        others have touched. What the machine has not taken is told again the next time.

        Raises:
            ProcessLookupError: the process is gone. PermissionError: we may not look into it.
            OutOfMemory: the machine has no frame for some page.
        """
        image, text = image_of(tid, self.image), maps_of(tid)
        if not text:
            raise ProcessLookupError(f"thread {tid} has ended")
        if not image.is_still(self.image):
            self._forget_program(task)
            self.image = image
        areas, mapped, now = self.areas, self._mapped, self._told
        new: list[Area] = []
        lost = fresh = NO_RUNS
        if text != self._text:
            areas = areas_of(text)
            now = _by_kind(areas)
            if self._move is not None:
                self._follow_move(task, *self._move, now.get(_PRIVATE, NO_RUNS))
            lost, fresh = _gone_from(self._told, now), _gone_from(now, self._told)
            starts = set() if not len(fresh) else _touched(areas, fresh)
            new = [area for area in areas if area.start in starts]
            mapped = joined(_holdable(areas))
        # It may have mapped something since we looked.
        present, zeros = (
            runs if inside(runs, mapped) else intersection(runs, mapped) for runs in present_runs(tid, areas)
        )
        changed = union(lost, fresh)
        kept, kept_zeros = difference(self.held, changed), difference(self._zeros, changed)
        own = self._no_longer_common(tid, intersection(kept, present)) if len(self._common) else NO_RUNS
        gone = added = read = NO_RUNS
        if not np.array_equal(kept, present):
            gone, added = difference(kept, present), difference(present, kept)
        if not np.array_equal(kept_zeros, zeros):
            gone = union(gone, difference(kept_zeros, union(zeros, present)))
            read = difference(zeros, kept_zeros)
        if count(added) > _FEW_PAGES:
            self._objects.let_go(task)
        if share is None or not len(added):
            self._tell(task, lost, new, gone, union(added, own), read)
        else:
            self._tell(task, lost, new, gone, own, read)
            for toucher, runs in share(added):
                self._tell(toucher, NO_RUNS, [], NO_RUNS, runs, NO_RUNS)
        self._text, self.areas, self._told, self._mapped = text, areas, now, mapped
        self.held, self._zeros = present, zeros
        if len(own):
            self._common = difference(self._common, own)
        return count(added)

    def _forget_program(self, task: Task) -> None:
        """Another program is executed: nothing of the old one is left."""
        self._tell(task, _EVERYTHING, [], NO_RUNS, NO_RUNS, NO_RUNS)
        self._text, self._told, self._move = b"", {}, None
        self._mapped = self.held = self._zeros = self._common = NO_RUNS

    def _no_longer_common(self, tid: int, held: Runs) -> Runs:
        """Pages that it had in common with a relative, and has for itself now: one of the two has written to them."""
        self._common = intersection(self._common, held)
        return exclusive_runs(tid, self._common)

    def expect_move(self, start: int, old_length: int, new_length: int) -> None:
        """The process is about to call mremap; it was settled just before."""
        first = start // PAGE_SIZE
        self._move = (first, first + -(-old_length // PAGE_SIZE), -(-new_length // PAGE_SIZE))

    def _follow_move(self, task: Task, first: int, end: int, length: int, now: Runs) -> None:
        """Private memory was in pages [first, end) and is `length` pages long somewhere: let it have grown, or moved.

        What cannot be told apart from new memory stays as it is: without a policy where it is now.
        """
        self._move = None
        told = self._told.get(_PRIVATE, NO_RUNS)
        old = np.array([[first, end]], np.int64)
        fresh = difference(now, told)
        if inside(old, now):
            if length > end - first and inside(np.array([[end, first + length]]), fresh):
                grown = [first * PAGE_SIZE, (first + length) * PAGE_SIZE, None, 0, True, None]
                self._kernel.mirror(task, [], [grown], [], [], [])
                self._told = {**self._told, _PRIVATE: union(told, np.array([[end, first + length]]))}
            return
        at = next((start for start, stop in fresh.tolist() if stop - start == length), None)
        if at is None or len(intersection(old, now)):
            return
        size = (end - first) * PAGE_SIZE
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        try:
            self._kernel.call(task, "mremap", first * PAGE_SIZE, size, length * PAGE_SIZE, flags, at * PAGE_SIZE)
        except OSError:  # it has several mappings, say
            return
        moved = np.array([[at, at + length]], np.int64)
        self._told = {**self._told, _PRIVATE: union(difference(told, old), moved)}
        pages = intersection(intersection(self.held, old) + (at - first), moved)
        self.held = union(difference(self.held, old), pages)
        self._zeros = difference(self._zeros, old)
        self._common = difference(self._common, old)

    def maps(self, name: str) -> bool:
        """Was it told of a mapping of the shared object?"""
        return any(kind[0] == name for kind in self._told)

    def forget(self, name: str, first: int, end: int) -> None:
        """Bytes of a shared object have lost their pages: those that have memory again are new."""
        spans = [(area, first - area.offset, end - area.offset) for area in self.areas if area.name == name]
        gone = [(max(low, 0) + area.start, min(area.start + high, area.end)) for area, low, high in spans]
        runs = joined(np.array([span for span in gone if span[0] < span[1]], np.int64).reshape(-1, 2) // PAGE_SIZE)
        self.held, self._zeros = difference(self.held, runs), difference(self._zeros, runs)

    def knows_mappings(self, tid: int) -> bool:
        """Are all mappings as they were told? Then nothing has to be settled to ask for their policies. As `knows`."""
        return maps_of(tid) == self._text and image_of(tid, self.image).is_still(self.image)

    def knows(self, tid: int, addresses: Sequence[int]) -> bool:
        """Were the pages at a few addresses told, and are they there still? Then nothing has to be settled to ask.

        `tid` as for `settle`.

        Raises:
            ProcessLookupError: the process is gone. PermissionError: we may not look into it.
        """
        numbers = [address // PAGE_SIZE for address in addresses if address < _ADDRESS_END]
        if len(numbers) < len(addresses) or not holds(self.held, numbers):
            return False
        return image_of(tid, self.image).is_still(self.image) and are_present(tid, numbers)

    def _tell(self, task: Task, lost: Runs, new: list[Area], gone: Runs, added: Runs, read: Runs) -> None:
        """In the order in which it must come, so many ranges a call."""
        kept_as = self._objects.kept_as
        areas = [[a.start, a.end, a.name or None, a.offset, a.path in _GROWING, kept_as(a)] for a in new]
        jobs: list[tuple[int, list[Any]]] = [
            (0, (lost * PAGE_SIZE).tolist()),
            (1, areas),
            (2, (gone * PAGE_SIZE).tolist()),
            (3, (added * PAGE_SIZE).tolist()),
            (4, (read * PAGE_SIZE).tolist()),
        ]
        if sum(len(ranges) for _, ranges in jobs) <= _RANGES_PER_CALL:
            if any(ranges for _, ranges in jobs):
                self._kernel.mirror(task, *(ranges for _, ranges in jobs))
            return
        for place, ranges in jobs:
            for at in range(0, len(ranges), _RANGES_PER_CALL):
                part: list[list[Any]] = [[] for _ in jobs]
                part[place] = ranges[at : at + _RANGES_PER_CALL]
                self._kernel.mirror(task, *part)


def count(runs: Runs) -> int:
    """How many pages."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def _pages(areas: list[Area]) -> Runs:
    return np.array([[area.start, area.end] for area in areas], np.int64).reshape(-1, 2) // PAGE_SIZE


def _holdable(areas: list[Area]) -> Runs:
    """Pages of areas that the machine can have: those of a shared object up to the length that one may have."""
    pages = _pages(areas)
    room = [limits.FILE_PAGES_MAX - area.offset // PAGE_SIZE if area.name else _NO_END for area in areas]
    pages[:, 1] = np.minimum(pages[:, 1], pages[:, 0] + np.maximum(np.array(room, np.int64), 0))
    return pages[pages[:, 0] < pages[:, 1]]


def _touched(areas: list[Area], runs: Runs) -> set[int]:
    """Where the areas begin that have a page of these runs."""
    pages = _pages(areas)
    before = np.searchsorted(runs[:, 1], pages[:, 0], "right")  # runs that end before an area begins
    until = np.searchsorted(runs[:, 0], pages[:, 1], "left")  # runs that begin before it ends
    return {areas[i].start for i in np.flatnonzero(until > before).tolist()}


def _gone_from(before: Mapping[_Kind, Runs], after: Mapping[_Kind, Runs]) -> Runs:
    """Pages that are mapped before, and not after, as the same kind."""
    gone = NO_RUNS
    for kind, runs in before.items():
        gone = union(gone, difference(runs, after.get(kind, NO_RUNS)))
    return gone


def _by_kind(areas: list[Area]) -> dict[_Kind, Runs]:
    """Pages mapped, by what is mapped there."""
    found: dict[_Kind, list[Area]] = {}
    for area in areas:
        kind = (area.name, area.start - area.offset if area.name else 0)
        found.setdefault(kind, []).append(area)
    return {kind: joined(_pages(members)) for kind, members in found.items()}
