"""Calls, against a socket that answers as it is told."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from numaemu import connection
from numaemu.connection import Calls, Connection, Init, Peer
from numaemu.errors import MachineGone
from numaemu_core.errors import MmError, OutOfMemory, SegmentationFault
from numaemu_core.wire import Request, StrangerError, WireError, pack_refusal, pack_reply, pack_request, unpack_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

BOOT_ID = "b00t"
Answer = bytes | None


def test_threads_of_zeromq_begin_with_all_signals_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that all threads of a program hold would be theirs, until they have begun to hold signals themselves."""
    masks: list[set[int]] = []

    class Context(zmq.Context[zmq.Socket[bytes]]):
        def socket(self, *args: object, **kwargs: object) -> zmq.Socket[bytes]:
            masks.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
            return super().socket(*args, **kwargs)  # type: ignore[arg-type]  # whatever they are

    monkeypatch.setattr(connection, "_context", None)
    monkeypatch.setattr(zmq, "Context", Context)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    connection.shared_context().term()
    assert masks == [signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


class Daemon:
    """Answers each request with what `answer` makes of it; None: not at all. `seen` are all requests."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"ipc://{path}"
        self.seen: list[Request] = []
        self.peers: set[bytes] = set()
        self.numbers: list[tuple[bytes, int]] = []
        self.answer: Callable[[Request], Answer] = lambda request: pack_reply(BOOT_ID, request.request_id, "done")
        self._ends = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.bind(self.endpoint)
            while not self._ends:
                if socket.poll(10):
                    identity, body = socket.recv_multipart()
                    self.peers.add(identity)
                    request = unpack_request(body, BOOT_ID)
                    self.seen.append(request)
                    self.numbers.append((identity, request.request_id))
                    hello = pack_reply(BOOT_ID, request.request_id, 1) if request.name == "hello" else None
                    answer = hello or self.answer(request)
                    if answer is not None:
                        socket.send_multipart([identity, answer])

    def end(self) -> None:
        self._ends = True
        self._thread.join()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that answers every call with "done"."""
    found = Daemon(tmp_path / "kernel.ipc")
    yield found
    found.end()
    assert len(set(found.numbers)) == len(found.numbers), "a connection used a request id twice"


@pytest.fixture
def init() -> Iterator[subprocess.Popen[bytes]]:
    """A process in place of init."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as process:
        yield process
        process.kill()


@pytest.fixture
def calls(daemon: Daemon, init: subprocess.Popen[bytes]) -> Calls:
    """The calls to that daemon."""
    return Calls(Peer(daemon.endpoint, BOOT_ID, bytes(16), Init("box", init.pid)))


def test_ids_count_up(daemon: Daemon, calls: Calls) -> None:
    """A connection says hello first; then requests are numbered one by one."""
    assert calls.call("brk", 7, 0) == "done"
    calls.call("munlockall", 7)
    assert [(request.request_id, request.name) for request in daemon.seen] == [
        (1, "hello"),
        (2, "brk"),
        (3, "munlockall"),
    ]


def test_threads_have_connections_of_their_own(daemon: Daemon, calls: Calls) -> None:
    """Each thread says hello by itself."""
    calls.call("status")
    thread = threading.Thread(target=calls.call, args=("status",))
    thread.start()
    thread.join()
    assert len(daemon.peers) == 2


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (MmError(errno.EPERM, "no right"), PermissionError),
        (MmError(errno.EINVAL), OSError),
        (SegmentationFault(4096), SegmentationFault),
        (OutOfMemory(), OutOfMemory),
    ],
)
def test_refusals(daemon: Daemon, calls: Calls, refusal: MmError, kind: type[Exception]) -> None:
    """A refusal raises OSError with the errno, or the error of its own kind, and the connection stays in use."""
    daemon.answer = lambda request: pack_refusal(BOOT_ID, request.request_id, refusal)
    with pytest.raises(kind) as caught:
        calls.call("brk", 7, 0)
    assert getattr(caught.value, "errno", None) == refusal.errno
    with pytest.raises(kind):
        calls.call("brk", 7, 0)
    assert len(daemon.peers) == 1


def test_number_that_does_not_fit(daemon: Daemon, calls: Calls) -> None:
    """A number beyond 64 bits is EINVAL without a message, and the next call is answered."""
    with pytest.raises(OSError, match="cannot be sent") as caught:
        calls.call("brk", 7, 1 << 64)
    assert caught.value.errno == errno.EINVAL
    assert calls.call("brk", 7, 1) == "done"
    assert len(daemon.peers) == 1


@pytest.mark.parametrize("body", [b"", b"\xc1", pack_reply(BOOT_ID, 99, "late"), pack_reply("other", 2, "x")])
def test_nonsense(daemon: Daemon, calls: Calls, body: bytes) -> None:
    """An answer that is none, or another's, is an error; the next call goes over a new connection."""
    daemon.answer = lambda _request: body
    with pytest.raises(WireError):
        calls.call("status")
    daemon.answer = lambda request: pack_reply(BOOT_ID, request.request_id, "well")
    assert calls.call("status") == "well"
    assert len(daemon.peers) == 2


def test_machine_that_ends(daemon: Daemon, calls: Calls, init: subprocess.Popen[bytes]) -> None:
    """Whoever waits for an answer when init ends is told so."""

    def kill(_request: Request) -> None:
        init.kill()

    daemon.answer = kill
    with pytest.raises(MachineGone, match="'box' has ended"):
        calls.call("status")


def test_who_is_refused_waits_for_no_pipe(init: subprocess.Popen[bytes]) -> None:
    """ZeroMQ may have nowhere to send to: the end of the machine is noticed all the same."""
    peer = Peer("ipc://nowhere", BOOT_ID, b"", Init("m", init.pid))

    class Refused(Connection):
        def _connected(self) -> zmq.Socket[bytes]:
            socket = super()._connected()
            socket.disconnect(peer.endpoint)
            socket.sndtimeo = 10_000  # so that a send that waits fails in the end
            return socket

    init.kill()
    with pytest.raises(MachineGone):
        Refused(peer)


def test_no_such_init() -> None:
    """An init that is over already is a machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(MachineGone):
        Init("box", process.pid)


def test_interrupt_leaves_a_usable_machine(daemon: Daemon, calls: Calls) -> None:
    """A handler that raises ends the wait; the answer that comes late is taken for nobody else's."""

    class Stop(BaseException):
        pass

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stop

    previous = signal.signal(signal.SIGALRM, stop)
    daemon.answer = lambda _request: None
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Stop):
            calls.call("status")
    finally:
        signal.signal(signal.SIGALRM, previous)
    daemon.answer = lambda request: pack_reply(BOOT_ID, request.request_id, "next")
    assert calls.call("brk", 7, 0) == "next"
    assert len(daemon.peers) == 2


def test_handlers_call_too(daemon: Daemon, calls: Calls) -> None:
    """A handler may call in the middle of a call of its thread: both get their own answers, whenever it comes."""
    daemon.answer = lambda request: pack_reply(BOOT_ID, request.request_id, request.args)
    nested: list[Any] = []

    def handler(_number: int, _frame: FrameType | None) -> None:
        nested.append(calls.call("brk", 1, 11))

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        while len(nested) < 20:
            assert calls.call("brk", 2, 22) == [2, 22]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert all(answer == [1, 11] for answer in nested)


def test_handler_before_the_request_is_out(daemon: Daemon, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of a handler that comes while a request is being packed does not draw the number of that request."""
    daemon.answer = lambda request: pack_reply(BOOT_ID, request.request_id, request.args)
    nested: list[Any] = []

    def interrupted(*args: Any) -> bytes:  # noqa: ANN401 - handed on as they came
        if not nested:
            nested.append(None)
            nested[0] = calls.call("brk", 1, 11)
        return pack_request(*args)

    calls.call("brk", 2, 0)
    monkeypatch.setattr("numaemu.connection.pack_request", interrupted)
    assert calls.call("brk", 2, 22) == [2, 22]
    assert nested == [[1, 11]]


@dataclass(eq=False)
class OpenOrNot:
    """What calls look at of a window."""

    slot: int
    inside: bool = False


def test_calls_from_inside_a_window_say_so(daemon: Daemon, calls: Calls) -> None:
    """A request that is sent while a window of its thread is open carries the slot; those of other threads do not."""
    windows = [OpenOrNot(slot) for slot in (4, 9)]
    for window in windows:
        calls.note_window(window)  # type: ignore[arg-type]  # all that it needs of one
    windows[1].inside = True
    calls.call("status")
    thread = threading.Thread(target=calls.call, args=("status",))
    thread.start()
    thread.join()
    windows[1].inside = False
    calls.call("status")
    assert [request.window for request in daemon.seen if request.name == "status"] == [9, None, None]


def test_forked_child(daemon: Daemon, calls: Calls) -> None:
    """A forked child that drops everything does no harm to the connection of its parent."""
    calls.call("status")
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            calls.abandon()
            del calls
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert calls.call("status") == "done"
    assert len(daemon.peers) == 1


# -- a daemon that is new ----------------------------------------------------------------------------------------------


class FakeWayBack:
    """A process that becomes known to whichever daemon there is."""

    def __init__(self) -> None:
        self.generation = self.now = 1
        self.renewed: list[int] = []

    def is_over(self, generation: int) -> bool:
        return self.now > generation

    def renew(self, seen: int, _token: bytes, _init: Init) -> None:
        self.renewed.append(seen)
        self.generation = self.now = max(self.now, 2)


@pytest.fixture
def way_back() -> FakeWayBack:
    """The way back of `returning`."""
    return FakeWayBack()


@pytest.fixture
def returning(daemon: Daemon, init: subprocess.Popen[bytes], way_back: FakeWayBack) -> Calls:
    """Calls to a daemon that may be followed by another."""
    return Calls(Peer(daemon.endpoint, BOOT_ID, bytes(16), Init("box", init.pid), way_back))  # type: ignore[arg-type]  # stands in for one


def test_a_request_that_a_new_daemon_does_not_know_is_sent_again(
    daemon: Daemon, returning: Calls, way_back: FakeWayBack
) -> None:
    """A stranger's refusal is no error: hello once more, with the number of the connection, and the same request id."""
    answers: list[Exception | None] = [None, StrangerError(), None, None]

    def answer(request: Request) -> Answer:
        refusal = answers.pop(0)
        if refusal is not None:
            return pack_refusal(BOOT_ID, request.request_id, refusal)
        return pack_reply(BOOT_ID, request.request_id, request.args)

    daemon.answer = answer
    assert returning.call("brk", 7, 1) == [7, 1]
    assert returning.call("brk", 7, 2) == [7, 2]
    assert returning.call("brk", 7, 3) == [7, 3]
    asked = [(request.name, request.request_id) for request in daemon.seen]
    assert asked == [("hello", 1), ("brk", 2), ("brk", 3), ("hello", 0), ("brk", 3), ("brk", 4)]
    assert daemon.seen[3].args == [bytes(16), 1]
    assert way_back.renewed == [1]
    assert len(daemon.peers) == 2


def test_who_waits_when_another_daemon_takes_over_asks_that_one(
    daemon: Daemon, returning: Calls, way_back: FakeWayBack
) -> None:
    """An answer that will not come is not waited for: the generation word says that the daemon is another."""
    silent = [True]

    def answer(request: Request) -> Answer:
        if silent.pop() if silent else False:
            way_back.now = 2
            return None
        return pack_reply(BOOT_ID, request.request_id, "at last")

    daemon.answer = answer
    assert returning.call("brk", 7, 1) == "at last"
    assert [request.request_id for request in daemon.seen] == [1, 2, 0, 2]


def test_a_call_before_which_the_daemon_changed_says_hello_first(
    daemon: Daemon, returning: Calls, way_back: FakeWayBack
) -> None:
    """Nothing is sent to a daemon that is known to be gone."""
    returning.call("status")
    way_back.now = 2
    returning.call("status")
    assert [request.name for request in daemon.seen] == ["hello", "status", "hello", "status"]


def test_the_end_of_the_machine_ends_the_way_back(
    daemon: Daemon, returning: Calls, way_back: FakeWayBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When init has gone meanwhile, the caller gets one clear error."""

    def gone(*_: object) -> None:
        raise MachineGone("box")

    returning.call("status")
    way_back.now = 2
    monkeypatch.setattr(way_back, "renew", gone)
    with pytest.raises(MachineGone):
        returning.call("status")
    assert daemon.seen[-1].name == "status"
