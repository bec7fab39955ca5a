"""`numaemu stress` as a whole: it does what it says, finds nothing wrong with a sound machine, and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import numaemu as nm
from numaemu.stress import crew
from numaemu.stress.board import new_memory
from numaemu.stress.plan import FILES, PAGE_BYTES, Plan
from numaemu_host import pidfd

Eventually = Callable[[Callable[[], bool], str], None]
COMMAND = [sys.executable, "-m", "numaemu", "stress"]
PATIENCE_S = 110


def stress(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
def test_a_short_run_with_kills_loses_nothing(profile: str) -> None:
    """Killed clients, nodes, swap nodes and daemons cost no page; the report says what was done and who was killed."""
    words = f"--clients 6 --seconds 7 --seed 11 --kill client,node,swap,daemon --profile {profile} --json"
    done = stress(*words.split())
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert (report["lost"], report["wrong"], report["fsck"], report["failed"]) == (0, 0, [], []), report
    assert done.returncode == 0
    assert {"reads_verified", "pages_written", "mbinds", "pages_moved"} <= {k for k, n in report["counts"].items() if n}
    assert report["machine"]["pgfault"] > 0
    assert set(report["kills"]) == {"client", "node", "swap", "daemon"}
    assert sum(report["kills"].values()) > 0


def test_the_last_line_says_what_came_of_it() -> None:
    """The report for people ends with what was lost, wrong and broken, and is otherwise the same."""
    done = stress("--clients", "1", "--seconds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "lost 0, wrong 0, fsck 0"
    assert "reads verified" in done.stdout


def test_ctrl_c_leaves_nothing_behind(runtime: Path, eventually: Eventually) -> None:
    """SIGINT to the whole group, as a terminal sends it, ends the clients, the machine and the command."""
    with subprocess.Popen(
        [*COMMAND, "--clients", "4", "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        eventually(lambda: bool(pids_of_machine(runtime)), "the machine did not come up")
        pids = pids_of_machine(runtime)
        eventually(lambda: len(group(process.pid)) > 3, "no clients came")
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    eventually(lambda: not group(process.pid), "processes are left")
    eventually(lambda: not any(map(pidfd.is_running_pid, pids)), "the machine goes on")
    eventually(lambda: not any(runtime.iterdir()), "files are left")


def pids_of_machine(runtime: Path) -> list[int]:
    """The processes of the one machine that runs there; none while it is starting."""
    for place in runtime.iterdir():
        try:
            with nm.connect(place.name) as machine:
                return [process["pid"] for process in machine.status()["processes"]]
        except (OSError, nm.PeerError):
            return []
    return []


def group(leader: int) -> list[int]:
    """The processes of a session that are not over."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                _, _, rest = (entry / "stat").read_text().rpartition(")")
            except OSError:
                continue
            state, _, _, session = rest.split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def test_a_client_that_hangs_is_reported_with_where_it_hangs(
    boot: Callable[..., nm.Machine], pid_of: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon is stopped, and so is init, which would replace it: the run says where its clients wait, and ends."""
    plan = Plan(clients=1, seconds=60, seed=1)
    machine = boot(nodes=4, memory=plan.node_bytes, swap=plan.all_swap_bytes)
    for file in FILES:
        machine.create_file(file.name, file.pages_each * PAGE_BYTES, file.kind)
    stopped = [pid_of(machine, "init"), pid_of(machine, "kernel")]
    with crew.Crew(plan, machine.name, new_memory(plan), time.monotonic() + 60) as people:
        people.fill_up()
        wait_turning(people, lambda: people.board.totals()["pages_written"] > 0)
        monkeypatch.setattr(crew, "STUCK_S", 1.0)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            wait_turning(people, lambda: bool(people.failed) and not people.members)
        finally:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)
    (story,) = people.failed
    assert "worker 1 was stuck in" in story
    assert "connection.py" in story
    assert "Thread" in story


def wait_turning(people: crew.Crew, holds: Callable[[], bool]) -> None:
    """Let the crew turn until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        people.turn()
