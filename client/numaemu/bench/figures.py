"""The figures, by name. Each boots what it needs and takes it down again."""

import contextlib
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import zmq

import numaemu as nm
from numaemu.bench.flood import flood_p99_client, flood_p99_stranger
from numaemu.bench.rounds import Figure, alone, compare
from numaemu_core import limits, topology
from numaemu_core.layout import MUTEX_BYTES, layout_of
from numaemu_core.wire import pack_request

PAGE: Final = 4096
_MIB: Final = 1 << 20
_ACCESSES: Final = 20_000
_FAULTS: Final = 300
_MOVED_BYTES: Final = 64 * _MIB
_IDLE_S: Final = 5.0


@contextlib.contextmanager
def _machine(memory: str, swap: str) -> Iterator[nm.Machine]:
    with nm.boot(nodes=4, memory=memory, swap=swap) as machine:
        yield machine


def _per_call(function: Callable[[], object], calls: int) -> float:
    """Microseconds a call, of `calls` calls that `function` makes."""
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) / calls * 1e6


# -- hits --------------------------------------------------------------------------------------------------------------


def hit_read_64() -> Figure:
    """A read of 64 bytes from a present page, at random, beside a slice of a plain mmap."""
    draw = random.Random(7)  # noqa: S311 - the same addresses every time
    offsets = [draw.randrange(4 * _MIB // 64) * 64 for _ in range(_ACCESSES)]
    with _machine("64M", "64M") as machine, machine.attach() as task, mmap.mmap(-1, 4 * _MIB) as plain:
        buf = task.mmap(4 * _MIB)
        buf.write(0, bytes(range(256)) * (4 * _MIB // 256))
        plain[:] = buf.read(0, 4 * _MIB)
        addresses = [buf.start + offset for offset in offsets]

        def ours() -> None:
            read = task.read
            for address in addresses:
                read(address, 64)

        def peer() -> None:
            for offset in offsets:
                plain[offset : offset + 64]

        return compare(
            "hit-read-64",
            "us",
            lambda: _per_call(ours, _ACCESSES),
            lambda: _per_call(peer, _ACCESSES),
            peer_is="mmap[a:b] of the same bytes",
            reach="<= 7 x its time",
        )


# -- faults ------------------------------------------------------------------------------------------------------------


def fault_1() -> Figure:
    """The first write of a page, beside a bare ROUTER/DEALER echo of the same size."""
    message = pack_request("0" * 16, 1000, "fault", [1, 1 << 46, PAGE, True])
    with _machine("64M", "64M") as machine, machine.attach() as task, _echo() as dealer:
        fresh = iter(range(0, 64 * _MIB, PAGE))
        buf = task.mmap(64 * _MIB)

        def ours() -> None:
            for _ in range(_FAULTS):
                task.write(buf.start + next(fresh), b"x")

        def peer() -> None:
            for _ in range(_FAULTS):
                dealer.send(message)
                dealer.recv()

        return compare(
            "fault-1",
            "us",
            lambda: _per_call(ours, _FAULTS),
            lambda: _per_call(peer, _FAULTS),
            peer_is="ZeroMQ echo of the same message",
            reach="<= 2 x its time",
        )


@contextlib.contextmanager
def _echo() -> Iterator["zmq.Socket[bytes]"]:
    with tempfile.TemporaryDirectory(prefix="numaemu-echo-") as folder:
        endpoint = f"ipc://{folder}/echo.ipc"
        command = [sys.executable, "-m", "numaemu.bench.echo", endpoint]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert server.stdout is not None
        server.stdout.readline()
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 1000
        dealer.connect(endpoint)
        try:
            yield dealer
        finally:
            dealer.send(b"")
            dealer.close()
            context.term()
            server.stdout.close()
            server.wait()


# -- moving ------------------------------------------------------------------------------------------------------------


def _scatter_copy() -> Callable[[], float]:
    """Pages a second of a scatter copy of as many pages into shared memory."""
    count = _MOVED_BYTES // PAGE
    source = np.random.default_rng(1).integers(0, 255, (count, PAGE), np.uint8)
    target = np.frombuffer(mmap.mmap(-1, _MOVED_BYTES), np.uint8).reshape(count, PAGE)
    rows = np.random.default_rng(2).permutation(count)

    def copy() -> float:
        began = time.perf_counter()
        target[rows] = source
        return count / (time.perf_counter() - began)

    return copy


def round_64m() -> Figure:
    """mbind(MOVE) of 64 MiB that were just written, and the touch that brings them back, beside a scatter copy."""
    count = _MOVED_BYTES // PAGE
    with _machine("96M", "256M") as machine, machine.attach() as task:
        buf = task.mmap(_MOVED_BYTES)
        node = iter(range(1, 1000))

        def ours() -> float:
            task.touch(buf.start, buf.length, write=True)
            began = time.perf_counter()
            task.mbind(buf.start, buf.length, nm.MPOL_BIND, {next(node) % 4}, nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT)
            task.touch(buf.start, buf.length)
            return count / (time.perf_counter() - began)

        return compare(
            "round-64M",
            "pages/s",
            ours,
            _scatter_copy(),
            peer_is="numpy scatter copy of as many pages",
            reach=">= 150,000 pages/s",
        )


# -- the machine itself ------------------------------------------------------------------------------------------------


def boot() -> Figure:
    """Four nodes of 64 MiB from nothing to ready, beside a bare Python that imports the same libraries."""
    libraries = "import numpy, zmq, msgpack, structlog, multiprocess"

    def ours() -> float:
        began = time.perf_counter()
        machine = nm.boot(nodes=4, memory="64M", swap="128M")
        seconds = time.perf_counter() - began
        machine.close()
        return seconds

    def peer() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", libraries], check=True)
        return time.perf_counter() - began

    return compare("boot", "s", ours, peer, peer_is="a Python that imports the same", reach="<= 2 s")


def idle() -> Figure:
    """Processor time that all processes of a machine at rest take, in percent of one core."""
    with _machine("64M", "128M") as machine:
        pids = [process["pid"] for process in machine.status()["processes"]]
        before = sum(map(_ticks, pids))
        time.sleep(_IDLE_S)
        used_s = (sum(map(_ticks, pids)) - before) / os.sysconf("SC_CLK_TCK")
    return alone("idle", "% of a core", 100 * used_s / _IDLE_S, "0")


def _ticks(pid: int) -> int:
    """User and system time of a process, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def bytes_per_frame() -> Figure:
    """Metadata of a frame that is densely mapped: frame table, entry and bits, its share of a pte lock."""
    layout = layout_of(topology.uniform(4, "64M", "128M", "swap-v3", PAGE))
    columns = [column for column in layout.segments["frames"].columns if column.shape == (layout.frame_count,)]
    frame = sum(column.size for column in columns) / layout.frame_count
    table = MUTEX_BYTES / limits.PTRS_PER_TABLE
    return alone("bytes-per-frame", "bytes", frame + 8 + 1 + 1 + table, "<= 96")


FIGURES: Final[dict[str, Callable[[], Figure]]] = {
    "hit-read-64": hit_read_64,
    "fault-1": fault_1,
    "round-64M": round_64m,
    "boot": boot,
    "idle": idle,
    "bytes-per-frame": bytes_per_frame,
    "flood-p99-client": flood_p99_client,
    "flood-p99-stranger": flood_p99_stranger,
}
