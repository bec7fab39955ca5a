"""Peers that are broken or mean it badly: on each socket of a machine, beside a client that must notice nothing."""

import contextlib
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

import numaemu as nm
from numaemu import places
from numaemu_core import limits, wire
from numaemu_core.errors import MmError
from numaemu_host import fdsock

from . import hostile
from .hostile import COMMAND, GREETING, LONG, MORE, Polite, frame, ready

Boot = Callable[..., nm.Machine]
Eventually = Callable[[Callable[[], bool], str], None]

PAGE = 4096
MIB = 1 << 20


def peer_of(machine: nm.Machine) -> Any:  # noqa: ANN401 - what the library keeps to itself
    """What a client knows: boot id, token, endpoint."""
    return machine._attachment.peer  # noqa: SLF001 - a hostile client knows all that a client is told


@contextlib.contextmanager
def dealer(endpoint: Path, **options: int | bytes) -> Iterator["zmq.Socket[bytes]"]:
    """A plain DEALER; options by name."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger = 0
        sock.rcvtimeo = sock.sndtimeo = int(hostile.PATIENCE_S * 1000)
        for name, value in options.items():
            setattr(sock, name, value)
        sock.connect(f"ipc://{endpoint}")
        yield sock


@pytest.fixture
def kernel(pid_of: Callable[..., int]) -> Callable[[nm.Machine], int]:
    """`kernel(machine)` is the pid of its daemon; it must be the same one at the end, as nothing may kill it."""
    return lambda machine: pid_of(machine, "kernel")


# -- the endpoint of the calls, below ZeroMQ -----------------------------------------------------------------------

CUTS = (0, 1, 9, 10, 11, 12, 32, 33, 63, 64)
RAW: dict[str, bytes] = {
    "zeros": bytes(64),
    "text": b"GET / HTTP/1.1\r\nHost: numa\r\n\r\n",
    "noise": random.Random(1).randbytes(4096),
    "curve-asked-for": GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32),
    "version-99": GREETING[:10] + b"\x63" + GREETING[11:] + ready(),
    "second-greeting": GREETING * 3,
    "ready-cut": GREETING + ready()[:-3],
    "ready-without-type": GREETING + frame(b"\x05READY", COMMAND),
    "ready-of-a-pub": GREETING + ready().replace(b"DEALER", b"PUB\0\0\0"),
    "ready-metadata-too-long": GREETING + frame(b"\x05READY\x0bSocket-Type\xff\xff\xff\xffDEALER", COMMAND),
    "message-before-ready": GREETING + frame(b"x"),
    "frame-of-4-exbibytes": GREETING + ready() + bytes([LONG]) + struct.pack(">Q", 1 << 62),
    "frame-of-2^63": GREETING + ready() + bytes([LONG]) + struct.pack(">Q", (1 << 64) - 1),
    "frame-one-too-long": GREETING + ready() + bytes([LONG]) + struct.pack(">Q", limits.MESSAGE_BYTES_MAX + 1),
    "flags-reserved": GREETING + ready() + b"\xf8\x01x",
    "unknown-command": GREETING + ready() + frame(b"\x04EVIL", COMMAND),
    "ping-that-is-cut": GREETING + ready() + frame(b"\x04PING\0", COMMAND),
    "many-empty-parts": GREETING + ready() + frame(b"", MORE) * 5000 + frame(b""),
}


def test_raw_bytes_and_half_handshakes_harm_nobody(boot: Boot, kernel: Callable[[nm.Machine], int]) -> None:
    """Greetings cut anywhere and left open, and bytes that are no ZMTP, leave a client's calls as they were."""
    machine = boot()
    pid = kernel(machine)
    with contextlib.ExitStack() as open_sockets, Polite(machine):
        for data in [*RAW.values(), *(GREETING[:cut] for cut in CUTS)]:
            sock = open_sockets.enter_context(hostile.stream(hostile.call_socket(machine)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
    assert kernel(machine) == pid


@pytest.mark.parametrize("left", [b"", GREETING[:10], GREETING[:63], GREETING, GREETING + ready()], ids=len)
def test_who_says_no_hello_is_hung_up_on(left: bytes, boot: Boot) -> None:
    """A connection that stops anywhere before its hello is closed by the daemon after a while."""
    machine = boot()
    with hostile.stream(hostile.call_socket(machine)) as sock:
        sock.sendall(left)
        assert hostile.is_closed(sock)


V1_REQUEST = b"\x01\x00"  # of ZMTP 1: an empty identity
OLD_VERSIONS: dict[str, Callable[[bytes], bytes]] = {
    "v1": lambda body: b"\x01\x00" + bytes([len(body) + 1, 0]) + body,
    "v1-long": lambda body: b"\x01\x00\xff" + struct.pack(">Q", len(body) + 1) + b"\0" + body,
    "v2.0": lambda body: b"\xff" + bytes(8) + b"\x7f\x01\x05" + b"\x00\x00" + frame(body),
    "v2.1": lambda body: b"\xff" + bytes(8) + b"\x7f\x02\x05" + b"\x00\x00" + frame(body),
}


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_the_oldest_versions_of_the_protocol_reach_nobody(version: str, boot: Boot) -> None:
    """A hello with the right token in ZMTP 1 or 2, which know no authentication, is not even looked at."""
    machine = boot()
    peer = peer_of(machine)
    before = machine.status()
    with hostile.stream(hostile.call_socket(machine)) as sock:
        body = wire.pack_request(peer.boot_id, 1, "hello", [peer.token])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(OLD_VERSIONS[version](body))
        assert hostile.is_closed(sock)
    after = machine.status()
    assert [after[name] for name in ("connections", "refused")] == [before[name] for name in ("connections", "refused")]


def test_an_oversized_message_costs_its_connection(boot: Boot) -> None:
    """One byte more than the limit is not read; at the limit it is, and refused as what it is."""
    machine = boot()
    for excess in (0, 1):
        with hostile.shaken_hands(hostile.call_socket(machine)) as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(frame(bytes(limits.MESSAGE_BYTES_MAX + excess)))
            if excess:
                with pytest.raises((EOFError, ConnectionResetError)):  # without a word
                    hostile.read_frame(sock)
            else:
                with pytest.raises(wire.WireError, match=r"array of 6|no msgpack"):
                    wire.unpack_reply(hostile.read_frame(sock)[1])


# -- above ZeroMQ -----------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


BODIES: dict[str, bytes] = {
    "empty": b"",
    "reserved": b"\xc1",
    "deep": nested(100_000),
    "deep-maps": b"\x81\xa1x" * 5000,
    "ext": msgpack.packb(msgpack.ExtType(5, b"x" * 100)),
    "timestamp": b"\xd6\xff\0\0\0\0",
    "array-of-4G": b"\xdd\xff\xff\xff\xff",
    "map-of-4G": b"\xdf\xff\xff\xff\xff",
    "bin-of-4G": b"\xc6\xff\xff\xff\xff",
    "text-not-utf8": b"\x96\x01\xa2\xff\xfe\x01\xa1x\x90\xc0",
    "array-of-900k": b"\xdd\x00\x0e\x00\x00" + bytes(0xE0000),
    "wide-and-shallow": b"\x96" + b"\xdc\xff\xff" * 6,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_refused(name: str, boot: Boot) -> None:
    """Deep, huge, wrongly typed and undecodable bodies are answered as breaches of the protocol, in a frame or two."""
    machine = boot()
    with dealer(hostile.call_socket(machine)) as sock:
        for frames in ([BODIES[name]], [BODIES[name], BODIES[name]]):
            sock.send_multipart(frames)
            with pytest.raises(wire.WireError):
                wire.unpack_reply(sock.recv())


class Rogue:
    """A client that has said hello, and does as it likes on its connections."""

    def __init__(self, machine: nm.Machine, sock: "zmq.Socket[bytes]") -> None:
        self.peer = peer_of(machine)
        self.sock = sock
        self._last = 0
        self.number = self.call("hello", self.peer.token)

    def send(self, name: str, *args: object) -> int:
        self._last += 1
        self.sock.send(wire.pack_request(self.peer.boot_id, self._last, name, args))
        return self._last

    def call(self, name: str, *args: object) -> Any:  # noqa: ANN401 - as the call has it
        self.send(name, *args)
        return wire.unpack_reply(self.sock.recv())[2]


def test_calls_beyond_the_one_on_its_way_are_refused(boot: Boot) -> None:
    """Of requests that are pipelined on a connection one is served at a time; others get EAGAIN, under their ids."""
    machine = boot()
    with dealer(hostile.call_socket(machine)) as sock:
        rogue = Rogue(machine, sock)
        pid = rogue.call("attach", 0, [], None)[0]
        sent = [rogue.send("mmap", pid, 0, MIB, 3, 0x22) for _ in range(40)]
        seen: dict[int, int] = {}
        for _ in sent:
            try:
                _, number, _ = wire.unpack_reply(sock.recv())
                seen[number] = 0
            except MmError as refused:
                seen[refused.request_id] = refused.errno
        assert sorted(seen) == sent
        assert set(seen.values()) == {0, 11}


def test_a_client_that_goes_on_beyond_its_limit_loses_the_connection(boot: Boot, eventually: Eventually) -> None:
    """Thousands of pipelined requests end in a dropped connection; its client may come again, others see nothing."""
    machine = boot()
    with Polite(machine):
        with dealer(hostile.call_socket(machine), sndhwm=0) as sock:
            rogue = Rogue(machine, sock)
            for _ in range(5000):
                rogue.send("status")
            eventually(lambda: machine.status()["dropped"] > 0, "nobody was dropped")
        with dealer(hostile.call_socket(machine)) as sock:
            assert Rogue(machine, sock).call("vmstat")


def test_replies_that_nobody_reads_take_no_memory(boot: Boot, kernel: Callable[[nm.Machine], int]) -> None:
    """A client that asks for long answers and takes none costs the daemon a few of them, not all."""
    machine = boot()
    pid = kernel(machine)
    with dealer(hostile.call_socket(machine), rcvhwm=1, maxmsgsize=-1) as sock:
        rogue = Rogue(machine, sock)
        task = rogue.call("attach", 0, [], None)[0]
        rogue.call("create_file", "long", "tmpfs", 1 << 19)
        rogue.call("file_write", task, "long", 0, bytes(1 << 19))
        before = hostile.memory_kb(pid)
        calls = machine.status()["calls"]
        for _ in range(200):
            rogue.send("file_read", task, "long", 0, 1 << 19)
        with machine.attach() as polite:
            for _ in range(300):
                polite.mmap(PAGE).write(0, b"x")
        assert machine.status()["calls"] > calls + 300
        assert hostile.memory_kb(pid) - before < 32 << 10


def test_guessing_tokens_ends_in_a_dropped_connection(boot: Boot, eventually: Eventually) -> None:
    """Each guess gets EACCES; after a few the connection is gone."""
    machine = boot()
    boot_id = peer_of(machine).boot_id
    with hostile.shaken_hands(hostile.call_socket(machine)) as sock:
        for number in range(limits.STRIKES_OF_STRANGER):
            sock.sendall(frame(wire.pack_request(boot_id, number, "hello", [os.urandom(16)])))
            with pytest.raises(MmError) as refused:
                wire.unpack_reply(hostile.read_frame(sock)[1])
            assert refused.value.errno == 13
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(frame(wire.pack_request(boot_id, 99, "hello", [os.urandom(16)])))
        assert hostile.is_closed(sock)
    eventually(lambda: machine.status()["dropped"] == 1, "the drop was not counted")


def test_who_chooses_an_identity_is_not_served(boot: Boot) -> None:
    """A hello with the right token is refused under a chosen identity; a second peer with the same one is not heard."""
    machine = boot()
    path = hostile.call_socket(machine)
    peer = peer_of(machine)
    hello = wire.pack_request(peer.boot_id, 1, "hello", [peer.token])

    def refused(sock: "zmq.Socket[bytes]") -> None:
        sock.send(hello)
        with pytest.raises(MmError, match="identity"):
            wire.unpack_reply(sock.recv())

    with dealer(path, routing_id=b"somebody") as first:
        refused(first)
        with dealer(path, routing_id=b"somebody", rcvtimeo=500) as second:
            second.send(hello)
            with pytest.raises(zmq.Again):
                second.recv()
            refused(first)


def test_a_connection_that_ended_is_nobodys(boot: Boot, eventually: Eventually) -> None:
    """The daemon forgets an identity with its connection, so that nobody can take it up."""
    machine = boot()
    before = machine.status()["connections"]
    with dealer(hostile.call_socket(machine)) as sock:
        Rogue(machine, sock)
        assert machine.status()["connections"] == before + 1
    eventually(lambda: machine.status()["connections"] == before, "it is remembered")


def test_a_call_that_was_answered_is_answered_again_on_a_new_connection(boot: Boot) -> None:
    """Who goes on with its number gets the last answer again: an mmap is not done twice."""
    machine = boot()
    with dealer(hostile.call_socket(machine)) as sock:
        rogue = Rogue(machine, sock)
        pid = rogue.call("attach", 0, [], None)[0]
        request = wire.pack_request(rogue.peer.boot_id, 50, "mmap", [pid, 0, PAGE, 3, 0x22])
        sock.send(request)
        first = wire.unpack_reply(sock.recv())
        with dealer(hostile.call_socket(machine)) as other:
            other.send(wire.pack_request(rogue.peer.boot_id, 0, "hello", [rogue.peer.token, rogue.number]))
            assert wire.unpack_reply(other.recv())[2] == rogue.number
            other.send(request)
            assert wire.unpack_reply(other.recv()) == first
            sock.send(request)  # the old connection is a stranger's now
            with pytest.raises(wire.StrangerError):
                wire.unpack_reply(sock.recv())


def test_a_move_that_was_answered_is_not_done_again(boot: Boot) -> None:
    """A repeated move_pages gets the first answer, and leaves pages alone that somebody has moved in between."""
    machine = boot(profile="linux-6.12")
    with dealer(hostile.call_socket(machine)) as sock, dealer(hostile.call_socket(machine)) as another:
        rogue, same = Rogue(machine, sock), Rogue(machine, another)
        pid = rogue.call("attach", 0, [], None)[0]
        start = rogue.call("mmap", pid, 0, PAGE, 3, 0x22)
        rogue.call("fault", *[pid, start, PAGE, True])
        request = wire.pack_request(rogue.peer.boot_id, 50, "move_pages", [pid, 0, 1, [start], [1], nm.MPOL_MF_MOVE])
        sock.send(request)
        first = sock.recv()
        assert same.call("where", pid, start, PAGE) == struct.pack("<i", 1)
        same.call("move_pages", pid, 0, 1, [start], [0], nm.MPOL_MF_MOVE)
        sock.send(request)
        assert sock.recv() == first
        assert same.call("where", pid, start, PAGE) == struct.pack("<i", 0)


def test_a_connection_that_was_cut_goes_on_and_its_call_is_done_once(boot: Boot, eventually: Eventually) -> None:
    """A thread whose connection the daemon drops gets its answer all the same, and an mmap is not done twice."""
    machine = boot()
    with machine.attach() as task:
        connection = machine._calls._mine.connection  # noqa: SLF001 - no other way to damage it
        for _ in range(limits.STRIKES_OF_CLIENT + 1):
            connection._socket.send(b"\xc1")  # noqa: SLF001 - as above
        eventually(lambda: _dropped(machine) == 1, "it was not dropped")
        while connection._socket.poll(300):  # noqa: SLF001 - refusals that the library did not ask for
            connection._socket.recv()  # noqa: SLF001 - as above
        before = task.mmap(PAGE)
        before.write(0, b"still here")
        again = task.mmap(PAGE)
        assert abs(again.start - before.start) == PAGE
        assert before[:10] == b"still here"


def _dropped(machine: nm.Machine) -> int:
    with nm.connect(machine.name) as other:
        return int(other.status()["dropped"])


def test_thousands_of_connections_leave_room_for_others(
    boot: Boot, kernel: Callable[[nm.Machine], int], eventually: Eventually
) -> None:
    """A process that opens connections without end has so many and no more; they go, and so do their descriptors."""
    machine = boot()
    pid = kernel(machine)
    before = hostile.descriptors(pid)
    with hostile.many_descriptors(), contextlib.ExitStack() as sockets, Polite(machine):
        for _ in range(3000):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sockets.push(sock)
            sock.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                sock.connect(str(hostile.call_socket(machine)))
        with nm.connect(machine.name) as other:
            assert other.vmstat()
    assert kernel(machine) == pid
    eventually(lambda: hostile.descriptors(pid) <= before + 4, "descriptors were not closed")


CROWD = """
import contextlib, resource, socket, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
socks = []
for path, kind in ((sys.argv[1], socket.SOCK_STREAM), (sys.argv[2], socket.SOCK_SEQPACKET)):
    for _ in range(300):
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.connect(path)
        socks.append(sock)
print("here", flush=True)
sys.stdin.readline()
"""


def test_a_host_without_descriptors_costs_a_daemon_and_no_byte(
    boot: Boot, pid_of: Callable[..., int], eventually: Eventually
) -> None:
    """ZeroMQ ends a process that may open nothing more: the next daemon has all bytes, and clients come in again."""
    machine = boot()
    place = places.machine_dir(machine.name)
    pid = pid_of(machine, "kernel")
    with machine.attach() as task:
        buf = task.mmap(200 * PAGE)
        buf.write(0, b"before")
        most = hostile.descriptors(pid) + 40
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        command = [sys.executable, "-c", CROWD, str(place / places.CALLS_SOCKET), str(place / places.DESCRIPTOR_SOCKET)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == b"here\n"
            for number in range(1, 200):
                buf.write(number * PAGE, b"%d" % number)
            crowd.kill()
        with nm.connect(machine.name) as other, other.attach() as late:
            late.mmap(PAGE).write(0, b"late")
        assert buf[:6] == b"before"
        assert all(buf.read(number * PAGE, 3).rstrip(b"\0") == b"%d" % number for number in range(1, 200))
        eventually(lambda: machine.fsck() == [], "fsck finds something")


@pytest.mark.parametrize("part", [0, 1000, 1 << 16], ids=["empty", "short", "long"])
def test_a_message_without_end_costs_a_daemon_and_no_byte(
    part: int, boot: Boot, kernel: Callable[[nm.Machine], int], eventually: Eventually
) -> None:
    """A client that never ends a message takes no more than the daemon's bound; then it is gone, or the daemon is new.

    The bound of the test is 64 MiB more than the daemon has; its own is that of its machine.
    """
    machine = boot()
    pid = kernel(machine)
    bound, _ = resource.prlimit(pid, resource.RLIMIT_DATA)
    assert bound == limits.DAEMON_BYTES + 3 * 1024 * limits.DAEMON_BYTES_PER_PAGE
    most = (hostile.memory_kb(pid, "VmData") << 10) + (64 << 20)
    resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))
    peer = peer_of(machine)
    with machine.attach() as task:
        buf = task.mmap(200 * PAGE)
        buf.write(0, b"before")
        with hostile.shaken_hands(hostile.call_socket(machine)) as sock:
            sock.sendall(frame(wire.pack_request(peer.boot_id, 1, "hello", [peer.token])))
            wire.unpack_reply(hostile.read_frame(sock)[1])
            seen = list(_sent_until_hung_up(sock, frame(bytes(part), MORE) * (MIB // (part + 9)), pid))
        assert max(seen) < most >> 10
        for number in range(1, 200):
            buf.write(number * PAGE, b"%d" % number)
        assert buf[:6] == b"before"
        assert all(buf.read(number * PAGE, 3).rstrip(b"\0") == b"%d" % number for number in range(1, 200))
        with nm.connect(machine.name) as other, other.attach() as late:
            late.mmap(PAGE).write(0, b"late")
        eventually(lambda: machine.fsck() == [], "fsck finds something")


def _sent_until_hung_up(sock: socket.socket, data: bytes, pid: int) -> Iterator[int]:
    """Send the same again and again; gives the kB of a process after each time, as long as it is there."""
    for _ in range(400):
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return
        with contextlib.suppress(OSError, AssertionError):  # it has gone, or is a zombie
            yield hostile.memory_kb(pid)
    pytest.fail("nobody hung up")


def crowd_of(machine: nm.Machine, stack: contextlib.ExitStack, count: int) -> list[Rogue]:
    """Connections of one client, all greeted."""
    path = hostile.call_socket(machine)
    return [Rogue(machine, stack.enter_context(dealer(path))) for _ in range(count)]


def test_who_has_many_connections_has_no_more_turns(boot: Boot, kernel: Callable[[nm.Machine], int]) -> None:
    """One request of another client, sent after sixty of a crowd of connections, is served as one of the first."""
    machine = boot()
    pid = kernel(machine)
    with contextlib.ExitStack() as stack, nm.connect(machine.name) as other:
        crowd = crowd_of(machine, stack, 60)
        polite = Rogue(other, stack.enter_context(dealer(hostile.call_socket(machine))))

        def place_of_the_polite() -> int:
            before = machine.status()["calls"]
            os.kill(pid, signal.SIGSTOP)  # until all of them have been sent
            try:
                for one in [*crowd, polite]:
                    one.send("status")
            finally:
                os.kill(pid, signal.SIGCONT)
            served = [wire.unpack_reply(one.sock.recv())[2]["calls"] - before for one in [*crowd, polite]]
            assert len(set(served)) == len(served)
            return served[-1]

        # Once it goes on, ZeroMQ may hand them to it no faster than it serves them: then nobody waits for a turn.
        assert any(place_of_the_polite() < len(crowd) // 2 for _ in range(3))


def test_calls_of_one_client_that_sleep_leave_room_for_others(boot: Boot, eventually: Eventually) -> None:
    """Of forty calls that wait for memory to be let go, some run; the others have not begun."""
    machine = boot()
    with contextlib.ExitStack() as stack, machine.attach() as task, nm.connect(machine.name) as other:
        buf = task.mmap(PAGE)
        buf.write(0, b"x")
        crowd = crowd_of(machine, stack, 40)
        window = task.window()
        window.counter[0] = window.odd  # as if this thread were inside
        try:
            for one in crowd:
                one.send("munmap", task.pid, buf.start, PAGE)
            eventually(
                lambda: sum(other.status()["sleeping"].values()) == limits.RUNNING_CALLS_PER_CLIENT, "they do not sleep"
            )
            assert sum(other.status()["sleeping"].values()) == limits.RUNNING_CALLS_PER_CLIENT
        finally:
            window.counter[0] = window.odd + 1
        for one in crowd:
            assert wire.unpack_reply(one.sock.recv())[2] == 0


# -- floods ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greeted", [True, False], ids=["client", "stranger"])
def test_a_flood_takes_no_memory_and_stops_nobody(
    greeted: bool,  # noqa: FBT001 - a column of the table
    boot: Boot,
    kernel: Callable[[nm.Machine], int],
) -> None:
    """Long messages as fast as they go, valid or not: the daemon keeps a few of them, and others are served."""
    machine = boot()
    pid = kernel(machine)
    with Polite(machine), dealer(hostile.call_socket(machine), sndhwm=4, sndtimeo=0) as sock:
        body = os.urandom(MIB // 2)
        if greeted:
            rogue = Rogue(machine, sock)
            body = wire.pack_request(rogue.peer.boot_id, 1 << 30, "file_write", [1, "x", 0, body])
        before = hostile.memory_kb(pid)
        for _ in range(400):
            with contextlib.suppress(zmq.Again):
                sock.send(body)
            sock.poll(2)
        assert hostile.memory_kb(pid) - before < 64 << 10
    assert kernel(machine) == pid


# -- the descriptor socket and init's ----------------------------------------------------------------------------------

SEQPACKET = {"fd.sock": places.DESCRIPTOR_SOCKET, "init.sock": places.INIT_SOCKET}
PACKETS: dict[str, bytes] = {
    "unknown-kind": b"zzz",
    "memfd-without-one": b"m",
    "empty-body": b"i",
    "no-msgpack": b"i\xc1",
    "deep": b"i" + b"\x91" * 5000,
    "no-map": b"i\x93\x01\x02\x03",
    "huge-array": b"i\xdd\xff\xff\xff\xff",
    "another-version": b"i" + msgpack.packb({"hello": "client", "version": 2}),
    "a-token-that-is-none": b"i" + msgpack.packb({"hello": "client", "version": 1, "token": [1]}),
    "a-child": b"i" + msgpack.packb({"hello": "kernel", "node": None, "pid": 1}),
    "unhashable-role": b"i" + msgpack.packb({"hello": [], "node": {}, "pid": 1}),
}


@pytest.mark.parametrize("packet", PACKETS)
@pytest.mark.parametrize("name", SEQPACKET)
def test_a_packet_that_is_no_message_costs_its_connection(name: str, packet: str, boot: Boot) -> None:
    """Whatever is no message of the protocol ends in a hang-up, or an error and a hang-up; the machine goes on."""
    machine = boot()
    with fdsock.connect(places.machine_dir(machine.name) / name, hostile.PATIENCE_S) as sock:
        sock.sendmsg([PACKETS[packet]])
        assert hostile.is_closed(sock)
    assert machine.vmstat()


@pytest.mark.parametrize("name", SEQPACKET)
def test_descriptors_that_are_sent_along_are_closed(
    name: str, boot: Boot, pid_of: Callable[..., int], eventually: Eventually
) -> None:
    """However many descriptors come with messages that are right, wrong or too many, none of them stays open."""
    machine = boot()
    owner = pid_of(machine, "kernel") if name == "fd.sock" else os.getppid()
    if name == "init.sock":
        owner = machine._attachment.peer.init.fd and next(  # noqa: SLF001 - the process that the pidfd names
            int(line.split()[1])
            for line in Path(f"/proc/self/fdinfo/{machine._attachment.peer.init.fd}").read_text().splitlines()  # noqa: SLF001 - as above
            if line.startswith("Pid:")
        )
    place = places.machine_dir(machine.name) / name
    reader, writer = os.pipe()
    try:
        for count in (1, 100, 200, 201, 250):
            for packet in (b"i" + msgpack.packb({"hello": "client", "version": 1}), b"i\xc1", b"m", b"i\x80"):
                with fdsock.connect(place, hostile.PATIENCE_S) as sock:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{count}i", *[writer] * count))
                    sock.sendmsg([packet], [rights])
                    sock.shutdown(socket.SHUT_WR)
                    assert hostile.is_closed(sock)
        eventually(lambda: hostile.copies(owner, writer) == 0, "descriptors are left")
        os.close(writer)
        writer = -1
        assert os.read(reader, 1) == b""  # nobody holds the other end
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def test_who_never_says_hello_on_the_descriptor_socket_is_hung_up_on(boot: Boot) -> None:
    """A process may have so many clients there and no more; those that say nothing are closed after a while."""
    machine = boot()
    place = places.machine_dir(machine.name) / places.DESCRIPTOR_SOCKET
    with contextlib.ExitStack() as sockets:
        silent = [
            sockets.enter_context(fdsock.connect(place, hostile.PATIENCE_S)) for _ in range(limits.CLIENTS_PER_PROCESS)
        ]
        refused, _ = fdsock.recv(silent[-1])
        assert refused == {"error": "too many clients, of this process or in all"}
        script = "import sys, numaemu as nm\nnm.connect(sys.argv[1]).attach().mmap(4096).write(0, b'x')"
        subprocess.run([sys.executable, "-c", script, machine.name], timeout=60, check=True)
        assert all(hostile.is_closed(sock) for sock in silent)
    assert machine.vmstat()
    with nm.connect(machine.name) as again:
        assert again.vmstat()


def test_init_full_of_silent_peers_still_lets_its_children_in(
    boot: Boot, pid_of: Callable[..., int], eventually: Eventually
) -> None:
    """While strangers hold all that they can of init's socket, a node process that dies is there again."""
    machine = boot()
    place = places.machine_dir(machine.name)
    crowd = (
        "import socket, sys\n"
        "socks = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(200)]\n"
        "[sock.connect(sys.argv[1]) for sock in socks]\n"
        "print('here', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", crowd, str(place / places.INIT_SOCKET)]
    with contextlib.ExitStack() as others:
        for _ in range(5):
            process = others.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            others.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
        first = pid_of(machine, "node", 1)
        os.kill(first, 9)
        eventually(lambda: pid_of(machine, "node", 1) != first, "it was not restarted")
        eventually(lambda: _state(machine, "node", 1) == "up", "it did not get in")


def _state(machine: nm.Machine, role: str, node: int) -> str:
    rows = machine.status()["processes"]
    return str(next(row["state"] for row in rows if (row["role"], row["node"]) == (role, node)))


# -- the bus -----------------------------------------------------------------------------------------------------------

#: The first ones say that they are somebody.
NAMES_OF_IMPOSTORS = 5
IMPOSTORS: list[Any] = [
    ["hello", "swap", -1, 1],
    ["hello", "swap", -1, 1, b"\0" * 16],
    ["hello", "node", 0, 1, ""],
    ["hello", "node", 1, 1, None],
    ["hello", "node", 1, 1, b"\0" * 16],
    ["balance", 0],
    ["asleep", 0],
    *(["done", ticket, 1] for ticket in range(1, 40)),
    ["balance", [0]],
    {"hello": "swap"},
    ["hello"] * 100,
]


def test_a_client_cannot_play_the_swap_node_or_a_node(
    boot: Boot, kernel: Callable[[nm.Machine], int], pid_of: Callable[..., int]
) -> None:
    """Who connects to the bus without its key gets no request to copy, and its confirmations count for nothing."""
    machine = boot()
    pid = kernel(machine)
    bus = places.machine_dir(machine.name) / "bus.ipc"
    with machine.attach() as task, dealer(bus) as sock:
        buf = task.mmap(MIB)
        data = random.Random(3).randbytes(MIB)
        buf.write(0, data)
        for number, message in enumerate(IMPOSTORS):
            if not number % limits.STRIKES_OF_STRANGER:  # before the connection is dropped for it
                sock.disconnect(f"ipc://{bus}")
                sock.connect(f"ipc://{bus}")
            sock.send(msgpack.packb(message))
            if number < NAMES_OF_IMPOSTORS or not number % 10:
                moved = threading.Thread(target=_move_and_verify, args=(task, buf, data, {number % 2}))
                moved.start()
                moved.join(hostile.PATIENCE_S)
                if moved.is_alive():  # bring it to an end: a successor is asked for what nobody has confirmed
                    sock.close()
                    os.kill(pid_of(machine, "swap"), 9)
                    moved.join()
                    pytest.fail(f"{message} kept others waiting")
                assert not sock.poll(0)
                assert buf.read(0, len(data)) == data
        assert not sock.poll(200)
        assert buf.read(0, len(data)) == data
    assert kernel(machine) == pid


def _move_and_verify(task: nm.Task, buf: nm.Mapping, data: bytes, nodes: set[int]) -> None:
    task.mbind(buf.start, buf.length, nm.MPOL_BIND, nodes, nm.MPOL_MF_MOVE)
    assert buf.read(0, len(data)) == data


# -- a second one ------------------------------------------------------------------------------------------------------


def test_a_second_machine_of_the_same_name_is_refused(boot: Boot) -> None:
    """Whoever starts one in a directory that is taken is told so before anything is bound; the first is untouched."""
    machine = boot()
    place = places.machine_dir(machine.name)
    inodes = {path.name: path.stat().st_ino for path in place.iterdir()}
    with machine.attach() as task, Polite(machine):
        buf = task.mmap(PAGE)
        buf.write(0, b"first")
        command = [sys.executable, "-m", "numaemu_daemon", "--dir", str(place), "--name", machine.name]
        command += ["--topology", '{"swap": "1M", "node": [{"memory": "1M", "cpus": [0]}]}']
        for _ in range(3):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 1
            assert f"machine {machine.name} is running" in done.stderr
        assert buf[:5] == b"first"
        with nm.connect(machine.name) as other:
            assert other.vmstat()
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == inodes
