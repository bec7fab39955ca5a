"""The way back to a daemon that is new, against sockets that answer as they are told."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from numaemu.comeback import WayBack
from numaemu.connection import Init
from numaemu.errors import MachineGone
from numaemu_host import fdsock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = bytes(range(16))


class Doors:
    """A descriptor socket that gives one answer after the other; None: it hangs up."""

    def __init__(self, path: Path, answers: list[dict[str, Any] | None]) -> None:
        self.heard: list[object] = []
        self._answers = answers
        self._listener = fdsock.listen(path)
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            sock, _ = self._listener.accept()
            self.heard.append(fdsock.recv(sock)[0])
            if answer is None:
                sock.close()
            else:
                fdsock.send(sock, answer)
                self._kept.append(sock)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()
        for sock in self._kept:
            sock.close()


@pytest.fixture
def words() -> memoryview:
    """The word that counts daemons."""
    return memoryview(bytearray(8)).cast("Q")


@pytest.fixture
def old() -> Iterator[socket.socket]:
    """The socket to the daemon that died."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield sock
    sock.close()


def test_the_token_makes_us_known_again(tmp_path: Path, words: memoryview, old: socket.socket) -> None:
    """A daemon that dies in the middle is asked again; the answer says which daemon it is; the old socket is closed."""
    path = tmp_path / "fd.sock"
    doors = Doors(path, [None, {"error": "not yet"}, {"version": 1, "again": 3}])
    way_back = WayBack(path, words, old, 1)
    words[0] = 3
    assert way_back.is_over(1)
    way_back.renew(1, TOKEN, Init("box", os.getpid()))
    assert way_back.generation == 3
    assert not way_back.is_over(3)
    assert doors.heard == [{"hello": "client", "version": 1, "token": TOKEN}] * 3
    assert old.fileno() == -1
    way_back.renew(1, TOKEN, Init("box", os.getpid()))  # another thread that saw the old one: nothing to do
    assert len(doors.heard) == 3
    way_back.close()
    doors.close()


def test_a_machine_that_is_let_go_is_not_waited_for(tmp_path: Path, words: memoryview, old: socket.socket) -> None:
    """Where nobody listens and the handle is closed, whoever waits gets MachineGone."""
    way_back = WayBack(tmp_path / "nobody", words, old, 1)
    way_back.close()
    with pytest.raises(MachineGone):
        way_back.renew(1, TOKEN, Init("box", os.getpid()))
