"""The kernel daemon is killed while real clients use the machine: nobody loses a byte, and each call happens once."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zmq

import numaemu as nm
from numaemu import control, places
from numaemu_core import limits, wire
from numaemu_host import pidfd

Boot = Callable[..., nm.Machine]
Eventually = Callable[[Callable[[], bool], str], None]

PAGE = 4096
MOVE_STRICT = nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT
ROUNDS = 6


def kernel_row(machine: nm.Machine) -> dict[str, Any]:
    """What init says of the kernel daemon."""
    rows = control.status(places.machine_dir(machine.name))["processes"]
    return next(row for row in rows if row["role"] == "kernel")


def kill_kernel(machine: nm.Machine) -> int:
    """SIGKILL for the daemon; gives its pid."""
    pid: int = kernel_row(machine)["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def log_lines(machine: nm.Machine, event: str) -> list[dict[str, Any]]:
    """Lines of the machine's log."""
    text = (places.machine_dir(machine.name) / places.LOG).read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def random_bytes(seed: int, length: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 255, length, np.uint8).tobytes()


def test_a_killed_daemon_is_followed_by_another_that_knows_everything(boot: Boot) -> None:
    """Bytes, mappings, policies, tasks and files outlive the daemon; `status` counts its restarts and generations."""
    machine = boot()
    data = random_bytes(1, 64 * PAGE)
    machine.create_file("/f", random_bytes(2, 3 * PAGE))
    with machine.attach(cpu=1, capabilities=["CAP_SYS_NICE"]) as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        task.mbind(buf.start, buf.length // 2, nm.MPOL_BIND, {0}, MOVE_STRICT)
        task.set_mempolicy(nm.MPOL_INTERLEAVE, {0, 1})
        task.mprotect(buf.start, PAGE, nm.PROT_READ)
        maps = machine.numa_maps(task.pid)
        child = task.fork()
        counted = machine.figures("vmstat")
        kill_kernel(machine)
        assert machine.numa_maps(child.pid).count("\n") == maps.count("\n")
        assert buf.read(0, len(data)) == data
        assert child.read(buf.start, len(data)) == data
        after = machine.figures("vmstat")
        assert all(after[name] >= counted[name] > 0 for name in ("pgfault", "pswpout", "pgpgout"))
        assert task.get_mempolicy() == (nm.MPOL_INTERLEAVE, {0, 1})
        assert task.get_mempolicy(buf.start, nm.MPOL_F_ADDR) == (nm.MPOL_BIND, {0})
        with pytest.raises(nm.SegmentationFault):
            buf.write(0, b"x")
        assert task.file_read("/f", 0, 4 * PAGE) == random_bytes(2, 3 * PAGE)
        child.close()
        with pytest.raises(ProcessLookupError):
            machine.numa_maps(child.pid)
        assert kernel_row(machine)["restarts"] == 1
        assert machine.status()["generation"] == 2


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
def test_kills_under_writes_moves_and_forks_lose_nothing(profile: str, boot: Boot, eventually: Eventually) -> None:
    """A thread writes and verifies, one moves the pages, one forks and exits, while the daemon dies again and again."""
    machine = boot(profile=profile)
    over = threading.Event()
    failures: list[BaseException] = []
    with machine.attach() as task:
        buf = task.mmap(48 * PAGE)
        fixed = task.mmap(16 * PAGE)
        fixed.write(0, random_bytes(9, fixed.length))

        def guarded(body: Callable[[int], object]) -> threading.Thread:
            def run() -> None:
                turn = 0
                try:
                    while not over.is_set():
                        body(turn)
                        turn += 1
                except BaseException as error:  # noqa: BLE001 - the test tells
                    failures.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        def write(turn: int) -> None:
            data = random_bytes(turn, 5 * PAGE)
            at = turn * 7919 % (43 * PAGE)
            buf.write(at, data)
            assert buf.read(at, len(data)) == data

        def move(turn: int) -> None:
            for area in (buf, fixed):
                task.mbind(area.start, area.length, nm.MPOL_BIND, {turn % 2}, nm.MPOL_MF_MOVE)

        def breed(turn: int) -> None:
            with task.fork() as child:
                assert child.read(fixed.start, fixed.length) == random_bytes(9, fixed.length)
                child.write(fixed.start, bytes([turn % 250]) * PAGE)
            assert fixed.read(0, fixed.length) == random_bytes(9, fixed.length)

        threads = [guarded(body) for body in (write, move, breed)]
        for number in range(ROUNDS):
            done = machine.status()["calls"]
            eventually(lambda done=done: machine.status()["calls"] > done + 15, "nothing happens")  # type: ignore[misc]  # a default binds now
            pid = kill_kernel(machine)
            eventually(lambda pid=pid: kernel_row(machine)["pid"] != pid, f"no daemon after death {number}")  # type: ignore[misc]  # as above
        over.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert kernel_row(machine)["restarts"] == ROUNDS


def test_a_daemon_that_dies_in_recovery_is_followed_by_another(boot: Boot, eventually: Eventually) -> None:
    """Three deaths in a row, as soon as a process of that number is there: what was written is there in the end."""
    machine = boot()
    data = random_bytes(3, 64 * PAGE)
    with machine.attach() as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, MOVE_STRICT)
        last = 0
        for _ in range(4):
            eventually(lambda last=last: kernel_row(machine)["pid"] not in (0, last), "no new daemon")  # type: ignore[misc]  # a default binds now
            last = kernel_row(machine)["pid"]
            if pidfd.is_running_pid(last):
                os.kill(last, signal.SIGKILL)
            eventually(lambda last=last: not pidfd.is_running_pid(last), "it lives")  # type: ignore[misc]  # as above
        assert buf.read(0, len(data)) == data
        assert machine.status()["generation"] == 5


def test_a_call_that_waited_when_the_daemon_died_is_answered(boot: Boot, eventually: Eventually) -> None:
    """A call that is on its way at the moment of the death gets its answer, and has happened once."""
    machine = boot(memory="8M", swap="16M")
    with machine.attach() as task:
        buf = task.mmap(4 << 20)
        buf.write(0, b"z" * (4 << 20))
        answers: list[object] = []
        mover = threading.Thread(
            target=lambda: answers.append(task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, MOVE_STRICT))
        )
        mover.start()
        eventually(lambda: bool((task.where(buf.start, buf.length) < 0).any()), "nothing is moved")
        kill_kernel(machine)
        mover.join()
        assert answers == [0]
        assert set(task.where(buf.start, buf.length).tolist()) <= {-2, 1}
        assert buf.read(0, 4 << 20) == b"z" * (4 << 20)


def test_a_client_that_dies_with_the_daemon_leaves_nothing_behind(boot: Boot, eventually: Eventually) -> None:
    """Client and daemon are killed together: the next daemon finds that the client is dead, and frees what it had."""
    machine = boot()
    free = machine.figures("vmstat")["nr_free_pages"]
    script = (
        "import sys, numaemu as nm\n"
        "task = nm.connect(sys.argv[1]).attach()\n"
        "area = task.mmap(1 << 20)\n"
        "area.write(0, bytes(1 << 20))\n"
        "pin = area.pin().__enter__()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, machine.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        os.kill(kernel_row(machine)["pid"], signal.SIGSTOP)  # only its successor learns of the client's end
        client.kill()
        client.wait()
        kill_kernel(machine)
    eventually(lambda: machine.figures("vmstat")["nr_free_pages"] == free, "frames were not freed")
    assert kernel_row(machine)["restarts"] == 1


def test_pins_and_windows_outlive_the_daemon(boot: Boot) -> None:
    """A pinned page stays in its frame, and a hit needs no daemon at all."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(8 * PAGE)
        buf.write(0, b"a" * (8 * PAGE))
        with buf.pin() as array:
            kill_kernel(machine)
            assert buf.read(PAGE, 3) == b"aaa"
            buf.write(PAGE, b"hit")
            array[:4] = np.frombuffer(b"pins", np.uint8)
            with pytest.raises(OSError, match="could not leave"):
                task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, MOVE_STRICT)
            assert buf[:6] == b"pinsaa"
            assert buf.read(PAGE, 4) == b"hita"
        task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, MOVE_STRICT)
        assert buf[:6] == b"pinsaa"


@pytest.mark.parametrize("role", ["node", "swap"])
def test_the_daemon_and_another_process_die_together(role: str, boot: Boot, pid_of: Callable[..., int]) -> None:
    """Both come back, and pages move as before."""
    machine = boot()
    data = random_bytes(4, 128 * PAGE)
    with machine.attach() as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        other = pid_of(machine, role, 1)
        kill_kernel(machine)
        os.kill(other, signal.SIGKILL)
        task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, MOVE_STRICT)
        assert buf.read(0, len(data)) == data


def test_a_stopped_swap_node_does_not_keep_the_daemon_from_coming_back(boot: Boot, pid_of: Callable[..., int]) -> None:
    """Who does not let go of the dead daemon in time is killed for it, and restarted."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(4 * PAGE)
        buf.write(0, b"here")
        swap = pid_of(machine, "swap")
        os.kill(swap, signal.SIGSTOP)
        kill_kernel(machine)
        task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, MOVE_STRICT)
        assert buf[:4] == b"here"
        assert pid_of(machine, "swap") != swap


def test_when_init_dies_each_waiter_gets_one_clear_error(boot: Boot) -> None:
    """While the daemon is dead init ends, too: who waits for an answer is told so."""
    machine = nm.boot(nodes=2, memory="4M", swap="4M")
    task = machine.attach()
    buf = task.mmap(PAGE)
    init = next(p for p in machine.status()["processes"] if p["role"] == "init")["pid"]
    kill_kernel(machine)
    os.kill(init, signal.SIGKILL)
    with pytest.raises(nm.MachineGone):
        buf.write(0, b"x")
    with pytest.raises(nm.MachineGone):
        machine.attach()
    machine.close()
    boot()


def test_somebody_who_comes_while_the_daemon_is_dead_waits_for_the_next(boot: Boot) -> None:
    """`connect` between two daemons of a running machine is late, and not refused."""
    machine = boot()
    kill_kernel(machine)
    with nm.connect(machine.name) as other, other.attach() as task:
        task.mmap(PAGE).write(0, b"new")
    assert len(log_lines(machine, "kernel_recovered")) == 1


def test_a_connection_that_was_forgotten_comes_back(boot: Boot) -> None:
    """After more short threads than a client has connections, the next call of the first thread is answered."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(PAGE)
        buf.write(0, b"still")
        say_hello(machine, limits.MAX_CONNECTIONS_PER_CLIENT + 1)
        assert machine.status()["connections"] <= limits.MAX_CONNECTIONS_PER_CLIENT
        task.mprotect(buf.start, PAGE, nm.PROT_READ)
        assert buf[:5] == b"still"
        assert kernel_row(machine)["restarts"] == 0


def say_hello(machine: nm.Machine, times: int) -> None:
    """As so many threads that end at once."""
    peer = machine._attachment.peer  # noqa: SLF001 - the threads of this process have its token
    with zmq.Context() as context:
        for _ in range(times):
            with context.socket(zmq.DEALER) as dealer:
                dealer.linger = 0
                dealer.connect(peer.endpoint)
                dealer.send(wire.pack_request(peer.boot_id, 1, "hello", [peer.token]))
                assert dealer.poll(30_000)
                wire.unpack_reply(dealer.recv())


def test_only_a_machine_whose_init_is_stopped_is_given_up(boot: Boot) -> None:
    """Who waits is asked then, and not where init sees to a daemon that is stopped; other handles wait on.

    In both cases who waits may do something else now and then.
    """
    machine = boot()
    asked: list[float] = []
    done: list[str] = []

    def too_long(waited_s: float) -> bool:
        asked.append(waited_s)
        return len(asked) == ROUNDS

    with nm.connect(machine.name) as impatient:
        impatient.give_up_when(too_long)
        impatient.while_waiting(lambda: done.append("waited"))
        os.kill(kernel_row(machine)["pid"], signal.SIGSTOP)
        impatient.vmstat()
        assert asked == []
        assert done
        pids = [row["pid"] for row in machine.status()["processes"]]
        try:
            for pid in pids:  # init first: it would see to the others
                os.kill(pid, signal.SIGSTOP)
            for _ in range(2):
                with pytest.raises(nm.MachineGone):
                    impatient.vmstat()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert asked == sorted(asked)
        assert len(asked) == ROUNDS
        assert machine.vmstat()
        with pytest.raises(nm.MachineGone):
            impatient.vmstat()
