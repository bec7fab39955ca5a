"""What workers, companions and children have in common: a task, areas whose contents are known, and patience."""

from __future__ import annotations

import errno
import random
import time
from typing import TYPE_CHECKING, Final

import numpy as np

import numaemu as nm
from numaemu.stress.area import Area, check
from numaemu.stress.plan import COMMON, COMMON_PAGES, FILES, LONG_SPAN_PAGES, PAGE_BYTES, SPAN_PAGES
from numaemu.stress.process import TaskKilled
from numaemu_core.profiles import profile_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from numaemu.stress.board import Board, Row
    from numaemu.stress.process import Post, Voice

CAPABILITIES: Final = frozenset({"CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_PTRACE", "CAP_IPC_LOCK"})
#: What a call may answer in the middle of all this, by its name; any other refusal is a failure.
_EXPECTED: Final[dict[str, frozenset[int]]] = {
    # Memory or page tables run out, or others have a part of the range unmapped or locked just now.
    "fill": frozenset({errno.ENOMEM}),
    "fork": frozenset({errno.ENOMEM}),
    "pin": frozenset({errno.ENOMEM, errno.EBUSY}),
    "drop": frozenset({errno.ENOMEM, errno.EINVAL}),
    "discard": frozenset({errno.EINVAL}),
    "protect": frozenset({errno.ENOMEM}),
    "remap": frozenset({errno.ENOMEM, errno.EFAULT, errno.EAGAIN}),
    "policy": frozenset({errno.EINVAL}),  # no node of the mask is in the cpuset
    "move": frozenset({errno.EIO, errno.EFAULT, errno.ENOMEM, errno.EINVAL}),
    "migrate": frozenset({errno.EPERM, errno.EINVAL, errno.ENOMEM}),
    "migrate_other": frozenset({errno.EPERM, errno.EINVAL, errno.ENOMEM, errno.ESRCH}),
    "move_pages": frozenset({errno.ENOMEM, errno.EACCES}),
    "page_out": frozenset({errno.EINVAL, errno.ENOMEM}),
    "lock": frozenset({errno.ENOMEM, errno.EAGAIN}),
}


class Member:
    """One process of a run, or one thread of it."""

    def __init__(self, post: Post, board: Board, machine: nm.Machine, task: nm.Task, thread: int) -> None:
        """Its row is that of the thread."""
        self.post = post
        self.board = board
        self.machine = machine
        self.task = task
        self.row: Row = board.row(post.process, thread)
        self.random = random.Random(f"{post.plan.seed}/{post.serial}/{thread}")  # noqa: S311 - a run is named by its seed
        self.profile = profile_named(machine.topology.profile)
        self.nodes = [node.id for node in machine.topology.nodes]
        #: Whether this process alone takes away memory and rights to it.
        self.owner = True
        self.areas: list[Area] = []
        self.voice: Voice

    # -- areas ---------------------------------------------------------------------------------------------------------

    def note_areas(self, bases: list[int], private: Area, family: int) -> None:
        """Where the areas of the family are: `bases` of the files, of the private one, of the common one."""
        workers = np.arange(self.post.plan.workers, dtype=np.uint64)
        self.areas = [
            Area(number, bases[number], self.board.files[number], np.repeat(workers, file.pages_each))
            for number, file in enumerate(FILES)
        ]
        words = self.board.blocks[self.post.family, -COMMON_PAGES:]
        who = np.full(COMMON_PAGES, family, np.uint64)
        self.areas += [private, Area(COMMON, bases[COMMON], words, who)]

    def span(self, count_all: int) -> tuple[int, int]:
        """Some pages of so many: the first, and how many: one, or some."""
        first = self.random.randrange(count_all)
        most = min(SPAN_PAGES, count_all - first)
        return first, self.random.choice((1, self.random.randint(1, most)))

    def long_span(self, count_all: int) -> tuple[int, int]:
        """The same, and now and then very many."""
        if self.random.random() > 1 / 6:
            return self.span(count_all)
        first = self.random.randrange(max(1, count_all - LONG_SPAN_PAGES // 2))
        return first, min(LONG_SPAN_PAGES, count_all - first)

    def some(self) -> tuple[Area, int, int]:
        """Some pages of some area, mostly of the private one."""
        area = self.random.choice(self.areas) if self.random.random() < 1 / 3 else self.areas[-2]
        return area, *self.span(len(area))

    def write_area(self, area: Area, first: int, count: int) -> None:
        """New versions of some pages, through the mapping."""
        data = area.begin_write(first, count)
        self.task.write(area.address(first), data)
        area.end_write(first, count)
        self.row.count("pages_written", count)

    def check_area(self, area: Area, first: int, count: int, *, still: bool) -> None:
        """Verify some pages, through the mapping."""
        check(area, first, count, self._reader(area), self.row, self.voice.complain, still=still)

    def _reader(self, area: Area) -> Callable[[int, int], bytes]:
        return lambda first, count: self.task.read(area.address(first), count * PAGE_BYTES)

    # -- what everybody does -------------------------------------------------------------------------------------------

    def read_files(self) -> None:
        """Verify pages of files that others may be writing, through a mapping or with a call."""
        number = self.random.randrange(len(FILES))
        area = self.areas[number]
        first, count = self.span(len(area))
        if self.random.random() < 1 / 2:
            self.check_area(area, first, count, still=False)
            return
        name = FILES[number].name

        def read(start: int, n: int) -> bytes:
            return self.task.file_read(name, start * PAGE_BYTES, n * PAGE_BYTES)

        check(area, first, count, read, self.row, self.voice.complain, still=False)
        self.row.count("file_reads")

    def read_common(self) -> None:
        """Verify pages that another process of the family writes."""
        area = self.areas[COMMON]
        self.check_area(area, *self.span(len(area)), still=False)

    # -- doing things --------------------------------------------------------------------------------------------------

    def until_over(self, choices: list[Callable[[], None]]) -> None:
        """Do one after the other, as drawn, until the time is over."""
        while time.monotonic() < self.post.until:
            self.attempt(self.random.choice(choices))

    def attempt(self, operation: Callable[[], None]) -> bool:
        """Do something that may be refused; whether it was not.

        Raises:
            TaskKilled: the task is no more. Others: what must not happen.
        """
        name: str = getattr(operation, "func", operation).__name__
        self.row.begin(name)
        try:
            operation()
        except nm.OutOfMemory:
            self.row.count("out_of_memory")
            self._look_alive()
        except nm.SegmentationFault:
            if self.owner:
                raise
            self.row.count("refused")  # its owner has just taken it, or the right to it, away
        except nm.MachineGone:
            raise
        except OSError as refused:
            if refused.errno not in _EXPECTED.get(name, ()):
                raise
            self.row.count("refused")
        else:
            return True
        return False

    def _look_alive(self) -> None:
        """Raises TaskKilled if the task was killed, and not only refused a frame."""
        try:
            self.task.where(0, PAGE_BYTES)
        except nm.OutOfMemory:
            raise TaskKilled from None
