"""The experiment in docs/ prints what its page says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Shares of times: they differ from run to run.
LAST_LINES = 2
SECONDS = 110


@pytest.mark.usefixtures("runtime")
def test_the_experiment_counts_what_its_page_says() -> None:
    """Each line of the page but the shares of times is what a run prints now, in all three profiles."""
    page = (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8")
    block = re.search(r"```\n(.*?)```", page, re.DOTALL)
    assert block is not None
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "two_eras.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    said, found = block[1].splitlines(), done.stdout.splitlines()
    assert found[:-LAST_LINES] == said[:-LAST_LINES]
    assert [line[:56] for line in found] == [line[:56] for line in said]
