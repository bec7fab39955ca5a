"""The line of a thread, for its faults and questions: a socket to the daemon without ZeroMQ's threads between.

It takes half the time of a call. What is asked on it changes nothing that a second time would not find done: so a line
knows no repeating and no way back. Where it breaks, because the daemon dies or hangs up, the same is asked for again as
a call, which knows all of that, and the next one gets a new line.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from numaemu.errors import MachineGone
from numaemu.fault_points import reach
from numaemu_core import limits
from numaemu_core.wire import WireError, pack_request, unpack_reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numaemu.comeback import WayBack
    from numaemu.connection import Peer

_ANSWER_BYTES: Final = 4096
#: struct timeval: how long a receive waits before init and the daemon are looked at.
_SLICE: Final = struct.pack("ll", int(limits.SILENCE_S), int(limits.SILENCE_S % 1 * 1_000_000))
#: A thread stays awake so long for its answer: to be woken up for it takes longer than most answers do. On a lone
#: processor the daemon could not work meanwhile.
_AWAKE_S: Final = 3e-4 if len(os.sched_getaffinity(0)) > 1 else 0.0
#: Where one did not come in that time, others have the processors: so many answers are slept for, and twice as many
#: each time.
_ASLEEP_MIN: Final = 16
_ASLEEP_MAX: Final = 1024


class LineBroken(Exception):
    """No answer will come on this line."""


class Line:
    """One thread's line. `busy`: something is on its way, and this is a signal handler in the middle of it."""

    def __init__(self, peer: Peer, way_back: WayBack, sock: socket.socket) -> None:
        """`sock` is open, and the daemon knows whose it is."""
        sock.settimeout(None)  # the host bounds a receive: Python would ask it twice
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _SLICE)
        self._peer = peer
        self._way_back = way_back
        self._generation = way_back.generation
        self._socket = sock
        self._last_id = 0
        #: Answers that are slept for before one is waited for awake again, and how many the next time.
        self._asleep, self._next_asleep = 0, _ASLEEP_MIN
        self.busy = False
        self._let_go = weakref.finalize(self, sock.close)
        self._let_go.atexit = False

    def ask(self, name: str, args: Sequence[Any], window: int | None) -> Any:  # noqa: ANN401 - as the call has it
        """The result of a call that `fits_line`.

        Whoever gets another exception than these has to drop the line: an answer may still come.

        Raises:
            MmError: refused; SegmentationFault and OutOfMemory are.
        """
        self._last_id = request_id = self._last_id + 1
        self._send(pack_request(self._peer.boot_id, request_id, name, args, window))
        reach("asking.sent")
        boot_id, answered, result = unpack_reply(self._awaited() or self._received())
        if (boot_id, answered) != (self._peer.boot_id, request_id):
            raise WireError(f"an answer to question {answered} instead of {request_id}")
        return result

    def _send(self, body: bytes) -> None:
        try:
            self._socket.send(body)
        except OSError:
            raise LineBroken from None

    def _awaited(self) -> bytes | None:
        """The next packet, if it comes in a moment. LineBroken: none will come."""
        if self._asleep or not _AWAKE_S:
            self._asleep -= bool(self._asleep)
            return None
        until = time.monotonic() + _AWAKE_S
        while True:
            try:
                packet = self._socket.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.monotonic() > until:
                    break
                os.sched_yield()
            except OSError:
                raise LineBroken from None
            else:
                if not packet:
                    raise LineBroken
                self._next_asleep = _ASLEEP_MIN
                return packet
        self._asleep, self._next_asleep = self._next_asleep, min(2 * self._next_asleep, _ASLEEP_MAX)
        return None

    def _received(self) -> bytes:
        """The next packet. LineBroken: none will come. MachineGone."""
        began = time.monotonic()
        while True:
            try:
                packet = self._socket.recv(_ANSWER_BYTES)
            except BlockingIOError:
                if self._peer.init.has_ended(time.monotonic() - began):
                    raise MachineGone(self._peer.init.name) from None
                if self._way_back.is_over(self._generation):
                    raise LineBroken from None
                self._way_back.complain()
            except OSError:
                raise LineBroken from None
            else:
                if not packet:
                    raise LineBroken
                return packet

    def close(self) -> None:
        """Hang up."""
        self._let_go()
