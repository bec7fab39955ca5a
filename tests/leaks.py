"""What a test process owns on the host: descriptors, threads, child processes, mapped shared memory, files.

Compared around each test by `tests/conftest.py`. Processes that nobody's parent waits for any more are found at the
end of a worker by a mark in their environment, which all its descendants inherit and no other run has.
"""

import gc
import os
import secrets
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil

#: Name of the mark in the environment.
MARK = "NUMAEMU_TEST_WORKER"
#: How long what is on its way out may take: a killed process to be reaped, a thread to end.
PATIENCE_S = 10.0
#: Shared memory that multiprocessing cuts its locks and values from keeps its first arena for the next ones.
HEAP_OF_MULTIPROCESSING = "/dev/shm/pym-"  # noqa: S108 - the name of a descriptor, no file of ours


def mark_this_worker() -> str:
    """Mark all processes that descend from this one; gives the mark."""
    mark = os.environ[MARK] = f"{os.getpid()}-{secrets.token_hex(8)}"
    return mark


def owned() -> set[str]:
    """Everything that this process owns now, in words that stay the same for as long as the thing is there."""
    return _descriptors() | _threads() | _children() | _mappings()


def _descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # that of the listing itself
            continue
        if not target.startswith(HEAP_OF_MULTIPROCESSING):
            found.add(f"descriptor {entry.name} of {target}")
    return found


def _threads() -> set[str]:
    return {f"thread {thread.name} ({thread.native_id})" for thread in threading.enumerate() if thread.is_alive()}


def _children() -> set[str]:
    return {
        f"child process {child.pid} (began {child.create_time()}): {_command(child.pid)}"
        for child in psutil.Process().children()
    }


def _mappings() -> set[str]:
    """Shared memory: mapped ranges of memfds; neighbours that the host joins or splits count by their file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {f"mapped memory {' '.join(line.split()[4:6])}" for line in lines if "/memfd:" in line}


def files_below(folders: list[Path]) -> set[str]:
    """All files and folders below these."""
    return {f"file {path}" for folder in folders if folder.is_dir() for path in folder.rglob("*")}


def marked_processes(mark: str) -> set[str]:
    """Processes of this worker's tests, however far they have gone from it; itself not."""
    found = set()
    wanted = f"{MARK}={mark}".encode()
    for pid in psutil.pids():
        if pid == os.getpid():
            continue
        try:
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(f"process {pid}: {_command(pid)}")
        except OSError:  # it has just ended, or is somebody else's
            continue
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "ended"


def stop_helpers() -> None:
    """End the helpers that multiprocessing keeps for a whole process once something has needed them."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # noqa: SLF001 - as its own tests do
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]  # noqa: SLF001 - as above


def left_over(look: Callable[[], set[str]], before: set[str]) -> list[str]:
    """What there is beyond what was there before, once everything that is on its way out has gone."""
    left = look() - before
    if left:
        gc.collect()
        stop_helpers()
        left = look() - before
    deadline = time.monotonic() + PATIENCE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = look() - before
    return sorted(left)
