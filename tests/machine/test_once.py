"""A call whose daemon dies happens once, whether it was begun, done, or answered without a word to the caller."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaemu_host import pidfd

from . import matrix
from .conftest import wait_until
from .victim import PAGE, PAGES, tagged

POINTS = matrix.points_of("kernel")
CALL_POINTS = [point for point in POINTS if point.startswith("call.")]

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


@contextlib.contextmanager
def between_death_and_repeat(scene: matrix.Scene, victim: matrix.Victim, point: str) -> Iterator[None]:
    """The daemon dies at a step of the victim's call; within, others go on with the next one; then it asks again."""
    struck = scene.board.struck(point)
    scene.board.arm(point, signal.SIGSTOP)
    victim.client.tell()
    wait_until(lambda: scene.board.struck(point) > struck, f"nobody came to {point}")
    victim.client.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: pidfd.is_stopped(victim.pid), "it is not stopped")
    os.kill(scene.pid_of("kernel"), signal.SIGKILL)
    yield
    victim.client.process.send_signal(signal.SIGCONT)
    assert victim.client.hear() == "done"


@pytest.mark.parametrize("point", CALL_POINTS)
@pytest.mark.parametrize("action", ["drop_here", "map_here", "fork_here"])
def test_a_call_whose_daemon_dies_happens_once(action: str, point: str, scenes: matrix.Scenes) -> None:
    """Others use the memory between the death and the repeated request: DONTNEED takes nothing of theirs away.

    A second mmap would leave two mappings, a second fork two children.
    """
    scene = scenes.scene("swap-v3")
    scene.spoilt = True
    scene.seed += 2
    victim = scene.victim
    with scene.machine.attach(share_mm=victim.task) as other:
        victim.client.tell(f"{action} {scene.seed}")
        start = int(victim.client.hear())
        maps, tasks = scene.machine.numa_maps(victim.task).count("\n"), scene.machine.status()["tasks"]
        with between_death_and_repeat(scene, victim, point):
            other.write(start, b"of the sharer")
        if action == "drop_here":
            assert other.read(start, PAGE) == b"of the sharer".ljust(PAGE, b"\0")
        assert scene.machine.numa_maps(victim.task).count("\n") == maps + (action == "map_here")
        assert scene.machine.status()["tasks"] == tasks + (action == "fork_here")
        victim.client.kill()
    wait_until(scene.all_up, "a process is missing")
    wait_until(scene.is_all_free, "frames or slots are not free again")
    assert scene.machine.fsck() == []
    scene.spoilt = False


@pytest.mark.parametrize("point", ["migration.entries_marked", "migration.copied", "migration.moved"])
def test_a_move_whose_daemon_dies_is_done_again(point: str, scenes: matrix.Scenes) -> None:
    """Pages that others have sent back meanwhile go once more where the repeated call says; no byte is concerned."""
    scene = scenes.scene("linux-6.12")
    scene.spoilt = True
    scene.seed += 1
    victim = scene.victim
    with scene.machine.attach(share_mm=victim.task) as other:
        victim.client.tell(f"send_here {scene.seed}")
        start = int(victim.client.hear())
        pages = range(start, start + PAGES * PAGE, PAGE)
        with between_death_and_repeat(scene, victim, point):
            assert other.move_pages(0, pages, [0] * PAGES).tolist() == [0] * PAGES
        assert other.where(start, PAGES * PAGE).tolist() == [1] * PAGES
        assert other.read(start, PAGES * PAGE) == tagged(scene.seed)
        victim.client.kill()
    wait_until(scene.all_up, "a process is missing")
    wait_until(scene.is_all_free, "frames or slots are not free again")
    assert scene.machine.fsck() == []
    scene.spoilt = False
