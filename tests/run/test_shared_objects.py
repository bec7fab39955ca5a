"""Shared memory that the host keeps while nobody maps it: its policy and its pages stay until it is removed."""

import ctypes
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, Run

import numaemu as nm

pytestmark = pytest.mark.shares_machines

PAGE, PAGES = 4096, 8
IPC_CREAT, IPC_RMID = 0o1000, 0
TMPFS = Path("/dev/shm")  # noqa: S108 - the kernel's tmpfs, of which all of this is


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Of a file on tmpfs that is not there."""
    if not os.access(TMPFS, os.W_OK):
        pytest.skip(f"no tmpfs at {TMPFS}")
    found = TMPFS / f"{tmp_path.name}-{os.getpid()}"
    yield found
    found.unlink(missing_ok=True)


@pytest.fixture
def segment() -> Iterator[int]:
    """The number of a SysV segment of eight pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.shmget(0, PAGES * PAGE, IPC_CREAT | 0o600)
    if found < 0:
        pytest.skip(f"no SysV segments: {errno.errorcode[ctypes.get_errno()]}")
    yield found
    libc.shmctl(found, IPC_RMID, None)


@pytest.mark.parametrize("way", ["unmapped", "mapped elsewhere", "ended", "executed", "killed"])
@pytest.mark.parametrize("kind", ["path", "segment"])
def test_what_is_kept_has_its_policy_and_its_pages(
    run: Run, request: pytest.FixtureRequest, kind: str, way: str
) -> None:
    """However its only mapping ends: the next one finds the pages, and the policy for others, until it is removed."""
    done = run(sys.executable, PROGRAMS / "kept.py", request.getfixturevalue(kind), way)
    lines = ["kept 4 pages", "nodes [2]", "kept 8 pages", "kept 0 pages"]
    assert (done.stdout.splitlines(), done.stderr) == (lines, "")


def test_it_outlasts_who_is_out_of_memory(run: Run, path: Path) -> None:
    """The OOM killer takes the process, and nothing of what others can map."""
    done = run(sys.executable, PROGRAMS / "kept.py", path, "out of memory", options=("--report", "json"))
    assert done.stdout.splitlines()[1] == "nodes [2]"
    report = json.loads(done.stderr[done.stderr.index("{") :])
    assert (report["killed_out_of_memory"], report["troubles"]) == (1, {})


@pytest.mark.parametrize("kind", ["path", "segment"])
def test_what_is_removed_while_it_is_mapped_stays(run: Run, request: pytest.FixtureRequest, kind: str) -> None:
    """Also if it is removed before anybody has looked at the mapping."""
    done = run(sys.executable, PROGRAMS / "kept.py", request.getfixturevalue(kind), "removed while mapped")
    assert (done.stdout, done.stderr) == ("nodes [2]\n", "")


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("segment", "madvise"),
        ("memfd", "madvise"),
        ("memfd", "fallocate"),
        ("memfd", "ftruncate"),
        ("path", "fallocate"),
        ("path", "truncate"),
        ("path", "open"),
        ("path", "relative"),
    ],
)
def test_pages_that_were_cut_out_are_placed_anew(run: Run, request: pytest.FixtureRequest, kind: str, way: str) -> None:
    """By the policy of now; those that were left stay where they are."""
    what = kind if kind == "memfd" else request.getfixturevalue(kind)
    done = run(sys.executable, PROGRAMS / "cut.py", what, way)
    lines = ["2 2 2 2 2 2 2 2", "1 1 1 1 1 1 1 1"] if way in {"open", "relative"} else ["2 2 2 2 1 1 1 1"]
    assert (done.stdout.splitlines(), done.stderr) == (lines, "")


def test_it_outlasts_a_run(run: Run, machine: nm.Machine, path: Path) -> None:
    """It is in the machine until it is removed, and a later run looks."""
    before = free_kb(machine)
    for _ in range(2):
        assert run(sys.executable, PROGRAMS / "kept.py", path, "left").returncode == 0
        assert before - free_kb(machine) == 4 * PAGES // 2
    path.unlink()
    assert run(sys.executable, PROGRAMS / "kept.py", path, "awaited", before).stdout == "kept 0 pages\n"


def free_kb(machine: nm.Machine) -> int:
    """Of the node that the program binds to."""
    return int(machine.figures("meminfo")[2]["MemFree"])


def test_what_is_removed_makes_room_before_anybody_is_killed(run: Run, path: Path) -> None:
    """A program that fills a node twice, and removes the first half before the second, is not out of memory."""
    done = run(sys.executable, PROGRAMS / "kept.py", path, "removed")
    assert (done.stdout, done.stderr) == ("node 2\n", "")


def test_what_is_removed_between_runs_makes_room_too(run: Run, path: Path) -> None:
    """The second run has heard of nothing before it needs the memory."""
    assert run(sys.executable, PROGRAMS / "kept.py", path, "filled").returncode == 0
    path.unlink()
    done = run(sys.executable, PROGRAMS / "kept.py", path, "filled again")
    assert (done.stdout, done.stderr) == ("node 2\n", "")
