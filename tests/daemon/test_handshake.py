"""Messages between init and its children."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaemu_daemon import handshake
from numaemu_daemon.handshake import HandshakeError
from numaemu_host import fdsock

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected ends."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


@pytest.fixture
def files() -> Iterator[dict[str, int]]:
    """As many descriptors as a machine of 191 segments has, each file holding its own name."""
    made = {f"segment.{i}": os.memfd_create(f"segment.{i}") for i in range(191)}
    for name, fd in made.items():
        os.write(fd, name.encode())
    yield made
    handshake.close_all(list(made.values()))


def receive(sock: socket.socket, expected: list[str]) -> dict[str, int]:
    first, fds = fdsock.recv(sock)
    return handshake.receive_segments(sock, handshake.message_of(first), fds, expected)


@pytest.mark.parametrize("count", [0, 1, handshake.PORTION_FDS, handshake.PORTION_FDS + 1, 191])
def test_descriptors_arrive_under_their_names(pair: Pair, files: dict[str, int], count: int) -> None:
    """Any number of descriptors arrives complete and in order, in as many portions as it takes."""
    some = dict(list(files.items())[:count])
    handshake.send_segments(pair[0], {"go": True}, some)
    received = receive(pair[1], list(some))
    assert list(received) == list(some)
    assert all(os.pread(fd, 100, 0) == name.encode() for name, fd in received.items())
    handshake.close_all(list(received.values()))


def test_wrong_names_are_refused_and_closed(pair: Pair, files: dict[str, int]) -> None:
    """Descriptors that are not those expected are closed again."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    handshake.send_segments(pair[0], {"go": True}, files)
    with pytest.raises(HandshakeError, match="expected the segments"):
        receive(pair[1], ["pool.0"])
    fdsock.send(pair[0], {"go": True, "segments": ["pool.0"], "more": False})
    with pytest.raises(HandshakeError, match="do not match"):
        receive(pair[1], ["pool.0"])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("message", [None, 1, [], {1: 2}])
def test_a_message_is_a_map_by_names(message: object) -> None:
    """Anything else is refused."""
    with pytest.raises(HandshakeError):
        handshake.message_of(message)


@pytest.mark.parametrize(
    "counters", [None, [1], {"a": 1.5}, {"a": True}, {1: 1}, {"a" * 65: 1}, dict.fromkeys("ab", "")]
)
def test_counters_are_whole_numbers_by_name(counters: object) -> None:
    """A report of anything else is refused."""
    with pytest.raises(HandshakeError):
        handshake.counters_of(counters)


def test_reasons_are_one_line() -> None:
    """Whatever a child says of its end fits on one line."""
    assert handshake.line_of("a\nb  c\t") == "a b c"
    assert len(handshake.line_of("x" * 10_000)) == 2000
    with pytest.raises(HandshakeError):
        handshake.line_of(7)
