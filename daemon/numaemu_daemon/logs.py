"""The log: one JSON object a line on stderr, from every process of the machine.

Keys: `ts` (UTC), `level`, `event` (one of `Event`), `role`, `node`, `pid`, `machine`, and what belongs to the event.
The environment variable NUMAEMU_LOG sets the lowest level that is written (default: info). A log never harms its
process: a stderr that nobody reads any more loses lines and raises nothing.
"""

import enum
import json
import logging
import os
from typing import Any, Final

import structlog
from structlog.typing import FilteringBoundLogger

Log = FilteringBoundLogger

LEVEL_VARIABLE: Final = "NUMAEMU_LOG"
_STDERR_FD: Final = 2


class Event(enum.StrEnum):
    """Every event of a machine; the text behind each says what happened."""

    MACHINE_STARTING = "machine_starting"
    """Init holds the lock and begins to start processes."""
    MACHINE_READY = "machine_ready"
    """All processes serve; `seconds` since init began."""
    MACHINE_FAILED = "machine_failed"
    """The machine did not come up; `reason` is what its starter was told."""
    MACHINE_GOING_DOWN = "machine_going_down"
    """Everything is being ended; `reason` says on whose word."""
    MACHINE_GONE = "machine_gone"
    """All processes have ended; `directory_removed` is false if somebody else's files are in the directory."""
    PROCESS_STARTED = "process_started"
    """A process said hello: `child` names it, `child_pid`, `restarts`."""
    PROCESS_UP = "process_up"
    """A process serves."""
    PROCESS_DIED = "process_died"
    """A process is over although nobody asked; it is started again after `pause_s`."""
    PROCESS_NOT_STARTED = "process_not_started"
    """The host refused to start a process; tried again after `pause_s`."""
    PROCESS_KILLED = "process_killed"
    """A process did not end on SIGTERM in time, or broke the protocol with init."""
    PROCESS_FAILED = "process_failed"
    """An exception ended this process; `exception` is its story."""
    PROCESS_ENDING = "process_ending"
    """This process was asked to end, or init is gone."""
    KERNEL_DIED = "kernel_died"
    """The kernel daemon is over; another one recovers the machine. `generation` counts them."""
    KERNEL_RECOVERED = "kernel_recovered"
    """A kernel daemon has taken over: `tasks`, `clients`, `redone` calls, `stragglers`, `seconds`."""
    CLIENT_BACK = "client_back"
    """A client of a kernel daemon that died has come back to its successor."""
    HELPER_DIED = "helper_died"
    """The forkserver or the resource tracker is over; a new one is started after `pause_s`."""
    PEER_REFUSED = "peer_refused"
    """Somebody spoke to init's socket who may not, or sent what it must not; `reason`."""
    MESSAGE_DROPPED = "message_dropped"
    """A message on the bus is not what it must be; `reason`."""
    FRAMES_CLEANED = "frames_cleaned"
    """No unclean free frame is left on the node; `pages` were cleaned since the last time (level debug)."""
    LOCK_OWNER_DIED = "lock_owner_died"
    """The holder of the mutex `index` died with it; it is marked for the daemon to repair."""
    KERNEL_SERVES = "kernel_serves"
    """The kernel daemon takes calls; `membarrier` says whether hits go without a lock."""
    NODE_CONNECTED = "node_connected"
    """A node process or the swap node said hello on the bus; `repeated` requests were sent to it again."""
    CLIENT_CONNECTED = "client_connected"
    """A process came to the descriptor socket; `client_pid` and `client_uid` are the host's word."""
    DESCRIPTORS_SHORT = "descriptors_short"
    """The daemon may not open any more: no new client is taken until one has gone."""
    CLIENT_GONE = "client_gone"
    """A client has closed its machine, or died (`dead`); its `tasks` exit."""
    REQUEST_REFUSED = "request_refused"
    """A message was no request of a client that said hello; `reason`."""
    CONNECTION_DROPPED = "connection_dropped"
    """A connection went beyond its limits and was ended; `dropped` counts them, of which few are logged."""
    REPLY_DROPPED = "reply_dropped"
    """An answer could not be sent: its client is gone, or never reads."""


class _Stderr:
    """Writes each line with one call, so that lines of several processes never mix."""

    def msg(self, line: bytes) -> None:
        """Write a line, or lose it where nobody can read it."""
        try:
            os.write(_STDERR_FD, line + b"\n")
        except OSError:
            return

    debug = info = warning = error = critical = exception = msg


def _render(value: object, **options: Any) -> bytes:  # noqa: ANN401 - handed on to json.dumps
    return json.dumps(value, **options).encode()


def _level() -> int:
    known = logging.getLevelNamesMapping()
    return known.get(os.environ.get(LEVEL_VARIABLE, "info").upper(), logging.INFO)


def configure(machine: str, role: str, nid: int | None) -> Log:
    """Set up the log of this process, after it was started, and return its logger."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_render),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level()),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=True,
    )
    log: Log = structlog.get_logger(machine=machine, role=role, node=nid, pid=os.getpid())
    return log
