"""Recorded programs on machines of real processes: the same answers as in memory, and as the kernel gave."""

from __future__ import annotations

from pathlib import Path

import pytest

from numaemu.replay.records import Record, read_records
from numaemu.replay.runner import Options, run_one

DATA = Path(__file__).resolve().parents[1] / "data"

#: Recording, program, what is special about it for a client of a machine of processes.
PROGRAMS = {
    "an EFAULT that is no signal": ("6.12-quad-focused.jsonl.gz", "f-gp-node-addr"),
    "swap, shared by a fork": ("6.12-quad-random.jsonl.gz", "r-361"),
    "another user's process": ("6.1-memonly-focused.jsonl.gz", "f-mp-eperm"),
    "a cpuset that changes": ("6.1-quad-focused.jsonl.gz", "f-cs-rebind"),
    "locked memory with a hole": ("6.1-memonly-focused.jsonl.gz", "f-ml-partial"),
    "swap on a disk": ("6.12-memonly-focused-diskswap.jsonl.gz", "f-sw-moved-lost"),
}


def program(file: str, name: str) -> Record:
    (found,) = [record for record in read_records(str(DATA / file)) if record.id == name]
    return found


@pytest.mark.parametrize("case", PROGRAMS.values(), ids=PROGRAMS)
def test_real_processes_answer_as_the_kernel_did(case: tuple[str, str]) -> None:
    """Every call gives what the kernel gave."""
    outcome = run_one(program(*case), Options(processes=True))
    assert [(outcome.record.ops[call], outcome.answers[call]) for call in outcome.differing] == []


def test_real_processes_answer_as_in_memory() -> None:
    """Signals, ends of processes and lack of memory come to a program as they do in memory; the machine stays sound."""
    record = Record(
        "",
        "",
        "6.12",
        {"cpus": [[0], [1]], "memory_kb": [8192, 8192], "distances": [[10, 20], [20, 10]]},
        (
            "- file F1 2",
            "- rfile R1 2",
            "P0 mmap 0 2 anon priv rw",
            "P0 mmap 3 4 F1 shared rw",
            "P0 mmap 8 1 anon priv n",
            "P0 tw 0 10 1",
            "P0 tr 0 10",
            "P0 fwrite F1 0 2 7",
            "P0 fread F1 0 2",
            "P0 fork P1",
            "P1 tw 0 1 9",
            "P0 tr 0 4",
            "P1 exit",
            "P1 tr 0 1",
            "P0 migrate_pages P1 64 1 2",
            "P2 new",
            "P2 mmap 1000 3000 anon priv rw",
            "P2 mbind 1000 3000 bind 1 64 0",
            "P2 mlock_onfault 1000 3000",
            "P2 tw 1000 3000 1",
            "P2 tr 1000 1",
            "P0 snap 10",
        ),
        (),
    )
    alone, together = (run_one(record, Options(processes=processes, fsck=True)) for processes in (False, True))
    assert together.answers == alone.answers
    assert (alone.answers[19], alone.answers[20]) == ({"died": 9}, {"dead": 1})
    assert alone.violations == together.violations == []
