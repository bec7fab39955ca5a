"""Memory that all processes of a run share, beside the emulated machine: what was done, and what was written.

It lives as long as the process that made it, so what a killed client has done and written is known. Each thread of a
client has a row: what it is doing, since when, how much it has done. Each page has a word (`pages`): those of the files
first, then a block for each family: a worker, its companion, and its children.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from numaemu.stress.pages import ZERO
from numaemu.stress.plan import COMMON_PAGES, FILES

if TYPE_CHECKING:
    from numaemu.stress.plan import Plan
    from numaemu_core.columns import U8

#: What is counted, in the order of the report.
COUNTERS: Final = (
    "reads_verified",
    "reads_overlapped",
    "pages_written",
    "pages_pinned",
    "file_writes",
    "file_reads",
    "forks",
    "adopted",
    "mbinds",
    "migrations",
    "migrations_of_others",
    "moves_of_pages",
    "cpusets",
    "policies",
    "pageouts",
    "locks",
    "protections",
    "remaps",
    "drops",
    "exits",
    "pages_moved",
    "refused",
    "out_of_memory",
    "killed_for_memory",
    "lost",
    "wrong",
    "torn",
)
#: What a thread can be doing.
OPERATIONS: Final = (
    "fsck",
    "fill",
    "write",
    "read",
    "read_files",
    "write_files",
    "pin",
    "fork",
    "drop",
    "discard",
    "protect",
    "remap",
    "policy",
    "move",
    "migrate",
    "migrate_other",
    "move_pages",
    "cpuset",
    "page_out",
    "lock",
    "read_common",
    "write_common",
    "write_own",
    "check_area",
    "verify_own",
    "verify_all",
    "end",
)
#: What stands in the cell of a family: nothing; the next fork is for a process to take over; its worker has ended.
NOTHING: Final = 0
GRANTED: Final = 1
ORPHANED: Final = 2

_HEAD: Final = 4
_OPERATION, _SINCE_NS, _STEPS, _PID = range(_HEAD)
#: Threads of a client.
THREADS: Final = 2
_COUNTER: Final = {name: i for i, name in enumerate(COUNTERS)}
_NUMBER: Final = {name: i for i, name in enumerate(OPERATIONS)}


@dataclass(frozen=True, slots=True)
class Shape:
    """How much of each there is."""

    #: Processes at one time: some may be ending while the next ones begin.
    processes: int
    families: int
    file_pages: tuple[int, ...]
    block_pages: int

    @property
    def row_words(self) -> int:
        """Words of a row."""
        return _HEAD + len(COUNTERS)

    @property
    def total_words(self) -> int:
        """All of it."""
        rows = self.processes * THREADS * self.row_words
        return rows + self.families + sum(self.file_pages) + self.families * self.block_pages


def shape_of(plan: Plan) -> Shape:
    """The shape that a run needs."""
    files = tuple(file.pages_each * plan.workers for file in FILES)
    return Shape(2 * plan.clients + 8, 2 * plan.workers + 8, files, plan.private_pages + COMMON_PAGES)


def new_memory(plan: Plan) -> Any:  # noqa: ANN401 - what multiprocessing gives has no public type
    """Memory for a board, to be handed to child processes; no page was written yet."""
    # The arena is a file without a name: nothing of it is left, however this process ends.
    memory = multiprocessing.get_context("forkserver").RawArray("Q", shape_of(plan).total_words)
    board = Board(plan, memory)
    for words in (*board.files, *board.blocks):
        words[:] = ZERO
    return memory


class Board:
    """That memory as arrays."""

    def __init__(self, plan: Plan, memory: Any) -> None:  # noqa: ANN401 - see new_memory
        """What `new_memory` gave, in any process."""
        shape = shape_of(plan)
        words: U8 = np.frombuffer(memory, np.uint64)
        sizes = [shape.processes * THREADS * shape.row_words, shape.families, *shape.file_pages]
        rows, families, *rest = np.split(words, np.cumsum(sizes))
        #: A cell a family: GRANTED and so on.
        self.grants: U8 = families
        self._rows = rows.reshape(shape.processes, THREADS, shape.row_words)
        #: The words of each file's pages.
        self.files: list[U8] = rest[:-1]
        #: A row a family: the words of its private pages, then those of its common ones.
        self.blocks: U8 = rest[-1].reshape(shape.families, shape.block_pages)
        self.processes = shape.processes
        self.families = shape.families

    def row(self, process: int, thread: int) -> Row:
        """The row of a thread."""
        return Row(self._rows[process, thread])

    def totals(self) -> dict[str, int]:
        """All counters, over all rows."""
        return dict(zip(COUNTERS, self._rows[:, :, _HEAD:].sum(axis=(0, 1)).tolist(), strict=True))

    def clear_head(self, process: int) -> None:
        """A new process takes the rows of one that has ended; what that one has counted stays."""
        self._rows[process, :, :_HEAD] = 0

    def task_pids(self) -> list[int]:
        """Tasks of the emulated machine that are at work."""
        pids = self._rows[:, :, _PID]
        return pids[pids != 0].tolist()

    def doing(self, process: int) -> list[tuple[str, float, int]]:
        """For each thread of a process that has begun: what, for how many seconds, after how many steps."""
        now = time.monotonic_ns()
        heads = self._rows[process, :, :_HEAD].tolist()
        return [(OPERATIONS[op], (now - since) / 1e9, steps) for op, since, steps, _ in heads if since]


class Row:
    """What one thread does and has done."""

    def __init__(self, words: U8) -> None:
        """Only this thread writes it."""
        self._words = words

    def begin(self, operation: str) -> None:
        """From now on it does that."""
        self._words[_OPERATION] = _NUMBER[operation]
        self._words[_SINCE_NS] = time.monotonic_ns()
        self._words[_STEPS] += 1

    def end(self) -> None:
        """The thread is over: it does nothing, and cannot be stuck."""
        self._words[_SINCE_NS] = self._words[_PID] = 0

    def task(self, pid: int) -> None:
        """Its task, for others to migrate."""
        self._words[_PID] = pid

    def count(self, name: str, number: int = 1) -> None:
        """That was done, so often."""
        self._words[_HEAD + _COUNTER[name]] += number
