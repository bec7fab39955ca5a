"""What every process of a run begins with, and how it is spoken with.

It writes lines to its pipe: JSON objects, and, when it is told by a signal to say where it hangs, the stacks of its
threads as Python's faulthandler writes them, even if Python itself does not get its turn any more.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numaemu as nm
from numaemu.stress.board import Board
from numaemu_core.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from numaemu.stress.plan import Plan

#: "Say where you are."
SIGNAL_WHERE: Final = signal.SIGUSR1
#: Exit statuses: it has done its part; it ended in the middle on purpose; its task was killed for want of memory.
DONE: Final = 0
LEFT: Final = 10
KILLED_FOR_MEMORY: Final = 11

#: A machine whose kernel daemon was killed does not answer for a while.
_CONNECT_S: Final = 60.0
_PAUSE_S: Final = 0.1
_LINES_OF_FAILURE: Final = 12
#: Complaints of one process that are told in words; all are counted.
_COMPLAINTS_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Post:
    """Where a process stands in a run."""

    plan: Plan
    machine: str
    #: What `board.new_memory` gave.
    memory: Any
    #: Its rows on the board.
    process: int
    #: Its family's block on the board.
    family: int
    #: Which pages of the files are its own, and which CPU.
    worker: int
    #: How manieth process in this run: different for each.
    serial: int
    #: When it is over, on the clock of `time.monotonic`.
    until: float
    #: What it takes over from a worker of its family; empty for a worker.
    inherited: dict[str, Any]


class TaskKilled(Exception):
    """The task was killed for want of memory."""


class Voice:
    """Lines to the process that runs the show."""

    def __init__(self, pipe: Connection) -> None:
        """The writing end of a pipe."""
        self._pipe = pipe
        self._complaints = 0

    def say(self, **words: Any) -> None:  # noqa: ANN401 - anything that JSON has
        """One line. Short ones arrive whole, whoever else writes."""
        os.write(self._pipe.fileno(), json.dumps(words).encode() + b"\n")

    def complain(self, line: str) -> None:
        """Something is lost or wrong."""
        self._complaints += 1
        if self._complaints <= _COMPLAINTS_MAX:
            self.say(found=line)


def run_member(post: Post, pipe: Connection, body: Callable[[Post, Board, nm.Machine, Voice], int]) -> None:
    """The whole life of a process of a run: never returns."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    faulthandler.register(SIGNAL_WHERE, file=pipe.fileno(), all_threads=True)
    voice = Voice(pipe)
    board = Board(post.plan, post.memory)
    try:
        with connected(post.machine) as machine:
            status = body(post, board, machine, voice)
    except TaskKilled:
        board.row(post.process, 0).count("killed_for_memory")
        status = KILLED_FOR_MEMORY
    except BaseException:  # noqa: BLE001 - whatever it is, it is told
        voice.say(failed=traceback.format_exc().splitlines()[-_LINES_OF_FAILURE:])
        status = 1
    # At once: other threads may still be inside of calls.
    os._exit(status)


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def connected(name: str) -> Iterator[nm.Machine]:
    """The machine, as soon as it lets us in."""
    deadline = time.monotonic() + _CONNECT_S
    while True:
        try:
            machine = nm.connect(name)
            break
        except (ConnectionRefusedError, TimeoutError, PeerError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_S)
    with machine:
        yield machine
