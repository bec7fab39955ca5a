"""A stress run: boots a machine, starts the workers, gathers what they found, and checks the machine in the end."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numaemu as nm

#: How long a worker may take beyond its time before it counts as stuck and is ended.
_GRACE_S: Final = 60.0
_PROGRESS_S: Final = 0.5
#: Counters of vmstat that are part of the report.
_EVENTS: Final = ("pgfault", "pgmajfault", "pswpin", "pswpout", "pgmigrate_success")


@dataclass
class Report:
    """What a run did and what it found."""

    clients: int
    seconds: float
    seed: int
    profile: str = "swap-v3"
    counts: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    lost: int = 0
    wrong: int = 0
    fsck: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing was lost, wrong, stuck or broken."""
        return not (self.lost or self.wrong or self.fsck or self.failed)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"sound": self.sound}


def run(clients: int, seconds: float, seed: int, profile: str, progress: Callable[[float], None]) -> Report:
    """Run `clients` processes for `seconds` on a machine of their own; `progress` is told the part that is over."""
    report = Report(clients, seconds, seed, profile)
    # Memory for everybody and for the copies of their forks; swap for half of the pages, so that it runs full at times.
    size = f"{max(4, clients)}M"
    with nm.boot(nodes=4, memory=size, swap=f"{192 * clients}K", profile=profile) as machine:
        workers = [_start(machine.name, number, seed, seconds) for number in range(clients)]
        began = time.monotonic()
        while (over := time.monotonic() - began) < seconds and any(worker.poll() is None for worker in workers):
            progress(over / seconds)
            time.sleep(_PROGRESS_S)
        totals: Counter[str] = Counter()
        for number, worker in enumerate(workers):
            totals.update(_finish(worker, number, report))
        progress(1.0)
        report.fsck = machine.fsck()
        events = machine.figures("vmstat")
        moved = {name: events.get(name, 0) for name in _EVENTS}
        report.lost, report.wrong = totals.pop("lost", 0), totals.pop("wrong", 0)
        report.counts = {**dict(sorted(totals.items())), **moved}
    return report


def _start(machine: str, number: int, seed: int, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "numaemu.stress.worker", machine, str(number), str(seed), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(worker: "subprocess.Popen[str]", number: int, report: Report) -> dict[str, int]:
    """Wait for a worker; one that is stuck or fails is told of in the report."""
    try:
        out, err = worker.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.communicate()
        report.failed.append(f"client {number} was stuck")
        return {}
    if worker.returncode:
        lines = err.strip().splitlines() or ["no message"]
        report.failed.append(f"client {number} failed: {lines[-1]}")
        return {}
    counts: dict[str, int] = json.loads(out)
    return counts
