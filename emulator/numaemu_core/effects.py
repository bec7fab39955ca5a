"""What a kernel task yields: everything that it needs from the world.

A kernel task is a generator. It changes shared state between yields, alone; at a yield other tasks run. The *performer*
(the daemon's loop, or a seeded one in tests) does what is yielded and resumes the task with the answer.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from numaemu_core.columns import I8
from numaemu_core.locks import Key, Mode, Rank, SemGuard, SpinGuard


@dataclass(frozen=True, slots=True)
class Breathe:
    """cond_resched: let others run. Answer: None."""


@dataclass(frozen=True, slots=True)
class SpinBusy:
    """Another process holds one of these spin locks: let others run, then try again. Answer: None."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class DownSem:
    """Sleep for an mmap_sem. Answer: its SemGuard."""

    mm_id: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class WaitPageLocks:
    """Sleep until at least one of these frames is not locked. Answer: None."""

    pfns: I8


@dataclass(frozen=True, slots=True)
class WaitWriteback:
    """Sleep until none of these frames is under writeback. Answer: None."""

    pfns: I8


@dataclass(frozen=True, slots=True)
class Nap:
    """Sleep while there is nothing else to do: until a write has ended or a moment is over (blk_congestion_wait).

    Answer: None.
    """


@dataclass(frozen=True, slots=True)
class Shootdown:
    """Wait until no window that was open in these mms before now is still open (bounded).

    Answer: the stragglers, a dict of access slot → window counter; empty when all have closed.
    """

    mm_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class WritePages:
    """Start writing frames to their slots of the swap area; `end_swap_write` follows by itself. Answer: None."""

    pfns: I8
    slots: I8


@dataclass(slots=True, eq=False)
class ReadPages:
    """Start reading slots of the swap area into frames. Answer: None.

    The performer sets `done` when it is over.
    """

    slots: I8
    pfns: I8
    done: bool = False


@dataclass(slots=True, eq=False)
class CopyPages:
    """Start copying frames into others of one node, by that node's process. Answer: None.

    The performer sets `done` when it is over.
    """

    nid: int
    source: I8
    target: I8
    done: bool = False


@dataclass(frozen=True, slots=True)
class WaitCopies:
    """Sleep until all of these are done. Answer: None."""

    copies: tuple[CopyPages | ReadPages, ...]


Effect = (
    Breathe
    | SpinBusy
    | Nap
    | DownSem
    | WaitPageLocks
    | WaitWriteback
    | Shootdown
    | WritePages
    | ReadPages
    | CopyPages
    | WaitCopies
)

T = TypeVar("T")
#: A kernel task, or a part of one: yields effects, returns T.
KernelTask = Generator[Effect, Any, T]

__all__ = [
    "Breathe",
    "CopyPages",
    "DownSem",
    "Effect",
    "KernelTask",
    "Mode",
    "Nap",
    "Rank",
    "ReadPages",
    "SemGuard",
    "Shootdown",
    "SpinBusy",
    "SpinGuard",
    "WaitCopies",
    "WaitPageLocks",
    "WaitWriteback",
    "WritePages",
]
