"""The kill matrix and the stop matrix: a process of a machine full of clients is struck at a named step.

One machine serves many cases. In each, bystanders write, move, fork and verify; a victim does what leads to the step;
whoever gets there is struck. Afterwards every byte is right, fsck finds nothing, and all frames and slots are free.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numaemu as nm
from numaemu import control, places
from numaemu_core.fault_points import FAULT_POINTS
from numaemu_host import pidfd
from numaemu_host.fault_board import VARIABLE, FaultBoard

from .conftest import ClientProcess, hear_all, wait_until
from .victim import PAGE, tagged

BYSTANDERS = 2
#: What the victim does so that somebody gets to the points whose names begin so; the longest beginning counts.
ACTIONS = {
    "fault": "touch",
    "copy_on_write": "breed",
    "isolation": "move",
    "isolation.put_back": "hold",
    "swap-out": "move",
    "swap-in": "move",
    "migration": "move",
    "fork": "breed",
    "exit": "breed",
    "unmapping": "drop",
    "call": "drop",
    "fsck": "check",
    "recovery": "move",
    "lock": "move",
    "lock.mmap_sem_read": "touch",
    "lock.i_mmap": "move_shared",
    "cleaning": "drop",
    "copying": "move",
    "kswapd": "press",
    "writing": "move",
    "reading": "move",
    "window.read": "read_one_here",
    "window.write": "write_one_here",
    "window.range": "write_many_here",
    "pin": "pin_here",
    "asking": "ask_here",
}
#: What only kernels of today do.
OF_TODAY = ("migration", "copying")
#: Steps at which nobody waits for the process.
NOT_MISSED = frozenset({"cleaning.over", "kswapd.awake"})
#: Where a file is named by this variable, what happened is written there, a line a case (tools/reliability_table.py).
#: A client that waits learns within this time that its machine has ended.
ERROR_S = 20.0
RESULTS = "NUMAEMU_MATRIX_RESULTS"


def action_for(point: str) -> str:
    """What leads there."""
    return ACTIONS[max((start for start in ACTIONS if point.startswith(start)), key=len)]


def profile_for(point: str) -> str:
    """The kernel that gets there."""
    return "linux-6.12" if point.startswith(OF_TODAY) else "swap-v3"


def points_of(*roles: str) -> list[str]:
    """The points of these roles."""
    return [name for name, point in FAULT_POINTS.items() if point.role in roles]


class Commanded(ClientProcess):
    """A client that does what it is told."""

    def tell(self, line: str = "") -> None:
        """Write a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")


@dataclass
class Victim:
    """The client that acts, and the pid of its task."""

    client: Commanded
    task: int

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.client.process.pid


@dataclass
class Scene:
    """A machine with its clients, over many cases."""

    machine: nm.Machine
    board: FaultBoard
    board_path: Path
    bystanders: list[Commanded] = field(default_factory=list)
    victims: list[Victim] = field(default_factory=list)
    seed: int = 1
    #: Frames and slots that are free while nobody has memory.
    free: tuple[int, int] = (0, 0)
    #: A case ended before it was over.
    spoilt: bool = False

    @property
    def victim(self) -> Victim:
        """The one that acts, a new one where the last was killed."""
        if not self.victims or self.victims[-1].client.process.poll() is not None:
            with armed_environment(self.board_path):
                client = Commanded("victim.py", self.machine.name)
            self.victims.append(Victim(client, int(client.hear())))
        return self.victims[-1]

    def all_rows(self) -> list[dict[str, Any]]:
        """What init says of all processes."""
        found: list[dict[str, Any]] = control.status(places.machine_dir(self.machine.name))["processes"]
        return found

    def rows(self, role: str) -> list[dict[str, Any]]:
        """What init says of the processes of a role."""
        return [row for row in self.all_rows() if row["role"] == role]

    def count(self, role: str, what: str) -> int:
        """A sum over the processes of a role."""
        return sum(row[what] for row in self.rows(role))

    def pid_of(self, role: str) -> int:
        """The process of a role, the first of several."""
        pid: int = self.rows(role)[0]["pid"]
        return pid

    def all_up(self) -> bool:
        """Does every process serve?"""
        return all(row["state"] == "up" for row in self.all_rows())

    def free_now(self) -> tuple[int, int]:
        """Free frames and slots."""
        figures = self.machine.figures("vmstat")
        return figures["nr_free_pages"], figures["nr_swap_free"]

    def is_all_free(self) -> bool:
        """Are frames and slots free again that were at first?

        A page that was being written when its last user left stays in the swap cache until reclaim meets it, as in a
        kernel: a frame and a slot, and nobody else has a page on an LRU list.
        """
        listed = sum(node["Active"] + node["Inactive"] for node in self.machine.figures("meminfo")) * 1024 // PAGE
        return self.free_now() == tuple(free - listed for free in self.free)

    def rest(self) -> None:
        """The bystanders verify all they have and let go of it; then nothing may be left."""
        for client in self.bystanders:
            client.tell()
        assert set(hear_all(list(self.bystanders))) == {"right"}
        wait_until(self.all_up, "a process is missing")
        wait_until(self.is_all_free, "frames or slots are not free again")
        assert self.machine.fsck() == []

    @contextlib.contextmanager
    def case(self) -> Iterator[None]:
        """Bystanders are busy within, and everything is sound afterwards."""
        self.spoilt = True
        self.seed += 2
        _ = self.victim
        for client in self.bystanders:
            client.tell()
        yield
        self.rest()
        self.spoilt = False

    def close(self) -> None:
        """The machine and its clients end."""
        for client in [*self.bystanders, *(victim.client for victim in self.victims)]:
            with contextlib.suppress(ProcessLookupError):
                client.process.send_signal(signal.SIGCONT)
            client.clean_up()
        pids: list[int] = []
        with contextlib.suppress(OSError):  # init may be dead
            pids = [row["pid"] for row in self.all_rows()]
        self.machine.close()
        wait_until(lambda: all_gone(pids), "processes are left")
        self.board.close()


@contextlib.contextmanager
def armed_environment(board_path: Path) -> Iterator[None]:
    """Processes that are started within listen to the board."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(board_path))
        yield


def new_scene(profile: str, folder: Path) -> Scene:
    """A machine whose processes listen to a board, and bystanders that do not."""
    path = folder / f"board-{profile}"
    board = FaultBoard.make(path, list(FAULT_POINTS))
    with armed_environment(path):
        machine = nm.boot(nodes=2, memory="2M", swap="8M", profile=profile)
    scene = Scene(machine, board, path)
    scene.free = scene.free_now()
    for number in range(BYSTANDERS):
        scene.bystanders.append(Commanded("bystander.py", machine.name, number + 1))
    assert set(hear_all(list(scene.bystanders))) == {"here"}
    return scene


class Scenes:
    """The machines of one test module, by profile; one that a case has spoilt is replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scenes: dict[str, Scene] = {}

    def scene(self, profile: str) -> Scene:
        """A machine with that profile."""
        scene = self._scenes.get(profile)
        if scene is not None and scene.spoilt:
            scene.close()
            scene = None
        if scene is None:
            scene = self._scenes[profile] = new_scene(profile, self._folder)
        return scene

    def close(self) -> None:
        """All end."""
        for scene in self._scenes.values():
            scene.close()


@contextlib.contextmanager
def runtime_of_module(folder: Path) -> Iterator[Path]:
    """Machines lie in that directory, for as long as the tests of a module."""
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMAEMU_RUNTIME", str(folder))
        yield folder


@contextlib.contextmanager
def scenes_of_module(folder: Path) -> Iterator[Scenes]:
    """The machines of a module's tests."""
    made = Scenes(folder)
    try:
        yield made
    finally:
        made.close()


def all_gone(pids: list[int]) -> bool:
    """Is none of these processes left?"""
    return not any(map(pidfd.is_running_pid, pids))


def strike_machine(scene: Scene, point: str, action: signal.Signals) -> dict[str, Any]:
    """A process of the machine is struck at a step; what happened, in a word a question."""
    role = FAULT_POINTS[point].role
    before = {what: scene.count(role, what) for what in ("restarts", "killed_stopped")}
    struck = scene.board.struck(point)
    with scene.case():
        began = time.monotonic()
        if point.startswith("recovery"):  # two daemons die, or one and a half
            scene.board.arm("swap-out.unmapped", signal.SIGKILL)
        scene.board.arm(point, action)
        scene.victim.client.tell(f"{action_for(point)} {scene.seed}")
        answer = scene.victim.client.hear()
        wait_until(lambda: scene.board.struck(point) > struck, f"nobody came to {point}")
        took = time.monotonic() - began
        left_alone = False
        if action is signal.SIGKILL:  # the word comes before the signal, and nobody may wait for that process
            wait_until(lambda: scene.count(role, "restarts") > before["restarts"], "it was not started again")
        if action is signal.SIGSTOP and point in NOT_MISSED:
            wait_until(  # the word comes before the signal; one that was missed after all has been replaced
                lambda: (
                    any(row["state"] == "stopped" for row in scene.rows(role))
                    or scene.count(role, "restarts") > before["restarts"]
                ),
                "it is not stopped",
            )
            left_alone = any(row["state"] == "stopped" for row in scene.rows(role))
            for row in scene.rows(role):
                os.kill(row["pid"], signal.SIGCONT)
    after = {what: scene.count(role, what) - before[what] for what in before}
    return {"role": role, "answer": answer, "left_alone": left_alone, "seconds": round(took, 2), **after}


def strike_client(scene: Scene, point: str, action: signal.Signals) -> dict[str, Any]:
    """A client is struck at a step while it uses memory that another task shares."""
    struck = scene.board.struck(point)
    with scene.case(), scene.machine.attach(share_mm=scene.victim.task) as other:
        victim = scene.victim
        old = tagged(scene.seed)
        victim.client.tell(f"{action_for(point)} {scene.seed}")
        start = int(victim.client.hear())
        scene.board.arm(point, action, pid=victim.pid)
        victim.client.tell()
        wait_until(lambda: scene.board.struck(point) > struck, f"the victim did not come to {point}")
        if action is signal.SIGKILL:
            victim.client.process.wait()
        else:
            wait_until(lambda: pidfd.is_stopped(victim.pid), "it is not stopped")
        began = time.monotonic()
        if point.startswith("pin"):  # evicted under mmap_sem held for reading, as the victim holds it
            other.migrate_pages(0, {0}, {1})
        else:
            for node in (1, 0):
                other.mbind(start, len(old), nm.MPOL_BIND, {node}, nm.MPOL_MF_MOVE)
        took = time.monotonic() - began
        check_bytes(point, old, other.read(start, len(old)))
        answer = "none"
        if action is signal.SIGSTOP:
            victim.client.process.send_signal(signal.SIGCONT)
            answer = victim.client.hear()
        elif point != "pin.pinned":
            other.munmap(start, len(old))
    return {"role": "client", "answer": answer, "seconds": round(took, 2)}


def check_bytes(point: str, old: bytes, seen: bytes) -> None:
    """What was there before, or what was being written: pages that were written to may be torn, none is lost."""
    new = {"write_many_here": old[::-1], "ask_here": bytes(PAGE) + old[PAGE:], "read_one_here": old}.get(
        action_for(point), old[PAGE : 2 * PAGE] + old[PAGE:]
    )
    found, before, written = (np.frombuffer(some, np.uint8) for some in (seen, old, new))
    assert ((found == before) | (found == written)).all()


def record(point: str, action: signal.Signals, found: dict[str, Any]) -> None:
    """For the table of docs/reliability.md."""
    path = os.environ.get(RESULTS)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"point": point, "signal": action.name, **found}) + "\n")
