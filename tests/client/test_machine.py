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
    error.__traceback__ = None  # or the machine lives as long as this case


def test_end_is_called_once(kernel: FakeKernel) -> None:
    """What ends a private machine is called after everything is closed, once, also if the handle is only dropped."""
    ends: list[str] = []
    for drop in (False, True):
        peer = Peer("ipc://nowhere", "b", bytes(16), Init("box", os.getpid()))
        sock = socket.socket()
        attachment = Attachment(peer, kernel.layout, kernel.views, {}, sock, fenced=True)
        machine = Machine(attachment, lambda: ends.append("ended"))
        if not drop:
            machine.close()
        del machine
        assert ends == ["ended"] * (1 + drop)
        assert sock.fileno() == -1


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
        ("mmap", 1, 0, 100, 3, 0x22, None, 0, "r+"),
        ("mbind", 1, START, PAGE, 2, [1, 2], 129, 2),
        ("set_mempolicy", 1, 0, [0], 65),
        ("get_mempolicy", 1, 1025, 0, 0),
        ("get_mempolicy", 1, None, START, 3),
        ("mbind", 1, START, 1, 2, None, 0, 0),
        ("brk", 1, 0),
        ("fork", 1),
        ("adopt", 9),
    ]


UNLIMITED = (1 << 64) - 1
#: What is asked of a task, and the call that it makes (behind its pid).
CALLS_MADE: list[tuple[Callable[[Task], object], tuple[Any, ...]]] = [
    (lambda task: task.mmap(PAGE, file="f"), ("mmap", 0, PAGE, 3, 0x02, "f", 0, "r")),
    (lambda task: task.mmap(PAGE, file="f", flags=numaemu.MAP_SHARED), ("mmap", 0, PAGE, 3, 0x01, "f", 0, "r+")),
    (
        lambda task: task.mmap(PAGE, START, numaemu.PROT_READ, numaemu.MAP_SHARED | numaemu.MAP_FIXED, "f", 2 * PAGE),
        ("mmap", START, PAGE, 1, 0x11, "f", 2 * PAGE, "r"),
    ),
    (
        lambda task: task.mmap(PAGE, None, numaemu.PROT_READ, numaemu.MAP_SHARED, "f", file_mode="r+"),
        ("mmap", 0, PAGE, 1, 0x01, "f", 0, "r+"),
    ),
    (lambda task: task.syscall("mmap", 0, PAGE, 3, 0x22), ("mmap", 0, PAGE, 3, 0x22)),
    (lambda task: task.syscall("mmap", 0, PAGE, 3, 1, "f", PAGE, "r"), ("mmap", 0, PAGE, 3, 1, "f", PAGE, "r")),
    (lambda task: task.mremap(START, PAGE, 3 * PAGE), ("mremap", START, PAGE, 3 * PAGE, 1, 0)),
    (lambda task: task.mremap(START, PAGE, PAGE, 3, 2 * START), ("mremap", START, PAGE, PAGE, 3, 2 * START)),
    (lambda task: task.mlock2(START, PAGE), ("mlock2", START, PAGE, 1)),
    (lambda task: task.set_cpuset({1, 65}), ("set_cpuset", [2, 2])),
    (lambda task: task.setrlimit(numaemu.RLIMIT_MEMLOCK, 8192), ("setrlimit", 8, 8192)),
    (lambda task: task.setrlimit(numaemu.RLIMIT_AS, None), ("setrlimit", 9, UNLIMITED)),
    (lambda task: task.migrate_pages(0, {0}, {70}), ("migrate_pages", 0, 129, [1, 0], [0, 64])),
    (lambda task: task.migrate_pages(7, [0, 1], [1]), ("migrate_pages", 7, 65, [3], [2])),
    (lambda task: task.set_mempolicy_home_node(START, PAGE, 1), ("set_mempolicy_home_node", START, PAGE, 1, 0)),
]


@pytest.mark.parametrize(("use", "made"), CALLS_MADE)
def test_calls_of_a_task(
    machine: Machine, calls: ScriptedCalls, use: Callable[[Task], object], made: tuple[Any, ...]
) -> None:
    """A file is opened for reading unless a shared mapping may write; masks of one call are of one length."""
    task = machine.attach()
    calls.made.clear()
    use(task)
    assert calls.made == [(made[0], 1, *made[1:])]


def test_move_pages(machine: Machine, calls: ScriptedCalls) -> None:
    """The status of each page comes back; where the kernel wrote none there is -EAGAIN; counts must agree."""
    task = machine.attach()
    calls.answers["move_pages"] = [0, np.array([1, -errno.ENOENT], "<i4").tobytes()]
    assert task.move_pages(0, [START, START + PAGE], [1, 1]).tolist() == [1, -errno.ENOENT]
    first = ("move_pages", 1, 0, 2, [START, START + PAGE], [1, 1], numaemu.MPOL_MF_MOVE)
    calls.answers["move_pages"] = [3, None]
    assert task.move_pages(5, range(START, START + 3 * PAGE, PAGE)).tolist() == [-errno.EAGAIN] * 3
    pages = [START, START + PAGE, START + 2 * PAGE]
    assert calls.made[-2:] == [first, ("move_pages", 1, 5, 3, pages, None, numaemu.MPOL_MF_MOVE)]
    assert task.move_pages(0, []).tolist() == []
    with pytest.raises(ValueError, match="a node for each of 2 pages"):
        task.move_pages(0, [START, START], [1])


def test_a_file_is_made_and_filled(machine: Machine, calls: ScriptedCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A length makes a hole; bytes are written by a task on the first CPU, as often as it takes; a file ends."""
    machine.create_file("hole", 1 << 20, "disk")
    assert calls.made == [("create_file", "hole", "disk", 1 << 20)]
    calls.made.clear()
    machine.create_file("none", b"")
    counts = iter([500000, 300000, 4, 0])
    monkeypatch.setattr(calls.kernel, "call", lambda name, *_args: next(counts) if name == "file_write" else 0)
    data = bytes(range(200)) * 4000
    machine.create_file("full", data)
    names = [made[0] for made in calls.made]
    assert names == ["create_file", "create_file", "attach", "file_write", "file_write", "exit"]
    assert calls.made[1:3] == [("create_file", "full", "tmpfs", 800000), ("attach", 0, [], None)]
    first, second = (made for made in calls.made if made[0] == "file_write")
    assert first == ("file_write", 1, "full", 0, data[:524288])
    assert second == ("file_write", 1, "full", 500000, data[500000:])
    with pytest.raises(OSError, match="ends at 14") as caught:
        machine.attach().file_write("full", 10, b"beyond")
    assert caught.value.errno == errno.EFBIG


def test_a_file_is_read(machine: Machine, calls: ScriptedCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading ends where the file does."""
    answers = iter([b"a" * 524288, b"bc", b""])
    task = machine.attach()
    with monkeypatch.context() as patch:
        patch.setattr(calls.kernel, "call", lambda *_args: next(answers))
        assert task.file_read("f", 10, 1 << 20) == b"a" * 524288 + b"bc"
    assert [made[2:] for made in calls.made if made[0] == "file_read"] == [
        ("f", 10, 524288),
        ("f", 524298, 524288),
        ("f", 524300, 524286),
    ]


def test_figures_of_a_node(machine: Machine, calls: ScriptedCalls) -> None:
    """The counters of one node are those of its file; a node that is not there is a file that is not there."""
    calls.answers["numastat"] = [[0, [1, 2, 3, 4, 5, 6]], [3, [9, 0, 0, 0, 9, 0]]]
    assert machine.numastat(3).startswith("numa_hit 9\nnuma_miss 0\n")
    assert "node3" in machine.numastat().splitlines()[0]
    with pytest.raises(FileNotFoundError, match="no node 1"):
        machine.numastat(1)


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


def test_whose_task_it_is(machine: Machine, calls: ScriptedCalls) -> None:
    """The user of a task is told to the machine where one was named."""
    machine.attach(uid=1001)
    assert calls.made[-1] == ("attach", 0, [], None, 1001)


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
    read, write = task.read, task.write
    uses: list[Callable[[], object]] = [
        lambda: read(START, 1),
        lambda: write(START, b"x"),
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
