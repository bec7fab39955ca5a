"""A machine without a daemon: real memfds, real page tables, and a kernel in this process; and recorded programs."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from numaemu.attachment import map_views
from numaemu.replay.records import Record, read_records
from numaemu.task import Task
from numaemu.window import Window
from numaemu_core import limits
from numaemu_core.columns import I8
from numaemu_core.errors import SegmentationFault
from numaemu_core.layout import layout_of
from numaemu_core.topology import uniform
from numaemu_host import memfd
from numaemu_host.robust import MutexTable

PAGE = 4096
START = 0x2AAAAAAAB000
MM = 3
READ, WRITE = 3, 7  # entries: present, readable (and writable)


class FakeKernel:
    """Serves faults from a list of free frames, and notes every call as (name, arguments after the pid).

    `mapped` says which virtual pages there are, and what their entries allow.
    """

    def __init__(self, frames_per_node: int = 512) -> None:
        self.layout = layout_of(uniform(2, frames_per_node * PAGE, 64 * PAGE, "swap-v3", PAGE))
        self.stack = contextlib.ExitStack()
        self.fds = {name: self._memfd(name, part.size) for name, part in self.layout.segments.items()}
        self.fds["mmap_sem"] = self._memfd("mmap_sem", limits.MAX_MMS)
        self.views = map_views(self.layout, self.fds)
        self.mutexes: MutexTable = self.views.mutexes
        self.mutexes.initialise_range(0, self.layout.pte_mutex + 64)
        self.attachment = SimpleNamespace(views=self.views, layout=self.layout, fds=self.fds, fenced=True)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.mapped: dict[int, int] = {}
        self.free = list(range(1, self.layout.frame_count))
        self.slots = itertools.count(5)
        self.pgd, self.tables = 1, itertools.count(2)
        self.on_fault: Callable[[int], None] = lambda _vpn: None

    def _memfd(self, name: str, length: int) -> int:
        fd = memfd.create(name, length, preallocate=False)
        self.stack.callback(os.close, fd)
        return fd

    # -- page tables ---------------------------------------------------------------------------------------------------

    def flat(self, vpn: int) -> int:
        """The flat index of a page's entry; missing tables are made."""
        table = self.pgd
        for shift in (27, 18, 9):
            at = table * 512 + (vpn >> shift & 511)
            if not self.views.pte[at]:
                self.views.pte[at] = next(self.tables) << 12 | 1
            table = int(self.views.pte[at]) >> 12
        return table * 512 + (vpn & 511)

    def map(self, vpn: int, pfn: int, bits: int = WRITE) -> None:
        """Map a page to a frame."""
        self.views.pte[self.flat(vpn)] = pfn << 12 | bits

    def unmap(self, vpn: int) -> None:
        """Take a page's frame away."""
        self.views.pte[self.flat(vpn)] = 0

    def add_pages(self, count: int, bits: int = WRITE, start: int = START) -> None:
        """Pages that a fault may bring in."""
        self.mapped |= {(start >> 12) + i: bits for i in range(count)}

    def frame(self, pfn: int) -> memoryview:
        """The bytes of a frame."""
        return memoryview(self.views.frames)[pfn * PAGE : (pfn + 1) * PAGE]

    def flats(self, count: int, start: int = START) -> I8:
        """The flat indexes of pages from `start` on."""
        return np.array([self.flat((start >> 12) + i) for i in range(count)])

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call(self, name: str, _pid: int, *args: Any) -> Any:  # noqa: ANN401 - as each call has it
        """What a machine's `Calls.call` does."""
        self.calls.append((name, args))
        match name:
            case "window":
                return next(self.slots)
            case "fault":
                self.bring_in(*args)
                return args[1]
            case _:
                return 0

    def complain(self) -> None:
        """What a machine's `Calls.complain` does."""

    def note_window(self, window: Window) -> None:
        """What a machine's `Calls.note_window` does."""

    def bring_in(self, addr: int, length: int, write: bool) -> None:  # noqa: FBT001 - as the call has it
        """Map what is not there; as much as can be."""
        first, end = addr >> 12, (addr + length - 1 >> 12) + 1
        for vpn in range(first, end):
            bits = self.mapped.get(vpn, 0)
            if not bits & (4 if write else 2):
                if vpn == first:
                    raise SegmentationFault(vpn << 12)
                return
            if not int(self.views.pte[self.flat(vpn)]) & (4 if write else 2):
                self.map(vpn, self.free.pop(0), bits)
            self.on_fault(vpn)

    def asked(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of all calls of that name."""
        return [args for called, args in self.calls if called == name]

    def task(self) -> Task:
        """A task on this machine."""

        def no_other(_identity: list[int]) -> NoReturn:
            raise AssertionError("no task was forked here")

        return Task(no_other, self.attachment, self, 1, MM, self.pgd)  # type: ignore[arg-type] # stands in for one

    @property
    def counters(self) -> list[int]:
        """The counters of all slots that were ever used."""
        used: list[int] = self.views.windows[:16].tolist()
        return [counter for counter in used if counter]


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    """A machine of two nodes with 512 frames each."""
    found = FakeKernel()
    yield found
    assert all(counter % 2 == 0 for counter in found.counters), "a window was left open"
    found.stack.close()


@pytest.fixture
def task(kernel: FakeKernel) -> Iterator[Task]:
    """A task of that machine, with 64 pages from START that faults bring in."""
    kernel.add_pages(64)
    with kernel.task() as found:
        yield found


# -- recorded programs -------------------------------------------------------------------------------------------------

GOOD = {"r": 0, "e": 0}
#: A program that agrees, on two nodes of 8 MiB.
AGREEING = {
    "id": "one",
    "kernel": "6.12",
    "machine": {"cpus": [[0], [1]], "memory_kb": [8192, 8192], "distances": [[10, 20], [20, 10]]},
    "ops": ["P0 mmap 0 4 anon priv rw", "P0 mbind 0 4 bind 2 64 0", "P0 tw 0 4 1", "P0 where 0 4"],
    "results": [GOOD, GOOD, {"r": 4, "e": 0}, {**GOOD, "w": "1111"}],
    "det": True,
}


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """Makes a program that agrees, with some fields changed."""
    return lambda name="one", **fields: {**AGREEING, "id": name, **fields}


@pytest.fixture
def slow_row(row: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Makes a program that takes a second, and that nobody has answered."""
    ops = ["P0 mmap 0 1500 anon priv rw", *["P0 tw 0 1500 1", "P0 madvise 0 1500 dontneed"] * 400]
    return lambda name="slow": row(name, ops=ops, results=None)


@pytest.fixture
def recording(tmp_path: Path) -> Callable[..., str]:
    """Writes programs to a file; gives its path."""

    def write(*rows: dict[str, Any], name: str = "some.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        return str(path)

    return write


@pytest.fixture
def records(recording: Callable[..., str]) -> Callable[..., list[Record]]:
    """Programs as they are read."""
    return lambda *rows: list(read_records(recording(*rows)))
