"""Threads under policies of their own: whose a new page is, where the host tells of faults and where it does not."""

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from tests.run.conftest import PROGRAMS, Run, compiled, faults_refused

from numaemu_run import fault_events
from numaemu_run import session as session_module
from numaemu_run.family import Family
from numaemu_run.fault_events import TOUCH, FaultEvents
from numaemu_run.mirror import Mirror
from numaemu_run.placement import Placement
from numaemu_run.processes import Counts, Process, Thread
from numaemu_run.procfs import live_threads_of
from numaemu_run.session import Session

pytestmark = pytest.mark.shares_machines


told = pytest.mark.skipif(
    bool(faults_refused()), reason=f"page faults are not told: {faults_refused()}; see numaemu doctor"
)


def test_faults_of_a_process_that_has_just_ended_are_nobodys() -> None:
    """Its threads are forgotten before its end is told: what they have touched is of no process, and nothing fails."""
    rows = [(9, 0, TOUCH.itemsize, pid, pid, 1, 4096) for pid in (5, 6)]
    events = SimpleNamespace(take=lambda: np.array(rows, TOUCH))
    ended = Process(5, -1, cast("Mirror", None))
    placement = Placement(Counts(), {5: ended}, cast("FaultEvents", events), lambda process, _tid: process.leader)
    placement.collect()
    assert ended.touches == []


@told
@pytest.mark.parametrize("by", ["cpu", "policy", "one after another"])
def test_each_page_is_on_the_node_of_the_thread_that_has_touched_it(run: Run, by: str) -> None:
    """Also where threads touch every fourth page of one range, and have ended when somebody looks."""
    done = run(sys.executable, PROGRAMS / "touchers.py", by, options=("--report", "json"))
    assert (done.stdout, done.returncode) == ("2000 pages right\n", 0), done.stderr
    report = json.loads(done.stderr)
    assert (report["pages_ambiguous"], report["troubles"]) == (0, {})


@told
def test_what_a_thread_touches_while_its_process_is_looked_at_is_its_own(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It has ended when the look is over: it is forgotten after the next one, when its pages are placed."""
    pipe = tmp_path / "go on"
    os.mkfifo(pipe)
    look, look_around = Family.look, Family.look_around
    around: list[bool] = []

    def looks(family: Family, thread: Thread, address: int | None = None) -> None:
        look(family, thread, address)
        if around and len(thread.process.threads) == 2 and len(live_threads_of(thread.process.pid)) == 2:
            pipe.write_text("x")
            while len(live_threads_of(thread.process.pid)) == 2:
                pass

    def looks_around(family: Family) -> None:
        around.append(True)
        look_around(family)
        around.clear()

    monkeypatch.setattr(Family, "look", looks)
    monkeypatch.setattr(Family, "look_around", looks_around)
    assert right_pages(session, capfd, "last_touches.py", str(pipe)) == (10, 0)


@told
def test_threads_of_openmp_touch_first(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that are spread over the CPUs have their parts of an array on their nodes."""
    monkeypatch.setenv("OMP_PROC_BIND", "spread")
    monkeypatch.setenv("OMP_PLACES", "threads")
    done = run(compiled("first_touch.c", tmp_path, "-fopenmp"))
    assert (done.stdout, done.returncode) == ("512 512 512 512\n", 0), done.stderr


def right_pages(session: Session, capfd: pytest.CaptureFixture[str], program: str, *arguments: str) -> tuple[int, int]:
    """How many pages or ranges the program finds right, and how many were a guess."""
    assert session.run([sys.executable, str(PROGRAMS / program), *arguments], os.environ).code == 0
    assert session.supervisor is not None
    assert session.supervisor.family.troubles.counts == {}
    lines = capfd.readouterr().out.splitlines()
    right = next(line for line in lines if line.endswith((" right", "of their own right")) and "threads" not in line)
    return int(right.split()[0]), session.supervisor.family.counts.pages_ambiguous


def test_without_the_faults_it_is_a_guess(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of eight ranges that threads touch in turn most are right, and their pages are counted as guessed."""

    def refused(*_arguments: object) -> FaultEvents:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(session_module, "FaultEvents", refused)
    right, guessed = right_pages(session, capfd, "threads.py")
    assert right >= 6
    assert guessed > 0


@told
def test_faults_that_cannot_be_recorded_are_told(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the host lets us lock no more memory when threads begin to differ, that is said once; the run goes on."""

    def refused(_events: FaultEvents) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(FaultEvents, "begin", refused)
    assert session.run([sys.executable, str(PROGRAMS / "touchers.py"), "cpu"], os.environ).code == 0
    out, err = capfd.readouterr()
    assert out.endswith(" pages right\n")
    assert err.count("page faults are not recorded: Operation not permitted") == err.count("\n") == 1


@told
def test_faults_that_find_no_room_are_a_guess(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What nobody takes out of a full ring in time is counted as guessed; what was recorded is right."""
    monkeypatch.setattr(fault_events, "_RING_BYTES", 4096)
    monkeypatch.setattr(FaultEvents, "_empty", lambda _self: None)
    right, guessed = right_pages(session, capfd, "touchers.py", "cpu")
    room = 4096 // fault_events.TOUCH.itemsize
    assert guessed > 0
    assert room // 2 <= right < 2000
