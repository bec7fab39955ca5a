"""SIGKILL of every process of a machine and of clients, at every named step."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaemu_core.fault_points import FAULT_POINTS

from . import matrix
from .conftest import wait_until

pytestmark = pytest.mark.shares_machines


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Machines of this module lie in one directory, as they outlive its tests."""
    with matrix.runtime_of_module(tmp_path_factory.mktemp("n")) as folder:
        yield folder


@pytest.fixture(scope="module")
def scenes(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[matrix.Scenes]:
    """The machines of this module."""
    with matrix.scenes_of_module(tmp_path_factory.mktemp("boards")) as made:
        yield made
    assert not any(runtime.iterdir())


@pytest.mark.parametrize("point", matrix.points_of("kernel", "node", "swap"))
def test_a_process_of_the_machine_that_is_killed_at_a_step_costs_nothing(point: str, scenes: matrix.Scenes) -> None:
    """It is restarted, the victim's call is answered, every byte is right, and no frame, slot or lock is lost."""
    found = matrix.strike_machine(scenes.scene(matrix.profile_for(point)), point, signal.SIGKILL)
    assert found["answer"] == "right"
    deaths = 2 if point.startswith("recovery") else 1
    assert (found["restarts"], found["killed_stopped"]) == (deaths, 0)
    matrix.record(point, signal.SIGKILL, found)


@pytest.mark.parametrize("point", matrix.points_of("client"))
def test_a_client_that_is_killed_at_a_step_costs_only_itself(point: str, scenes: matrix.Scenes) -> None:
    """Who shares its memory goes on at once with what is there; when that one is done, all is free."""
    found = matrix.strike_client(scenes.scene(matrix.profile_for(point)), point, signal.SIGKILL)
    matrix.record(point, signal.SIGKILL, found)


@pytest.mark.parametrize("helper", ["forkserver", "tracker"])
def test_a_helper_that_is_killed_is_not_missed(helper: str, scenes: matrix.Scenes) -> None:
    """Nobody notices; the next process that dies is restarted by a new forkserver, which has a new tracker."""
    scene = scenes.scene("linux-6.12")
    before = {role: scene.count(role, "restarts") for role in (helper, "node", "kernel")}
    with scene.case():
        os.kill(scene.pid_of(helper), signal.SIGKILL)
        scene.board.arm("copying.copied", signal.SIGKILL)
        scene.victim.client.tell(f"move {scene.seed}")
        assert scene.victim.client.hear() == "right"
        scene.board.arm("migration.copied", signal.SIGKILL)
        scene.victim.client.tell(f"move {scene.seed}")
        assert scene.victim.client.hear() == "right"
        wait_until(lambda: scene.count(helper, "restarts") > before[helper], f"no new {helper}")
    assert {role: scene.count(role, "restarts") - count for role, count in before.items()} == dict.fromkeys(before, 1)


@pytest.mark.parametrize("point", [None, "swap-out.entries_cleared", "call.answer_written"])
def test_when_init_is_killed_all_ends(point: str | None, scenes: matrix.Scenes) -> None:
    """All processes end, the memory with them, and each client gets one clear error, also while the daemon is dead."""
    scene = scenes.scene("swap-v3")
    scene.spoilt = True
    pids = [row["pid"] for row in scene.all_rows()]
    clients = [scene.victim.client, *scene.bystanders]
    for client in scene.bystanders:
        client.tell()
    if point is not None:
        struck = scene.board.struck(point)
        scene.board.arm(point, signal.SIGSTOP)
        scene.victim.client.tell(f"move {scene.seed}")
        wait_until(lambda: scene.board.struck(point) > struck, f"nobody came to {point}")
    os.kill(scene.pid_of("init"), signal.SIGKILL)
    if point is None:
        scene.victim.client.tell(f"move {scene.seed}")
    for client in clients:
        assert client.process.wait(matrix.ERROR_S) == 1
        complaint = client.complaint()
        assert complaint.strip().splitlines()[-1].startswith("numaemu.errors.MachineGone: "), complaint
        assert complaint.count("Traceback") == 1
    wait_until(lambda: matrix.all_gone(pids), "a process is left")


def test_every_step_has_an_action_that_leads_there() -> None:
    """The table of points and the matrix know of each other."""
    assert {name for name in FAULT_POINTS if matrix.action_for(name)} == set(FAULT_POINTS)
