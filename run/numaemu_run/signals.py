"""Signals to the command while a program runs: they are for the program.

What the terminal sends (Ctrl-C and its kin), the program gets by itself; what somebody sends to the command is passed
on. Which is which is known from si_code, which Python's handlers do not tell: these are read from a signalfd.
Whether Ctrl-Z stops it is the program's to decide, too: the command stops after it, as it did.
Source: signalfd(2), sigaction(2): si_code is 0 or less if a process has sent it; tty_ioctl(4), waitpid(2).
"""

import contextlib
import ctypes
import os
import signal
import struct
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from types import FrameType
from typing import Final

from numaemu_host import sigmask
from numaemu_host.libc import checked, libc

#: Whoever sends one of these to us means the program.
PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGWINCH)
#: The terminal sends these to the program as well; the last two, to who uses it when it is another one's turn.
FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
#: Of these, the ones that mostly mean that it is to end.
_TO_END: Final = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT})

#: Number, errno, si_code, and the rest of struct signalfd_siginfo.
_INFO: Final = struct.Struct("=Iii116x")
_SFD_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
#: Bytes of sigset_t in every libc.
_SET_BYTES: Final = 128


def held() -> contextlib.AbstractContextManager[set[int]]:
    """They wait until there is somebody to pass them on to; gives the mask of before, which a program is to have."""
    return sigmask.held((*PASSED_ON, *FROM_TERMINAL))


def release(mask: AbstractSet[int]) -> None:
    """In the process that is to execute the program: nothing of ours is left, and what came meanwhile is its own."""
    for number in (*PASSED_ON, *FROM_TERMINAL):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Passing:
    """Passes signals on to a process, until that was waited for."""

    def __init__(self, pidfd: int, woken: int, sent: int) -> None:
        """`woken` is readable after any signal, `sent` after one that the terminal may have sent."""
        self._pidfd = pidfd
        self._woken = woken
        self._sent = sent
        self.fds: Final = (woken, sent)
        #: When one came that the program is to end by; None: none has.
        self.told_to_end_at: float | None = None

    def take(self, ready: AbstractSet[int]) -> bool:
        """What has come on those of `fds` that are ready; was there something?"""
        if self._sent in ready:
            self.take_sent()
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._woken, 512):
                    pass
        return not ready.isdisjoint(self.fds)

    def take_sent(self) -> None:
        """Those that the terminal may have sent, which no handler is told of."""
        with contextlib.suppress(BlockingIOError):
            while info := os.read(self._sent, _INFO.size):
                number, _, code = _INFO.unpack(info)
                self._note(number)
                if code <= 0:
                    self.pass_on(number)

    def _note(self, number: int) -> None:
        if number in _TO_END and self.told_to_end_at is None:
            self.told_to_end_at = time.monotonic()

    def stop_as(self, number: int) -> None:
        """The program was stopped by that signal: so are we, until we are continued; a shell waits for us alone.

        Who sends SIGSTOP, which no terminal does, may be to continue the program alone: we stop if a shell waits.
        """
        if number == signal.SIGSTOP and not _has_terminal():
            return
        self.take_sent()  # ours of the same kind, which would stop us once more
        before = signal.SIG_DFL if number == signal.SIGSTOP else signal.signal(number, signal.SIG_DFL)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if number != signal.SIGSTOP:
            signal.signal(number, before)

    def pass_on(self, number: int, _frame: FrameType | None = None) -> None:
        """Send it to the process, if it is still there."""
        self._note(number)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, number)


@contextlib.contextmanager
def passed_to(pid: int) -> Iterator[Passing]:
    """Within `held`: signals go to that child of ours."""
    with contextlib.ExitStack() as stack:

        def closing(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        woken, writer = map(closing, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer, warn_on_full_buffer=False))
        passing = Passing(closing(os.pidfd_open(pid)), woken, closing(_signalfd(FROM_TERMINAL)))
        before = {number: signal.signal(number, passing.pass_on) for number in PASSED_ON}
        # A thread of somebody's own may be given those that this one holds.
        before |= {number: signal.signal(number, _ignore) for number in (*FROM_TERMINAL, signal.SIGCHLD)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        try:
            yield passing
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
            for number, handler in before.items():
                signal.signal(number, handler)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Only to be woken."""


def _has_terminal() -> bool:
    """Is it our turn to use the terminal?"""
    try:
        fd = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    finally:
        os.close(fd)


def _signalfd(numbers: tuple[signal.Signals, ...]) -> int:
    chosen = ctypes.create_string_buffer(_SET_BYTES)
    libc.sigemptyset(chosen)
    for number in numbers:
        libc.sigaddset(chosen, int(number))
    return checked(libc.signalfd(-1, chosen, _SFD_FLAGS), "signalfd")
