"""The way back to a kernel daemon that is new: the machine lives on when its daemon dies, and so do we.

A word of shared memory counts the daemons; it moves when a new one takes calls. The process then says once, on the
descriptor socket, that it is the client that it was; each of its threads says hello again for its connection, and sends
what was not answered once more, under the number that it had.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from numaemu import control
from numaemu.errors import MachineGone
from numaemu_core import limits
from numaemu_core.wire import VERSION
from numaemu_host import fdsock, pidfd

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from numaemu.connection import Init
    from numaemu.tcp import Lease

_ANSWER_S: Final = 30.0
_PAUSE_S: Final = 0.01


def recv_patiently(sock: socket.socket, place: Path) -> tuple[object, list[int]]:
    """What the daemon of the machine in that directory says; init hears of it if it is stopped.

    Raises as `fdsock.recv`, TimeoutError after some time.
    """
    deadline = time.monotonic() + _ANSWER_S
    kernel_pid = fdsock.peer_credentials(sock)[0]
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while not poller.poll(limits.SILENCE_S * 1000):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer in {_ANSWER_S:g} s")
        if pidfd.is_stopped(kernel_pid):
            control.say_waiting(place, "kernel")
    return fdsock.recv(sock)


class LineRefused(Exception):
    """The daemon has no line for the faults of this thread."""


class WayBack:
    """Which daemon this process is known to."""

    def __init__(self, place: Path, words: memoryview, sock: socket.socket, generation: int) -> None:
        """`place` is the descriptor socket, `words[0]` counts the daemons; `sock` is open to that of `generation`."""
        self._place = place
        self._words = words
        self._sock = sock
        self._kernel_pid = fdsock.peer_credentials(sock)[0]
        self._complained_at = 0.0
        self._guard = threading.RLock()
        self._closed = False
        #: The daemon that knows us.
        self.generation = generation

    def complain(self) -> None:
        """The daemon has been silent for long: unless it runs, init hears of it, which kills a daemon that is stopped.

        A running one has its reasons. At most once in SILENCE_S, however many threads wait.
        """
        now = time.monotonic()
        if now < self._complained_at + limits.SILENCE_S / 2:
            return
        self._complained_at = now
        if self._closed or (pidfd.is_running_pid(self._kernel_pid) and not pidfd.is_stopped(self._kernel_pid)):
            return
        control.say_waiting(self._place.parent, "kernel")

    def is_over(self, generation: int) -> bool:
        """Has another daemon than that one taken over?"""
        return bool(self._words[0] > generation)

    def _hung_up(self) -> bool:
        """Is the daemon gone that the descriptor socket was open to? It says nothing by itself but that it ends."""
        sock = self._sock
        if sock.fileno() < 0:  # another thread has just seen to it
            return True
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

    def renew(self, seen: int, token: bytes, init: Init | Lease) -> None:
        """Become known to the daemon of now, unless another thread has seen to it since the generation was `seen`.

        Waits as long as it takes for a daemon to be there. MachineGone if the machine has ended, or was let go.
        """
        began = silent_since = time.monotonic()
        while not self._tried(seen, token):
            if self._closed or init.has_ended(time.monotonic() - began):
                raise MachineGone(init.name)
            if time.monotonic() - silent_since > limits.SILENCE_S:
                silent_since = time.monotonic()
                self.complain()
            time.sleep(_PAUSE_S)

    def _tried(self, seen: int, token: bytes) -> bool:
        with self._guard:
            if self.generation > seen:
                return True
            try:
                sock = fdsock.connect(self._place, _ANSWER_S)
            except OSError:  # none is there yet
                return False
            try:
                fdsock.send(sock, {"hello": "client", "version": VERSION, "token": token})
                answer, fds = recv_patiently(sock, self._place.parent)
            except (OSError, EOFError):  # it has just died
                sock.close()
                return False
            for fd in fds:
                os.close(fd)
            if self._closed or not isinstance(answer, dict) or not isinstance(answer.get("again"), int):
                sock.close()
                return False
            self._sock.close()
            self._sock = sock
            self._kernel_pid = fdsock.peer_credentials(sock)[0]
            self.generation = answer["again"]
            return True

    def line(self, token: bytes) -> socket.socket | None:
        """A socket for the faults and questions of a thread; None where no daemon is there just now.

        Raises:
            LineRefused: it has none to give.
        """
        try:
            sock = fdsock.connect(self._place, _ANSWER_S)
        except OSError:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            try:
                fdsock.send(sock, {"hello": "faults", "version": VERSION, "token": token})
                answer, fds = recv_patiently(sock, self._place.parent)
            except (OSError, EOFError):  # it has just died
                return None
            for fd in fds:
                os.close(fd)
            if answer != {"version": VERSION}:
                raise LineRefused
            undo.pop_all()
        return sock

    def close(self) -> None:
        """Let the daemon know that this process uses the machine no more. Takes no lock: a forked child calls it."""
        self._closed = True
        self._sock.close()


class RemoteWayBack(WayBack):
    """The same for a process that does not map the memory: the end of the descriptor socket tells of a daemon's."""

    def __init__(self, place: Path, sock: socket.socket, generation: int) -> None:
        """`place` is the descriptor socket, `sock` is open to the daemon of `generation`."""
        super().__init__(place, memoryview(b""), sock, generation)

    def is_over(self, generation: int) -> bool:
        """Is another daemon than that one known, or the one that was known gone?"""
        return self.generation > generation or self._hung_up()
