"""Many programs: each on a machine of its own, several at a time, in the order in which they were given."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from numaemu.replay.compare import differences, skipped
from numaemu.replay.in_memory import InMemory
from numaemu.replay.program import Program

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numaemu.replay.host import Host
    from numaemu.replay.records import Answer, Record

#: Programs that a worker is handed at one time; on machines of real processes one, as each takes long.
_CHUNK: Final = 8
#: Ctrl-C goes to a command and its workers, and may reach a worker first: how long it may take to reach us as well.
_CTRL_C_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """How programs are run."""

    #: In place of the profile of the kernel that answered.
    profile: str | None = None
    #: On machines of real processes, not in memory.
    processes: bool = False
    #: Check every machine when its program is over.
    fsck: bool = False
    #: Programs at a time.
    jobs: int = 1


@dataclass(slots=True)
class Outcome:
    """A program that was run: our answers, and where they are not those of the recording."""

    record: Record
    answers: list[Answer]
    #: Calls that differ; empty where the recording has no answers.
    differing: list[int] = field(default_factory=list)
    #: What fsck found afterwards.
    violations: list[str] = field(default_factory=list)

    @property
    def compared(self) -> int:
        """How many calls count."""
        return len(self.record.results) - len(skipped(self.record)) if self.record.results else 0

    @property
    def failed(self) -> int | None:
        """The call in which the program came to a halt: it is none of the language, or the machine broke down."""
        return next((call for call, answer in enumerate(self.answers) if "error" in answer), None)


def run_one(record: Record, options: Options) -> Outcome:
    """One program on a fresh machine.

    Raises:
        TopologyError: the record describes no machine. PeerError, OSError: it could not be started.
    """
    host = _switch_on(record, options)
    try:
        outcome = Outcome(record, Program(record, host).run())
        if options.fsck and outcome.failed is None:
            outcome.violations = host.fsck()
    finally:
        host.close()
    if record.results:
        outcome.differing = differences(record, outcome.answers)
    return outcome


def _switch_on(record: Record, options: Options) -> Host:
    topology = record.topology(options.profile)
    if not options.processes:
        return InMemory(topology)
    from numaemu.replay.in_processes import InProcesses  # noqa: PLC0415 - ZeroMQ is not needed in memory

    return InProcesses(topology)


def run_all(records: list[Record], options: Options) -> Generator[Outcome]:
    """Every program, in the order of the list. Close the iterator to leave the rest undone.

    Raises:
        ChildProcessError: a worker was killed; what it ran has no outcome.
    """
    jobs = min(options.jobs, len(records))
    if jobs <= 1:
        for record in records:
            yield run_one(record, options)
        return
    # A program does not need the line that it was read from: it stays here.
    work = [(replace(record, source={}), options) for record in records]
    done = 0
    with _workers(jobs) as executor:
        try:
            for outcome in executor.map(_run_apart, work, chunksize=1 if options.processes else _CHUNK):
                yield Outcome(records[done], *outcome)
                done += 1
        except BrokenProcessPool:
            time.sleep(_CTRL_C_S)
            raise ChildProcessError(
                f"a worker process was killed after {done} of {len(records)} programs, at {records[done].file} "
                f"{records[done].id} or soon after it; is memory short? --jobs 1 takes less"
            ) from None


def default_jobs() -> int:
    """As many as there are processors for us."""
    return len(os.sched_getaffinity(0))


# -- workers -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, gone at the end; work that none has begun is dropped then.

    From a forkserver, because a fork of this process would copy the locks of threads that are not there any more.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # A machine in memory multiplies no matrices, and a forkserver should have no thread but one.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    executor = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Ctrl-C ends a worker without a word, and so does the end of its parent; a machine of processes ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    gc.freeze()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _run_apart(work: tuple[Record, Options]) -> tuple[list[Answer], list[int], list[str]]:
    outcome = run_one(*work)
    return outcome.answers, outcome.differing, outcome.violations
