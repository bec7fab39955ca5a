"""A machine that was used much is as it was before: nothing grows with what came and went."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import numaemu as nm

Boot = Callable[..., nm.Machine]

PAGE = 4096
ROUNDS = 12
TASKS_A_ROUND = 4
#: What the daemon may take more of the host's memory after the rounds: what allocators keep.
GROWTH_BYTES = 8 << 20


def one_round(machine: nm.Machine) -> None:
    """Tasks come, map, write, move, evict, fork, and go; so does a client of its own."""
    for cpu in range(TASKS_A_ROUND):
        with machine.attach(cpu=cpu % 2) as task:
            buf = task.mmap(32 * PAGE)
            buf.write(0, b"x" * (32 * PAGE))
            task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1 - cpu % 2}, nm.MPOL_MF_MOVE)
            with task.fork() as child:
                child.write(buf.start, b"y" * PAGE)
            task.munmap(buf.start, 16 * PAGE)
            task.madvise(buf.start + 16 * PAGE, 8 * PAGE, nm.MADV_PAGEOUT)
    with nm.connect(machine.name) as other, other.attach() as task:
        task.mmap(PAGE)[0:1] = b"z"


def in_use(machine: nm.Machine) -> dict[str, Any]:
    """What the machine has given out, and the descriptors of its processes."""
    status = machine.status()
    found: dict[str, Any] = {name: status[name] for name in ("clients", "tasks", "quarantined", "copies", "sleeping")}
    for nid in (0, 1):
        found[f"free on {nid}"] = re.findall(r"MemFree: +(\d+)", machine.meminfo(nid))
    for process in status["processes"]:
        descriptors = len(os.listdir(Path(f"/proc/{process['pid']}/fd")))  # noqa: PTH208 - only their number
        found[f"descriptors of {process['role']} {process['node']}"] = descriptors
    return found


def test_nothing_grows_with_tasks_that_come_and_go(
    boot: Boot, pid_of: Callable[..., int], eventually: Callable[[Callable[[], bool], str], None]
) -> None:
    """Frames, tasks, clients and descriptors are those of the first round, and the daemon's memory has bounds."""
    machine = boot(memory="8M", swap="8M")
    for _ in range(2):
        one_round(machine)
    eventually(lambda: machine.status()["clients"] == 1, "the other client is still there")
    before, kernel = in_use(machine), psutil.Process(pid_of(machine, "kernel"))
    resident = kernel.memory_info()
    for _ in range(ROUNDS):
        one_round(machine)
    eventually(lambda: in_use(machine) == before, f"more than {before}")
    after = kernel.memory_info()
    assert after.rss - after.shared < resident.rss - resident.shared + GROWTH_BYTES
