"""News of processes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from numaemu_host import pidfd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host.conftest import Child

SLEEPER = "say('ready')\nwait_for_parent()"


def test_exit_is_seen(spawn: Callable[..., Child]) -> None:
    """A pidfd tells the end of a process, before it is reaped and after."""
    child = spawn(SLEEPER)
    fd = pidfd.open_pidfd(child.pid)
    assert not os.get_inheritable(fd)
    assert child.hear() == "ready"
    assert not pidfd.has_exited(fd)
    assert pidfd.is_running_pid(child.pid)
    pidfd.send_signal(fd, signal.SIGKILL)
    assert pidfd.wait_exit(fd, 10)
    assert pidfd.has_exited(fd)
    assert not pidfd.is_running_pid(child.pid)  # a zombie
    child.kill()
    assert pidfd.has_exited(fd)
    assert not pidfd.is_running_pid(child.pid)
    with pytest.raises(ProcessLookupError):
        pidfd.send_signal(fd, signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        pidfd.open_pidfd(child.pid)
    os.close(fd)


def test_wait_is_bounded(spawn: Callable[..., Child]) -> None:
    """Waiting for a process that lives on ends after the timeout."""
    fd = pidfd.open_pidfd(spawn(SLEEPER).pid)
    for timeout_s in (-1, 0, 0.05):
        start = time.monotonic()
        assert not pidfd.wait_exit(fd, timeout_s)
        assert timeout_s <= time.monotonic() - start < 10
    os.close(fd)


def test_stopped_process_is_seen(spawn: Callable[..., Child]) -> None:
    """A process is seen stopped between SIGSTOP and SIGCONT, and only then; it runs all the same."""
    child = spawn(SLEEPER)
    fd = pidfd.open_pidfd(child.pid)
    assert child.hear() == "ready"
    assert not pidfd.is_stopped(child.pid)
    pidfd.send_signal(fd, signal.SIGSTOP)
    os.waitid(os.P_PIDFD, fd, os.WSTOPPED)
    assert pidfd.is_stopped(child.pid)
    assert pidfd.is_running_pid(child.pid)
    assert not pidfd.has_exited(fd)
    pidfd.send_signal(fd, signal.SIGCONT)
    os.waitid(os.P_PIDFD, fd, os.WCONTINUED)
    assert not pidfd.is_stopped(child.pid)
    os.close(fd)


def test_hostile_name_is_parsed(spawn: Callable[..., Child]) -> None:
    """A process whose name looks like a state is not taken for a stopped one."""
    child = spawn(
        """
        with open("/proc/self/comm", "w") as comm:
            comm.write("a) T 1 (b")
        say("ready")
        wait_for_parent()
        """
    )
    assert child.hear() == "ready"
    assert not pidfd.is_stopped(child.pid)


def test_missing_process_is_not_stopped(spawn: Callable[..., Child]) -> None:
    """A process that is gone is neither stopped nor running."""
    child = spawn(SLEEPER)
    child.kill()
    assert not pidfd.is_stopped(child.pid)
    assert not pidfd.is_running_pid(child.pid)


def test_closed_descriptor_is_not_an_exit() -> None:
    """A pidfd that is not open is an error, never the news of a death."""
    fd = pidfd.open_pidfd(os.getpid())
    os.close(fd)
    with pytest.raises(ValueError, match="not open"):
        pidfd.has_exited(fd)
