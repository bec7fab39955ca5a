"""SIGSTOP of every process of a machine and of clients, at every named step."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaemu_core import limits

from . import matrix

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
def test_a_process_of_the_machine_that_is_stopped_at_a_step_is_replaced_if_it_is_missed(
    point: str, scenes: matrix.Scenes
) -> None:
    """Whom others wait for is killed and restarted, and nothing is lost; whom nobody waits for is left alone."""
    found = matrix.strike_machine(scenes.scene(matrix.profile_for(point)), point, signal.SIGSTOP)
    assert found["answer"] == "right"
    missed = point not in matrix.NOT_MISSED
    deaths = 2 if point.startswith("recovery") else int(missed)
    assert (found["restarts"], found["killed_stopped"], found["left_alone"]) == (deaths, int(missed), not missed)
    matrix.record(point, signal.SIGSTOP, found)


@pytest.mark.parametrize("point", matrix.points_of("client"))
def test_a_client_that_is_stopped_at_a_step_keeps_others_no_longer_than_the_bound(
    point: str, scenes: matrix.Scenes
) -> None:
    """Who shares its memory moves pages meanwhile, as far as they can; SIGCONT, and it goes on with right bytes."""
    found = matrix.strike_client(scenes.scene(matrix.profile_for(point)), point, signal.SIGSTOP)
    assert found["answer"] == "right"
    assert found["seconds"] < limits.WINDOW_BOUND_RUNNING_S, "it was waited for as if it ran"
    matrix.record(point, signal.SIGSTOP, found)
