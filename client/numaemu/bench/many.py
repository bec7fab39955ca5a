"""Many clients at once, and one beside a long call of another."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import numaemu as nm
from numaemu.bench.crowd import crowd
from numaemu.bench.echo import echoing
from numaemu.bench.machines import MIB, PAGE, booted
from numaemu.bench.rounds import Figure, compare, percentile, rate, times

_CLIENTS: Final = 64
_FEW: Final = 2
_ROUND_S: Final = 1.0
_LONG_BYTES: Final = 512 * MIB
_PAUSE_S: Final = 0.0005


def clients_64() -> Iterator[Figure]:
    """Hits and faults a second of 64 client processes together, beside those of 2."""
    with booted(memory="64M") as machine, echoing() as endpoint, crowd(machine, endpoint, _CLIENTS) as clients:
        for name, kind in (("clients-64", "hits"), ("clients-64-faults", "faults")):
            yield compare(
                name,
                f"{kind}/s",
                lambda kind=kind: clients.work(kind, _CLIENTS, _ROUND_S)[0],  # type: ignore[misc]  # mypy cannot type such a default
                lambda kind=kind: clients.work(kind, _FEW, _ROUND_S)[0],  # type: ignore[misc]  # the same
                peer_is="2 client processes",
                reach=rate(0.9),
            )


def fault_p99_64() -> Iterator[Figure]:
    """The 99th percentile of a fault while 64 clients fault, beside that of an echo while 64 clients ask for one."""
    with booted(memory="64M") as machine, echoing() as endpoint, crowd(machine, endpoint, _CLIENTS) as clients:
        yield compare(
            "fault-p99-64",
            "us",
            lambda: percentile(clients.work("faults", _CLIENTS, _ROUND_S)[1], 99),
            lambda: percentile(clients.work("echo", _CLIENTS, _ROUND_S)[1], 99),
            peer_is="ZeroMQ echo with 64 clients",
            reach=times(1.5),
        )


def beside_mbind() -> Iterator[Figure]:
    """The 99th percentile of a task's fault while another's 512 MiB are moved, beside that on an idle machine."""
    with booted(memory="640M", swap="768M") as machine, machine.attach() as task, machine.attach() as other:
        long = other.mmap(_LONG_BYTES)
        nodes = iter(range(1, 100))

        def moved() -> float:
            long.touch(write=True)
            target = {next(nodes) % 4}
            mover = threading.Thread(
                target=lambda: other.mbind(long.start, long.length, nm.MPOL_BIND, target, nm.MPOL_MF_MOVE)
            )
            mover.start()
            took = _faults_us(task, mover.is_alive)
            mover.join()
            return percentile(took, 99)

        def idle() -> float:
            until = time.perf_counter() + _ROUND_S
            return percentile(_faults_us(task, lambda: time.perf_counter() < until), 99)

        yield compare("beside-mbind", "us", moved, idle, peer_is="the same on an idle machine", reach=times(4))


def _faults_us(task: nm.Task, going_on: Callable[[], bool]) -> list[float]:
    """Microseconds of each fault, one after the other with a pause between, for as long as it goes on."""
    took: list[float] = []
    while going_on():
        with task.mmap(64 * PAGE) as region:
            for at in range(64):
                began = time.perf_counter()
                region.write(at * PAGE, b"x")
                took.append((time.perf_counter() - began) * 1e6)
                time.sleep(_PAUSE_S)
    return took
