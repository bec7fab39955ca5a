"""The machine itself: coming up, doing nothing, and what it keeps for a frame."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numaemu as nm
from numaemu.bench.machines import booted, seconds
from numaemu.bench.rounds import Figure, Reach, alone, compare, times
from numaemu_core import limits
from numaemu_core.layout import MUTEX_BYTES, layout_of
from numaemu_core.performer import machine_in_memory
from numaemu_core.topology import uniform

_IDLE_S: Final = 5.0
#: What the processes of a machine and its client import.
_MODULES: Final = "numaemu, numaemu_daemon.init, numaemu_daemon.kernel_main, numaemu_daemon.node_main"


def boot() -> Iterator[Figure]:
    """Four nodes of 64 MiB from nothing to ready, beside one bare Python that imports the same modules."""

    def ours() -> float:
        machines: list[nm.Machine] = []
        took = seconds(lambda: machines.append(nm.boot(nodes=4, memory="64M", swap="128M")))
        machines[0].close()
        return took

    def peer() -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", f"import {_MODULES}"], check=True))

    yield compare("boot", "s", ours, peer, peer_is="a Python that imports the same", reach=times(3))


def idle() -> Iterator[Figure]:
    """Processor time that all processes of a machine at rest take, in percent of one core."""
    with booted() as machine:
        pids = [process["pid"] for process in machine.status()["processes"]]
        before = sum(map(_ticks, pids))
        time.sleep(_IDLE_S)
        used_s = (sum(map(_ticks, pids)) - before) / os.sysconf("SC_CLK_TCK")
    yield alone("idle", "% of a core", [100 * used_s / _IDLE_S], Reach(at_most=True, bound=0.5, of=""))


def _ticks(pid: int) -> int:
    """User and system time of a process, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def bytes_per_frame() -> Iterator[Figure]:
    """Metadata of a densely mapped frame: frame table, entry and bits, its share of a pte lock, the daemon's own."""
    layout = layout_of(uniform(4, "64M", "128M", "swap-v3", 4096))
    columns = [column for column in layout.segments["frames"].columns if column.shape == (layout.frame_count,)]
    frame = sum(column.size for column in columns) / layout.frame_count
    entry = 8 + 1 + 1 + MUTEX_BYTES / limits.PTRS_PER_TABLE
    k = machine_in_memory(uniform(1, "1M", "1M", "swap-v3", 4096))
    own = sum(column.itemsize for column in (k.nid_of_pfn, k.page_refs, k.harvests))
    yield alone("bytes-per-frame", "bytes", [frame + entry + own], Reach(at_most=True, bound=72, of=""))
