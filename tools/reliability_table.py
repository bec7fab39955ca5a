"""Runs the kill matrix and the stop matrix, and writes what happened into docs/reliability.md.

Nothing in the table is written by hand: a row says what a run of the tests saw. Where a test fails nothing is written,
and the exit status says so. `--results FILE` takes what a run has noted already (NUMAEMU_MATRIX_RESULTS) instead.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from numaemu_core.fault_points import FAULT_POINTS

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reliability.md"
BEGIN: Final = "<!-- matrices: `make reliability` writes from here -->\n"
END: Final = "<!-- matrices: to here -->\n"
TESTS: Final = ("tests/machine/test_kill_matrix.py", "tests/machine/test_stop_matrix.py")
VARIABLE: Final = "NUMAEMU_MATRIX_RESULTS"

Results = dict[tuple[str, str], dict[str, Any]]


def run_tests(path: Path) -> bool:
    """Run both matrices; whether all of it went well."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *TESTS]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, VARIABLE: str(path)}, check=False).returncode == 0


def results_of(path: Path) -> Results:
    """What was noted, by point and signal."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(line["point"], line["signal"]): line for line in lines}


def in_words(found: dict[str, Any] | None) -> str:
    """What happened in one case; the tests have seen to it that bytes, frames, slots and fsck are right."""
    if found is None:
        return "not run"
    if found["role"] == "client":
        if found["signal"] == "SIGKILL":
            return "its memory was freed, a sharer went on"
        return "others went on meanwhile; SIGCONT, and it went on"
    words = ["left alone" if found["left_alone"] else ""]
    if found["killed_stopped"]:
        words.append("killed for it")
    if found["restarts"]:
        words.append("restarted" if found["restarts"] == 1 else f"restarted {found['restarts']} times")
    words.append("the call was answered" if found["answer"] == "right" else f"the call: {found['answer']}")
    return ", ".join(filter(None, words))


def table(results: Results) -> str:
    """A row a point."""
    rows = ["| Process | Step | Where that is | SIGKILL | SIGSTOP |", "| --- | --- | --- | --- | --- |"]
    for name, point in FAULT_POINTS.items():
        cells = [in_words(results.get((name, signal))) for signal in ("SIGKILL", "SIGSTOP")]
        rows.append(f"| {point.role} | `{name}` | {point.where} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="what a run has noted")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.results or Path(folder) / "results"
        if given.results is None and not run_tests(path):
            return 1
        results = results_of(path)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + "\n" + table(results) + "\n" + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
