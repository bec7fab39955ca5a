"""Unmodified programs under `numaemu run`: what they pay for it."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from numaemu.bench.echo import MESSAGE, dealer_to, echoing
from numaemu.bench.machines import seconds
from numaemu.bench.rounds import Figure, Reach, alone, compare, times

_RUN: Final = (sys.executable, "-P", "-m", "numaemu", "run", "--nodes", "2", "--memory", "64M", "--swap", "64M")
_EMPTY: Final = (sys.executable, "-P", "-m", "numaemu.bench.empty_supervisor")
_CALLS: Final = 500
_SUMS: Final = 300_000
#: Rounds are short, and a host that is busy for a moment, or runs slower, is more than what is looked for.
_ROUNDS: Final = 101
_OPEN_ROUNDS: Final = 3
_PROCESSES: Final = 5
#: Who is told after this time never is; who takes so many times as long is not told yet.
_TOLD_S: Final = 10.0
_ASKS: Final = 5
_WITHOUT: Final = "the same program without it"

#: Works for each line that it reads, and tells how many seconds that took. Arguments: how often, the number of a call,
#: 0 for none, or -1 for libc's question for the CPU; and how many results the call has. These lie side by side, as
#: locals of a C program do.
_AT_EACH_LINE: Final = """
import ctypes, sys, time
calls, number, results = map(int, sys.argv[1:])
libc = ctypes.CDLL(None)
zero = ctypes.c_ulong(0)
found = (ctypes.c_int * results)()
pointers = [ctypes.byref(found, 4 * i) for i in range(results)] + [zero] * (5 - results)
for _ in sys.stdin:
    began = time.perf_counter()
    if number < 0:
        for _ in range(calls):
            libc.sched_getcpu()
    elif number:
        for _ in range(calls):
            libc.syscall(number, *pointers)
    else:
        total = 0
        for i in range(calls):
            total += i * i % 7
    print(time.perf_counter() - began, flush=True)
"""


@contextlib.contextmanager
def _program(before: Sequence[str], *arguments: int) -> Iterator[Callable[[], float]]:
    """The program with `arguments` under what stands `before` it; gives what measures a round of it, in seconds."""
    command = [*before, sys.executable, "-c", _AT_EACH_LINE, *map(str, arguments)]
    # Where names lie in its tables makes one process a fifth slower than another one.
    alike = {**os.environ, "PYTHONHASHSEED": "0"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alike) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def took_s() -> float:
            stdin.write("\n")
            stdin.flush()
            return float(stdout.readline())

        yield took_s
        stdin.close()


@contextlib.contextmanager
def _several(before: Sequence[str], *arguments: int) -> Iterator[Callable[[], float]]:
    """As `_program`, of several programs that take turns: one may be slower than another for as long as it lives."""
    with contextlib.ExitStack() as stack:
        programs = []
        for _ in range(_PROCESSES):
            programs.append(stack.enter_context(_program(before, *arguments)))
            programs[-1]()  # a machine that still boots would take the CPUs from those that are measured
        turns = itertools.cycle(programs)

        def took_s() -> float:
            return next(turns)()

        yield took_s


def run_cpu() -> Iterator[Figure]:
    """A program that only computes, beside the same one without `numaemu run`."""
    work = (_SUMS, 0, 0)
    with _several([*_RUN, "--"], *work) as ours, _several([], *work) as peer:
        yield compare("run-cpu", "s", ours, peer, peer_is=_WITHOUT, reach=times(1.03), rounds=_ROUNDS)


def _one_call(name: str, results: int, beside_us: Callable[[], float], peer_is: str, bound: float) -> Iterator[Figure]:
    """A call of a program, beside the same one under a supervisor that does nothing, and `beside_us`."""
    from numaemu_run.abi import abi_of_host  # noqa: PLC0415 - hosts that cannot run programs have other figures

    work = (_CALLS, abi_of_host().numbers[name], results)
    with _several([*_RUN, "--"], *work) as ours, _several(_EMPTY, *work) as empty:
        yield compare(
            f"run-{name}",
            "us",
            lambda: ours() / _CALLS * 1e6,
            lambda: empty() / _CALLS * 1e6 + beside_us(),
            peer_is=peer_is,
            reach=times(bound),
            rounds=_ROUNDS,
        )


def run_getcpu() -> Iterator[Figure]:
    """A call that the supervisor answers by itself."""
    return _one_call("getcpu", 2, lambda: 0.0, "under a supervisor that does nothing", 1.5)


def run_sched_getcpu() -> Iterator[Figure]:
    """The CPU that libc tells, once a program has asked so often that it is told without a call."""
    work = (_CALLS, -1, 0)
    with _several([*_RUN, "--"], *work) as ours, _several([], *work) as peer:
        deadline = time.monotonic() + _TOLD_S
        while max(ours() for _ in range(_PROCESSES)) > _ASKS * peer() and time.monotonic() < deadline:
            pass
        yield compare(
            "run-sched_getcpu",
            "us",
            lambda: ours() / _CALLS * 1e6,
            lambda: peer() / _CALLS * 1e6,
            peer_is=_WITHOUT,
            reach=times(1.5),
            rounds=_ROUNDS,
        )


def run_get_mempolicy() -> Iterator[Figure]:
    """A call that the kernel daemon answers, beside one that nobody works for and an echo together."""
    with echoing() as endpoint, dealer_to(endpoint) as dealer:

        def echoes() -> None:
            for _ in range(_CALLS):
                dealer.send(MESSAGE)
                dealer.recv()

        yield from _one_call(
            "get_mempolicy", 1, lambda: seconds(echoes) / _CALLS * 1e6, "the same, and a ZeroMQ echo", 1.3
        )


_OPENS: Final = """
import os, sys
for _ in range(int(sys.argv[1])):
    os.close(os.open("/etc/passwd", os.O_RDONLY))
for _ in range(int(sys.argv[2])):
    os.stat("/sys/devices/system/node/node0")
"""


def run_files() -> Iterator[Figure]:
    """Calls that are handed over for each open of a file, and for each look at a path."""
    with tempfile.TemporaryDirectory(prefix="numaemu-bench-") as folder:
        report = Path(folder) / "report"

        def handed_over(opens: int, stats: int) -> int:
            command = [*_RUN, "--report", "json", "--report-file", str(report), "--"]
            subprocess.run([*command, sys.executable, "-c", _OPENS, str(opens), str(stats)], check=True)
            return sum(json.loads(report.read_text(encoding="utf-8"))["calls"].values())

        without = [handed_over(0, 0) for _ in range(_OPEN_ROUNDS)]
        opened = [(handed_over(_CALLS, 0) - before) / _CALLS for before in without]
        yield alone("run-open", "calls", opened, Reach(at_most=True, bound=1, of=""))
        looked_at = [(handed_over(0, _CALLS) - before) / _CALLS for before in without]
        yield alone("run-stat", "calls", looked_at, Reach(at_most=True, bound=0, of=""))
