"""A touch of more than one batch is read from swap ahead: whoever dies meanwhile, each page comes back as it was."""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import numaemu as nm
from numaemu_core.limits import BATCH_PAGES
from numaemu_host.fault_board import FaultBoard

from .matrix import armed_environment

PAGE = 4096
#: Two whole batches and some.
PAGES = 2 * BATCH_PAGES + 100


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("step", ["swap-in.in_cache", "swap-in.read", "swap-in.mapped", "reading.half"])
def test_a_death_while_one_batch_is_read_and_another_mapped_loses_no_page(
    step: str, nth: int, board: FaultBoard, boot: Callable[..., nm.Machine], tmp_path: Path
) -> None:
    """The daemon, or the swap node, is killed at the first or second batch; the touch ends, and every byte is right."""
    with armed_environment(tmp_path / "board"):
        machine = boot(memory="64M", swap="64M")
    data = np.arange(PAGES * PAGE // 8, dtype=np.uint64).tobytes()
    with machine.attach() as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT)
        board.arm(step, signal.SIGKILL, nth)
        buf.touch(0, len(data))
        assert board.struck(step) == 1
        assert buf.read(0, len(data)) == data
        assert f"N1={PAGES}" in machine.numa_maps(task.pid)
