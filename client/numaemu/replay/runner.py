"""Many programs: each on a machine of its own, several at a time, compared and summed up."""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import multiprocess

from numaemu.replay.compare import differences, skipped
from numaemu.replay.in_memory import InMemory
from numaemu.replay.in_processes import InProcesses
from numaemu.replay.program import Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numaemu.replay.host import Host
    from numaemu.replay.records import Answer, Record


@dataclass(frozen=True, slots=True)
class Options:
    """How programs are run."""

    #: In place of the profile of the kernel that answered.
    profile: str | None = None
    #: On machines of real processes, not in memory.
    processes: bool = False
    #: Check every machine when its program is over.
    fsck: bool = False
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


def run_one(record: Record, options: Options) -> Outcome:
    """One program on a fresh machine."""
    topology = record.topology(options.profile)
    host: Host = InProcesses(topology) if options.processes else InMemory(topology)
    try:
        outcome = Outcome(record, Program(record, host).run())
        if options.fsck:
            outcome.violations = host.fsck()
    finally:
        host.close()
    if record.results:
        outcome.differing = differences(record, outcome.answers)
    return outcome


def _run_marked(job: tuple[int, Record, Options]) -> tuple[int, list[Answer], list[int], list[str]]:
    number, record, options = job
    outcome = run_one(record, options)
    return number, outcome.answers, outcome.differing, outcome.violations


def run_all(records: list[Record], options: Options) -> Iterator[Outcome]:
    """Every program, in the order of the list."""
    if options.jobs <= 1:
        for record in records:
            yield run_one(record, options)
        return
    jobs = [(number, record, options) for number, record in enumerate(records)]
    with multiprocess.get_context("fork").Pool(options.jobs) as pool:
        for number, answers, differing, violations in pool.imap(_run_marked, jobs, chunksize=8):
            yield Outcome(records[number], answers, differing, violations)


def default_jobs() -> int:
    """As many as there are processors for us."""
    return len(os.sched_getaffinity(0))


# -- what is excused ---------------------------------------------------------------------------------------------------

Excuses = dict[tuple[str, str], tuple[int, str]]


def read_excuses(path: str) -> Excuses:
    """(file, id) → (call, reason) of each program that is excused.

    Raises:
        ValueError: an entry is incomplete, or stands twice.
    """
    found: Excuses = {}
    for entry in tomllib.loads(Path(path).read_text(encoding="utf-8")).get("program", []):
        missing = {"file", "id", "call", "reason"} - entry.keys()
        if missing or not str(entry.get("reason", "")).strip():
            raise ValueError(f"{path}: an entry without {', '.join(sorted(missing)) or 'a reason'}: {entry}")
        key = (entry["file"], entry["id"])
        if key in found:
            raise ValueError(f"{path}: {key[1]} of {key[0]} stands twice")
        found[key] = (entry["call"], entry["reason"])
    return found


# -- sums --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """What a run came to."""

    programs: int = 0
    programs_agreeing: int = 0
    calls: int = 0
    calls_agreeing: int = 0
    violations: int = 0
    excused: list[tuple[str, str, int, str]] = field(default_factory=list)
    #: Excuses of programs that agree: they should go.
    needless: list[tuple[str, str]] = field(default_factory=list)
    #: Calls that differ, by their word and the fields that differ.
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, outcome: Outcome, excuses: Excuses) -> None:
        """One program more."""
        record = outcome.record
        self.violations += len(outcome.violations)
        if not record.results:
            return
        key = (record.file, record.id)
        if key in excuses:
            if outcome.differing:
                self.excused.append((*key, *excuses[key]))
                return
            self.needless.append(key)
        self.programs += 1
        self.programs_agreeing += not outcome.differing
        self.calls += outcome.compared
        self.calls_agreeing += outcome.compared - len(outcome.differing)
        for call in outcome.differing[:1]:
            kind = (record.ops[call].split()[1], _fields(record.results[call], outcome.answers[call]))
            self.kinds[kind] += 1
            self.examples.setdefault(kind, f"{record.file} {record.id} call {call}: {record.ops[call]}")

    def line(self) -> str:
        """The last line of a run."""
        return (
            f"agree {self.programs_agreeing} of {self.programs} programs, {self.calls_agreeing} of {self.calls} calls"
        )


def _fields(recorded: dict[str, Any], ours: dict[str, Any]) -> str:
    names = sorted({*recorded, *ours})
    return ",".join(name for name in names if recorded.get(name) != ours.get(name))


def collect(
    outcomes: Iterable[Outcome], excuses: Excuses, each: Callable[[Outcome], None] = lambda _outcome: None
) -> Sums:
    """Sum outcomes up; `each` sees every one."""
    sums = Sums()
    for outcome in outcomes:
        each(outcome)
        sums.add(outcome, excuses)
    return sums
