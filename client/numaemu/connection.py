"""Calls to the kernel daemon over ZeroMQ: a connection of its own for each thread, one call at a time on each.

There is no time limit: a stopped process is only slow. Waiting ends with the answer, with the end of init (told by its
pidfd: `MachineGone`), where a machine that is stopped is given up, or with an exception of a signal handler; after that
the connection is dropped and the next call makes a new one, so that no late answer is taken for another. When the
daemon dies and another one takes over, the connection goes on with that one, and what was not answered is sent once
more.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import zmq

from numaemu.comeback import LineRefused, WayBack
from numaemu.errors import MachineGone
from numaemu.fault_points import reach
from numaemu.line import Line, LineBroken
from numaemu_core import limits
from numaemu_core.errors import MmError, OutOfMemory, SegmentationFault
from numaemu_core.wire import StrangerError, WireError, fits_line, pack_request, unpack_reply
from numaemu_host import pidfd, sigmask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numaemu.tcp import Curve, Lease, TcpWayBack
    from numaemu.window import Window

#: How long one poll lasts; between two, Python looks at its signals.
_SLICE_MS: Final = int(limits.SILENCE_S * 1000)
#: Slices without an answer after which a request is sent once more.
_SLICES_BEFORE_REPEAT: Final = 10

_context: zmq.Context[zmq.Socket[bytes]] | None = None
_guard = threading.RLock()  # a signal handler may call while its thread makes the context
#: Contexts and sockets of the parent: in a forked child they may neither be used nor taken apart.
_abandoned: list[object] = []


def shared_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The context of this process, with its one I/O thread."""
    global _context  # noqa: PLW0603 - one a process, and a forked child starts again without
    with _guard:
        if _context is None:
            made = zmq.Context()
            # Its threads hold signals only once they run: until then one that all of ours hold might be theirs.
            with sigmask.held(signal.valid_signals()):
                made.socket(zmq.PAIR).close(0)  # which starts them
            _context = made
        return _context


def keep_out_of_reach(thing: object) -> None:
    """In a forked child: let nothing take this apart, as that would call into ZeroMQ or touch what is not mapped."""
    _abandoned.append(thing)


def _forget_context() -> None:
    """In a forked child: the next machine gets a context of its own."""
    global _context, _guard  # noqa: PLW0603 - the lock may be held by a thread that is not here any more
    _abandoned.append(_context)
    _context = None
    _guard = threading.RLock()


os.register_at_fork(after_in_child=_forget_context)


class Init:
    """The init process of a machine, watched through its pidfd as long as somebody holds this."""

    def __init__(self, name: str, pid: int) -> None:
        """Watch `pid`. MachineGone if there is no such process."""
        self.name = name
        self._pid = pid
        #: See `Machine.give_up_when`.
        self.too_long: Callable[[float], bool] | None = None
        #: See `Machine.while_waiting`.
        self.meanwhile: Callable[[], None] | None = None
        #: Nobody waits for the machine any more.
        self.given_up = False
        try:
            self.fd = pidfd.open_pidfd(pid)
        except ProcessLookupError:
            raise MachineGone(name) from None

    def has_ended(self, waited_s: float = 0) -> bool:
        """Is it over, or given up? To be asked now and then by who has waited so long."""
        if pidfd.has_exited(self.fd):
            return True
        if self.meanwhile is not None:
            self.meanwhile()
        if not self.given_up and self.too_long is not None and pidfd.is_stopped(self._pid):
            self.given_up = self.too_long(waited_s)
        return self.given_up

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom to call: the endpoint, what names the machine in each message, the secret of `hello`, and init."""

    endpoint: str
    boot_id: str
    token: bytes
    init: Init | Lease
    #: None where a daemon that dies is the end.
    way_back: WayBack | TcpWayBack | None = None
    #: The keys of a connection over TCP.
    curve: Curve | None = None


class NewDaemon(Exception):
    """The daemon that was asked is no more, or does not know this connection."""


class Connection:
    """One DEALER socket: requests are numbered from 1 and answered one by one."""

    def __init__(self, peer: Peer) -> None:
        """Connect and say hello. MachineGone if the machine has ended, OSError if it refuses."""
        self._peer = peer
        self._last_id = 0
        self.busy = False
        self._generation = 0
        self._socket = self._connected()
        try:
            self.number = self.call("hello", [peer.token])
        except BaseException:
            self.close()
            raise

    def _connected(self) -> zmq.Socket[bytes]:
        """A socket to the daemon of now, to which this process is known."""
        if self._peer.way_back is not None:
            self._generation = self._peer.way_back.generation
        socket = shared_context().socket(zmq.DEALER)
        # Not by __del__: in a circle that is collected, the socket's own may come first, which warns.
        self._let_go = weakref.finalize(self, _close_unless_forked, socket, os.getpid())
        self._let_go.atexit = False
        socket.linger = 0
        if self._peer.curve is not None:
            self._peer.curve.apply(socket)
        socket.connect(self._peer.endpoint)
        socket.rcvtimeo = _SLICE_MS
        return socket

    def call(self, name: str, args: Sequence[Any], window: int | None = None) -> Any:  # noqa: ANN401 - as the call has it
        """The result of one call; `window` is the access slot that this thread has open.

        Raises:
            MmError: the machine refused. MachineGone: it has ended. WireError: the answer is none.
        """
        # Busy before the number is drawn: a signal handler that calls in between must not draw the same.
        self.busy = True
        try:
            self._last_id = request_id = self._last_id + 1
            body = pack_request(self._peer.boot_id, request_id, name, args, window)
            while True:
                try:
                    return self._asked(request_id, body)
                except NewDaemon:
                    if name == "hello":
                        self._begin_anew()
                    else:
                        self._come_back()
        finally:
            self.busy = False

    def _asked(self, request_id: int, body: bytes) -> Any:  # noqa: ANN401 - as the call has it
        """Send a request, and give what its answer says. NewDaemon: it has to be sent once more."""
        if self._peer.init.given_up:
            raise MachineGone(self._peer.init.name)
        if self._peer.way_back is not None and self._peer.way_back.is_over(self._generation):
            raise NewDaemon
        self._send(body)
        reach("asking.sent")
        while True:
            try:
                boot_id, answered, result = unpack_reply(self._receive(body))
            except StrangerError as refused:
                if refused.request_id != request_id:
                    continue
                if self._peer.way_back is None:
                    raise
                raise NewDaemon from None
            except MmError as refused:
                if refused.request_id < request_id:
                    continue
                raise
            if boot_id == self._peer.boot_id and answered < request_id:
                continue  # one that was asked for twice, and has come twice
            if (boot_id, answered) != (self._peer.boot_id, request_id):
                raise WireError(f"an answer to request {answered} instead of {request_id}")
            return result

    def _receive(self, body: bytes) -> bytes:
        """The next message. A plain receive, half as dear as a poll of socket and pidfd; init is looked at between.

        A daemon may drop a connection, and ZeroMQ makes it anew without a word: what gets no answer for long is sent
        again now and then. NewDaemon: none will come, as another daemon has taken over.
        """
        way_back = self._peer.way_back
        for slices in itertools.count(1):
            try:
                return self._socket.recv()
            except zmq.Again:
                if self._peer.init.has_ended(slices * limits.SILENCE_S):
                    raise MachineGone(self._peer.init.name) from None
                if way_back is not None:
                    if way_back.is_over(self._generation):
                        raise NewDaemon from None
                    way_back.complain()
                if not slices % _SLICES_BEFORE_REPEAT:
                    self._send(body)
        raise AssertionError

    def _send(self, body: bytes) -> None:
        """Send it, if there is somewhere to: ZeroMQ takes the pipe away from whom the daemon refuses, for good."""
        with contextlib.suppress(zmq.Again):
            self._socket.send(body, zmq.NOBLOCK)

    def _begin_anew(self) -> None:
        """Another socket, to the daemon of now."""
        assert self._peer.way_back is not None
        self._peer.way_back.renew(self._generation, self._peer.token, self._peer.init)
        self._let_go()
        self._socket = self._connected()

    def _come_back(self) -> None:
        """The same, and this connection goes on there under its number; the daemon knows its last answer."""
        while True:
            self._begin_anew()
            hello = pack_request(self._peer.boot_id, 0, "hello", [self._peer.token, self.number])
            try:
                self.number = self._asked(0, hello)
            except NewDaemon:
                continue
            return

    def close(self) -> None:
        """Close the socket; a second call does nothing, nor does one in a forked child."""
        self._let_go()


def _close_unless_forked(socket: zmq.Socket[bytes], owner: int) -> None:
    if os.getpid() == owner:
        socket.close(0)


class _Mine(threading.local):
    """What one thread has of one machine: its connection, and where it stands with each of its access slots."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        #: None: not yet, or it broke. False: the daemon has none for us.
        self.line: Line | Literal[False] | None = None
        #: By access slot; a task that is closed takes its own with it.
        self.windows: weakref.WeakValueDictionary[int, Window] = weakref.WeakValueDictionary()

    def window(self) -> int | None:
        """The access slot whose window the thread has open just now."""
        return next((slot for slot, window in self.windows.items() if window.inside), None)


class Calls:
    """The calls of one machine, for all threads."""

    def __init__(self, peer: Peer) -> None:
        """Nothing is sent yet."""
        self._peer = peer
        self._mine = _Mine()

    def call(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - whatever the call takes and gives
        """Call and wait for the result.

        Raises:
            OSError: refused, with the kernel's errno. SegmentationFault, OutOfMemory: refused for that reason.
            MachineGone: the machine has ended. WireError: the daemon broke the protocol.
        """
        mine = self._mine
        window = mine.window()
        if fits_line(name, args) and (line := self._line()) is not None:
            with contextlib.suppress(LineBroken):  # then it is asked again as any other
                return self._asked(line, name, args, window)
        if mine.connection is not None and mine.connection.busy:
            # A signal handler in the middle of a call of its own thread.
            with contextlib.closing(self._connected()) as connection:
                return self._refusals_raised(connection, name, args, window)
        if mine.connection is None:
            mine.connection = self._connected()
        return self._refusals_raised(mine.connection, name, args, window)

    def _line(self) -> Line | None:
        """That of this thread; None: it has none, or this is a signal handler in the middle of a question on it."""
        line = self._new_line() if self._mine.line is None else self._mine.line
        return line if line and not line.busy else None

    def _new_line(self) -> Line | Literal[False] | None:
        way_back = self._peer.way_back
        if not isinstance(way_back, WayBack):  # over TCP there are none
            self._mine.line = False
            return False
        try:
            sock = way_back.line(self._peer.token)
        except LineRefused:
            self._mine.line = False
        else:
            self._mine.line = None if sock is None else Line(self._peer, way_back, sock)
        return self._mine.line

    def _asked(self, line: Line, name: str, args: Sequence[Any], window: int | None) -> Any:  # noqa: ANN401 - as above
        line.busy = True
        try:
            return line.ask(name, args, window)
        except MmError as refused:
            raise _as_raised(refused) from None
        except BaseException:  # an answer may still come
            self._mine.line = None
            line.close()
            raise
        finally:
            line.busy = False

    def _connected(self) -> Connection:
        try:
            return Connection(self._peer)
        except MmError as refused:
            raise OSError(refused.errno, refused.detail) from None

    def _refusals_raised(self, connection: Connection, name: str, args: Sequence[Any], window: int | None) -> Any:  # noqa: ANN401 - whatever the call gives
        try:
            return connection.call(name, args, window)
        except MmError as refused:
            raise _as_raised(refused) from None
        except BaseException:
            # Its answer may still come: nobody shall take it for that of the next call.
            if self._mine.connection is connection:
                self._mine.connection = None
            connection.close()
            raise

    def complain(self) -> None:
        """Somebody waits for what the daemon holds; see `WayBack.complain`."""
        if self._peer.way_back is not None:
            self._peer.way_back.complain()

    def note_window(self, window: Window) -> None:
        """From now on, calls that this thread sends from inside this window of its own say so."""
        self._mine.windows[window.slot] = window

    def abandon(self) -> None:
        """In a forked child: keep everything as it is, and out of reach."""
        keep_out_of_reach(self._mine)


def _as_raised(refused: MmError) -> Exception:
    """What the library raises for a refusal: for most an OSError."""
    if isinstance(refused, SegmentationFault | OutOfMemory):
        return refused
    return OSError(refused.errno, refused.detail or os.strerror(refused.errno))
