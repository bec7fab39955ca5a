"""`numaemu run --fault`: a program meets what a tester has asked for, and meets the same again with the same seed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.run.conftest import PROGRAMS, numaemu

FULL, REFUSED = "node2: full after 100 pages", "isolation: refused for 20%"
#: What differs from run to run, whatever happens: the interpreter's own files and pages are not always as many.
OF_THE_MOMENT = ("seconds", "machine", "pid", "exited", "pages_placed", "files_given")


def unlucky(seed: int) -> tuple[list[str], dict[str, Any]]:
    """What the program prints, and the report."""
    options = ["--nodes", "4", "--memory", "16M", "--fault", FULL, "--fault", REFUSED, "--seed", str(seed)]
    done = numaemu("run", *options, "--report", "json", "--", sys.executable, PROGRAMS / "unlucky.py")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stderr)
    del report["calls"]["openat"], report["pages_by_node"]["0"]
    return done.stdout.splitlines(), {key: value for key, value in report.items() if key not in OF_THE_MOMENT}


@pytest.mark.usefixtures("runtime")
def test_faults_strike_a_program_the_same_way_with_the_same_seed() -> None:
    """The full node gives its pages and others the rest; a part of the pages does not move, the same one each time."""
    printed, report = unlucky(5)
    counts, said, where = printed
    placed = json.loads(counts)
    assert (placed[2], sum(placed)) == (100, 300)
    assert said == "-5"
    stayed = len(where) - where.count("1")
    assert 30 < stayed < 90
    assert report["seed"] == 5
    assert report["faults"][REFUSED] == stayed
    assert report["faults"][FULL] > 0
    assert report["pages_by_node"]["2"] == 100
    assert unlucky(5) == (printed, report)
    assert unlucky(6)[0][2] != where


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ("--fault", "node2: fool"),
            "fault 'node2: fool': expected \"full [after P pages]\" behind the colon; known: ",
        ),
        (("--nodes", "2", "--fault", FULL), f"fault '{FULL}': expected a node of the machine that has memory"),
        (("--seed", "-1"), "seed: expected a number from 0 to"),
    ],
)
def test_a_wrong_fault_is_one_line(runtime: Path, words: tuple[str, ...], complaint: str) -> None:
    """Nothing is started; the line says what was expected."""
    there = set(runtime.iterdir())
    done = numaemu("run", *words, "--", "true")
    assert done.returncode != 0
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert set(runtime.iterdir()) == there
