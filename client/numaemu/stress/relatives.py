"""Companions, which share the memory of a worker, and children, which took over a fork of one."""

from __future__ import annotations

import errno
import functools
import time
from typing import TYPE_CHECKING, Final

import numpy as np

import numaemu as nm
from numaemu.stress.area import Area
from numaemu.stress.board import ORPHANED
from numaemu.stress.member import CAPABILITIES
from numaemu.stress.mover import Mover
from numaemu.stress.plan import COMMON, COMMON_PAGES, PRIVATE
from numaemu.stress.process import DONE
from numaemu.stress.worker import CHILD_WRITER, COMMON_WRITER, PRIVATE_WRITER

if TYPE_CHECKING:
    from collections.abc import Callable

    from numaemu.stress.board import Board
    from numaemu.stress.process import Post, Voice

#: The worker has ended before we came: nothing is there to be taken over.
_TOO_LATE: Final = frozenset({errno.ESRCH})
_CHILD_STEPS: Final = 60
_PAUSE_S: Final = 0.02


class Companion(Mover):
    """Another process in the memory of a worker: reads what that one writes, writes the second half of what is common.

    When the worker is killed, the memory lives on for as long as its companion does.
    """

    def read(self) -> None:
        """Verify pages that the worker may be writing, or throwing away."""
        area = self.areas[PRIVATE]
        self.check_area(area, *self.long_span(len(area)), still=False)

    def write_common(self) -> None:
        """New versions of the second half of the common pages."""
        half = COMMON_PAGES // 2
        first, count = self.span(half)
        self.write_area(self.areas[COMMON], half + first, count)

    def verify_own(self) -> None:
        """The pages that only a companion writes: what a killed one had begun may be torn."""
        self.check_area(self.areas[COMMON], COMMON_PAGES // 2, COMMON_PAGES // 2, still=True)


def run_companion(post: Post, board: Board, machine: nm.Machine, voice: Voice) -> int:
    """The life of a companion: as long as that of its worker."""
    try:
        task = machine.attach(cpu=0, capabilities=CAPABILITIES, share_mm=post.inherited["pid"])
    except OSError as refused:
        if refused.errno in _TOO_LATE:
            return DONE
        raise
    companion = Companion(post, board, machine, task, 0)
    companion.voice, companion.owner = voice, False
    bases, serial = post.inherited["bases"], post.inherited["serial"]
    words = board.blocks[post.family, : post.plan.private_pages]
    private = Area(PRIVATE, bases[PRIVATE], words, np.full(len(words), PRIVATE_WRITER + serial, np.uint64))
    companion.note_areas(bases, private, COMMON_WRITER + serial)
    companion.row.task(task.pid)
    choices = [companion.read] * 4 + [companion.write_common, companion.read_common, companion.read_files] * 3
    choices += companion.movers()[::2]
    _patiently(companion, companion.verify_own)
    while time.monotonic() < post.until and board.grants[post.family] != ORPHANED:
        companion.attempt(companion.random.choice(choices))
    _patiently(companion, companion.verify_own)
    if board.grants[post.family] == ORPHANED:
        # What the worker wrote is still there, but for the torn page if it was killed; it may have been taken away, or
        # the rights to it, by what it was doing: so page by page.
        for page in range(len(words)):
            companion.attempt(functools.partial(companion.check_area, private, page, 1, still=True))
    companion.row.end()
    return DONE


class Child(Mover):
    """A real process that took over a fork: the pages of that moment, which parent and child write from then on."""

    def write(self) -> None:
        """Pages of its own, in place of those of the parent."""
        area = self.areas[PRIVATE]
        first, count = self.span(len(area))
        area.who[first : first + count] = CHILD_WRITER + self.post.serial
        self.write_area(area, first, count)

    def read(self) -> None:
        """Verify some private pages."""
        area = self.areas[PRIVATE]
        self.check_area(area, *self.span(len(area)), still=True)

    def verify_all(self) -> None:
        """Verify all private pages."""
        area = self.areas[PRIVATE]
        self.check_area(area, 0, len(area), still=True)


def run_child(post: Post, board: Board, machine: nm.Machine, voice: Voice) -> int:
    """The life of a child: some operations long; it may end without a word, as programs do."""
    try:
        task = machine.adopt(post.inherited["child"])
    except OSError as refused:
        if refused.errno in _TOO_LATE:
            return DONE
        raise
    child = Child(post, board, machine, task, 0)
    child.voice = voice
    bases, serial = post.inherited["bases"], post.inherited["serial"]
    words = np.frombuffer(bytes.fromhex(post.inherited["words"]), np.uint64).copy()
    private = Area(PRIVATE, bases[PRIVATE], words, np.full(len(words), PRIVATE_WRITER + serial, np.uint64))
    child.note_areas(bases, private, COMMON_WRITER + serial)
    child.row.task(task.pid)
    child.row.count("adopted")
    _patiently(child, child.verify_all)
    choices = [child.read, child.write] * 4 + [child.read_files, child.read_common] * 2 + child.movers()[::2]
    for _ in range(_CHILD_STEPS):
        if time.monotonic() >= post.until:
            break
        child.attempt(child.random.choice(choices))
    _patiently(child, child.verify_all)
    if child.random.random() < 1 / 2:
        child.row.begin("end")
        task.close()
    child.row.end()
    return DONE


def _patiently(member: Mover, operation: Callable[[], None]) -> None:
    while not member.attempt(operation):
        time.sleep(_PAUSE_S)
