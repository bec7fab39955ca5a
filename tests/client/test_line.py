"""How a thread waits on its line: awake for a moment, unless others have the processors."""

import itertools
import os
import socket
from types import SimpleNamespace
from typing import cast

import pytest

from numaemu import line as line_module
from numaemu.comeback import WayBack
from numaemu.connection import Peer
from numaemu.line import Line, LineBroken
from numaemu_core.wire import WireError, pack_reply, unpack_request

BOOT_ID = "b00t"


class Sock:
    """A socket to a daemon that answers at once, or, if `late`, only to whoever sleeps."""

    def __init__(self) -> None:
        self.late = False
        self.over = False
        #: For each question, whether it was waited for awake.
        self.awake: list[bool] = []
        self._answer = b""

    def settimeout(self, _seconds: float | None) -> None:
        """Nothing here takes time."""

    def setsockopt(self, *_option: object) -> None:
        """Nor does it have a bound."""

    def send(self, body: bytes) -> None:
        self.awake.append(False)
        self._answer = pack_reply(BOOT_ID, unpack_request(body, BOOT_ID).request_id, "told")

    def recv(self, _length: int, flags: int = 0) -> bytes:
        if flags & socket.MSG_DONTWAIT:
            self.awake[-1] = True
            if self.late:
                raise BlockingIOError
        return b"" if self.over else self._answer

    def close(self) -> None:
        """Nothing is open."""


def made(sock: Sock) -> Line:
    peer = SimpleNamespace(boot_id=BOOT_ID, init=SimpleNamespace(name="m", has_ended=lambda _seconds: False))
    way_back = SimpleNamespace(generation=1, is_over=lambda _generation: False, complain=lambda: None)
    return Line(cast("Peer", peer), cast("WayBack", way_back), cast("socket.socket", sock))


@pytest.fixture(autouse=True)
def several_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host where the daemon works while a thread is awake."""
    monkeypatch.setattr(line_module, "_AWAKE_S", 1e-4)


def ask(line: Line, times: int = 1) -> None:
    for _ in range(times):
        assert line.ask("get_mempolicy", [1, None, 0, 0], None) == "told"


def test_an_answer_that_comes_at_once_is_waited_for_awake() -> None:
    """Each time, as long as they come at once."""
    sock = Sock()
    ask(made(sock), 40)
    assert sock.awake == [True] * 40


def test_who_waits_in_vain_sleeps_for_the_next_answers() -> None:
    """For twice as many each time, up to a bound; one that comes at once makes it few again."""
    sock = Sock()
    line = made(sock)
    sock.late = True
    ask(line, 5000)
    awake = [at for at, was in enumerate(sock.awake) if was]
    slept = [later - earlier - 1 for earlier, later in itertools.pairwise(awake)]
    assert slept == [16, 32, 64, 128, 256, 512, 1024, 1024, 1024]
    sock.late = False
    ask(line, 1024)
    assert sock.awake[-1]
    sock.late = True
    sock.awake.clear()
    ask(line, 18)
    assert sock.awake == [True, *[False] * 16, True]


def test_a_lone_processor_is_left_to_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is awake for no time at all."""
    monkeypatch.setattr(line_module, "_AWAKE_S", 0.0)
    sock = Sock()
    ask(made(sock), 40)
    assert not any(sock.awake)


@pytest.mark.parametrize("late", [False, True])
def test_a_daemon_that_hangs_up_breaks_the_line(*, late: bool) -> None:
    """Awake or asleep, who waits is told."""
    sock = Sock()
    sock.over, sock.late = True, late
    with pytest.raises(LineBroken):
        ask(made(sock))


def test_an_answer_to_another_question_is_none() -> None:
    """What was asked before its thread was interrupted is not taken for this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(pack_reply(BOOT_ID, 7, "told"))
        line = made(Sock())
        line._socket = ours  # noqa: SLF001 - a real one
        with pytest.raises(WireError, match="question 7 instead of 1"):
            ask(line)
        assert os.fstat(ours.fileno())
