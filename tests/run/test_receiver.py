"""Who receives calls, while others are served and while none is. A call is a number in a pipe here."""

import contextlib
import errno
import os
import select
import struct
import threading
import time
from collections.abc import Iterator
from typing import Self

import pytest

from numaemu_run.receiver import Receiver
from numaemu_run.seccomp import Listener, Notification

NUMBER = struct.Struct("=Q")
TOO_LATE_S = 20.0


class Calls(Listener):
    """Calls that are written into a pipe."""

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        super().__init__(reading)

    def come(self, *identities: int) -> None:
        for identity in identities:
            os.write(self.writing, NUMBER.pack(identity))

    def receive(self) -> Notification:
        identity = NUMBER.unpack(os.read(self.fd, NUMBER.size))[0]
        time.sleep(0.0001)  # whoever is to wait until it is at hand may fail to
        return Notification(identity, 0, 0, [])


@pytest.fixture
def calls() -> Iterator[Calls]:
    listener = Calls()
    yield listener
    os.close(listener.writing)
    listener.close()


class FullEpoll:
    """An epoll that has no room for calls until it is told so."""

    has_room = False

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._epoll = select.epoll()
        self.close, self.unregister, self.modify, self.poll = (
            self._epoll.close,
            self._epoll.unregister,
            self._epoll.modify,
            self._epoll.poll,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def register(self, fd: int, events: int) -> None:
        if fd == self._listener.fd and not self.has_room:
            raise OSError(errno.ENOSPC, "no room")
        self._epoll.register(fd, events)


def received(receiver: Receiver, count: int) -> list[int]:
    """The first so many calls, as soon as the thread has received them."""
    deadline = time.monotonic() + TOO_LATE_S
    while len(receiver.calls) < count:
        assert time.monotonic() < deadline, f"only {len(receiver.calls)} of {count} calls were received"
        time.sleep(0.001)
    return [receiver.calls.popleft().id for _ in range(count)]


def test_calls_that_come_meanwhile_are_received_in_their_order(calls: Calls) -> None:
    """Those that were there before, and those that come; and so again the next time."""
    with contextlib.closing(Receiver(calls)) as receiver:
        for _ in range(2):
            calls.come(1)
            with receiver:
                calls.come(2, 3)
                assert received(receiver, 3) == [1, 2, 3]
                calls.come(4)
                assert received(receiver, 1) == [4]


def test_each_call_is_received_once_however_often_the_thread_begins_and_ends(calls: Calls) -> None:
    """It may be late, and finds that nobody wants it any more, or that somebody does again."""
    expected = list(range(3000))
    caller = threading.Thread(target=calls.come, args=expected)
    found: list[int] = []
    deadline = time.monotonic() + TOO_LATE_S
    with contextlib.closing(Receiver(calls)) as receiver:
        caller.start()
        while len(found) < len(expected):
            assert time.monotonic() < deadline, f"only {len(found)} calls were received"
            with receiver:
                time.sleep(len(found) % 3 / 10_000)  # it comes, or comes too late, or just when that ends
            found.extend(call.id for call in receiver.calls)
            receiver.calls.clear()
            if receiver.has_call():
                found.append(calls.receive().id)
        caller.join()
    assert found == expected


def test_where_the_host_has_no_room_calls_wait_until_they_are_received_as_ever(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no error of the call that is served; and the next time there may be room."""
    epoll = FullEpoll(calls)
    with monkeypatch.context() as patched:
        patched.setattr("numaemu_run.receiver.select.epoll", lambda: epoll)
        receiver = Receiver(calls)
    with contextlib.closing(receiver):
        calls.come(1)
        with receiver:
            assert receiver.has_call()
        assert calls.receive().id == 1
        epoll.has_room = True
        calls.come(2)
        with receiver:
            assert received(receiver, 1) == [2]
