"""Init with real processes and a stand-in kernel: coming up, keeping up, going down."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from numaemu_core.page_flags import ALLOCATED, FREE_CLEAN, FREE_UNCLEAN
from numaemu_daemon.segments import MappedMachine, all_names
from numaemu_host import fdsock, pidfd

WAIT_S = 20.0
Machine = Any  # RunningMachine of conftest.py, which cannot be imported from here
Launch = Callable[..., Any]


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_status_shows_every_process(machine: Machine) -> None:
    """A machine that is ready shows init, its two helpers and all roles as up, each with its memory."""
    status = machine.command("status")
    assert (status["machine"], status["generation"], len(status["boot_id"])) == ("test", 1, 16)
    rows = status["processes"]
    roles = [("init", None), ("forkserver", None), ("tracker", None), ("kernel", None), ("node", 0), ("node", 1)]
    assert [(row["role"], row["node"]) for row in rows] == [*roles, ("swap", None)]
    assert {row["state"] for row in rows} == {"up"}
    assert {row["restarts"] for row in rows} == {0}
    assert all(row["memory_kb"] > 0 and row["pid"] > 0 for row in rows)
    assert [row["memory_kb"] for row in rows if row["role"] == "node"] == [2048, 1024]


def test_everyone_says_hello_on_the_bus(machine: Machine) -> None:
    """Nodes and the swap node introduce themselves to the kernel with their pids."""
    expected = [
        ["hello", row["role"], -1 if row["node"] is None else row["node"], row["pid"]]
        for row in machine.rows()
        if row["role"] in {"node", "swap"}
    ]
    wait_for(lambda: sorted(machine.kernel("heard")) == sorted(expected), "three hellos")


def test_down_leaves_nothing(machine: Machine) -> None:
    """After `down` no process of the machine is left, nor its directory, and init ended with 0."""
    assert machine.command("down") == {"ok": True}
    machine.assert_gone()
    assert machine.init.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_take_the_machine_down(machine: Machine, number: signal.Signals) -> None:
    """The signals that end a process end the whole machine in order."""
    machine.init.send_signal(number)
    machine.assert_gone()
    assert machine.init.returncode == 0


def test_stopped_child_is_killed_on_the_way_down(machine: Machine) -> None:
    """A child that cannot react to SIGTERM does not keep the machine from going."""
    row = machine.row("node", 0)
    machine.signal(row, signal.SIGSTOP)
    assert machine.wait_state("node", 0, lambda row: row["state"] == "stopped")["pid"] == row["pid"]
    machine.command("down")
    machine.assert_gone()


@pytest.mark.parametrize(("role", "node"), [("node", 0), ("node", 1), ("swap", None)])
def test_killed_process_comes_back_with_its_memory(machine: Machine, role: str, node: int | None) -> None:
    """A process that is killed is started again and finds every byte of its segments as it was."""
    old = machine.row(role, node)
    name = role if node is None else f"pool.{node}"
    content = np.random.default_rng(7).bytes(1 << 20)
    before = machine.memory(old["pid"])
    os.pwrite(before[name], content, 0)
    machine.signal(old, signal.SIGKILL)
    new = machine.wait_state(role, node, lambda row: row["restarts"] == 1 and row["state"] == "up")
    assert new["pid"] != old["pid"]
    after = machine.memory(new["pid"])
    assert sorted(after) == sorted(all_names(machine.layout))
    assert all(os.fstat(before[key]).st_ino == os.fstat(after[key]).st_ino for key in after)
    assert os.pread(after[name], len(content), 0) == content
    for fd in (*before.values(), *after.values()):
        os.close(fd)
    wait_for(lambda: machine.kernel("heard")[-1][3] == new["pid"], "the new process on the bus")


def test_clean_reaches_the_node(machine: Machine) -> None:
    """Told to clean, a node process zeroes its unclean free frames, counts them, and touches no other frame."""
    fds = machine.memory(machine.init.pid)
    mapped = MappedMachine(machine.layout, fds)
    columns = mapped.columns
    columns.frames[:] = 0xAA
    columns.free_state[:300] = FREE_UNCLEAN
    columns.free_state[300:] = ALLOCATED
    machine.kernel("send", "node", 0, ["clean"])
    wait_for(lambda: int(mapped.columns.cleaned[0]) == 300, "300 clean frames")
    assert (columns.free_state[:300] == FREE_CLEAN).all()
    assert not columns.frames[:300].any()
    assert (columns.frames[300:] == 0xAA).all()
    done = machine.wait_state("node", 0, lambda row: row["done"].get("pages_cleaned") == 300)["done"]
    assert done["batches"] == 5
    del columns
    del mapped.columns
    mapped.close()
    for fd in fds.values():
        os.close(fd)


def test_swap_node_copies_and_survives_garbage(machine: Machine) -> None:
    """The swap node writes a page out and reads it in again, and drops what is no request."""
    pids = [row["pid"] for row in machine.rows() if row["role"] == "swap"]
    fds = machine.memory(machine.init.pid)
    page = b"\x5a" * 4096
    os.pwrite(fds["pool.0"], page, 3 * 4096)
    three, five, nine = (np.int64(number).tobytes() for number in (3, 5, 9))
    machine.kernel("send", "swap", -1, {"no": "array"})
    machine.kernel("send", "swap", -1, ["write", 1, np.int64(1 << 40).tobytes(), five])
    machine.kernel("send", "swap", -1, ["write", 2, three, five])
    machine.kernel("send", "swap", -1, ["read", 3, five, nine])
    wait_for(lambda: machine.kernel("heard")[-2:] == [["done", 2, 1], ["done", 3, 1]], "two answers")
    assert os.pread(fds["swap"], 4096, 5 * 4096) == page
    assert os.pread(fds["pool.0"], 4096, 9 * 4096) == page
    done = machine.wait_state("swap", None, lambda row: row["done"].get("messages") == 2)
    assert done["done"] == {"pages_in": 1, "pages_out": 1, "messages": 2}
    assert done["pid"] in pids
    assert len(machine.events("message_dropped")) == 2
    for fd in fds.values():
        os.close(fd)


@pytest.mark.parametrize("role", ["forkserver", "tracker"])
def test_helpers_come_back(machine: Machine, role: str) -> None:
    """When forkserver or tracker are killed, nobody else ends, a new one comes, and children can still be started."""
    others = [row["pid"] for row in machine.rows() if row["role"] != role]
    old = machine.row(role)
    machine.signal(old, signal.SIGKILL)
    new = machine.wait_state(role, None, lambda row: row["restarts"] == 1 and row["state"] == "up")
    assert new["pid"] != old["pid"]
    assert [row["pid"] for row in machine.rows() if row["role"] != role] == others
    machine.signal(machine.row("node", 1), signal.SIGKILL)
    machine.wait_state("node", 1, lambda row: row["restarts"] == 1 and row["state"] == "up")
    machine.command("down")
    machine.assert_gone()


def test_stopped_forkserver_stops_nobody(machine: Machine) -> None:
    """A stopped forkserver is replaced when a child is to be started, and init goes on answering."""
    machine.signal(machine.row("forkserver"), signal.SIGSTOP)
    machine.wait_state("forkserver", None, lambda row: row["state"] == "stopped")
    machine.signal(machine.row("swap"), signal.SIGKILL)
    machine.wait_state("swap", None, lambda row: row["restarts"] == 1 and row["state"] == "up")
    machine.wait_state("forkserver", None, lambda row: row["restarts"] == 1 and row["state"] == "up")


def test_a_process_that_keeps_dying_is_started_with_pauses(machine: Machine) -> None:
    """The second death within seconds waits a moment, the third one longer."""
    for number in range(1, 4):
        machine.signal(machine.row("node", 0), signal.SIGKILL)
        machine.wait_state("node", 0, lambda row, number=number: row["restarts"] == number and row["state"] == "up")
    assert [line["pause_s"] for line in machine.events("process_died")] == [0.0, 0.1, 0.2]


def test_a_dead_kernel_is_restarted_with_its_memory(machine: Machine) -> None:
    """The next kernel daemon gets the segments of the last one, the generation moves, and the boot id stays."""
    old, status = machine.row("kernel"), machine.command("status")
    before = machine.memory(old["pid"])
    machine.signal(old, signal.SIGKILL)
    new = machine.wait_state("kernel", None, lambda row: row["restarts"] == 1 and row["state"] == "up")
    assert new["pid"] != old["pid"]
    after = machine.memory(new["pid"])
    assert all(os.fstat(before[key]).st_ino == os.fstat(after[key]).st_ino for key in after)
    now = machine.command("status")
    assert (now["generation"], now["boot_id"]) == (status["generation"] + 1, status["boot_id"])
    assert len(machine.events("kernel_died")) == 1
    for fd in (*before.values(), *after.values()):
        os.close(fd)


def test_everybody_says_hello_to_a_new_kernel(machine: Machine) -> None:
    """Nodes and the swap node let go of a dead kernel daemon and greet its successor, as the processes they were."""
    pids = {row["pid"] for row in machine.rows() if row["role"] in {"node", "swap"}}
    wait_for(lambda: len(machine.kernel("heard")) == 3, "three hellos")
    machine.signal(machine.row("kernel"), signal.SIGKILL)
    machine.wait_state("kernel", None, lambda row: row["restarts"] == 1 and row["state"] == "up")
    wait_for(lambda: {message[3] for message in machine.kernel("heard")} == pids, "three hellos again")


def test_who_holds_on_to_a_dead_kernel_is_replaced(machine: Machine) -> None:
    """A stopped process cannot say that it has let go: it is killed, and the next kernel daemon comes."""
    row = machine.row("node", 0)
    machine.signal(row, signal.SIGSTOP)
    machine.wait_state("node", 0, lambda row: row["state"] == "stopped")
    machine.signal(machine.row("kernel"), signal.SIGKILL)
    machine.wait_state("kernel", None, lambda row: row["restarts"] == 1 and row["state"] == "up")
    assert machine.wait_state("node", 0, lambda row: row["state"] == "up")["pid"] != row["pid"]


def test_a_kernel_that_fails_again_and_again_takes_the_machine_down(launch: Launch) -> None:
    """When no successor comes up, the machine ends with its last words, and an exit code that says so."""
    machine = launch(kernel="standin_kernel_once")
    assert machine.first_line()["ready"] is True
    machine.signal(machine.row("kernel"), signal.SIGKILL)
    machine.assert_gone()
    assert machine.init.returncode == 1
    assert "no second time" in machine.events("machine_going_down")[0]["reason"]


def test_killed_init_takes_all_processes_along(machine: Machine, launch: Launch) -> None:
    """Without init every process ends by itself, and the same directory serves the next machine."""
    rows = machine.rows()
    machine.init.kill()
    machine.init.wait(WAIT_S)
    wait_for(lambda: not any(pidfd.is_running_pid(row["pid"]) for row in rows), "the end of all processes")
    again = launch()
    assert again.first_line()["ready"] is True
    again.command("down")
    again.assert_gone()


def test_second_start_is_refused(machine: Machine, launch: Launch) -> None:
    """A machine that runs is not started twice, and the first one does not notice."""
    second = launch()
    assert second.first_line() == {"error": "machine test is running"}
    assert second.init.wait(WAIT_S) == 1
    assert {row["state"] for row in machine.rows()} == {"up"}


def test_machine_ends_with_its_owner(launch: Launch) -> None:
    """The end of the owning process takes the machine down."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        machine = launch("--owner-pid", str(owner.pid))
        assert machine.first_line()["ready"] is True
        machine.rows()
        owner.kill()
    machine.assert_gone()


@pytest.mark.parametrize(
    ("kernel", "words"),
    [("no_such_module_at_all", "kernel died"), ("standin_kernel_fails", "ValueError: no luck today")],
)
def test_failure_before_ready_is_one_line(launch: Launch, kernel: str, words: str) -> None:
    """A process that fails while the machine starts gives its starter one line, and everything is taken down."""
    machine = launch(kernel=kernel)
    error = machine.first_line()["error"]
    assert words in error
    assert "\n" not in error
    assert machine.init.wait(WAIT_S) == 1
    assert not machine.directory.exists()


def test_too_large_a_machine_is_refused(launch: Launch) -> None:
    """A machine that does not fit into the host is refused with both figures before any memory is taken."""
    machine = launch(topology={"node": [{"memory": "4T", "cpus": [0]}]})
    error = machine.first_line()["error"]
    assert "the machine needs 42" in error
    assert "MiB to spare" in error
    assert not machine.directory.exists()


def test_strangers_on_the_socket_are_refused(machine: Machine) -> None:
    """A process that init did not start cannot pose as a child, and nonsense only costs its own connection."""
    for message in ({"hello": "node", "node": 0, "pid": os.getpid()}, {"up": True}, ["no map"], {"command": "fly"}):
        with fdsock.connect(machine.directory / "init.sock", WAIT_S) as sock:
            fdsock.send(sock, message)
            if isinstance(message, dict) and "command" in message:
                assert fdsock.recv(sock) == ({"error": "commands are status and down"}, [])
            else:
                with pytest.raises(EOFError):
                    fdsock.recv(sock)
    assert {row["state"] for row in machine.rows()} == {"up"}


def test_idle_machine_takes_no_cpu(machine: Machine) -> None:
    """While nobody asks for anything, no process of the machine runs."""
    pids = [row["pid"] for row in machine.rows()]
    wait_for(lambda: len(machine.kernel("heard")) == 3, "three hellos")
    before = [cpu_ticks(pid) for pid in pids]
    time.sleep(1.0)  # the time in which nothing may happen
    assert sum(cpu_ticks(pid) for pid in pids) - sum(before) <= 1
