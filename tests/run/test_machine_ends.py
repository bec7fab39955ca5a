"""What a running program notices when the machine loses its kernel daemon, or ends."""

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, SECONDS, TOPOLOGY, begun

import numaemu as nm
from numaemu_host import pidfd

KERNEL = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))


@pytest.mark.usefixtures("runtime")
def test_a_program_does_not_notice_that_the_daemon_was_killed() -> None:
    """The next daemon has the program's address space as it was, and each call is answered as if nothing had been."""
    with nm.boot(topology=TOPOLOGY) as machine:
        with begun("run", "-m", machine.name, "--", sys.executable, PROGRAMS / "patient.py") as process:
            for _ in range(3):
                generation = machine.status()["generation"]
                pid = next(one["pid"] for one in machine.status()["processes"] if one["role"] == "kernel")
                os.kill(pid, signal.SIGKILL)
                while machine.status()["generation"] == generation:
                    pass
            out, _ = process.communicate("\n", timeout=SECONDS)
        assert (out, process.returncode) == ("well\n", 0)
        assert machine.fsck() == []


@pytest.mark.usefixtures("runtime")
def test_a_program_outlives_its_machine() -> None:
    """When the machine ends, calls of memory policy fail with EIO; the program goes on, and ends as it likes."""
    with nm.boot(topology=TOPOLOGY) as machine:
        process = begun("run", "-m", machine.name, "--", sys.executable, PROGRAMS / "widowed.py")
    with process:
        out, _ = process.communicate("\n", timeout=SECONDS)
    assert (out, process.returncode) == ("-5 readable\n", 6)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["private", "shared"])
def test_a_run_can_be_ended_though_its_machine_is_stopped(runtime: Path, kind: str, number: int) -> None:
    """Who tells the command to end need not continue the machine; a private one is gone then, another one goes on."""
    with nm.boot(topology=TOPOLOGY) as shared:
        options = ("--memory", "4M", "--swap", "0") if kind == "private" else ("-m", shared.name)
        with begun("run", *options, "--", sys.executable, PROGRAMS / "asking.py") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            pid, call, name = process.stdout.readline().split()
            with nm.connect(name) as machine:
                pids = [one["pid"] for one in machine.status()["processes"]]
            try:
                send(signal.SIGSTOP, pids)  # init first: it would continue the others
                process.stdin.write("\n")
                process.stdin.flush()
                while Path(f"/proc/{pid}/syscall").read_text().split()[0] != call:
                    assert process.poll() is None
                process.send_signal(number)
                assert process.wait(SECONDS / 2) == -number
                while kind == "private" and any(pidfd.is_running_pid(one) for one in pids):
                    time.sleep(0.01)
            finally:
                process.kill()
                send(signal.SIGCONT, pids)
        assert not (runtime / name).exists() or kind == "shared"
        assert shared.fsck() == []


@pytest.mark.timeout(SECONDS)
@pytest.mark.skipif(KERNEL < (5, 19), reason="its calls can be interrupted until they are answered")
@pytest.mark.usefixtures("runtime")
def test_a_signal_interrupts_no_call_that_waits_for_another_one() -> None:
    """While the machine is stopped two processes call, and then get a signal whose handler has no SA_RESTART."""
    with nm.boot(topology=TOPOLOGY) as machine:
        pids = [one["pid"] for one in machine.status()["processes"]]
        with begun("run", "-m", machine.name, "--", sys.executable, PROGRAMS / "interrupted.py") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            call, *callers = process.stdout.readline().split()
            try:
                send(signal.SIGSTOP, pids)
                process.stdin.write("\n")
                process.stdin.flush()
                for pid in callers:
                    while Path(f"/proc/{pid}/syscall").read_text().split()[0] != call:
                        assert process.poll() is None
                while not all_sleep(process.pid):  # nothing is left to be received
                    assert process.poll() is None
                send(signal.SIGUSR1, [int(pid) for pid in callers])
            finally:
                send(signal.SIGCONT, pids)
            assert process.stdout.readline() == "0 0\n"
        assert machine.fsck() == []


def all_sleep(pid: int) -> bool:
    """All threads of a process."""
    stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)


def send(number: int, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
