"""What only real processes can show: hits without messages, faults in one round trip, moves, deaths, broken peers."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

import numaemu as nm
from numaemu import places
from numaemu_core import wire
from numaemu_core.errors import MmError
from numaemu_host import fdsock

Boot = Callable[..., nm.Machine]
Eventually = Callable[[Callable[[], bool], str], None]

PAGE = 4096
BIND_1 = (nm.MPOL_BIND, {1})
MOVE_STRICT = nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT


def calls(machine: nm.Machine) -> int:
    """How many calls the daemon has served, this one not counted."""
    return int(machine.status()["calls"]) - 1


def test_bytes_leave_node_0_through_swap_and_come_back_on_node_1(boot: Boot) -> None:
    """mbind(BIND {1}, MOVE | STRICT) evicts every page, and the next touch brings the same bytes back on node 1."""
    data = np.random.default_rng(5).integers(0, 255, 1 << 20, np.uint8).tobytes()
    machine = boot()
    with machine.attach(cpu=0) as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        assert set(task.where(buf.start, buf.length).tolist()) == {0}
        task.mbind(buf.start, buf.length, *BIND_1, MOVE_STRICT)
        assert set(task.where(buf.start, buf.length).tolist()) == {-2}
        assert hashlib.sha256(buf.read(0, len(data))).digest() == hashlib.sha256(data).digest()
        assert set(task.where(buf.start, buf.length).tolist()) == {1}


def test_a_hit_sends_no_message(boot: Boot) -> None:
    """Thousands of reads and writes of present pages reach the daemon as nothing at all."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(64 * PAGE)
        buf.write(0, bytes(64 * PAGE))
        before = calls(machine)
        for i in range(2000):
            buf.write(i * 97 % (63 * PAGE), b"hit")
            assert buf.read(i * 97 % (63 * PAGE), 3) == b"hit"
        assert calls(machine) == before + 1  # the question before


def test_a_fault_is_one_round_trip_for_the_whole_range(boot: Boot) -> None:
    """A write over 200 untouched pages asks the daemon once."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(200 * PAGE)
        buf.write(0, b"x")
        before = calls(machine)
        buf.write(0, bytes(200 * PAGE))
        assert calls(machine) == before + 2


def test_when_swap_is_full_pages_stay_and_strict_says_so(boot: Boot) -> None:
    """With too few slots STRICT gives EIO, the rest has moved, the policy is set, and every byte is right."""
    machine = boot(swap="64K")
    with machine.attach() as task:
        data = b"".join(bytes([i]) * PAGE for i in range(64))
        buf = task.mmap(len(data))
        buf.write(0, data)
        with pytest.raises(OSError, match="could not leave"):
            task.mbind(buf.start, buf.length, *BIND_1, MOVE_STRICT)
        assert task.get_mempolicy(buf.start, nm.MPOL_F_ADDR) == (nm.MPOL_BIND, {1})
        assert sorted(set(task.where(buf.start, buf.length).tolist())) == [-2, 0]
        assert buf.read(0, len(data)) == data


def test_a_range_larger_than_memory_ends_in_out_of_memory_and_the_machine_goes_on(boot: Boot) -> None:
    """Who touches more than memory and swap hold is killed: all its calls say so, and others find room afterwards."""
    machine = boot(memory="1M", swap="1M")
    with machine.attach() as task:
        buf = task.mmap(4 << 20)
        with pytest.raises(nm.OutOfMemory):
            buf.write(0, b"z" * (4 << 20))
        for call in (lambda: buf.read(0, PAGE), lambda: task.mmap(PAGE), lambda: task.munmap(buf.start, PAGE)):
            with pytest.raises(nm.OutOfMemory, match="was killed"):
                call()
    with machine.attach() as task:
        task.mmap(PAGE).write(0, b"room")


@pytest.mark.parametrize("access", ["read", "write"])
def test_an_address_that_is_not_mapped_is_a_segmentation_fault(access: str, boot: Boot) -> None:
    """So is an address beyond 48 bits, one behind munmap, and one whose protection forbids the access."""
    machine = boot()
    with machine.attach() as task:
        gone = task.mmap(PAGE)
        gone.write(0, b"x")
        task.munmap(gone.start, PAGE)
        closed = task.mmap(PAGE, prot=nm.PROT_NONE)
        for address in (gone.start, closed.start, 0, 1 << 50, (1 << 64) - PAGE):
            with pytest.raises(nm.SegmentationFault):
                task.read(address, 1) if access == "read" else task.write(address, b"y")


def test_parent_and_child_have_their_own_bytes_after_a_fork(boot: Boot) -> None:
    """Both see the bytes of the fork until one writes, and then only the writer sees the new ones."""
    machine = boot()
    with machine.attach() as parent:
        buf = parent.mmap(32 * PAGE)
        buf.write(0, b"p" * (32 * PAGE))
        with parent.fork() as child:
            assert child.read(buf.start, 32 * PAGE) == b"p" * (32 * PAGE)
            child.write(buf.start, b"child")
            buf.write(PAGE, b"parent")
            assert buf[:5] == b"ppppp"
            assert child.read(buf.start + PAGE, 6) == b"pppppp"


ADOPTER = """
import sys, numaemu as nm
with nm.connect(sys.argv[1]) as machine, machine.adopt(int(sys.argv[2])) as task:
    assert task.read(int(sys.argv[3]), 5) == b"hello"
    task.write(int(sys.argv[3]), b"child")
    print(task.read(int(sys.argv[3]), 5).decode())
"""


def test_a_forked_task_is_adopted_by_another_process(boot: Boot) -> None:
    """Another process of the same user takes the child over, and the parent's bytes stay its own."""
    machine = boot()
    with machine.attach() as parent:
        buf = parent.mmap(PAGE)
        buf.write(0, b"hello")
        child = parent.fork()
        command = [sys.executable, "-c", ADOPTER, machine.name, str(child.pid), str(buf.start)]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        assert out == "child\n"
        assert buf[:5] == b"hello"


def test_moves_under_the_feet_of_two_threads_lose_nothing(boot: Boot) -> None:
    """One thread writes and reads back while another moves the same pages to and fro."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(64 * PAGE)
        over = threading.Event()

        def move() -> None:
            node = 0
            while not over.is_set():
                node = 1 - node
                task.mbind(buf.start, buf.length, nm.MPOL_BIND, {node}, nm.MPOL_MF_MOVE)

        mover = threading.Thread(target=move)
        mover.start()
        try:
            for i in range(300):
                data = bytes([i % 251 + 1]) * (5 * PAGE)
                offset = i * 7919 % (59 * PAGE)
                buf.write(offset, data)
                assert buf.read(offset, len(data)) == data
        finally:
            over.set()
            mover.join()


def test_a_killed_client_leaves_nothing_behind(boot: Boot, eventually: Eventually) -> None:
    """The memory of a process that is killed with SIGKILL is free again."""
    machine = boot()
    free = machine.figures("vmstat")["nr_free_pages"]
    script = (
        "import sys, numaemu as nm\n"
        "task = nm.connect(sys.argv[1]).attach()\n"
        "task.mmap(1 << 20).write(0, bytes(1 << 20))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, machine.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        assert machine.figures("vmstat")["nr_free_pages"] == free - 256
        client.kill()
    eventually(lambda: machine.figures("vmstat")["nr_free_pages"] == free, "frames were not freed")


@pytest.mark.parametrize("role", ["node", "swap"])
def test_a_killed_process_of_the_machine_comes_back_with_its_memory(
    role: str, boot: Boot, pid_of: Callable[..., int], eventually: Eventually
) -> None:
    """SIGKILL of a node process or of the swap node costs nobody a byte; pages move on as before."""
    machine = boot()
    data = bytes(range(256)) * 16 * 64
    with machine.attach() as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        task.mbind(buf.start, buf.length, *BIND_1, MOVE_STRICT)
        first = pid_of(machine, role, 1)
        os.kill(first, signal.SIGKILL)
        assert buf.read(0, len(data)) == data
        eventually(lambda: pid_of(machine, role, 1) != first, "it was not restarted")
        task.mbind(buf.start, buf.length, nm.MPOL_BIND, {0}, MOVE_STRICT)
        assert buf.read(0, len(data)) == data


def test_after_the_hosts_fork_the_childs_handles_are_dead(boot: Boot) -> None:
    """A child that was forked by the host gets a clear error from every handle, and the parent goes on."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(PAGE)
        buf.write(0, b"mine")
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()

        def ask() -> None:
            for use in (lambda: buf[:4], lambda: task.mmap(PAGE), machine.fsck):
                try:
                    answers.put(repr(use()))
                except RuntimeError as error:
                    answers.put(f"RuntimeError: {error}")

        child = context.Process(target=ask)
        child.start()
        told = [answers.get() for _ in range(3)]
        child.join(30)
        assert all(answer.startswith("RuntimeError") for answer in told), told
        assert buf[:4] == b"mine"


def test_a_pinned_page_stays_where_it_is_and_keeps_its_bytes(boot: Boot) -> None:
    """Pages that a client has pinned cannot be evicted; STRICT says EIO, and both ways see one content."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(8 * PAGE)
        buf.write(0, b"a" * (8 * PAGE))
        with buf.pin() as array:
            array[:4] = np.frombuffer(b"pins", np.uint8)
            with pytest.raises(OSError, match="could not leave"):
                task.mbind(buf.start, buf.length, *BIND_1, MOVE_STRICT)
            assert buf[:6] == b"pinsaa"
            assert set(task.where(buf.start, PAGE).tolist()) == {0}
        task.mbind(buf.start, buf.length, *BIND_1, MOVE_STRICT)
        assert buf[:6] == b"pinsaa"
        assert set(task.where(buf.start, PAGE).tolist()) == {1}


# -- broken peers ------------------------------------------------------------------------------------------------------

BAD_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("mbind", (1, 2, 3)),
    ("mbind", ("a", 0, 0, 0, 0, 0)),
    ("mbind", (0, PAGE, -5, None, 0, 0)),
    ("mbind", (0, PAGE, nm.MPOL_BIND, [1 << 40], 65, 0)),
    ("mmap", (0, 1 << 63, 3, 0x22)),
    ("mmap", (1 << 70, PAGE, 3, 0x22)),
    ("munmap", (1 << 48, PAGE)),
    ("madvise", (0, PAGE, 12345)),
    ("brk", (None,)),
]


@pytest.mark.parametrize(("name", "args"), BAD_CALLS)
def test_a_call_with_bad_arguments_is_refused_with_an_errno(name: str, args: tuple[Any, ...], boot: Boot) -> None:
    """Wrong types, counts and numbers give OSError, and the machine goes on."""
    machine = boot()
    with machine.attach() as task:
        with pytest.raises(OSError) as refused:  # noqa: PT011 - any errno will do, but there must be one
            task.syscall(name, *args)
        assert refused.value.errno
        task.mmap(PAGE).write(0, b"fine")


def test_garbage_on_the_endpoint_harms_nobody(boot: Boot) -> None:
    """Raw bytes, half a handshake and messages that are none leave the calls of others as they were."""
    machine = boot()
    endpoint = str(places.machine_dir(machine.name) / places.CALLS_SOCKET)
    with machine.attach() as task:
        buf = task.mmap(PAGE)
        raw = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
        for sock, data in zip(raw, (b"\x00" * 64, b"\x01\x00garbage", os.urandom(4096)), strict=True):
            sock.connect(endpoint)
            sock.send(data)
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.connect(f"ipc://{endpoint}")
        for frames in ([b"\xc1"], [b"", b"", b""], [os.urandom(100)], [b"\x96\x01\x01\x01\x01\x01\x01"]):
            dealer.send_multipart(frames)
        for _ in range(4):
            assert dealer.poll(30_000)
            dealer.recv_multipart()
        buf.write(0, b"untouched")
        assert buf[:9] == b"untouched"
        context.destroy(linger=0)
        for sock in raw:
            sock.close()


STRANGE_CALLS: list[tuple[str, list[Any]]] = [("hello", [b"x" * 16]), ("attach", [0, [], None]), ("fsck", [])]


def test_a_connection_without_the_token_may_do_nothing(boot: Boot) -> None:
    """A peer that did not come through the descriptor socket is refused every call."""
    machine = boot()
    boot_id = machine._attachment.peer.boot_id  # noqa: SLF001 - a stranger would have to guess it
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(f"ipc://{places.machine_dir(machine.name) / places.CALLS_SOCKET}")
    for number, (name, args) in enumerate(STRANGE_CALLS, 1):
        dealer.send(wire.pack_request(boot_id, number, name, args))
        assert dealer.poll(30_000)
        with pytest.raises(MmError):
            wire.unpack_reply(dealer.recv())
    context.destroy(linger=0)


README_EXAMPLE = Path(__file__).parents[2] / "README.md"


def test_the_readmes_example_runs_as_it_stands(runtime: Path) -> None:
    """The first Python block of the README, in a script without a main guard."""
    text = README_EXAMPLE.read_text(encoding="utf-8")
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "bind={1/Normal}" in done.stdout
    assert not any(runtime.iterdir())


@pytest.mark.parametrize("evicted", ["mapped", "evicted"])
def test_a_page_that_was_unmapped_while_it_was_pinned_is_free_after_the_pin(evicted: str, boot: Boot) -> None:
    """Munmap leaves a pinned frame to its pin; when that ends, frame and slot are free."""
    machine = boot()
    before = machine.figures("vmstat")
    with machine.attach() as task:
        buf = task.mmap(8 * PAGE)
        buf.write(0, b"a" * (8 * PAGE))
        with buf.pin() as array:
            if evicted == "evicted":
                task.mbind(buf.start, buf.length, *BIND_1, nm.MPOL_MF_MOVE)
            task.munmap(buf.start, buf.length)
            array[:3] = np.frombuffer(b"own", np.uint8)
            assert array[:4].tobytes() == b"owna"
            assert machine.fsck() == []
        assert machine.fsck() == []
    after = machine.figures("vmstat")
    assert [after[name] for name in ("nr_free_pages", "nr_swap_free")] == [
        before[name] for name in ("nr_free_pages", "nr_swap_free")
    ]


def test_numa_maps_of_another_process_can_be_read(boot: Boot) -> None:
    """`numaemu maps PID` shows a task of another client of the same user."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(4 * PAGE)
        buf.write(0, b"x")
        command = [sys.executable, "-m", "numaemu.cli.main", "-m", machine.name, "maps", str(task.pid)]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        assert out == f"{buf.start:08x} default MaxRef=1 Pages=1 Mapped=1 Anon=1 N0=1\n"


def test_two_exits_at_once_harm_nobody(boot: Boot) -> None:
    """Two threads that end one task: one of them does, the other hears that it is gone, and the daemon goes on."""
    machine = boot()
    other = machine.attach()
    for _ in range(20):
        task = machine.attach()
        task.mmap(16 * PAGE).write(0, bytes(16 * PAGE))
        ends = [threading.Thread(target=_exit_raw, args=(machine, task.pid)) for _ in range(3)]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
    other.mmap(PAGE).write(0, b"alive")


def _exit_raw(machine: nm.Machine, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        machine._calls.call("exit", pid)  # noqa: SLF001 - a handle would ask once


def test_a_client_that_never_reads_its_descriptors_stops_nobody(boot: Boot) -> None:
    """Hundreds of hellos whose answers nobody takes: that client is dropped, and others are served."""
    machine = boot()
    sock = fdsock.connect(places.machine_dir(machine.name) / places.DESCRIPTOR_SOCKET, 5.0)
    with contextlib.suppress(OSError):
        for _ in range(400):
            fdsock.send(sock, {"hello": "client", "version": 1})
    with machine.attach() as task:
        task.mmap(PAGE).write(0, b"served")
    sock.close()


def test_a_task_whose_owner_is_using_it_is_not_adopted(boot: Boot) -> None:
    """While a thread of the owner touches the task's memory, another process gets EBUSY, and nothing changes hands."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(PAGE)
        buf.write(0, b"mine")
        script = "import sys, numaemu as nm\nnm.connect(sys.argv[1]).adopt(int(sys.argv[2]))"
        command = [sys.executable, "-c", script, machine.name, str(task.pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Errno 16" in done.stderr
        assert buf[:4] == b"mine"
