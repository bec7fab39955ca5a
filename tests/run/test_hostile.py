"""Programs that trouble their supervisor: each gets its answers, and leaves a machine that is sound."""

import sys

import pytest
from tests.run.conftest import PROGRAMS, Run

pytestmark = pytest.mark.shares_machines


@pytest.mark.parametrize(
    "name",
    ["interrupted", "storm", "killed", "pointers", "descriptors", "crowd", "executed_by_a_thread", "undumpable"],
)
def test_nothing_a_program_does_stops_its_supervisor(run: Run, name: str) -> None:
    """Signals, fork storms, deaths in calls, bad pointers, closed descriptors, many threads, exec by a thread."""
    done = run(sys.executable, PROGRAMS / "hostile.py", name)
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
