"""News of a process: by its pidfd, which never means another process, and by /proc, for what a pidfd cannot tell.

Rules: death is told by a pidfd and by nothing else; a pid is only used while a pidfd says that its process is alive, as
the number may be given to another one after that.
"""

import os
import select
import signal
import time
from pathlib import Path

_STOPPED = frozenset((b"T", b"t"))
_MS_PER_S = 1000
_NS_PER_S = 1_000_000_000
#: Field of /proc/PID/stat, counted from the state.
_START_TIME = 19


def open_pidfd(pid: int) -> int:
    """A descriptor for the process `pid`, close-on-exec. ProcessLookupError if there is none, else OSError."""
    return os.pidfd_open(pid)


def has_exited(pidfd: int) -> bool:
    """Whether the process is over, reaped or not. ValueError if the descriptor is closed."""
    return wait_exit(pidfd, 0)


def wait_exit(pidfd: int, timeout_s: float) -> bool:
    """Wait at most `timeout_s` seconds for the end of the process; whether it came. ValueError if closed."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    events = poller.poll(max(timeout_s, 0) * _MS_PER_S)
    if events and events[0][1] & select.POLLNVAL:
        raise ValueError(f"descriptor {pidfd} is not open")
    return bool(events)


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped, by a signal (T) or a tracer (t); False if it runs, or is gone."""
    return _state(pid) in _STOPPED


def started_at(pid: int) -> int:
    """When a process began, in clock ticks of the host: with the pid it names one process. 0 if there is none."""
    fields = _stat(pid).split()
    return int(fields[_START_TIME]) if fields else 0


def ticks_now() -> int:
    """This moment on the clock of `started_at`."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") // _NS_PER_S


def _state(pid: int) -> bytes:
    """The state letter of /proc/PID/stat, empty if there is no such process."""
    return _stat(pid)[:1]


def _stat(pid: int) -> bytes:
    """/proc/PID/stat from the state on, empty if there is no such process."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
    # The name before it may hold spaces and parentheses of its own.
    return line[line.rindex(b")") + 2 :]


def is_running_pid(pid: int) -> bool:
    """Whether a process of this number exists and is not over (a zombie is). OSError if it cannot be told."""
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return False
    try:
        return not has_exited(pidfd)
    finally:
        os.close(pidfd)


def children_of(pid: int) -> list[int]:
    """The processes that the first thread of a process has begun and not waited for; none if it is gone."""
    try:
        return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def send_signal(pidfd: int, sig: int) -> None:
    """Send a signal. ProcessLookupError if the process is over and reaped, PermissionError if it is not ours."""
    signal.pidfd_send_signal(pidfd, sig)
