"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
SECONDS = 90


def test_the_examples_in_python() -> None:
    """The examples run one after the other, in a script without a main guard, and print what their comments say."""
    script = "\n".join(EXAMPLE.findall(README.read_text(encoding="utf-8")))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    first, hello, maps, moved, stayed = done.stdout.splitlines()
    assert (first, hello, moved, stayed) == ("[ 0 -2]", "b'hello'", "[1 1]", "0")
    assert maps.endswith(" bind={1/Normal} MaxRef=1 Pages=1 Mapped=1 Anon=1 N1=1")
