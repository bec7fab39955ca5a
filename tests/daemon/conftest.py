"""Real machines for the tests: started as processes, spoken to over init's socket, ended by pid."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

import numaemu_core
import numaemu_daemon
import numaemu_host
from numaemu_core.layout import Layout, layout_of
from numaemu_core.topology import from_dict
from numaemu_daemon.segments import all_names
from numaemu_host import fdsock, pidfd

WAIT_S = 20.0
_HERE = Path(__file__).parent
_ROOTS = [str(Path(str(package.__file__)).parents[1]) for package in (numaemu_core, numaemu_host, numaemu_daemon)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([*dict.fromkeys(_ROOTS), str(_HERE)])}
#: Two small nodes, one of them without CPUs.
TOPOLOGY: dict[str, Any] = {"swap": "1M", "node": [{"memory": "2M", "cpus": [0]}, {"memory": "1M"}]}

Row = dict[str, Any]


def wait_for(condition: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - whatever the condition gives
    """What the condition gives as soon as that is true; fails the test if it never is."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    pytest.fail(f"not in time: {what}")


class RunningMachine:
    """A machine whose init is a child of the test."""

    def __init__(self, directory: Path, kernel: str, topology: dict[str, Any], arguments: list[str]) -> None:
        self.directory = directory
        self.layout: Layout = layout_of(from_dict(topology))
        ready_fd, child_fd = os.pipe()
        command = [sys.executable, str(_HERE / "start_machine.py"), kernel, "--dir", str(directory), "--name", "test"]
        command += ["--topology", json.dumps(topology), "--ready-fd", str(child_fd), *arguments]
        with (directory.parent / "log").open("ab") as log:
            self.init = subprocess.Popen(command, pass_fds=[child_fd], env=ENVIRONMENT, stderr=log)
        os.close(child_fd)
        self._ready_fd = ready_fd
        self._seen: dict[int, int] = {}

    def first_line(self) -> dict[str, Any]:
        """The ready line."""
        text = b""
        try:
            while not text.endswith(b"\n"):
                assert select.select([self._ready_fd], [], [], WAIT_S)[0], "no ready line"
                part = os.read(self._ready_fd, 4096)
                assert part, f"init ended without a word: {self.log()}"
                text += part
        finally:
            os.close(self._ready_fd)
        line = json.loads(text)
        assert isinstance(line, dict)
        return line

    def log(self) -> list[dict[str, Any]]:
        """All log lines of all processes."""
        return [json.loads(line) for line in (self.directory.parent / "log").read_text().splitlines()]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one kind."""
        return [line for line in self.log() if line["event"] == event]

    def command(self, command: str) -> dict[str, Any]:
        """Init's answer to a command."""
        with fdsock.connect(self.directory / "init.sock", WAIT_S) as sock:
            fdsock.send(sock, {"command": command})
            answer, _ = fdsock.recv(sock)
        assert isinstance(answer, dict)
        return answer

    def rows(self) -> list[Row]:
        """The processes of the status; every pid that is seen is remembered."""
        rows: list[Row] = self.command("status")["processes"]
        for row in rows:
            if row["pid"] not in self._seen:
                with contextlib.suppress(ProcessLookupError):
                    self._seen[row["pid"]] = pidfd.open_pidfd(row["pid"])
        return rows

    def row(self, role: str, node: int | None = None) -> Row:
        """One process of the status."""
        return next(row for row in self.rows() if (row["role"], row["node"]) == (role, node))

    def wait_state(self, role: str, node: int | None, condition: Callable[[Row], bool]) -> Row:
        """The row of a process once it is as the condition says."""

        def found() -> Row | None:
            row = self.row(role, node)
            return row if condition(row) else None

        row: Row = wait_for(found, f"{role} {node} as expected, last {self.row(role, node)}")
        return row

    def signal(self, row: Row, number: signal.Signals) -> None:
        """Send a signal to a process that a status showed."""
        pidfd.send_signal(self._seen[row["pid"]], number)

    def kernel(self, *request: object) -> list[Any]:
        """Ask the stand-in kernel; what the bus has heard so far."""
        with zmq.Context() as context, context.socket(zmq.REQ) as sock:
            sock.linger = 0
            sock.rcvtimeo = int(WAIT_S * 1000)
            sock.connect(f"ipc://{self.directory}/test.ipc")
            sock.send(msgpack.packb(list(request)))
            heard = msgpack.unpackb(sock.recv())
        assert isinstance(heard, list)
        return heard

    def memory(self, pid: int) -> dict[str, int]:
        """Descriptors of the machine's segments by name, opened through a process that has them; close them."""
        fds: dict[str, int] = {}
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                name = str(entry.readlink()).removeprefix("/memfd:numaemu.").removesuffix(" (deleted)")
                if name in all_names(self.layout) and name not in fds:
                    fds[name] = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
        return fds

    def assert_gone(self) -> None:
        """No process that was ever seen is alive, and the directory is gone."""
        assert self.init.wait(WAIT_S) is not None
        assert all(pidfd.wait_exit(descriptor, WAIT_S) for descriptor in self._seen.values())
        assert not self.directory.exists()

    def clean_up(self) -> None:
        """Kill what is left of the machine: without init, the others end by themselves."""
        self.init.kill()
        self.init.wait(WAIT_S)
        for descriptor in self._seen.values():
            with contextlib.suppress(ProcessLookupError):
                if not pidfd.wait_exit(descriptor, 5):
                    pidfd.send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="nd-"))
    yield path
    shutil.rmtree(path)


Start = Callable[..., RunningMachine]


@pytest.fixture
def launch(short_path: Path) -> Iterator[Start]:
    """Starts machines in one directory, without waiting for them; all are ended with the test."""
    started: list[RunningMachine] = []

    def start(*arguments: str, kernel: str = "standin_kernel", topology: dict[str, Any] = TOPOLOGY) -> RunningMachine:
        started.append(RunningMachine(short_path / "m", kernel, topology, list(arguments)))
        return started[-1]

    yield start
    for machine in started:
        machine.clean_up()


@pytest.fixture
def machine(launch: Start) -> RunningMachine:
    """A machine of two small nodes that is ready, and whose processes have all said hello on the bus."""
    running = launch()
    line = running.first_line()
    assert line == {"ready": True, "endpoint": f"ipc://{running.directory}/kernel.ipc", "pid": running.init.pid}
    waits_for_bus = sum(row["role"] in {"node", "swap"} for row in running.rows())
    wait_for(lambda: len(running.kernel("heard")) == waits_for_bus, "a hello of each node and the swap node")
    return running
