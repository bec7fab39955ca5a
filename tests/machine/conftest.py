"""Real machines for tests: booted, checked by fsck when the test is over, and looked at for what they leave behind."""

import functools
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import numaemu as nm
from numaemu_core.fault_points import FAULT_POINTS
from numaemu_host import pidfd
from numaemu_host.fault_board import FaultBoard

#: How long a condition may take to come true before its test fails.
PATIENCE_S = 30.0
#: How long a client process may be silent. That it has died is noticed at once, so this can be long.
LISTENING_S = 90.0


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Machines of this test lie in a directory of their own."""
    folder = tmp_path_factory.mktemp("n")
    folder.chmod(0o700)
    monkeypatch.setenv("NUMAEMU_RUNTIME", str(folder))
    return folder


@pytest.fixture
def boot(runtime: Path) -> Iterator[Callable[..., nm.Machine]]:
    """Boots machines; each must be sound in the end, and leave no process and no file."""
    machines: list[nm.Machine] = []

    def make(**options: object) -> nm.Machine:
        machines.append(nm.boot(**({"nodes": 2, "memory": "4M", "swap": "4M"} | options)))  # type: ignore[arg-type]  # options of boot
        return machines[-1]

    yield make
    for machine in machines:
        assert machine.fsck() == []
        pids = [process["pid"] for process in processes(machine)]
        machine.close()
        wait_until(functools.partial(_all_gone, pids), "processes are left")
    wait_until(lambda: not any(runtime.iterdir()), "files are left")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[FaultBoard]:
    """A board at `tmp_path / "board"`, for machines that are booted in `matrix.armed_environment`."""
    board = FaultBoard.make(tmp_path / "board", list(FAULT_POINTS))
    yield board
    board.close()


def _all_gone(pids: list[int]) -> bool:
    return not any(map(pidfd.is_running_pid, pids))


def processes(machine: nm.Machine) -> list[dict[str, Any]]:
    """The processes of a machine as init tells of them."""
    found: list[dict[str, Any]] = machine.status()["processes"]
    return found


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait for a condition, within bounds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, otherwise
        os.sched_yield()
        time.sleep(0.002)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], str], None]:
    """`eventually(condition, complaint)` waits for a condition."""
    return wait_until


@pytest.fixture
def pid_of() -> Callable[..., int]:
    """`pid_of(machine, role, node)`: the process of that role."""

    def find(machine: nm.Machine, role: str, node: int | None = None) -> int:
        return next(p["pid"] for p in processes(machine) if p["role"] == role and p["node"] in (node, None))

    return find


class ClientProcess:
    """A script of this folder as a process of its own: it says lines on stdout, and is told to go on by one on stdin.

    Whoever listens to a client that has died fails at once, with what it said on stderr.
    """

    def __init__(self, script: str, *arguments: object) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        self._heard = b""

    def hear(self) -> str:
        """The next line."""
        return hear_all([self])[0]

    def take(self) -> None:
        """Take what has come: the pipe must have something."""
        part = self.stdout.read(4096)
        assert part, f"{self.process.args!r} has died: {self.complaint()}"
        self._heard += part

    def line(self) -> str | None:
        """A line, if a whole one has come."""
        line, end, rest = self._heard.partition(b"\n")
        if not end:
            return None
        self._heard = rest
        return line.decode()

    def go_on(self) -> None:
        """Let it return from its reading of stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def kill(self) -> None:
        """SIGKILL it and reap it."""
        self.process.kill()
        self.process.wait()

    def complaint(self) -> str:
        """What it said on stderr."""
        self.errors.seek(0)
        return self.errors.read()

    def clean_up(self) -> None:
        """It ends, and so do its pipes."""
        self.kill()
        for pipe in (self.process.stdin, self.stdout, self.errors):
            assert pipe is not None
            pipe.close()


def hear_all(clients: list[ClientProcess]) -> list[str]:
    """The next line of each; fails as soon as one of them dies without it."""
    lines = {client: client.line() for client in clients}
    deadline = time.monotonic() + LISTENING_S
    while waiting := [client for client in clients if lines[client] is None]:
        pipes = {client.stdout: client for client in waiting}
        ready, _, _ = select.select(list(pipes), [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no word in time from {len(waiting)} of {len(clients)}"
        for pipe in ready:
            pipes[pipe].take()
            lines[pipes[pipe]] = pipes[pipe].line()
    return [line for line in lines.values() if line is not None]


StartClient: TypeAlias = Callable[..., ClientProcess]


@pytest.fixture
def start_client(boot: object) -> Iterator[StartClient]:
    """`start_client(script, *arguments)` runs a script of this folder; it is ended before the machines are checked."""
    del boot
    clients: list[ClientProcess] = []

    def start(script: str, *arguments: object) -> ClientProcess:
        clients.append(ClientProcess(script, *arguments))
        return clients[-1]

    yield start
    for client in clients:
        client.clean_up()
