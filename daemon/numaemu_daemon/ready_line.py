"""The one line by which whoever starts a machine learns what came of it.

    {"ready": true, "endpoint": "ipc://DIR/kernel.ipc", "pid": 123}
    {"error": "one line"}

It is JSON on the descriptor that --ready-fd names, which is closed after it. A person who gave none finds it on stdout,
and an error in plain words on stderr.
"""

import contextlib
import json
import os
import sys


class ReadyLine:
    """Says it once; later calls say nothing. That nobody listens is no error."""

    def __init__(self, fd: int | None) -> None:
        """Take over the descriptor; None when a person waits. OSError if it is not open."""
        self._fd = fd
        self._said = False
        if fd is not None:
            os.set_inheritable(fd, False)  # noqa: FBT003 - it takes no keyword

    @property
    def said(self) -> bool:
        """Whether the line is out."""
        return self._said

    def ready(self, endpoint: str) -> None:
        """The machine serves."""
        self._say({"ready": True, "endpoint": endpoint, "pid": os.getpid()})

    def error(self, reason: str) -> None:
        """The machine did not come up."""
        self._say({"error": " ".join(reason.split())})

    def _say(self, line: dict[str, object]) -> None:
        if self._said:
            return
        self._said = True
        with contextlib.suppress(OSError):
            if self._fd is not None:
                os.write(self._fd, json.dumps(line).encode() + b"\n")
                os.close(self._fd)
            elif "error" in line:
                sys.stderr.write(f"numaemu_daemon: {line['error']}\n")
            else:
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
