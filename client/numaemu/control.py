"""Talking to init: how a machine is, and its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Final

from numaemu import places
from numaemu.errors import MachineGone
from numaemu_host import fdsock, pidfd

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

#: Init answers at once unless it is stopped.
ANSWER_S: Final = 10.0
#: How long a machine may take to end.
DOWN_S: Final = 30.0
#: How long a word to init may take that it need not hear.
_WORD_S: Final = 0.1
_TIDY_S: Final = 2.0
_PAUSE_S: Final = 0.01


def status(place: Path) -> dict[str, Any]:
    """How the machine in that directory is, as init says.

    Raises:
        ConnectionRefusedError: no machine runs there. TimeoutError: init does not answer. OSError: it refuses.
    """
    with _connected(place) as sock:
        return _ask(sock, place.name, "status")


def is_running(place: Path) -> bool:
    """Whether a machine's init listens there."""
    try:
        with _connected(place):
            return True
    except OSError:
        return False


def say_waiting(place: Path, role: str) -> None:
    """Tell init that somebody waits for a process of the machine: it looks if that is stopped. Never fails."""
    with contextlib.suppress(OSError), fdsock.connect(place / places.INIT_SOCKET, _WORD_S) as sock:
        fdsock.send(sock, {"waits_for": role, "node": None})


def down(place: Path) -> None:
    """End the machine in that directory; gives when its processes and the directory are gone.

    What a machine left that was killed with all its processes is removed, too.

    Raises:
        ConnectionRefusedError: no machine runs there, and nothing was left of one.
        TimeoutError: it does not end. OSError: it refuses, or left something behind.
    """
    try:
        with _connected(place) as sock:
            init_pid = fdsock.peer_credentials(sock)[0]
            with _watched(init_pid) as fd:
                with contextlib.suppress(MachineGone):  # it may end before its answer is out
                    _ask(sock, place.name, "down")
                if fd is not None and not pidfd.wait_exit(fd, DOWN_S):
                    raise TimeoutError(
                        f"the machine {place.name!r} did not end in {DOWN_S:g} s; see {place / places.LOG}"
                    )
    except ConnectionRefusedError:
        # A socket without a listener is what a killed machine leaves; no socket at all may be one that is starting.
        if not (place / places.INIT_SOCKET).exists():
            raise
        shutil.rmtree(place)
        return
    _tidy(place)


def no_machine(name: str) -> ConnectionRefusedError:
    """The error for a machine that is not there."""
    return ConnectionRefusedError(f"no machine named {name!r} is running; `numaemu up -m {name}` starts one")


@contextlib.contextmanager
def _connected(place: Path) -> Iterator[socket.socket]:
    try:
        sock = fdsock.connect(place / places.INIT_SOCKET, ANSWER_S)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise no_machine(place.name) from None
    with sock:
        yield sock


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[int | None]:
    """A pidfd of init, None if it is over already."""
    try:
        fd = pidfd.open_pidfd(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _ask(sock: socket.socket, name: str, command: str) -> dict[str, Any]:
    try:
        fdsock.send(sock, {"command": command})
        answer, fds = fdsock.recv(sock)
    except (EOFError, BrokenPipeError):
        raise MachineGone(name) from None
    except TimeoutError:
        raise TimeoutError(f"init of the machine {name!r} gave no answer in {ANSWER_S:g} s; is it stopped?") from None
    for fd in fds:
        os.close(fd)
    if not isinstance(answer, dict) or "error" in answer:
        raise OSError(f"init of the machine {name!r} answered {answer!r} to {command!r}")
    return answer


def _tidy(place: Path) -> None:
    """Wait until the directory is gone; the log, which we opened, is ours to remove."""
    deadline = time.monotonic() + _TIDY_S
    while place.exists():
        with contextlib.suppress(OSError):
            if [path.name for path in place.iterdir()] == [places.LOG]:
                (place / places.LOG).unlink()
                place.rmdir()
        if time.monotonic() >= deadline:
            raise OSError(f"the machine {place.name!r} ended, but left {place} behind")
        time.sleep(_PAUSE_S)
