"""`numaemu replay`: excuses, sums, and what is printed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import numaemu
import numaemu_core
from numaemu.cli import main as cli
from numaemu.cli.progress import Progress
from numaemu.replay import runner
from numaemu.replay.excuses import Excuse, read_excuses
from numaemu.replay.records import Record
from numaemu.replay.runner import Outcome
from numaemu.replay.sums import Sums

if TYPE_CHECKING:
    from collections.abc import Callable

    Row = Callable[..., dict[str, Any]]
    Recording = Callable[..., str]
    Records = Callable[..., list[Record]]

ROOTS = [str(Path(module.__file__ or "").parents[1]) for module in (numaemu, numaemu_core)]
GOOD = {"r": 0, "e": 0}
# -- excuses and sums --------------------------------------------------------------------------------------------------

ENTRY = '[[program]]\nfile = "some.jsonl"\nid = "one"\ncall = 3\nreason = "why"\n'


def test_excuses_are_read(tmp_path: Path) -> None:
    """An entry is one program: file, id, call, reason; a file without entries excuses nobody."""
    path = tmp_path / "expected.toml"
    path.write_text("# nothing\n")
    assert read_excuses(str(path)) == {}
    path.write_text(ENTRY + ENTRY.replace("one", "two"))
    assert read_excuses(str(path)) == {
        ("some.jsonl", "one"): Excuse("some.jsonl", "one", 3, "why"),
        ("some.jsonl", "two"): Excuse("some.jsonl", "two", 3, "why"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[program", "no TOML"),
        ('[[programs]]\nfile = "x"', r"expected \[\[program\]\] tables only, got programs"),
        ('program = "all"', r"expected \[\[program\]\] tables only"),
        (ENTRY.replace('reason = "why"\n', ""), "program 1: expected file, id, call, reason"),
        (ENTRY + 'pattern = "f-*"\n', "program 1: expected file, id, call, reason"),
        (ENTRY.replace("why", " "), "program 1: reason: expected text"),
        (ENTRY.replace("3", '"3"'), "program 1: call: expected a number, got '3'"),
        (ENTRY.replace("3", "true"), "program 1: call: expected a number, got True"),
        (ENTRY + ENTRY, "one of some.jsonl stands twice"),
    ],
)
def test_excuses_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    """What is wrong with the file is told in one line that names it."""
    path = tmp_path / "expected.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_excuses(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_sums(records: Records, row: Row) -> None:
    """Programs and calls that agree are counted; excused ones in no count, unanswered ones neither."""
    good, bad, excused, needless, unanswered = records(
        row("good"), row("bad"), row("excused"), row("needless"), row("unanswered", results=None)
    )
    excuses = {("some.jsonl", name): Excuse("some.jsonl", name, 2, "why") for name in ("excused", "needless")}
    sums = Sums(excuses)
    sums.add(Outcome(good, row()["results"]))
    sums.add(Outcome(bad, [GOOD] * 4, [2, 3]))
    sums.add(Outcome(excused, [GOOD] * 4, [2, 3]))
    sums.add(Outcome(needless, row()["results"]))
    sums.add(Outcome(unanswered, row()["results"]))
    assert sums.line() == "agree 1 of 2 programs, 6 of 8 calls"
    assert [(excuse.id, first) for excuse, first in sums.excused] == [("excused", 2), ("needless", None)]
    assert sums.kinds == {("tw", "r"): 1}
    assert not sums.clean


@pytest.mark.parametrize(
    ("outcome", "clean"),
    [
        ({}, True),
        ({"differing": [1]}, False),
        ({"violations": ["a frame is lost"]}, False),
        ({"answers": [GOOD, {"error": "not run"}]}, False),
    ],
)
def test_what_makes_a_run_fail(records: Records, outcome: dict[str, Any], clean: bool, row: Row) -> None:  # noqa: FBT001 - a case of the table
    """A difference, a broken invariant and a program that came to a halt; nothing else."""
    sums = Sums()
    sums.add(Outcome(records(row())[0], **{"answers": row()["results"], **outcome}))
    assert sums.clean is clean


# -- the command -----------------------------------------------------------------------------------------------------


def test_agreement(recording: Recording, capsys: pytest.CaptureFixture[str], row: Row) -> None:
    """The last line counts programs and calls; all that was asked for agrees: exit status 0."""
    assert cli.main(["replay", recording(row("a"), row("b")), recording(row("c"), name="more.jsonl")]) == 0
    assert capsys.readouterr().out == "agree 3 of 3 programs, 12 of 12 calls\n"


def test_show(recording: Recording, capsys: pytest.CaptureFixture[str], row: Row) -> None:
    """--show prints the program, the calls before the first one that differs, and both answers of those that do."""
    ops = row()["ops"]
    wrong = [*row()["results"][:2], {"r": 3, "e": 0}, {**GOOD, "w": "0000"}]
    assert cli.main(["replay", "--show", recording(row(results=wrong, desc="a case"))]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "some.jsonl one: a case",
        f'     0 {ops[0]}  {{"r":0,"e":0}}',
        f'     1 {ops[1]}  {{"r":0,"e":0}}',
        f"!    2 {ops[2]}  differs in r",
        '       recorded {"r":3,"e":0}',
        '       ours     {"r":4,"e":0}',
        f"!    3 {ops[3]}  differs in w",
        '       recorded {"r":0,"e":0,"w":"0000"}',
        '       ours     {"r":0,"e":0,"w":"1111"}',
        "agree 0 of 1 programs, 2 of 4 calls",
    ]


def test_results_are_written_and_agree_with_themselves(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Row
) -> None:
    """--results writes every program in order with our answers, also those that nobody has answered."""
    ours = str(tmp_path / "ours.jsonl")
    assert cli.main(["replay", "--results", ours, recording(row("a", results=None), row("b", results=[GOOD] * 4))]) == 1
    assert capsys.readouterr().out.endswith("agree 0 of 1 programs, 2 of 4 calls\n")
    written = [json.loads(line) for line in Path(ours).read_text().splitlines()]
    assert [(program["id"], program["results"]) for program in written] == [
        ("a", row()["results"]),
        ("b", row()["results"]),
    ]
    assert cli.main(["replay", ours]) == 0
    assert capsys.readouterr().out == "agree 2 of 2 programs, 8 of 8 calls\n"


def test_expected(recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Row) -> None:
    """--expected names the programs that it excuses before the last line, which does not count them."""
    expected = tmp_path / "expected.toml"
    expected.write_text(ENTRY + ENTRY.replace("one", "two") + ENTRY.replace("one", "three").replace("3", "1"))
    wrong = [*row()["results"][:3], {**GOOD, "w": "0000"}]
    path = recording(row("one", results=wrong), row("two"), row("three", results=wrong), row("four"))
    assert cli.main(["replay", "--expected", str(expected), path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "excused: some.jsonl one call 3: why",
        "excused: some.jsonl two call 3: why (it agrees)",
        "excused: some.jsonl three call 1: why (the first is call 3)",
        "agree 1 of 1 programs, 4 of 4 calls",
    ]


def test_summary_and_json(recording: Recording, capsys: pytest.CaptureFixture[str], row: Row) -> None:
    """--summary counts programs by what they first differ in; --json has it all."""
    wrong = [*row()["results"][:3], {**GOOD, "w": "0000"}]
    path = recording(row("a", results=wrong), row("b", results=wrong), row("c"))
    assert cli.main(["replay", "--summary", path]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["2", "where", "w", "some.jsonl", "a", "call", "3:", "P0", "where", "0", "4"]
    assert last == "agree 1 of 3 programs, 10 of 12 calls"
    assert cli.main(["replay", "--json", "--show", path]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["programs"], found["programs_agreeing"], found["calls"], found["calls_agreeing"]) == (3, 1, 12, 10)
    assert found["kinds"][0]["programs"] == 2


def test_what_is_broken_is_named(recording: Recording, capsys: pytest.CaptureFixture[str], row: Row) -> None:
    """A program that came to a halt is named with its call and the reason, whatever was asked for."""
    assert cli.main(["replay", recording(row(ops=["P0 frobnicate"], results=None))]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("some.jsonl one: call 0, 'P0 frobnicate': ValueError: no operation 'frobnicate'")
    assert last == "agree 0 of 0 programs, 0 of 0 calls"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nonexistent.jsonl"], "/nonexistent.jsonl: No such file or directory"),
        (["{path}", "--profile", "vms"], "profile: 'vms' is not known"),
        (["{path}", "--id", "two"], "--id: no program 'two' in these files"),
        (["{path}", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["{path}", "--results", "/nonexistent/ours"], "/nonexistent/ours: No such file or directory"),
        (["{path}", "--expected", "{path}"], "no TOML"),
    ],
)
def test_errors_are_one_line(
    recording: Recording, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, row: Row
) -> None:
    """What is wrong with the command is one line on stderr; nothing is run."""
    path = recording(row())
    assert cli.main(["replay", *(argument.format(path=path) for argument in arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_only_some_programs(recording: Recording, capsys: pytest.CaptureFixture[str], row: Row) -> None:
    """--id picks programs."""
    path = recording(row("a"), row("b"), row("c"))
    assert cli.main(["replay", "--id", "a", "--id", "c", path]) == 0
    assert capsys.readouterr().out == "agree 2 of 2 programs, 8 of 8 calls\n"


def test_interrupted(recording: Recording, row: Row, slow_row: Row) -> None:
    """Ctrl-C ends the run at once and without a word; no process stays behind."""
    wrong = row("first", results=[GOOD] * 4)
    path = recording(*[wrong] * 8, *[slow_row()] * 64)
    with subprocess.Popen(
        [sys.executable, "-m", "numaemu", "replay", "--show", "--jobs", "2", path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "some.jsonl first\n"
        os.killpg(process.pid, signal.SIGINT)
        # Both pipes end when nobody holds them any more: no worker, no forkserver.
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGINT, "")


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a bar says how far the run is, and leaves nothing behind; elsewhere there is none."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for screen, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", screen)
        with Progress(2, "programs") as progress:
            progress.step("0 differ")
        assert ("1 of 2 programs" in screen.getvalue()) is drawn
        assert screen.getvalue().endswith("\r\x1b[K" if drawn else "")


def test_default_jobs() -> None:
    """As many programs at a time as there are processors for us."""
    assert runner.default_jobs() == len(os.sched_getaffinity(0))
