"""Direct migration while processes die or stand still: today's move, on real machines."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numaemu as nm

Boot = Callable[..., nm.Machine]
Eventually = Callable[[Callable[[], bool], str], None]

PAGE = 4096
TODAY = ["linux-6.1", "linux-6.12"]
MOVE_TO_1 = (nm.MPOL_BIND, {1}, nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT)


@pytest.mark.parametrize("profile", TODAY)
@pytest.mark.parametrize("victim", [0, 1], ids=["source", "destination"])
def test_a_node_process_that_dies_in_the_middle_of_a_move_costs_no_byte(
    victim: int, profile: str, boot: Boot, pid_of: Callable[..., int], eventually: Eventually
) -> None:
    """SIGKILL of a node process while its pages are copied: the call ends, all pages are there, every byte is right."""
    machine = boot(memory="8M", profile=profile)
    data = np.random.default_rng(9).integers(0, 255, 1024 * PAGE, np.uint8).tobytes()
    with machine.attach(cpu=0) as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        copier, killed = pid_of(machine, "node", 1), pid_of(machine, "node", victim)
        os.kill(copier, signal.SIGSTOP)  # so that the copy is on its way when the process dies
        mover = threading.Thread(target=task.mbind, args=(buf.start, buf.length, *MOVE_TO_1))
        mover.start()
        eventually(lambda: machine.status()["copies"] > 0, "no copy was asked for")
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: pid_of(machine, "node", victim) != killed, "it was not restarted")
        if copier != killed:
            assert mover.is_alive()
            os.kill(copier, signal.SIGCONT)
        mover.join(60)
        assert not mover.is_alive()
        assert set(task.where(buf.start, buf.length).tolist()) == {1}
        assert buf.read(0, len(data)) == data
        assert machine.figures("vmstat")["pgmigrate_success"] == 1024


@pytest.mark.parametrize("profile", TODAY)
def test_what_a_stopped_process_writes_late_is_not_lost(
    profile: str, boot: Boot, start_client: Callable[..., Any]
) -> None:
    """A process that is stopped inside a window keeps the pages where they are; the write that it ends with counts."""
    machine = boot(profile=profile)
    with machine.attach(cpu=0) as task:
        if not task.attachment.fenced:
            pytest.skip("this host refuses membarrier: no window is open without a lock")
        buf = task.mmap(8 * PAGE)
        buf.write(0, b"soon" * (2 * PAGE))
        late = start_client("late_writer.py", machine.name, task.pid, buf.start)
        assert late.hear() == "open"
        os.kill(late.process.pid, signal.SIGSTOP)
        with pytest.raises(OSError, match="could not be moved"):
            task.mbind(buf.start, buf.length, *MOVE_TO_1)
        assert task.where(buf.start, PAGE).tolist() == [0]
        os.kill(late.process.pid, signal.SIGCONT)
        late.go_on()
        assert late.hear() == "closed"
        task.mbind(buf.start, buf.length, *MOVE_TO_1)
        assert set(task.where(buf.start, buf.length).tolist()) == {1}
        assert buf.read(0, 8) == b"latesoon"
        late.go_on()
