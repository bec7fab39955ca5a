"""A file by which a test makes a process of its choice die or stop at a named step.

The environment variable NUMAEMU_FAULT_BOARD names the file. A process that does not have it listens to nobody; one that
has it counts each step that it reaches, and obeys. One word a cell, one row a name:

    left       passages until it happens; 0: never
    action     the signal that the process sends to itself; 0: it meets a bug there
    pid        whose passages count; 0: everybody's
    passed     passages of anybody so far
    struck     processes that were struck here so far

The row is disarmed before the signal is sent: whoever comes after a killed process is not killed, too. A bug is there
for everybody until it is disarmed.
"""

import mmap
import os
import signal
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "NUMAEMU_FAULT_BOARD"

_WORD_BYTES = 8
_LEFT, _ACTION, _PID, _PASSED, _STRUCK, _CELLS = range(6)


class FaultBoard:
    """The file, mapped; names are rows in their order."""

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str]) -> None:
        """Map a file that `make` has made for the same names. OSError if it cannot be opened, ValueError if it differs.

        Several processes may have it open.
        """
        self._rows = {name: _CELLS * number for number, name in enumerate(names)}
        size = len(names) * _CELLS * _WORD_BYTES
        with Path(path).open("r+b") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise ValueError(f"{path}: no board of {len(names)} names")
            self._map = mmap.mmap(file.fileno(), size)
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def make(cls, path: str | os.PathLike[str], names: Sequence[str]) -> "FaultBoard":
        """A new file, on which nothing is armed."""
        Path(path).write_bytes(bytes(len(names) * _CELLS * _WORD_BYTES))
        return cls(path, names)

    @classmethod
    def of_environment(cls, names: Sequence[str]) -> "FaultBoard | None":
        """That of the environment variable, None where it is not set."""
        path = os.environ.get(VARIABLE)
        return cls(path, names) if path else None

    def close(self) -> None:
        """Unmap it; nothing can be armed or reached any more."""
        self._words.release()
        self._map.close()

    def arm(self, name: str, action: signal.Signals | None, nth: int = 1, pid: int = 0) -> None:
        """Let it happen at the `nth` passage from now on, of process `pid` or of any. KeyError: no such name.

        Without an action it is a bug: that passage and all later ones raise RuntimeError.
        """
        row = self._rows[name]
        if nth < 1:
            raise ValueError(f"expected a passage from 1 on, got {nth}")
        self._words[row + _ACTION] = action or 0
        self._words[row + _PID] = pid
        self._words[row + _LEFT] = nth

    def disarm(self, name: str) -> None:
        """Nothing happens there any more."""
        self._words[self._rows[name] + _LEFT] = 0

    def is_armed(self, name: str) -> bool:
        """Is it still to happen?"""
        return self._words[self._rows[name] + _LEFT] > 0

    def passed(self, name: str) -> int:
        """How often the step was reached, by anybody."""
        return self._words[self._rows[name] + _PASSED]

    def struck(self, name: str) -> int:
        """How many processes were killed or stopped there."""
        return self._words[self._rows[name] + _STRUCK]

    def reach(self, name: str) -> None:
        """This process is at that step. KeyError: no such name."""
        words, row = self._words, self._rows[name]
        words[row + _PASSED] += 1
        left = words[row + _LEFT]
        if left and words[row + _PID] in (0, os.getpid()):
            action = words[row + _ACTION]
            if left > 1 or action:
                words[row + _LEFT] = left - 1
            if left == 1:
                words[row + _STRUCK] += 1
                if not action:
                    raise RuntimeError(f"a bug at {name}, as the board has it")
                os.kill(os.getpid(), action)
