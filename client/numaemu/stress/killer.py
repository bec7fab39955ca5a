"""Kills processes of the machine and of the run, one at a time and at random."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from numaemu import control, places
from numaemu_host import pidfd

if TYPE_CHECKING:
    from numaemu.stress.crew import Crew
    from numaemu.stress.plan import Plan

#: How many seconds there are between two kills of a kind, on average.
_EVERY_S: Final = {"client": 1.0, "node": 1.5, "swap": 1.5, "daemon": 4.0}
#: With many clients more of them are killed: in so many seconds each of them once.
_CLIENT_LIFE_S: Final = 30.0
#: How init calls what is killed.
_ROLES: Final = {"node": "node", "swap": "swap", "daemon": "kernel"}


class Killer:
    """Draws when and whom; `kills` counts by kind."""

    def __init__(self, plan: Plan, machine: str, crew: Crew) -> None:
        """Nobody is killed before the first `turn`."""
        self._plan = plan
        self._place = places.machine_dir(machine)
        self._crew = crew
        self._random = random.Random(f"{plan.seed}/killer")  # noqa: S311 - a run is named by its seed
        self._due = {kind: self._draw(kind, time.monotonic()) for kind in plan.kill}
        self.kills = Counter(dict.fromkeys(plan.kill, 0))

    def _draw(self, kind: str, now: float) -> float:
        every = _EVERY_S[kind]
        if kind == "client":
            every = min(every, _CLIENT_LIFE_S / self._plan.clients)
        return now + self._random.uniform(0.5, 1.5) * every

    def turn(self) -> None:
        """Kill whoever's time has come."""
        now = time.monotonic()
        for kind, due in self._due.items():
            if now >= due:
                self._due[kind] = self._draw(kind, now)
                self.kills[kind] += self._crew.kill_one() if kind == "client" else self._kill_role(_ROLES[kind])

    def _kill_role(self, role: str) -> bool:
        """Kill a process of the machine that is at work; whether there was one."""
        try:
            rows = control.status(self._place)["processes"]
        except OSError:  # the machine has ended: others will say so
            return False
        pids = [row["pid"] for row in rows if row["role"] == role and row["state"] == "up"]
        if not pids:
            return False
        with contextlib.suppress(ProcessLookupError):
            fd = pidfd.open_pidfd(self._random.choice(pids))
            try:
                pidfd.send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)
            return True
        return False
