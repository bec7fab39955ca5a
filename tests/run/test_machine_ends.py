"""What a running program notices when the machine loses its kernel daemon, or ends."""

import os
import signal
import sys

import pytest
from tests.run.conftest import PROGRAMS, SECONDS, TOPOLOGY, begun

import numaemu as nm


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
