"""What init knows of each process that it keeps alive, and when a dead one is started again."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from numaemu_daemon.segments import owner_name
from numaemu_host import pidfd

if TYPE_CHECKING:
    from numaemu_daemon.doorman import Connection

INIT: Final = "init"
KERNEL: Final = "kernel"
NODE: Final = "node"
SWAP: Final = "swap"

#: A process that lived longer than this before it died is started again at once.
QUIET_S: Final = 5.0
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 2.0

#: From SIGTERM to SIGKILL when the machine goes down.
TERM_WAIT_S: Final = 2.0
_KILL_WAIT_S: Final = 5.0


@dataclass(slots=True)
class Managed:
    """One process: a child with a role, or a helper (forkserver, tracker), which has no connection and no memory."""

    role: str
    nid: int | None = None
    #: Names of the segments that it owns.
    owned: tuple[str, ...] = ()
    pid: int = 0
    #: Opened when it was started; -1 while it is dead. Death is told by this and by nothing else.
    pidfd: int = -1
    connection: "Connection | None" = None
    up: bool = False
    restarts: int = 0
    started_at: float = 0.0
    pause_s: float = 0.0
    #: When it is to be started again, on the clock of `time.monotonic`.
    due_at: float | None = None
    #: Counters that it reported.
    done: dict[str, int] = field(default_factory=dict)
    #: Why it said it would end.
    failure: str = ""
    #: It was told of a new kernel daemon, and has not yet let go of the old one.
    unfenced: bool = False
    #: Failures of its own before it served, one after the other.
    fruitless: int = 0
    #: Somebody waits for it until then, as far as is known.
    wanted_until: float = 0.0
    #: Since when it has been seen stopped at every look, while somebody waited for it.
    stopped_since: float | None = None
    #: Times that it was killed because others waited for it while it was stopped.
    killed_stopped: int = 0
    #: It is started again at once, however short it lived: tests kill it on purpose.
    hurried: bool = False

    @property
    def name(self) -> str:
        """How people and the layout call it: `node.2`."""
        return owner_name(self.role, self.nid)

    @property
    def alive(self) -> bool:
        """It has been started and its pidfd has not told its end."""
        return self.pidfd >= 0

    def started(self, pid: int, now: float) -> None:
        """It is there. ProcessLookupError if it is over already."""
        self.pidfd = pidfd.open_pidfd(pid)
        self.pid = pid
        self.started_at = now
        self.due_at = None
        self.up = False
        self.failure = ""
        self.done = {}
        self.wanted_until, self.stopped_since = 0.0, None

    def died(self, now: float) -> None:
        """It is over, or could not be started: plan the next start, later each time if it never lives for long."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd = -1
        self.fruitless = 0 if self.up else self.fruitless + bool(self.failure)
        self.up = self.unfenced = False
        if self.restarts and now - self.started_at < QUIET_S and not self.hurried:
            self.pause_s = min(max(2 * self.pause_s, PAUSE_FIRST_S), PAUSE_MAX_S)
        else:
            self.pause_s = 0.0
        self.due_at = now + self.pause_s
        self.restarts += 1

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is alive."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                pidfd.send_signal(self.pidfd, number)


def end_all(processes: Sequence[Managed]) -> list[Managed]:
    """SIGTERM, then SIGKILL to those that do not end in time; the ones that had to be killed."""
    alive = [process for process in processes if process.alive]
    for process in alive:
        process.send_signal(signal.SIGTERM)
    stubborn = _still_alive(alive, TERM_WAIT_S)
    for process in stubborn:
        process.send_signal(signal.SIGKILL)
    _still_alive(stubborn, _KILL_WAIT_S)
    return stubborn


def _still_alive(processes: Sequence[Managed], timeout_s: float) -> list[Managed]:
    deadline = time.monotonic() + timeout_s
    return [process for process in processes if not pidfd.wait_exit(process.pidfd, deadline - time.monotonic())]
