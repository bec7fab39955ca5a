"""One client process of a stress run: a thread that writes and verifies, and one that moves the pages under its feet.

Started as `python -m numaemu.stress.worker MACHINE NUMBER SEED SECONDS`; prints one JSON object of counts when it ends.
"""

import functools
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import numaemu as nm
from numaemu.stress.pages import Verdict, content, verify

PAGES: Final = 96
#: Pages that one operation covers at most.
_SPAN_MAX: Final = 24


class Worker:
    """The memory of one worker and what it must hold."""

    def __init__(self, machine: nm.Machine, number: int, seed: int) -> None:
        """A task on one of the machine's CPUs, with its mapping."""
        self.random = random.Random(f"{seed}/{number}")  # noqa: S311 - a run is named by its seed
        self.machine = machine
        self.owner = number
        self.page_size = machine.topology.page_size
        self.nodes = [node.id for node in machine.topology.nodes]
        cpus = [cpu for node in machine.topology.nodes for cpu in node.cpus]
        self.task = machine.attach(cpu=cpus[number % len(cpus)], capabilities={"CAP_SYS_RESOURCE", "CAP_SYS_NICE"})
        self.base = self.task.mmap(PAGES * self.page_size).start
        #: How often each page was written; 0 reads as zeros.
        self.versions = [0] * PAGES
        #: Pages whose last write was refused half way.
        self.unknown: set[int] = set()
        self.counts: Counter[str] = Counter()

    def address(self, page_index: int) -> int:
        """Where a page of the mapping is."""
        return self.base + page_index * self.page_size

    def span(self, draw: random.Random) -> tuple[int, int]:
        """Some pages: the first, and how many."""
        first = draw.randrange(PAGES)
        return first, draw.randint(1, min(_SPAN_MAX, PAGES - first))

    # -- what the writing thread does ----------------------------------------------------------------------------------

    def write(self) -> None:
        """New versions of some pages, with one call."""
        first, count = self.span(self.random)
        pages = range(first, first + count)
        for page in pages:
            self.versions[page] += 1
        data = b"".join(content(self.page_size, self.owner, page, self.versions[page]) for page in pages)
        try:
            self.task.write(self.address(first), data)
        except BaseException:  # how much of it was written is not known
            self.unknown.update(pages)
            raise
        self.unknown.difference_update(pages)
        self.counts["pages_written"] += count

    def check(self, task: nm.Task, versions: list[int], first: int, count: int) -> None:
        """Read some pages with one call and compare each."""
        data = task.read(self.address(first), count * self.page_size)
        for i in range(count):
            if first + i in self.unknown:
                continue
            found = data[i * self.page_size : (i + 1) * self.page_size]
            verdict = verify(found, self.owner, first + i, versions[first + i])
            self.counts["reads_verified"] += 1
            if verdict is not Verdict.RIGHT:
                self.counts[verdict.value] += 1

    def read(self) -> None:
        """Verify some pages."""
        self.check(self.task, self.versions, *self.span(self.random))

    def fork(self) -> None:
        """A child sees the pages of this moment, whatever the parent writes meanwhile."""
        child = self.task.fork()
        versions = list(self.versions)
        with child:
            self.write()
            self.check(child, versions, 0, PAGES)
            first, count = self.span(self.random)
            child.write(self.address(first), bytes(count * self.page_size))
            self.check(self.task, self.versions, first, count)
        self.counts["forks"] += 1

    def drop(self) -> None:
        """Unmap a part and map it anew: it must read as zeros."""
        first, count = self.span(self.random)
        self.task.munmap(self.address(first), count * self.page_size)
        flags = nm.MAP_PRIVATE | nm.MAP_ANONYMOUS | nm.MAP_FIXED
        self.task.mmap(count * self.page_size, addr=self.address(first), flags=flags)
        self.versions[first : first + count] = [0] * count
        self.unknown.difference_update(range(first, first + count))
        self.counts["remaps"] += 1

    # -- what the moving thread does -----------------------------------------------------------------------------------

    def move(self, draw: random.Random) -> None:
        """A policy for some pages, and those that do not follow it go to swap."""
        first, count = self.span(draw)
        mode, nodes = draw.choice(
            [
                (nm.MPOL_BIND, {draw.choice(self.nodes)}),
                (nm.MPOL_PREFERRED, {draw.choice(self.nodes)}),
                (nm.MPOL_INTERLEAVE, set(self.nodes)),
                (nm.MPOL_DEFAULT, set()),
            ]
        )
        flags = draw.choice([nm.MPOL_MF_MOVE, nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT, nm.MPOL_MF_MOVE_ALL])
        self.task.mbind(self.address(first), count * self.page_size, mode, nodes, flags)
        self.counts["mbinds"] += 1

    def page_out(self, draw: random.Random) -> None:
        """Some pages go to swap."""
        first, count = self.span(draw)
        self.task.madvise(self.address(first), count * self.page_size, nm.MADV_PAGEOUT)
        self.counts["pageouts"] += 1

    def protect(self, draw: random.Random) -> None:
        """Rights are taken from some pages and given back before anybody may miss them."""
        first, count = self.span(draw)
        length = count * self.page_size
        self.task.mprotect(self.address(first), length, nm.PROT_READ | nm.PROT_WRITE)
        self.counts["mprotects"] += 1


def work(worker: Worker, until: float) -> None:
    """Write and verify until the time is over; in the end verify everything."""
    choices: list[Callable[[], None]] = [worker.write] * 8 + [worker.read] * 8 + [worker.fork, worker.drop]
    while time.monotonic() < until:
        attempt(worker, worker.random.choice(choices))
    worker.check(worker.task, worker.versions, 0, PAGES)


def churn(worker: Worker, until: float, seed: str) -> None:
    """Move pages under the other thread's feet."""
    draw = random.Random(seed)  # noqa: S311 - a run is named by its seed
    choices = [worker.move] * 6 + [worker.page_out, worker.protect]
    while time.monotonic() < until:
        operation = draw.choice(choices)
        attempt(worker, functools.partial(operation, draw))


def attempt(worker: Worker, operation: Callable[[], None]) -> None:
    """Do something that may be refused: memory or swap is full, or pages vanish under an unmapping thread."""
    try:
        operation()
    except (OSError, nm.OutOfMemory, nm.SegmentationFault) as error:
        worker.counts[f"refused_{type(error).__name__}"] += 1


def main() -> int:
    """Run as one process of a stress run."""
    name, number, seed, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    with nm.connect(name) as machine:
        worker = Worker(machine, number, seed)
        until = time.monotonic() + seconds
        mover = threading.Thread(target=churn, args=(worker, until, f"{seed}/{number}/mover"))
        mover.start()
        work(worker, until)
        mover.join()
        worker.task.close()
        sys.stdout.write(json.dumps(worker.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
