"""Signals that ask a process to end, as a readable descriptor: one more thing in the poll, nothing is interrupted."""

import os
import signal
from collections.abc import Sequence
from types import FrameType


class StopRequest:
    """`fd` becomes readable and `signal_number` is set once one of the signals has come. One a process."""

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM,)) -> None:
        """Take over the signals; only the main thread may."""
        self.signal_number = 0
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the shape of a signal handler
        self.signal_number = number

    @property
    def asked(self) -> bool:
        """Whether the process shall end."""
        return self.signal_number != 0


def ignore_terminal() -> None:
    """A Ctrl-C or a closed terminal reaches every process of the group; init alone decides what follows from it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
