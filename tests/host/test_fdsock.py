"""Messages with descriptors."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import resource
import socket
from typing import TYPE_CHECKING

import msgpack
import pytest

from numaemu_host import fdsock, memfd, pidfd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.host.conftest import Child

TIMEOUT_S = 10.0
TOO_LONG = rf"Errno {errno.EMSGSIZE}\b"
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(TIMEOUT_S)
        theirs.settimeout(TIMEOUT_S)
        yield ours, theirs


def close_all(fds: list[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def send_raw(sock: socket.socket, packet: bytes, fds: list[int]) -> None:
    """A packet as a peer that keeps no rules may send it."""
    sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_message_crosses_processes(tmp_path: Path, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """A child gets a message and a memfd, writes into it, answers, and both know by the kernel who the other is."""
    path = tmp_path / "sock"
    with fdsock.listen(path) as listener:
        listener.settimeout(TIMEOUT_S)
        child = spawn(
            """
            from numaemu_host import fdsock
            sock = fdsock.connect(sys.argv[1], 10)
            message, fds = fdsock.recv(sock)
            os.pwrite(fds[0], b"from the child", 0)
            fdsock.send(sock, {"got": message, "count": len(fds), "inheritable": os.get_inheritable(fds[0]),
                               "peer": fdsock.peer_credentials(sock), "me": os.getpid()})
            """,
            path,
        )
        sock, _ = listener.accept()
    with sock:
        sock.settimeout(TIMEOUT_S)
        assert fdsock.peer_credentials(sock) == (child.pid, os.getuid(), os.getgid())
        fdsock.send(sock, ["hello", 1, b"\0", None], [shared_fd])
        answer, fds = fdsock.recv(sock)
        assert answer == {
            "got": ["hello", 1, b"\0", None],
            "count": 1,
            "inheritable": False,
            "peer": [os.getpid(), os.getuid(), os.getgid()],
            "me": child.pid,
        }
        assert fds == []
        assert os.pread(shared_fd, 14, 0) == b"from the child"
        assert child.end() == 0
        with pytest.raises(EOFError):
            fdsock.recv(sock)
        with pytest.raises(BrokenPipeError):
            fdsock.send(sock, "late")


def test_killed_peer_is_an_end(tmp_path: Path, spawn: Callable[..., Child]) -> None:
    """A peer that is killed with a message of ours unread shows as the end, too."""
    with fdsock.listen(tmp_path / "sock") as listener:
        listener.settimeout(TIMEOUT_S)
        child = spawn(
            """
            from numaemu_host import fdsock
            sock = fdsock.connect(sys.argv[1], 10)
            wait_for_parent()
            """,
            tmp_path / "sock",
        )
        sock, _ = listener.accept()
    with sock:
        fdsock.send(sock, "unread")
        child.kill()
        with pytest.raises(EOFError):
            fdsock.recv(sock)


def test_messages_keep_their_bounds(pair: Pair) -> None:
    """Messages arrive one by one, in order, however they queue up."""
    ours, theirs = pair
    for number in range(5):
        fdsock.send(ours, number)
    assert [fdsock.recv(theirs)[0] for _ in range(5)] == list(range(5))


@pytest.mark.parametrize("count", [1, 2, fdsock.MAX_FDS])
@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.usefixtures("no_descriptor_leaks")
def test_descriptors_arrive_in_order(pair: Pair, count: int, size: int) -> None:
    """Up to 200 descriptors arrive with a small or a large message, in order, as duplicates that exec closes."""
    ours, theirs = pair
    sources = [memfd.create("source", 1 + index, preallocate=False) for index in range(count)]
    fdsock.send(ours, bytes(size), sources)
    message, fds = fdsock.recv(theirs)
    assert message == bytes(size)
    assert [os.fstat(fd).st_size for fd in fds] == [1 + index for index in range(count)]
    assert not any(os.get_inheritable(fd) for fd in fds)
    assert not set(fds) & set(sources)
    close_all(fds + sources)


@pytest.mark.parametrize("size", [1, 65_000, 66_000, fdsock.MAX_BODY - 5])
@pytest.mark.usefixtures("no_descriptor_leaks")
def test_bodies_up_to_the_limit(pair: Pair, size: int) -> None:
    """A body of any size up to the limit arrives whole, and leaves no descriptor behind."""
    ours, theirs = pair
    body = os.urandom(size)
    fdsock.send(ours, body)
    assert fdsock.recv(theirs) == (body, [])


@pytest.mark.usefixtures("no_descriptor_leaks")
def test_sender_keeps_the_limits(pair: Pair) -> None:
    """Too long a message, too many descriptors and what msgpack cannot pack are refused, and nothing is sent."""
    ours, theirs = pair
    with pytest.raises(ValueError, match="longer"):
        fdsock.send(ours, bytes(fdsock.MAX_BODY))
    with pytest.raises(ValueError, match="descriptors"):
        fdsock.send(ours, 0, [0] * (fdsock.MAX_FDS + 1))
    with pytest.raises(TypeError):
        fdsock.send(ours, object())
    theirs.settimeout(0)
    with pytest.raises(BlockingIOError):
        fdsock.recv(theirs)


@pytest.mark.usefixtures("no_descriptor_leaks")
def test_too_many_descriptors_are_closed(pair: Pair) -> None:
    """A message with more descriptors than there is room for is an error, and none of them stays open."""
    ours, theirs = pair
    send_raw(ours, b"i\x00", [ours.fileno()] * 250)
    with pytest.raises(OSError, match=TOO_LONG):
        fdsock.recv(theirs)


@pytest.mark.usefixtures("no_descriptor_leaks")
def test_descriptors_past_the_own_limit_are_an_error(pair: Pair) -> None:
    """Descriptors that this process may not open are lost with an error, and those that came are closed."""
    ours, theirs = pair
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fdsock.send(ours, 0, [ours.fileno()] * 100)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    try:
        with pytest.raises(OSError, match=TOO_LONG):
            fdsock.recv(theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "packet", [b"i", b"i\xc1", b"i\x00\x00", b"i\x92\x01", b"x\x00", b"m", b"i" + b"\x91" * 5000, b"i\xa1\xff"]
)
@pytest.mark.usefixtures("no_descriptor_leaks")
def test_malformed_packets_are_errors(pair: Pair, packet: bytes) -> None:
    """A packet that is no message is a ValueError, its descriptors are closed, and the next message arrives."""
    ours, theirs = pair
    send_raw(ours, packet, [ours.fileno()] * 2)
    fdsock.send(ours, "next")
    with pytest.raises(ValueError):  # noqa: PT011 - partly msgpack's own words
        fdsock.recv(theirs)
    assert fdsock.recv(theirs) == ("next", [])


def test_long_packet_is_an_error(pair: Pair) -> None:
    """A packet that is longer than any of ours is cut, and told as an error."""
    ours, theirs = pair
    ours.send(b"i" + msgpack.packb(bytes(80_000)))
    with pytest.raises(OSError, match=TOO_LONG):
        fdsock.recv(theirs)


@pytest.mark.usefixtures("no_descriptor_leaks")
def test_changeable_body_is_refused(pair: Pair) -> None:
    """A large body that its sender could still change, or that is no memfd, is refused."""
    ours, theirs = pair
    changeable = memfd.create("body", 10, preallocate=True)
    directory = os.open("/", os.O_RDONLY)
    for fd in (changeable, directory):
        send_raw(ours, b"m", [fd])
        with pytest.raises(ValueError, match="not sealed"):
            fdsock.recv(theirs)
    close_all([changeable, directory])


def test_silent_peer_times_out(tmp_path: Path) -> None:
    """The timeout of a connection bounds its later calls, too."""
    with fdsock.listen(tmp_path / "sock") as listener, fdsock.connect(tmp_path / "sock", 0.05) as sock:
        assert not listener.get_inheritable()
        assert not sock.get_inheritable()
        with pytest.raises(TimeoutError):
            fdsock.recv(sock)


def test_full_listener_times_out(tmp_path: Path) -> None:
    """A listener that accepts nobody and has no room left costs the timeout, not for ever."""
    path = tmp_path / "sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(fdsock.listen(path))
        listener.listen(0)
        stack.enter_context(fdsock.connect(path, 0.05))
        with pytest.raises(TimeoutError):
            fdsock.connect(path, 0.05)


@pytest.mark.usefixtures("no_descriptor_leaks")
def test_absent_listener_is_an_error(tmp_path: Path) -> None:
    """Without a listener a connection fails at once, and a path in use cannot be listened on."""
    path = tmp_path / "sock"
    with pytest.raises(FileNotFoundError):
        fdsock.connect(path, TIMEOUT_S)
    fdsock.listen(path).close()
    with pytest.raises(ConnectionRefusedError):
        fdsock.connect(path, TIMEOUT_S)
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        fdsock.listen(path)


def test_a_stopped_process_goes_on_when_its_peer_is_gone(tmp_path: Path, spawn: Callable[..., Child]) -> None:
    """SIGCONT comes with the end of the peer, to a process that is stopped, too."""
    path = tmp_path / "sock"
    with fdsock.listen(path) as listener:
        listener.settimeout(TIMEOUT_S)
        child = spawn(
            """
            import signal
            from numaemu_host import fdsock
            sock = fdsock.connect(sys.argv[1], 10)
            fdsock.continue_at_hangup(sock)
            os.kill(os.getpid(), signal.SIGSTOP)
            say("goes on")
            wait_for_parent()
            """,
            path,
        )
        peer, _ = listener.accept()
        while not pidfd.is_stopped(child.process.pid):
            assert child.process.poll() is None
        peer.close()
        assert child.hear() == "goes on"
