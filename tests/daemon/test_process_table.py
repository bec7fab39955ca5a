"""When a dead process is started again, and how all are ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from numaemu_daemon.process_table import PAUSE_MAX_S, QUIET_S, Managed, end_all

Spawn = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a process that runs some code after it has said a line."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        script = f"import signal, time\n{code}\nprint(1, flush=True)\ntime.sleep(60)"
        started.append(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def test_pauses_grow_and_end() -> None:
    """The first death is no reason to wait; deaths in a row are, up to a bound; a long life makes up for them."""
    process = Managed("node", 0)
    pauses = []
    now = 100.0
    for _ in range(8):
        process.started(os.getpid(), now)
        now += QUIET_S / 2
        process.died(now)
        pauses.append(process.pause_s)
        assert process.due_at == now + process.pause_s
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, PAUSE_MAX_S, PAUSE_MAX_S]
    process.started(os.getpid(), now)
    process.died(now + QUIET_S)
    assert process.pause_s == 0
    assert process.restarts == 9
    assert not process.alive


def test_a_start_clears_what_the_last_process_left() -> None:
    """Counters and the reason of the end belong to one process."""
    process = Managed("swap", done={"pages_in": 3}, failure="once")
    process.started(os.getpid(), 0.0)
    assert (process.done, process.failure, process.up, process.due_at) == ({}, "", False, None)
    process.died(1.0)


def test_end_all_kills_only_who_does_not_go(spawn: Spawn) -> None:
    """SIGTERM ends the well-behaved; who ignores it is killed and named; who was dead before is no trouble."""
    children = [spawn(""), spawn("signal.signal(signal.SIGTERM, signal.SIG_IGN)"), spawn("")]
    managed = [Managed("node", number) for number in range(3)]
    for process, child in zip(managed, children, strict=True):
        process.started(child.pid, 0.0)
    children[2].kill()
    children[2].wait(20)
    assert end_all(managed) == [managed[1]]
    assert [child.wait(20) for child in children] == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGKILL]
    for process in managed:
        process.died(0.0)
