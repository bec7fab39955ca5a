"""Real threads and processes as the supervisor knows them, with the tasks and address spaces that stand for them."""

import os
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from numaemu.task import Task
from numaemu_run.fault_events import Touches
from numaemu_run.mirror import Mirror

#: A user, and the capabilities that the machine knows.
Rights: TypeAlias = tuple[int, frozenset[str]]
_NO_RIGHTS: Final[Rights] = (0, frozenset())


@dataclass(slots=True, eq=False)
class Thread:
    """A real thread and the task that stands for it."""

    tid: int
    process: "Process"
    task: Task
    #: The CPUs that it may run on, as a mask, and the one that it counts as running on.
    cpus: int
    cpu: int
    #: Its directory under /proc: of this thread, whoever gets its number later.
    place: int
    #: Which one it is under, of all that were set; 0: the default. Whom it has started is under the same.
    policy: int = 0
    #: Its page faults when they were last looked at.
    faults: int = 0
    #: What its task has been told of it: its user and its capabilities.
    rights: Rights = _NO_RIGHTS

    @property
    def folder(self) -> str:
        """The same directory as a path."""
        return f"/proc/self/fd/{self.place}"

    def is_alive(self) -> bool:
        """Is its number still its own?"""
        return os.access("comm", os.F_OK, dir_fd=self.place)


@dataclass(slots=True, eq=False)
class Process:
    """A real process: its threads and its address space."""

    pid: int
    pidfd: int
    mirror: Mirror
    threads: dict[int, Thread] = field(default_factory=dict)
    #: It, or an ancestor, has given ranges of memory policies of their own.
    binds: bool = False
    #: It is killed, and may not know it yet.
    doomed: bool = False
    #: Its address space is that of its parent until it executes a program (CLONE_VM, vfork).
    borrows: bool = False
    #: The thread that is about to execute another program, if one is.
    executor: int | None = None
    #: Faults since it was last looked at that are not its first one's alone.
    touches: list[Touches] = field(default_factory=list)
    #: How often it has asked for its CPU since it was looked at last.
    cpu_questions: int = 0
    #: When it was looked at last while it mattered who has touched its pages.
    looked_at_ns: int = 0
    #: With so many threads known it is time to see which have ended.
    threads_expected: int = 16

    @property
    def leader(self) -> Thread:
        """Its first thread, or any one that is left.

        Raises:
            ProcessLookupError: none is.
        """
        found = self.threads.get(self.pid) or next(iter(self.threads.values()), None)
        if found is None:
            raise ProcessLookupError(f"no thread of process {self.pid} is left")
        return found

    def is_crowded(self) -> bool:
        """Are so many threads known that some must have ended?"""
        return len(self.threads) >= self.threads_expected

    def is_under_one_policy(self) -> bool:
        """Have all of its threads one policy and one CPU, as far as is known? Who touches a page is no matter then."""
        return len({(one.policy, one.cpu) for one in self.threads.values()}) <= 1


@dataclass(frozen=True, slots=True)
class Exited:
    """A process that has ended by itself: its name, and how many of its pages were on each node then."""

    pid: int
    name: str
    pages_by_node: dict[int, int]


@dataclass(slots=True)
class Counts:
    """What a report tells of placement."""

    processes: int = 0
    threads: int = 0
    pages_placed: int = 0
    #: Of these, placed while threads of the process had different policies: whose page it was is not known.
    pages_ambiguous: int = 0
    #: Processes that were killed as the machine had no memory for them.
    killed: int = 0
    #: Processes that have ended without a call, nor an ancestor that had changed anything: nobody has looked at them.
    ended_unmet: int = 0
