"""The processes of a run: started, listened to, replaced when they end, killed, and in the end all gone."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import selectors
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from numaemu.stress import relatives, worker
from numaemu.stress.board import GRANTED, NOTHING, ORPHANED, Board
from numaemu.stress.pages import ZERO
from numaemu.stress.process import DONE, KILLED_FOR_MEMORY, LEFT, SIGNAL_WHERE, Post, run_member

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import TracebackType

    from numaemu.stress.plan import Plan

#: A thread that has done nothing for so long counts as stuck.
STUCK_S: Final = 90.0
#: How long stacks of a stuck process are waited for.
_STACKS_S: Final = 3.0
_TURN_S: Final = 0.05
#: Workers that are started between two turns.
_STARTS: Final = 4
#: How long a process is stopped: what waits for its window does so for the shorter ones, and gives up in the longest.
_PAUSES_S: Final = (0.02, 0.05, 0.1, 0.5)
_READ_BYTES: Final = 1 << 16
_STACK_LINES: Final = 40
_BODIES: Final = {"worker": worker.run, "companion": relatives.run_companion, "child": relatives.run_child}


@dataclass(slots=True, eq=False)
class Member:
    """A process, as this side sees it."""

    kind: str
    post: Post
    process: Any
    pipe: Connection
    #: What came of a line so far.
    heard: bytes = b""
    #: What the worker told of itself, for its relatives.
    told: dict[str, Any] = field(default_factory=dict)
    killed: bool = False
    #: It was told to say where it hangs, and has said so in these lines.
    asked_at: float = 0.0
    stacks: list[str] = field(default_factory=list)
    #: It is stopped until then.
    stopped_until: float = 0.0
    failure: list[str] = field(default_factory=list)


def _signal(member: Member, number: signal.Signals) -> None:
    """Send a signal, unless the process has ended."""
    if member.process.exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.process.pid, number)


class Crew:
    """All processes of a run. A context manager: nobody is left at its end."""

    def __init__(self, plan: Plan, machine: str, memory: Any, until: float) -> None:  # noqa: ANN401 - see board.new_memory
        """Nobody is there yet. `until` is on the clock of `time.monotonic`."""
        self._plan = plan
        self._machine = machine
        self._memory = memory
        self._until = until
        self.board = Board(plan, memory)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        # No client multiplies matrices, and a forkserver should have no thread but one.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        self._random = random.Random(f"{plan.seed}/crew")  # noqa: S311 - a run is named by its seed
        self._selector = selectors.DefaultSelector()
        self.members: list[Member] = []
        self._free_rows = list(range(self.board.processes - 1, -1, -1))
        self._free_families = list(range(self.board.families - 1, -1, -1))
        #: Numbers of workers that have nobody.
        self._vacant = list(range(plan.workers - 1, -1, -1))
        self._serial = 0
        self.pauses = 0
        #: What went wrong, in words.
        self.failed: list[str] = []
        #: Invariants that did not hold in the middle of it.
        self.fsck: list[str] = []
        #: What was lost or wrong, in words.
        self.found: list[str] = []

    def __enter__(self) -> Self:
        # Two descriptors a process, and some of the machine's.
        with contextlib.suppress(ValueError):
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            member.process.kill()
        for member in self.members:
            member.process.join()
            member.pipe.close()
        self.members.clear()
        self._selector.close()

    # -- coming --------------------------------------------------------------------------------------------------------

    def _start(self, kind: str, family: int, number: int, inherited: dict[str, Any]) -> Member:
        row = self._free_rows.pop()
        self.board.clear_head(row)
        self._serial += 1
        post = Post(self._plan, self._machine, self._memory, row, family, number, self._serial, self._until, inherited)
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_member, args=(post, writer, _BODIES[kind]), daemon=True)
        process.start()
        writer.close()
        os.set_blocking(reader.fileno(), False)
        member = Member(kind, post, process, reader)
        self.members.append(member)
        self._selector.register(reader, selectors.EVENT_READ, member)
        self._selector.register(process.sentinel, selectors.EVENT_READ, member)
        return member

    def fill_up(self) -> None:
        """Whoever is missing is started, a few at a time: the others are to be listened to meanwhile."""
        for _ in range(min(_STARTS, len(self._vacant), len(self._free_families))):
            number = self._vacant.pop()
            family = self._free_families.pop()
            self.board.blocks[family] = ZERO
            self.board.grants[family] = NOTHING
            self._start("worker", family, number, {})
        workers = [one for one in self.members if one.kind == "worker" and one.told]
        accompanied = {one.post.family for one in self.members if one.kind == "companion"}
        for one in workers:
            if len(accompanied) < self._plan.companions and one.post.family not in accompanied:
                accompanied.add(one.post.family)
                self._start("companion", one.post.family, one.post.worker, one.told)
        self._grant(workers)

    def _grant(self, workers: list[Member]) -> None:
        """The next fork of some worker is for a process to take over, while there are not enough of them."""
        granted = sum(int(self.board.grants[one.post.family] == GRANTED) for one in workers)
        children = sum(one.kind == "child" for one in self.members)
        ready = [one for one in workers if self.board.grants[one.post.family] == NOTHING]
        if ready and children + granted < self._plan.children:
            self.board.grants[self._random.choice(ready).post.family] = GRANTED

    # -- listening -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Listen for a moment to what they say, and notice who has ended and who is stuck."""
        gone = []
        for key, _ in self._selector.select(_TURN_S):
            if key.fileobj is key.data.pipe:
                self._listen(key.data)
            else:
                gone.append(key.data)
        for member in gone:
            self._bury(member)
        for member in list(self.members):
            self._look_after(member)

    def _listen(self, member: Member) -> None:
        try:
            part = os.read(member.pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not part:  # it has ended
            with contextlib.suppress(KeyError):
                self._selector.unregister(member.pipe)
            return
        *lines, member.heard = (member.heard + part).split(b"\n")
        for line in lines:
            try:
                words = json.loads(line) if line.startswith(b"{") else None
            except ValueError:  # it was cut in two by its end
                words = None
            if words is None:
                member.stacks.append(line.decode(errors="replace"))
            else:
                self._take(member, words)

    def _take(self, member: Member, words: dict[str, Any]) -> None:
        if "pid" in words:
            member.told = words
        elif "fork" in words:
            inherited = member.told | {"child": words["fork"], "words": words["words"]}
            self._start("child", member.post.family, member.post.worker, inherited)
        elif "found" in words:
            self.found.append(f"{member.kind} {member.post.serial}: {words['found']}")
        elif "fsck" in words:
            self.fsck += words["fsck"]
        elif "failed" in words:
            member.failure = words["failed"]

    def _bury(self, member: Member) -> None:
        """A process has ended: reap it, see why, and give its place away."""
        self._listen(member)  # its last words
        with contextlib.suppress(KeyError):
            self._selector.unregister(member.pipe)
        self._selector.unregister(member.process.sentinel)
        member.process.join()
        status = member.process.exitcode
        member.pipe.close()
        member.process.close()
        self.members.remove(member)
        self.board.clear_head(member.post.process)
        self._free_rows.append(member.post.process)
        if member.kind == "worker":
            self.board.grants[member.post.family] = ORPHANED
            self._vacant.append(member.post.worker)
        if all(one.post.family != member.post.family for one in self.members):
            self._free_families.append(member.post.family)
        if member.asked_at or (member.killed and status == -signal.SIGKILL):
            return
        if status not in {DONE, LEFT, KILLED_FOR_MEMORY}:
            why = member.failure or [f"exit status {status}", *member.stacks[-_STACK_LINES:]]
            self.failed.append(f"{member.kind} {member.post.serial} failed: " + "\n    ".join(why))

    def _look_after(self, member: Member) -> None:
        """A process that is stuck says where, and is ended."""
        stuck = [
            f"in {operation} for {seconds:.0f} s, after {steps} steps"
            for operation, seconds, steps in self.board.doing(member.post.process)
            if seconds > STUCK_S
        ]
        if not stuck or member.process.exitcode is not None:
            return
        now = time.monotonic()
        if not member.asked_at:
            member.asked_at = now
            _signal(member, SIGNAL_WHERE)
        elif now > member.asked_at + _STACKS_S:
            where = [f"{member.kind} {member.post.serial} was stuck {', '.join(stuck)}", *member.stacks[:_STACK_LINES]]
            self.failed.append("\n    ".join(where))
            member.process.kill()
            member.process.join()

    # -- going ---------------------------------------------------------------------------------------------------------

    def pause_one(self) -> None:
        """Stop some process for a moment, wherever it is: it may be in the middle of a page."""
        victims = [one for one in self.members if not one.killed and not one.stopped_until]
        if victims:
            victim = self._random.choice(victims)
            victim.stopped_until = time.monotonic() + self._random.choice(_PAUSES_S)
            self.pauses += 1
            _signal(victim, signal.SIGSTOP)

    def let_go_on(self, *, everybody: bool = False) -> None:
        """Whoever was stopped for long enough goes on."""
        now = time.monotonic()
        for member in self.members:
            if member.stopped_until and (everybody or now >= member.stopped_until):
                member.stopped_until = 0.0
                _signal(member, signal.SIGCONT)

    def kill_one(self) -> bool:
        """SIGKILL some process that has begun; whether there was one."""
        victims = [one for one in self.members if not one.killed and self.board.doing(one.post.process)]
        if not victims:
            return False
        victim = self._random.choice(victims)
        victim.killed = True
        victim.process.kill()
        return True
