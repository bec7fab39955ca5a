"""SIGKILL of every process of a machine and of clients, at every named step."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaemu_core.fault_points import FAULT_POINTS

from . import matrix


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


def test_every_step_has_an_action_that_leads_there() -> None:
    """The table of points and the matrix know of each other."""
    assert {name for name in FAULT_POINTS if matrix.action_for(name)} == set(FAULT_POINTS)
