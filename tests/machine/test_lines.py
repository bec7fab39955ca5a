"""Lines for faults and questions: sockets of a client's threads beside ZeroMQ, which change only what these cost."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import msgpack
import pytest

import numaemu as nm
from numaemu import places
from numaemu_core.wire import VERSION, pack_request, unpack_reply
from numaemu_host import fdsock

from . import hostile

PAGE = 4096

Boot = Callable[..., nm.Machine]
Eventually = Callable[[Callable[[], bool], str], None]


def lines_of(machine: nm.Machine) -> int:
    """How many lines the daemon has."""
    return int(machine.status()["fault_lines"])


def raw_line(machine: nm.Machine, token: bytes | None = None) -> tuple[socket.socket, object]:
    """A line that this process opens by hand, and what the daemon said to its hello."""
    sock = fdsock.connect(places.machine_dir(machine.name) / places.DESCRIPTOR_SOCKET, hostile.PATIENCE_S)
    own = machine._attachment.peer.token if token is None else token  # noqa: SLF001 - the secret that the library says
    fdsock.send(sock, {"hello": "faults", "version": VERSION, "token": own})
    answer, fds = fdsock.recv(sock)
    assert not fds
    return sock, answer


def fault_request(machine: nm.Machine, number: int, task: nm.Task, addr: int) -> bytes:
    """A fault of one page, packed."""
    boot_id = machine._attachment.peer.boot_id  # noqa: SLF001 - what names the machine in each message
    return pack_request(boot_id, number, "fault", [task.pid, addr, 1, True], None)


def test_each_thread_has_a_line_as_long_as_it_lives(boot: Boot, eventually: Eventually) -> None:
    """Faults of a thread go over one line, however many tasks it uses; it is closed with the thread."""
    machine = boot()
    with machine.attach() as one, machine.attach() as two:
        for task in (one, two):
            task.mmap(4 * PAGE).touch(write=True)
        assert lines_of(machine) == 1
        others = [threading.Thread(target=lambda: one.mmap(PAGE).touch(write=True)) for _ in range(5)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
        eventually(lambda: lines_of(machine) == 1, "lines of threads that have ended are left")


def test_refusals_are_those_of_a_call(boot: Boot) -> None:
    """An access that may not be made raises the same over a line, which goes on afterwards."""
    machine = boot(memory="1M", nodes=1, swap="0")
    with machine.attach() as task:
        buf = task.mmap(PAGE)
        buf.touch(write=True)
        with pytest.raises(nm.SegmentationFault):
            task.read(buf.start + PAGE, 1)
        with pytest.raises(nm.OutOfMemory):
            task.mmap(4 << 20).touch(write=True)
    with machine.attach() as task:
        task.mmap(PAGE).write(0, b"x")
        assert lines_of(machine) == 1


def test_a_question_goes_over_the_line(boot: Boot) -> None:
    """`get_mempolicy` of an address or of the task needs no connection to ZeroMQ; it is refused as a call would be."""
    machine = boot(nodes=2, profile="linux-6.12")
    with machine.attach() as task:
        buf = task.mmap(PAGE)
        task.mbind(buf.start, PAGE, nm.MPOL_BIND, {1})
        buf.write(0, b"x")
        calls = machine.status()["connections"], lines_of(machine)
        answers: list[object] = []

        def ask() -> None:
            answers.append(task.get_mempolicy())
            answers.append(task.get_mempolicy(buf.start, nm.MPOL_F_ADDR))
            answers.append(task.get_mempolicy(buf.start, nm.MPOL_F_NODE | nm.MPOL_F_ADDR))
            answers.append(task.move_pages(0, [buf.start, buf.start + PAGE]).tolist())
            with pytest.raises(OSError, match="Errno 14"):
                task.get_mempolicy(buf.start + PAGE, nm.MPOL_F_ADDR)
            answers.append((machine.status()["connections"], lines_of(machine)))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        # The connection is that of the last question, what the machine says of itself.
        assert answers == [
            (nm.MPOL_DEFAULT, set()),
            (nm.MPOL_BIND, {1}),
            1,
            [1, -errno.EFAULT],
            (calls[0] + 1, calls[1] + 1),
        ]


@pytest.mark.parametrize("token", [bytes(16), b"short", b""])
def test_a_line_needs_the_token_of_its_own_process(token: bytes, boot: Boot) -> None:
    """A wrong token gets an error and a hang-up, and no line."""
    machine = boot()
    sock, answer = raw_line(machine, token)
    with sock:
        assert isinstance(answer, dict)
        assert "error" in answer
        assert hostile.is_closed(sock)
    assert lines_of(machine) == 0


STEALS = """
import sys
from numaemu_host import fdsock
sock = fdsock.connect(sys.argv[1], 30)
fdsock.send(sock, {"hello": "faults", "version": int(sys.argv[3]), "token": bytes.fromhex(sys.argv[2])})
print(fdsock.recv(sock)[0])
"""


def test_a_token_is_good_for_its_own_process_only(boot: Boot) -> None:
    """Another process with the token of a client gets no line of it."""
    machine = boot()
    place = places.machine_dir(machine.name) / places.DESCRIPTOR_SOCKET
    token = machine._attachment.peer.token.hex()  # noqa: SLF001 - the secret that is stolen
    stolen = subprocess.run(
        [sys.executable, "-c", STEALS, str(place), token, str(VERSION)], capture_output=True, text=True, check=True
    )
    assert "no client has that token" in stolen.stdout
    assert lines_of(machine) == 0


def test_a_task_of_somebody_else_is_refused(boot: Boot) -> None:
    """A line gives no access to tasks of other clients."""
    machine = boot()
    with nm.connect(machine.name) as other, other.attach() as theirs:
        addr = theirs.mmap(PAGE).start
        sock, _ = raw_line(machine)
        with sock:
            sock.send(fault_request(machine, 1, theirs, addr))
            with pytest.raises(Exception, match="EPERM"):
                unpack_reply(sock.recv(4096))
        assert "Anon=" not in machine.numa_maps(theirs.pid)


def bad_packets(machine: nm.Machine, task: nm.Task, addr: int) -> dict[str, list[bytes]]:
    """What no thread of the library sends."""
    boot_id = machine._attachment.peer.boot_id  # noqa: SLF001 - what names the machine in each message
    good = fault_request(machine, 5, task, addr)

    def move_pages(count: int, nodes: bytes | None) -> bytes:
        args = [task.pid, 0, count, addr.to_bytes(8, "little") * count, nodes, 0, True]
        return pack_request(boot_id, 1, "move_pages", args, None)

    return {
        "garbage": [b"\xc1"],
        "another call": [pack_request(boot_id, 1, "exit", [task.pid], None)],
        "a long question": [move_pages(65, None)],
        "a move": [move_pages(1, bytes(4))],
        "another machine": [pack_request("no", 1, "fault", [task.pid, addr, 1, True], None)],
        "too long": [good + bytes(8192)],
        "an old number": [good, good],
        "wrong types": [msgpack.packb([VERSION, boot_id, 1, "fault", [task.pid, "x", 1, True], None])],
    }


@pytest.mark.parametrize(
    "kind",
    [
        "garbage",
        "another call",
        "a long question",
        "a move",
        "another machine",
        "too long",
        "an old number",
        "wrong types",
    ],
)
def test_who_breaks_the_rules_is_hung_up_on(kind: str, boot: Boot, eventually: Eventually) -> None:
    """Packets that are no fault, or not the next one, cost the line; everybody goes on."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(2 * PAGE)
        sock, _ = raw_line(machine)
        with sock:
            for packet in bad_packets(machine, task, buf.start)[kind]:
                sock.send(packet)
            assert hostile.is_closed(sock)
        eventually(lambda: lines_of(machine) == 0, "the line is still there")
        buf.write(0, b"good")
        assert buf.read(0, 4) == b"good"


def test_answers_that_are_never_read_stop_nobody(boot: Boot, eventually: Eventually) -> None:
    """Answers to a thread that does not read them are dropped once the host holds no more; the daemon does not wait."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(400 * PAGE)
        sock, _ = raw_line(machine)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with sock:
            for number in range(1, 400):
                sock.send(fault_request(machine, number, task, buf.start + number * PAGE))
                served = f" Anon={number} "
                eventually(lambda served=served: served in machine.numa_maps(task.pid), "not served")  # type: ignore[misc]  # mypy cannot type such a default
            sock.settimeout(0)
            heard = 0
            with contextlib.suppress(BlockingIOError):
                while sock.recv(4096):
                    heard += 1
            assert 0 < heard < 399


def test_the_next_daemon_gives_new_lines(boot: Boot, pid_of: Callable[..., int]) -> None:
    """When the daemon dies, faults go on with the next one, over a line again."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(8 * PAGE)
        for number in range(4):
            buf.write(number * PAGE, b"%d" % number)
            os.kill(pid_of(machine, "kernel"), signal.SIGKILL)
        buf.write(4 * PAGE, b"4")
        buf.write(5 * PAGE, b"5")
        assert lines_of(machine) == 1
        assert [buf.read(number * PAGE, 1) for number in range(6)] == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_question_finds_the_next_daemon(boot: Boot, pid_of: Callable[..., int]) -> None:
    """When the daemon dies, the question that breaks the line is answered by the next one."""
    machine = boot(nodes=2)
    with machine.attach() as task:
        task.set_mempolicy(nm.MPOL_INTERLEAVE, {0, 1})
        for _ in range(3):
            os.kill(pid_of(machine, "kernel"), signal.SIGKILL)
            assert task.get_mempolicy() == (nm.MPOL_INTERLEAVE, {0, 1})


def test_a_fault_in_a_signal_handler_in_the_middle_of_one(boot: Boot, pid_of: Callable[..., int]) -> None:
    """A handler that runs while its thread waits for a page faults by a call; both get their pages, each its own."""
    machine = boot()
    seen: list[bytes] = []
    with machine.attach() as task:
        buf = task.mmap(64 * PAGE)
        buf.write(0, b"x")
        daemon = pid_of(machine, "kernel")
        os.kill(daemon, signal.SIGSTOP)  # a fault of now has to wait

        def handler(_number: int, _frame: object) -> None:
            os.kill(daemon, signal.SIGCONT)
            buf.write(PAGE, b"handler")
            seen.append(buf.read(PAGE, 7))

        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            buf.write(2 * PAGE, b"thread")
        finally:
            signal.signal(signal.SIGALRM, before)
        assert seen == [b"handler"]
        assert buf.read(2 * PAGE, 6) == b"thread"
        assert lines_of(machine) == 1


def test_an_exception_in_the_middle_of_a_fault_costs_the_line(boot: Boot, pid_of: Callable[..., int]) -> None:
    """A late answer is nobody's: the thread that was interrupted gets a new line, and right pages."""
    machine = boot()

    class InterruptedError_(Exception):  # noqa: N801 - the built-in one means something else
        pass

    with machine.attach() as task:
        buf = task.mmap(64 * PAGE)
        buf.write(0, b"x")
        daemon = pid_of(machine, "kernel")

        def handler(_number: int, _frame: object) -> None:
            raise InterruptedError_

        before = signal.signal(signal.SIGALRM, handler)
        try:
            os.kill(daemon, signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(InterruptedError_):
                buf.write(PAGE, b"never")
        finally:
            os.kill(daemon, signal.SIGCONT)
            signal.signal(signal.SIGALRM, before)
        for number in range(2, 10):
            buf.write(number * PAGE, b"%d" % number)
            assert buf.read(number * PAGE, 1) == b"%d" % number
        assert lines_of(machine) == 1
