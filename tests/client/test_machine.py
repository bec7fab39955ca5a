"""Handles: which calls they make, and what is left of them after close and fork."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.conftest import PAGE, START

import numaemu
from numaemu.attachment import Attachment
from numaemu.connection import Init, Peer
from numaemu.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.client.conftest import FakeKernel

    from numaemu.task import Task


class ScriptedCalls:
    """Answers calls from a table, a task's by the fake kernel; notes all of them."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.made: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {"attach": [1, 3, kernel.pgd], "adopt": [9, 3, kernel.pgd]}
        self.note_window = kernel.note_window

    def call(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - as each call has it
        self.made.append((name, *args))
        answer = self.answers.get(name)
        if isinstance(answer, Exception):
            raise answer
        return self.kernel.call(name, *args) if answer is None else answer

    def abandon(self) -> None:
        """As `Calls.abandon`."""


@pytest.fixture
def calls(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> ScriptedCalls:
    """The calls that the machine's handle makes."""
    found = ScriptedCalls(kernel)
    monkeypatch.setattr("numaemu.machine.Calls", lambda _peer: found)
    return found


@pytest.fixture
def machine(kernel: FakeKernel, calls: ScriptedCalls) -> Iterator[Machine]:
    """A handle of the machine without a daemon."""
    fds = {name: os.dup(kernel.fds[name]) for name in ("pool.0", "pool.1", "mmap_sem")}
    peer = Peer("ipc://nowhere", "b", bytes(16), Init("box", os.getpid()))
    found = Machine(Attachment(peer, kernel.layout, kernel.views, fds, socket.socket(), fenced=True))
    assert calls.kernel is kernel
    kernel.add_pages(4)
    with found:
        yield found


def test_closing_closes_tasks(machine: Machine, calls: ScriptedCalls, kernel: FakeKernel) -> None:
    """A machine that is closed lets its tasks exit first; everything says so afterwards, and closing twice is fine."""
    task = machine.attach(cpu=1, capabilities={"CAP_SYS_NICE", "CAP_IPC_LOCK"})
    task.write(START, b"x")
    machine.close()
    assert kernel.asked("exit") == [()]
    machine.close()
    task.close()
    assert calls.made[0] == ("attach", 1, ["CAP_IPC_LOCK", "CAP_SYS_NICE"], None)
    assert [made for made in calls.made if made[0] == "exit"] == [("exit", 1)]
    for use in (machine.attach, machine.status, machine.fsck, lambda: machine.meminfo(0)):
        with pytest.raises(ValueError, match="the machine is closed"):
            use()
    with pytest.raises(ValueError, match="the task is closed"):
        task.read(START, 1)
    assert kernel.asked("exit") == [()]


@pytest.mark.parametrize("error", [numaemu.MachineGone("box"), OSError(errno.ESRCH, "gone"), PermissionError(1, "")])
def test_closing_what_is_gone(machine: Machine, calls: ScriptedCalls, error: Exception) -> None:
    """Closing a task that is gone, or another process's by now, is no error."""
    task = machine.attach()
    calls.answers["exit"] = error
    task.close()


def test_end_is_called_once(kernel: FakeKernel) -> None:
    """What ends a private machine is called after everything is closed, once, also if the handle is only dropped."""
    ends: list[str] = []
    for drop in (False, True):
        peer = Peer("ipc://nowhere", "b", bytes(16), Init("box", os.getpid()))
        attachment = Attachment(peer, kernel.layout, kernel.views, {}, socket.socket(), fenced=True)
        machine = Machine(attachment, lambda: ends.append("ended"))
        if not drop:
            machine.close()
        del machine
        assert ends == ["ended"] * (1 + drop)
        assert attachment.sock.fileno() == -1


def test_arguments(machine: Machine, calls: ScriptedCalls) -> None:
    """Calls send what the protocol asks for: masks as words with maxnode, addresses as they are."""
    task = machine.attach(share_mm=4)
    calls.made.clear()
    calls.answers |= {"mmap": START, "get_mempolicy": [2, b"\x05"], "brk": 77, "fork": [2, 4, 1]}
    assert task.mmap(100).start == START
    assert task.mbind(START, PAGE, numaemu.MPOL_BIND, {0, 65}, numaemu.MPOL_MF_MOVE) == 0
    task.set_mempolicy(numaemu.MPOL_DEFAULT)
    assert task.get_mempolicy() == (2, {0, 2})
    assert task.get_mempolicy(START, numaemu.MPOL_F_NODE) == 2
    assert task.syscall("mbind", START, 1, 2, None, 0, 0) == 0
    assert task.brk() == 77
    assert task.fork().pid == 2
    assert machine.adopt(9).pid == 9
    assert calls.made == [
        ("mmap", 1, 0, 100, 3, 0x22),
        ("mbind", 1, START, PAGE, 2, [1, 2], 129, 2),
        ("set_mempolicy", 1, 0, [0], 65),
        ("get_mempolicy", 1, 65, 0, 0),
        ("get_mempolicy", 1, None, START, 3),
        ("mbind", 1, START, 1, 2, None, 0, 0),
        ("brk", 1, 0),
        ("fork", 1),
        ("adopt", 9),
    ]


def test_where(machine: Machine, calls: ScriptedCalls) -> None:
    """Nodes come as an array of numbers, a page each; a long range is asked for in parts."""
    task = machine.attach()
    calls.answers["where"] = np.array([0, -2, 1], "<i4").tobytes()
    found = task.where(START, 3 * PAGE)
    assert found.tolist() == [0, -2, 1]
    assert found.dtype == np.int64
    assert task.where(START, 0).tolist() == []
    calls.made.clear()
    task.where(START + 5, (1 << 30) + 10)
    asked = [made[2:] for made in calls.made]
    assert asked[0] == (START + 5, (131072 * PAGE) - 5)
    assert sum(length for _, length in asked) == (1 << 30) + 10
    with pytest.raises(ValueError, match="length"):
        task.where(START, -1)


def test_refused_before_it_is_sent(machine: Machine) -> None:
    """A name that is no system call is ENOSYS, a string is no set of capabilities."""
    task = machine.attach()
    for name in ("exit", "window", "reboot"):
        with pytest.raises(OSError, match="no system call") as caught:
            task.syscall(name)
        assert caught.value.errno == errno.ENOSYS
    with pytest.raises(TypeError, match="set of names"):
        machine.attach(capabilities="CAP_SYS_NICE")
    with pytest.raises(ValueError, match="expected hardware"):
        machine.figures("everything")


def test_missing_node(machine: Machine, calls: ScriptedCalls) -> None:
    """The meminfo of a node that is not there is a file that is not there."""
    calls.answers["meminfo"] = []
    with pytest.raises(FileNotFoundError, match="no node 5"):
        machine.meminfo(5)


def _in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked child that does some work: 0 if it raised nothing."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_forked_child(machine: Machine, kernel: FakeKernel) -> None:
    """In a forked child every use of a handle raises one sentence, closing does nothing, and the parent goes on."""
    task: Task = machine.attach()
    task.write(START, b"parent")
    mapping = numaemu.Mapping(task, START, PAGE)
    uses: list[Callable[[], object]] = [
        lambda: task.read(START, 1),
        lambda: task.write(START, b"x"),
        lambda: task.touch(START, 1),
        lambda: task.where(START, 1),
        lambda: mapping[0],
        lambda: task.mmap(PAGE),
        task.fork,
        machine.attach,
        machine.status,
    ]

    def work() -> None:
        for use in uses:
            with pytest.raises(RuntimeError, match="forked from"):
                use()
        mapping.close()
        task.close()
        machine.close()

    sent = len(kernel.calls)
    assert _in_child(work) == 0
    assert task.read(START, 6) == b"parent"
    assert len(kernel.calls) == sent
