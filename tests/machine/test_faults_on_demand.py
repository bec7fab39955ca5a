"""Faults on demand on real machines: the same calls have the same faults, also when the daemon dies between them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import numaemu as nm

Boot = Callable[..., nm.Machine]

PAGE = 4096
PAGES = 200
STRICT_MOVE = nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT
FAULTS = ["node2: full after 100 pages", "isolation: refused for 10%", "migration: fails for 5%", "swap: full"]


def answers(machine: nm.Machine, between: Callable[[], object] = lambda: None) -> list[Any]:
    """What some calls say, and what came of them."""
    told: list[Any] = []
    with machine.attach(cpu=2) as task:
        buf = task.mmap(PAGES * PAGE)
        buf[0 : buf.length] = bytes(range(1, 201)) * PAGE
        told.append(task.where(buf.start, buf.length).tolist())
        for node in (1, 0, 1):
            between()
            addresses = [buf.start + page * PAGE for page in range(PAGES)]
            try:
                told.append(list(task.move_pages(0, addresses, [node] * PAGES)))
            except OSError as error:
                told.append(error.errno)
            try:
                told.append(task.mbind(buf.start, buf.length, nm.MPOL_BIND, {node}, STRICT_MOVE))
            except OSError as error:
                told.append(error.errno)
            told.append(task.where(buf.start, buf.length).tolist())
        assert buf[0 : buf.length] == bytes(range(1, 201)) * PAGE
    return [*told, machine.status()["faults_struck"]]


def test_the_same_seed_gives_the_same_faults(boot: Boot) -> None:
    """Call by call, on two machines and on one whose daemon is killed again and again; another seed gives others."""
    machines = [boot(nodes=3, profile="linux-6.12", faults=FAULTS, seed=seed) for seed in (7, 7, 7, 8)]
    first, second, third, fourth = machines

    def kill_kernel() -> None:
        pid = next(row["pid"] for row in third.status()["processes"] if row["role"] == "kernel")
        os.kill(pid, signal.SIGKILL)

    expected = answers(first)
    assert answers(second) == expected
    assert answers(third, kill_kernel) == expected
    assert answers(fourth) != expected
    assert expected[0].count(2) == 100
    struck = expected[-1]
    assert all(struck[fault] for fault in FAULTS[:3])


def numaemu(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "numaemu", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("runtime")
def test_a_machine_shows_its_faults(tmp_path: Path) -> None:
    """`hardware` and `status` have a line of them: those of the file, then those of the command line."""
    topology = tmp_path / "box.toml"
    topology.write_text(
        'profile = "linux-6.12"\nfaults = ["swap: full"]\nseed = 3\n[[node]]\nmemory = "4M"\ncpus = [0]\n'
    )
    up = numaemu("-m", "box", "up", "--topology", str(topology), "--fault", "node0: full after 10 pages", "--seed", "9")
    assert up.returncode == 0, up.stderr
    line = "faults (seed 9): swap: full after 0 pages; node0: full after 10 pages"
    assert line in numaemu("-m", "box", "hardware").stdout.splitlines()
    assert line in numaemu("-m", "box", "status").stdout.splitlines()
    with nm.connect("box") as machine:
        assert machine.status()["faults"] == ["swap: full after 0 pages", "node0: full after 10 pages"]
        assert machine.topology.seed == 9
    assert numaemu("-m", "box", "down").returncode == 0
