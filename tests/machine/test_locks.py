"""Each lock that two processes share really excludes them, and comes free when its holder is killed."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import numaemu as nm

HOLDER = Path(__file__).with_name("holder.py")
Boot = Callable[..., nm.Machine]
Eventually = Callable[[Callable[[], bool], str], None]
Hold = Callable[[nm.Machine, str, int], "subprocess.Popen[str]"]

PAGE = 4096
MOVE = nm.MPOL_MF_MOVE


class Scene:
    """A task with some pages, and the calls that need each lock."""

    def __init__(self, machine: nm.Machine) -> None:
        self.machine = machine
        self.task = machine.attach(cpu=0)
        self.buf = self.task.mmap(64 * PAGE)
        self.buf.write(0, b"x" * (8 * PAGE))

    def number(self, lock: str) -> int:
        """Which one of the locks of this kind the call will need."""
        if lock.startswith("mmap_sem"):
            return self.task.mm_id
        if lock == "pte":
            return self.task.window().walk.flat(self.buf.start // PAGE) >> 9
        return 0

    def fault(self) -> None:
        self.buf.write(20 * PAGE, b"y")

    def mbind(self) -> None:
        self.task.mbind(self.buf.start, self.buf.length, nm.MPOL_BIND, {1}, MOVE)


#: Lock, the call that needs it, and what that call sleeps for.
CASES = [
    ("mmap_sem.read", Scene.mbind, "mmap_sem"),
    ("mmap_sem.write", Scene.fault, "mmap_sem"),
    ("pte", Scene.fault, "spin_locks"),
    ("lru", Scene.fault, "spin_locks"),
    ("zone", Scene.fault, "spin_locks"),
    ("swap", Scene.mbind, "spin_locks"),
]


@pytest.fixture
def hold() -> Iterator[Callable[[nm.Machine, str, int], "subprocess.Popen[str]"]]:
    """Starts a process that holds a lock; it is ended with the test."""
    holders: list[subprocess.Popen[str]] = []

    def start(machine: nm.Machine, lock: str, number: int) -> "subprocess.Popen[str]":
        command = [sys.executable, str(HOLDER), machine.name, lock, str(number)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def blocked_call(
    scene: Scene, call: Callable[[Scene], None], waits_for: str, eventually: Eventually
) -> threading.Thread:
    """Make a call that must wait; gives its thread once the daemon says that a task sleeps for the lock."""
    thread = threading.Thread(target=call, args=(scene,))
    thread.start()
    seen: list[int] = []

    def sleeps() -> bool:
        seen.append(scene.machine.status()["sleeping"][waits_for])
        return seen[-1] > 0

    eventually(sleeps, f"nothing waits for {waits_for}")
    assert thread.is_alive()
    return thread


def told_by_command(machine: nm.Machine) -> dict[str, dict[str, float]]:
    """What `numaemu status --locks` says."""
    command = [sys.executable, "-m", "numaemu", "-m", machine.name, "status", "--locks", "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    locks: dict[str, dict[str, float]] = json.loads(said)["locks"]
    return locks


@pytest.mark.parametrize(("lock", "call", "waits_for"), CASES, ids=[case[0] for case in CASES])
def test_a_lock_that_another_process_holds_keeps_the_call_waiting(
    lock: str, call: Callable[[Scene], None], waits_for: str, boot: Boot, hold: Hold, eventually: Eventually
) -> None:
    """While a client process holds the lock, the call that needs it waits; when it lets go, the call goes on."""
    scene = Scene(boot())
    holder = hold(scene.machine, lock, scene.number(lock))
    thread = blocked_call(scene, call, waits_for, eventually)
    holder.communicate("let go\n", timeout=30)
    thread.join(30)
    assert not thread.is_alive()
    assert scene.buf[:4] == b"xxxx"
    # The daemon wanted mmap_sem in the other mode.
    name = {"mmap_sem.read": "mmap_sem.write", "mmap_sem.write": "mmap_sem.read"}.get(lock, lock)
    waited = {name: stat["wait_s"] for name, stat in told_by_command(scene.machine).items() if stat["contended"]}
    assert waited.keys() == {name}
    assert waited[name] > 0


@pytest.mark.parametrize(("lock", "call", "waits_for"), CASES, ids=[case[0] for case in CASES])
def test_a_lock_comes_free_when_its_holder_is_killed(
    lock: str, call: Callable[[Scene], None], waits_for: str, boot: Boot, hold: Hold, eventually: Eventually
) -> None:
    """SIGKILL of the process that holds the lock lets the waiting call go on, and the machine is sound."""
    scene = Scene(boot())
    holder = hold(scene.machine, lock, scene.number(lock))
    thread = blocked_call(scene, call, waits_for, eventually)
    holder.kill()
    thread.join(30)
    assert not thread.is_alive()
    status = scene.machine.status()
    locks = told_by_command(scene.machine)
    recovered = {name for name, stat in locks.items() if stat["recoveries"]}
    assert any(stat["contended"] and stat["wait_s"] > 0 for stat in locks.values())
    assert recovered == (set() if lock.startswith("mmap_sem") else {lock})
    assert status["lock_recoveries"] == len(recovered)
    assert scene.buf[:4] == b"xxxx"
    assert scene.machine.fsck() == []


def test_readers_of_an_mmap_sem_share_it(boot: Boot, hold: Hold) -> None:
    """A fault, which only reads the address space, goes on while a client holds mmap_sem for reading."""
    scene = Scene(boot())
    hold(scene.machine, "mmap_sem.read", scene.task.mm_id)
    scene.fault()
    assert scene.buf[20 * PAGE : 20 * PAGE + 1] == b"y"
