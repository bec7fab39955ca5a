"""The recordings of tests/data: what real kernels answered is what the machine answers, but for what is excused."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from numaemu.replay.excuses import read_excuses
from numaemu.replay.records import Record, read_records
from numaemu.replay.runner import Options, Outcome, run_one

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = ROOT / "docs" / "conformance-expected.toml"
FILES = sorted(path.name for path in (ROOT / "tests" / "data").glob("*.jsonl.gz"))
#: Recordings in which programs that fill whole nodes are run: they take seconds each, and do not read files.
FILLING = [name for name in FILES if name.endswith("-focused.jsonl.gz")]


@functools.cache
def programs(name: str) -> tuple[Record, ...]:
    return tuple(read_records(str(ROOT / "tests" / "data" / name)))


def fills(record: Record) -> bool:
    return any(op.split()[1] == "fill" for op in record.ops)


def complaints(name: str, outcome: Outcome) -> list[str]:
    """What is wrong with one program: its first difference, or an excuse that it does not need."""
    excuse = read_excuses(str(EXPECTED)).get((name, outcome.record.id))
    first = outcome.differing[0] if outcome.differing else None
    if excuse is not None:
        return (
            [] if first == excuse.call else [f"{outcome.record.id}: excused for call {excuse.call}, differs in {first}"]
        )
    if first is None:
        return []
    record = outcome.record
    return [f"{record.id} call {first}: {record.ops[first]}: {record.results[first]}, ours {outcome.answers[first]}"]


@pytest.mark.parametrize("name", FILES)
def test_answers_are_those_of_the_kernel(name: str) -> None:
    """Every program that is not excused agrees in every call; those that are differ first where the excuse says."""
    found = [
        line for record in programs(name) if not fills(record) for line in complaints(name, run_one(record, Options()))
    ]
    assert found == []


@pytest.mark.parametrize("case", [(name, record.id) for name in FILLING for record in programs(name) if fills(record)])
def test_answers_about_full_nodes_are_those_of_the_kernel(case: tuple[str, str]) -> None:
    """The same for programs that fill whole nodes: order of fallback, swapping, the OOM killer."""
    name, wanted = case
    (record,) = [record for record in programs(name) if record.id == wanted]
    assert complaints(name, run_one(record, Options())) == []


def test_excuses_are_of_programs_that_there_are() -> None:
    """Each excuse names a recording and a program of it, and one of its calls."""
    known = {(name, record.id): len(record.ops) for name in FILES for record in programs(name)}
    excuses = read_excuses(str(EXPECTED)).values()
    assert [excuse for excuse in excuses if excuse.call not in range(known.get((excuse.file, excuse.id), 0))] == []
