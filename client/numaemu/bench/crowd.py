"""Many client processes of one machine, told what to do by lines; `python -m numaemu.bench.crowd MACHINE ECHO`.

A line is the name of a kind of work and how many seconds of it; the answer is a JSON object: how many were done a
second, and the microseconds of each where that matters.
"""

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numaemu as nm
from numaemu.bench.echo import MESSAGE, dealer_to
from numaemu.bench.machines import PAGE

_PRESENT_PAGES: Final = 64
_REGION_PAGES: Final = 64
_BATCH: Final = 64


def main() -> None:
    """Be one client: until stdin ends."""
    name, endpoint = sys.argv[1:3]
    machine = nm.connect(name)
    with machine, machine.attach(cpu=int(sys.argv[3]) % 4) as task, dealer_to(endpoint) as dealer:
        present = task.mmap(_PRESENT_PAGES * PAGE)
        present.touch(write=True)
        draw = random.Random(1)  # noqa: S311 - no secret
        addresses = [present.start + draw.randrange(_PRESENT_PAGES) * PAGE for _ in range(_BATCH)]

        def hits() -> list[float]:
            for address in addresses:
                task.read(address, 64)
            return []

        def faults() -> list[float]:
            with task.mmap(_REGION_PAGES * PAGE) as region:
                return [_us(lambda at=at: region.write(at * PAGE, b"x")) for at in range(_REGION_PAGES)]  # type: ignore[misc]  # mypy cannot type such a default

        def echo() -> list[float]:
            def once() -> None:
                dealer.send(MESSAGE)
                dealer.recv()

            return [_us(once) for _ in range(_BATCH)]

        work: dict[str, Callable[[], list[float]]] = {"hits": hits, "faults": faults, "echo": echo}
        print("{}", flush=True)  # noqa: T201 - a line to the process that asked
        for line in sys.stdin:
            kind, length = line.split()
            began = time.perf_counter()
            took: list[float] = []
            done = 0
            while (spent := time.perf_counter() - began) < float(length):
                took += work[kind]()
                done += _BATCH
            print(json.dumps({"rate": done / spent, "us": took}), flush=True)  # noqa: T201 - the same


def _us(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e6


@dataclass(frozen=True)
class _Member:
    process: "subprocess.Popen[str]"
    said: IO[str]
    told: IO[str]

    def answer(self) -> dict[str, Any]:
        """The line that it writes next."""
        found: dict[str, Any] = json.loads(self.said.readline())
        return found


class Crowd:
    """Client processes that are there, and work when they are told to."""

    def __init__(self, members: Sequence[_Member]) -> None:
        """All of them have attached."""
        self._members = members

    def work(self, kind: str, clients: int, length_s: float) -> tuple[float, list[float]]:
        """The first `clients` of them do it for so long: what all do in a second together, and the times of each."""
        chosen = self._members[:clients]
        for member in chosen:
            member.told.write(f"{kind} {length_s}\n")
            member.told.flush()
        answers = [member.answer() for member in chosen]
        return sum(answer["rate"] for answer in answers), [us for answer in answers for us in answer["us"]]


@contextlib.contextmanager
def crowd(machine: nm.Machine, endpoint: str, clients: int) -> Iterator[Crowd]:
    """So many client processes of a machine, which also know an echo."""
    command = [sys.executable, "-P", "-m", "numaemu.bench.crowd", machine.name, endpoint]
    members: list[_Member] = []
    try:
        for number in range(clients):
            process = subprocess.Popen(
                [*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
            assert process.stdin is not None
            assert process.stdout is not None
            members.append(_Member(process, process.stdout, process.stdin))
        for member in members:
            member.answer()
        yield Crowd(members)
    finally:
        for member in members:
            member.told.close()
        for member in members:
            member.process.wait()
            member.said.close()


if __name__ == "__main__":
    main()
