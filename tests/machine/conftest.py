"""Real machines for tests: booted, checked by fsck when the test is over, and looked at for what they leave behind."""

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import numaemu as nm
from numaemu_host import pidfd

#: How long a condition may take to come true before its test fails.
PATIENCE_S = 30.0


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
