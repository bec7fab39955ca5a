"""A call of which the kernel daemon dies: its successors die of it a few times, and then it is refused."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

import numaemu as nm
from numaemu_core.limits import DEATHS_OF_A_CALL
from numaemu_host.fault_board import FaultBoard

from .matrix import armed_environment

PAGE = 4096
PAGES = 64


def move(_machine: nm.Machine, task: nm.Task, buf: nm.Mapping) -> None:
    """A call that stands in the journal before it begins."""
    task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, nm.MPOL_MF_MOVE)


def touch(_machine: nm.Machine, task: nm.Task, _buf: nm.Mapping) -> None:
    """A fault, which stands there never."""
    task.mmap(PAGE).write(0, b"x")


def check(machine: nm.Machine, _task: nm.Task, _buf: nm.Mapping) -> None:
    """A call that is no task's."""
    assert machine.fsck() == []


CALLS = {
    "mbind": (move, "isolation.isolated"),
    "fault": (touch, "fault.sem_held"),
    "fsck": (check, "fsck.begun"),
}


@pytest.mark.parametrize(("call", "step"), CALLS.values(), ids=CALLS)
def test_a_call_that_daemons_die_of_is_refused_in_the_end(
    call: Callable[[nm.Machine, nm.Task, nm.Mapping], None],
    step: str,
    board: FaultBoard,
    boot: Callable[..., nm.Machine],
    tmp_path: Path,
) -> None:
    """Its caller gets EIO, the machine goes on, and nobody has lost a byte; without the bug the same call succeeds."""
    with armed_environment(tmp_path / "board"):
        machine = boot()
    data = bytes(range(256)) * (PAGES * PAGE // 256)
    with machine.attach() as other, machine.attach() as task:
        kept = other.mmap(PAGES * PAGE)
        kept.write(0, data)
        buf = task.mmap(PAGES * PAGE)
        buf.write(0, data)
        board.arm(step, None)
        try:
            with pytest.raises(OSError, match="has died of this call") as refused:
                call(machine, task, buf)
        finally:
            board.disarm(step)
        assert refused.value.errno == errno.EIO
        assert machine.status()["generation"] in {1 + DEATHS_OF_A_CALL, 2 + DEATHS_OF_A_CALL}  # a line is tried first
        assert machine.fsck() == []
        assert (kept.read(0, len(data)), buf.read(0, len(data))) == (data, data)
        call(machine, task, buf)
        assert buf.read(0, len(data)) == data
