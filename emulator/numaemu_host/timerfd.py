"""A descriptor that is readable when a time has come: who waits for others needs no timeout then.

Source: timerfd_create(2). `os` has it from Python 3.13 on.
"""

import os
import struct
import time
from typing import Final

from numaemu_host.libc import checked, libc

#: TFD_CLOEXEC and TFD_NONBLOCK.
_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK
#: struct itimerspec: the interval, and the time until it is readable, in seconds and nanoseconds.
_SPEC: Final = struct.Struct("@4l")
_NS_PER_S: Final = 1_000_000_000


class Timer:
    """One time to wait for; a new one takes the place of the old one."""

    def __init__(self) -> None:
        """Not readable before it is set. OSError: no descriptor is left."""
        self.fd: Final = checked(libc.timerfd_create(time.CLOCK_MONOTONIC, _FLAGS), "timerfd_create")

    def set(self, after_s: float) -> None:
        """Readable in so many seconds, and not before. OSError: it was closed."""
        seconds, ns = divmod(max(int(after_s * _NS_PER_S), 1), _NS_PER_S)
        checked(libc.timerfd_settime(self.fd, 0, _SPEC.pack(0, 0, seconds, ns), None), "timerfd_settime")

    def close(self) -> None:
        """To be done once."""
        os.close(self.fd)
