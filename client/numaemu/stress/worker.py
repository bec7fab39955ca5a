"""A worker: a thread that writes and verifies, and one that moves the pages under its feet.

It maps private memory, memory that is common to its family, and the files that all workers share. Who writes what:
the private pages and the first half of the common ones this worker, the second half its companion; of each file, the
pages that belong to its number. Its predecessor of that number may have been killed in the middle of a write.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import numaemu as nm
from numaemu.mapping import Mapping
from numaemu.stress.area import Area, check
from numaemu.stress.board import GRANTED, NOTHING
from numaemu.stress.member import CAPABILITIES, Member
from numaemu.stress.mover import Mover
from numaemu.stress.pages import settled
from numaemu.stress.plan import COMMON, COMMON_PAGES, FILES, PAGE_BYTES, PRIVATE, SPAN_PAGES
from numaemu.stress.process import DONE, LEFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from numaemu.stress.board import Board
    from numaemu.stress.process import Post, Voice

_FIXED: Final = nm.MAP_PRIVATE | nm.MAP_ANONYMOUS | nm.MAP_FIXED
#: How often rights that were taken are tried to be given back, before that is a failure.
_TRIES: Final = 100
_PAUSE_S: Final = 0.02
#: Writers' names: below these, workers by their number write the files.
PRIVATE_WRITER: Final = 1 << 32
COMMON_WRITER: Final = 2 << 32
CHILD_WRITER: Final = 3 << 32


class Worker(Member):
    """The thread that writes and verifies."""

    def __init__(self, post: Post, board: Board, machine: nm.Machine, voice: Voice) -> None:
        """A task with all mappings; nothing was touched yet."""
        cpus = [cpu for node in machine.topology.nodes for cpu in node.cpus]
        task = machine.attach(cpu=cpus[post.worker % len(cpus)], capabilities=CAPABILITIES)
        super().__init__(post, board, machine, task, 0)
        self.voice = voice
        count = post.plan.private_pages
        bases = [self._mapped_file(number) for number in range(len(FILES))]
        bases.append(task.mmap(count * PAGE_BYTES).start)
        common = task.mmap(COMMON_PAGES * PAGE_BYTES, flags=nm.MAP_SHARED | nm.MAP_ANONYMOUS)
        bases.append(common.start)
        #: Where pages are put aside to.
        self._aside = task.mmap(SPAN_PAGES * PAGE_BYTES, prot=nm.PROT_NONE).start
        who = np.full(count, PRIVATE_WRITER + post.serial, np.uint64)
        private = Area(PRIVATE, bases[PRIVATE], board.blocks[post.family, :count], who)
        self.note_areas(bases, private, COMMON_WRITER + post.serial)
        self.row.task(task.pid)
        voice.say(pid=task.pid, bases=bases, serial=post.serial)

    def _mapped_file(self, number: int) -> int:
        length = len(self.board.files[number]) * PAGE_BYTES
        return self.task.mmap(length, file=FILES[number].name, flags=nm.MAP_SHARED).start

    @property
    def private(self) -> Area:
        """The private area."""
        return self.areas[PRIVATE]

    def own_pages(self, number: int) -> tuple[int, int]:
        """The first of this worker's pages in a file, and how many."""
        each = FILES[number].pages_each
        return self.post.worker * each, each

    # -- beginning and end ---------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """The pages of the predecessor: nobody writes them now, and what it had begun is written again.

        A call with which it was writing may outlive it: a check of the machine comes first, which lets all calls end.
        """
        if self._left_unfinished():
            self.row.begin("fsck")
            self.voice.say(fsck=self.machine.fsck())
        for number in range(len(FILES)):
            self._verify(self.areas[number], *self.own_pages(number))
        for number in range(len(FILES)):
            while not self.attempt(functools.partial(self.write_own, number, *self.own_pages(number))):
                time.sleep(_PAUSE_S)

    def _left_unfinished(self) -> bool:
        """Was the predecessor in the middle of a write?"""
        for number in range(len(FILES)):
            first, count = self.own_pages(number)
            if not settled(self.areas[number].words[first : first + count]).all():
                return True
        return False

    def fill(self) -> None:
        """Every page of its own is used, so that there is no memory for all."""
        for first in range(0, len(self.private), SPAN_PAGES):
            self.write_area(self.private, first, min(SPAN_PAGES, len(self.private) - first))
        self.write_area(self.areas[COMMON], 0, COMMON_PAGES // 2)

    def verify_all(self) -> None:
        """Every page that nobody else writes."""
        self._verify(self.private, 0, len(self.private))
        self._verify(self.areas[COMMON], 0, COMMON_PAGES // 2)
        for number in range(len(FILES)):
            self._verify(self.areas[number], *self.own_pages(number))

    def _verify(self, area: Area, first: int, count: int) -> None:
        for page in range(first, first + count, SPAN_PAGES):
            part = min(SPAN_PAGES, first + count - page)
            while not self.attempt(functools.partial(self.check_area, area, page, part, still=True)):
                time.sleep(_PAUSE_S)

    # -- operations ----------------------------------------------------------------------------------------------------

    def choices(self) -> list[Callable[[], None]]:
        """All of them, as often as each is wanted."""
        often = [self.write] * 10 + [self.read] * 10 + [self.read_files] * 4 + [self.write_files] * 4
        rare = [self.fork, self.drop, self.pin, self.protect, self.remap, self.write_common, self.read_common]
        return often + rare + ([self.discard] if self.profile.madvise_of_today else [])

    def write(self) -> None:
        """New versions of some private pages."""
        self.write_area(self.private, *self.long_span(len(self.private)))

    def read(self) -> None:
        """Verify some private pages."""
        self.check_area(self.private, *self.long_span(len(self.private)), still=True)

    def write_files(self) -> None:
        """New versions of its pages of a file."""
        number = self.random.randrange(len(FILES))
        first, count = self.own_pages(number)
        start, some = self.span(count)
        self.write_own(number, first + start, some)

    def write_own(self, number: int, first: int, count: int) -> None:
        """New versions of some pages of a file, through the mapping or with a call."""
        area = self.areas[number]
        if self.random.random() < 1 / 2:
            self.write_area(area, first, count)
            return
        data = area.begin_write(first, count)
        self.task.file_write(FILES[number].name, first * PAGE_BYTES, data)
        area.end_write(first, count)
        self.row.count("pages_written", count)
        self.row.count("file_writes")

    def write_common(self) -> None:
        """New versions of pages that the family shares."""
        self.write_area(self.areas[COMMON], *self.span(COMMON_PAGES // 2))

    def fork(self) -> None:
        """A child sees the pages of this moment, whatever the parent writes meanwhile."""
        words = self.private.words.copy()
        child = self.task.fork()
        self.row.count("forks")
        if self.board.grants[self.post.family] == GRANTED:
            # A real process takes it over; the handle is not used, and so not closed.
            self.board.grants[self.post.family] = NOTHING
            self.voice.say(fork=child.pid, words=words.tobytes().hex())
            return
        with child:
            self.write()
            first, count = self.span(len(self.private))
            data = child.read(self.private.address(first), count * PAGE_BYTES)
            copy = Area(PRIVATE, self.private.base, words, self.private.who)
            self._compare(copy, first, data)
            child.write(self.private.address(first), bytes(count * PAGE_BYTES))
            self.check_area(self.private, first, count, still=True)

    def _compare(self, area: Area, first: int, data: bytes) -> None:
        """Verify pages that were read in another way."""
        count = len(data) // PAGE_BYTES
        check(area, first, count, lambda _first, _count: data, self.row, self.voice.complain, still=True)

    def drop(self) -> None:
        """Some pages are thrown away, by one of three ways: they read as zeros."""
        first, count = self.span(len(self.private))
        address, length = self.private.address(first), count * PAGE_BYTES
        self.private.begin_drop(first, count)
        way = self.random.randrange(3)
        if way == 0:
            self.task.madvise(address, length, nm.MADV_DONTNEED)
        else:
            if way == 1:
                self.task.munmap(address, length)
            self._again(lambda: self.task.mmap(length, addr=address, flags=_FIXED))
        self.private.end_drop(first, count)
        self.row.count("drops")
        self.check_area(self.private, first, count, still=True)

    def discard(self) -> None:
        """Some pages may be thrown away by whoever is short, until they are written again."""
        first, count = self.span(len(self.private))
        self.private.begin_drop(first, count)
        self.task.madvise(self.private.address(first), count * PAGE_BYTES, nm.MADV_FREE)
        self.row.count("drops")

    def pin(self) -> None:
        """Some pages stay in their frames, and are read and written there."""
        first, count = self.span(len(self.private))
        with Mapping(self.task, self.private.address(first), count * PAGE_BYTES).pin() as array:
            self._compare(self.private, first, array.tobytes())
            array[:] = np.frombuffer(self.private.begin_write(first, count), np.uint8)
            self.private.end_write(first, count)
        self.row.count("pages_pinned", count)
        self.row.count("pages_written", count)
        self.check_area(self.private, first, count, still=True)

    def protect(self) -> None:
        """Without rights nothing can be read; with them, all is as it was."""
        first, count = self.span(len(self.private))
        address, length = self.private.address(first), count * PAGE_BYTES
        try:
            self.task.mprotect(address, length, nm.PROT_NONE)
            try:
                self.task.read(address, 1)
            except nm.SegmentationFault:
                self.row.count("protections")
            else:
                self.row.count("wrong")
                self.voice.complain(f"wrong: page {first} of private could be read without the right to")
        finally:
            self._again(lambda: self.task.mprotect(address, length, nm.PROT_READ | nm.PROT_WRITE))
        self.check_area(self.private, first, count, still=True)

    def remap(self) -> None:
        """Some pages go to another address and come back."""
        first, count = self.span(len(self.private))
        address, length = self.private.address(first), count * PAGE_BYTES
        flags = nm.MREMAP_MAYMOVE | nm.MREMAP_FIXED
        self.task.mremap(address, length, length, flags, self._aside)
        self._again(lambda: self.task.mremap(self._aside, length, length, flags, address))
        self.row.count("remaps")
        self.check_area(self.private, first, count, still=True)

    def _again(self, action: Callable[[], Any]) -> None:
        """What must succeed for the rest to make sense: that memory is short just now is waited for."""
        for _ in range(_TRIES - 1):
            try:
                action()
            except (OSError, nm.OutOfMemory):
                self._look_alive()
                time.sleep(_PAUSE_S)
            else:
                return
        action()


def churn(mover: Mover, failed: list[BaseException]) -> None:
    """Move pages under the other thread's feet."""
    try:
        mover.until_over(mover.movers())
    except BaseException as error:  # noqa: BLE001 - told by the other thread
        failed.append(error)
    mover.row.end()


def run(post: Post, board: Board, machine: nm.Machine, voice: Voice) -> int:
    """The life of a worker: it may end in the middle, so that another one takes its place."""
    worker = Worker(post, board, machine, voice)
    mover = Mover(post, board, machine, worker.task, 1)
    mover.areas, mover.voice, mover.owner = worker.areas, voice, False
    failed: list[BaseException] = []
    thread = threading.Thread(target=churn, args=(mover, failed), daemon=True)
    thread.start()
    worker.take_over()
    while not worker.attempt(worker.fill):
        time.sleep(_PAUSE_S)
    choices = worker.choices()
    leaves = random.Random(f"{post.plan.seed}/{post.serial}/leaves").random() < 1 / 2  # noqa: S311 - as in Member
    over = _some_time(post, worker.random)
    while time.monotonic() < post.until and not failed:
        worker.attempt(worker.random.choice(choices))
        if leaves and time.monotonic() > over:
            worker.row.count("exits")
            worker.verify_all()
            return LEFT
    thread.join()
    if failed:
        raise failed[0]
    worker.verify_all()
    worker.row.begin("end")
    worker.task.close()
    worker.row.end()
    return DONE


def _some_time(post: Post, draw: random.Random) -> float:
    """When a worker that leaves does so: in the second half of what is left."""
    now = time.monotonic()
    return now + (post.until - now) * draw.uniform(0.5, 1.0)
