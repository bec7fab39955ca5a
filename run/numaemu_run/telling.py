"""What a run says on stderr: that is the program's as well, and may be closed, or a pipe that nobody reads."""

import contextlib
import os
import sys


def tell(text: str) -> None:
    """Say it, if there is somebody to hear it; nothing is left in a buffer that could fail at the end."""
    if sys.stderr is None or not text:  # closed: its number may be that of another file
        return
    left = memoryview(text.encode(errors="backslashreplace"))
    with contextlib.suppress(OSError):
        while left:
            left = left[os.write(2, left) :]


def notice(text: str) -> None:
    """A line of ours."""
    tell(f"numaemu run: {text}\n")
