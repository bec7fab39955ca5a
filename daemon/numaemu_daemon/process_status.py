"""The rows of `status`: what each process is, does and takes, by the host's word where the host can tell."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numaemu_daemon.process_table import INIT, Managed
from numaemu_host import pidfd

_BLOCK_BYTES = 512
_KB = 1024
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def init_row() -> dict[str, Any]:
    """The row of this process."""
    return _row(INIT, None, os.getpid(), "up", _resident_kb(os.getpid()))


def process_row(process: Managed, segments: Mapping[str, int]) -> dict[str, Any]:
    """The row of a process; `segments` are descriptors by name."""
    fds = [segments[name] for name in process.owned if name in segments]
    memory_kb = _allocated_kb(fds) if process.owned else _resident_kb(process.pid) if process.alive else 0
    state = _state(process)
    row = _row(process.role, process.nid, process.pid, state, memory_kb)
    return row | {
        "restarts": process.restarts,
        "killed_stopped": process.killed_stopped,
        "done": dict(process.done),
    }


def _row(role: str, nid: int | None, pid: int, state: str, memory_kb: int) -> dict[str, Any]:
    """The row of a process that was never restarted and tells nothing of what it has done."""
    return {
        "role": role,
        "node": nid,
        "pid": pid,
        "state": state,
        "restarts": 0,
        "killed_stopped": 0,
        "memory_kb": memory_kb,
        "done": {},
    }


def _state(process: Managed) -> str:
    if not process.alive or pidfd.has_exited(process.pidfd):
        return "dead"
    if pidfd.is_stopped(process.pid):
        return "stopped"
    return "up" if process.up else "starting"


def _allocated_kb(fds: Iterable[int]) -> int:
    return sum(os.fstat(fd).st_blocks for fd in fds) * _BLOCK_BYTES // _KB


def _resident_kb(pid: int) -> int:
    """Resident memory, 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES // _KB
    except (OSError, IndexError):
        return 0
