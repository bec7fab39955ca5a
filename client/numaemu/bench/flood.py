"""What a flood costs others: the slowest hundredth of a client's faults, beside a flooder and without one."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import numaemu as nm
from numaemu.bench.rounds import Figure, compare, percentile, times

PAGE: Final = 4096
_FAULTS: Final = 1500
_MIB: Final = 1 << 20


def flood_p99(kind: str) -> Iterator[Figure]:
    """The 99th percentile of a polite client's faults, beside a flooder (`client` or `stranger`) and without."""
    with (
        nm.boot(nodes=2, memory="64M", swap="64M") as machine,
        machine.attach() as task,
        _flooder(machine.name, kind) as say,
    ):

        def p99() -> float:
            buf = task.mmap(_FAULTS * PAGE)
            taken: list[float] = []
            for offset in range(0, _FAULTS * PAGE, PAGE):
                began = time.perf_counter()
                task.write(buf.start + offset, b"x")
                taken.append(time.perf_counter() - began)
            task.munmap(buf.start, buf.length)
            return percentile(taken, 99) * 1e6

        def beside() -> float:
            say()
            try:
                return p99()
            finally:
                say()

        yield compare(
            f"flood-p99-{kind}",
            "us",
            beside,
            p99,
            peer_is="the same faults without the flood",
            reach=times(3),
        )


def flood_p99_client() -> Iterator[Figure]:
    """The flooder is a client: it pipelines thousands of requests."""
    return flood_p99("client")


def flood_p99_stranger() -> Iterator[Figure]:
    """The flooder has not said hello: it sends garbage."""
    return flood_p99("stranger")


@contextlib.contextmanager
def _flooder(name: str, kind: str) -> Iterator[Callable[[], None]]:
    """A process that begins to flood, or stops, whenever the function is called."""
    command = [sys.executable, "-P", "-m", "numaemu.bench.flooder", name, kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        source, sink = process.stdin, process.stdout
        assert source is not None
        assert sink is not None

        def say() -> None:
            source.write(b"\n")
            sink.readline()

        try:
            yield say
        finally:
            process.kill()
