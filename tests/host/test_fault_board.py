"""A process dies or stops where a test says, at the passage that it says, and nowhere else."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from numaemu_host import pidfd
from numaemu_host.fault_board import VARIABLE, FaultBoard

NAMES = ["here", "there"]


@pytest.fixture
def board(tmp_path: Path) -> FaultBoard:
    """A board on which nothing is armed."""
    return FaultBoard.make(tmp_path / "board", NAMES)


PASSES = """
import sys
from numaemu_host.fault_board import FaultBoard
board = FaultBoard(sys.argv[1], ["here", "there"])
for name in sys.argv[2:]:
    board.reach(name)
"""


def process_that_passes(path: Path, *names: str) -> "subprocess.Popen[bytes]":
    """One that reaches these steps, one after the other."""
    return subprocess.Popen([sys.executable, "-c", PASSES, str(path), *names])


def test_nothing_happens_until_it_is_armed(board: FaultBoard) -> None:
    """Passages are counted, by name."""
    board.reach("here")
    board.reach("here")
    assert (board.passed("here"), board.passed("there"), board.struck("here")) == (2, 0, 0)


def test_a_name_that_is_not_in_the_table_is_an_error(board: FaultBoard) -> None:
    """To arm, and to reach."""
    with pytest.raises(KeyError):
        board.arm("nowhere", signal.SIGKILL)
    with pytest.raises(KeyError):
        board.reach("nowhere")
    with pytest.raises(ValueError, match="passage"):
        board.arm("here", signal.SIGKILL, nth=0)


def test_the_process_of_the_nth_passage_is_killed_and_its_successor_is_not(board: FaultBoard, tmp_path: Path) -> None:
    """Another process passes for the second time, and dies there; the row is disarmed by then."""
    board.arm("here", signal.SIGKILL, nth=2)
    with process_that_passes(tmp_path / "board", "here", "there", "here", "there") as process:
        assert process.wait() == -signal.SIGKILL
    assert (board.passed("here"), board.passed("there"), board.struck("here")) == (2, 1, 1)
    assert not board.is_armed("here")
    board.reach("here")


def test_only_the_process_that_was_named_is_struck(board: FaultBoard) -> None:
    """Passages of others count for nothing."""
    board.arm("here", signal.SIGKILL, pid=1)
    board.reach("here")
    assert board.is_armed("here")
    board.disarm("here")
    assert not board.is_armed("here")


def test_a_stopped_process_goes_on(board: FaultBoard, tmp_path: Path) -> None:
    """SIGSTOP at a step, SIGCONT, and the next step is reached."""
    board.arm("here", signal.SIGSTOP)
    with process_that_passes(tmp_path / "board", "here", "there") as process:
        while not pidfd.is_stopped(process.pid):
            assert process.poll() is None
        assert board.passed("there") == 0
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
    assert board.passed("there") == 1


def test_a_bug_is_there_until_it_is_disarmed(board: FaultBoard) -> None:
    """Whoever passes meets an error, from the nth passage on, and nobody is killed."""
    board.arm("here", None, nth=2)
    board.reach("here")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a bug at here"):
            board.reach("here")
    board.disarm("here")
    board.reach("here")
    assert (board.passed("here"), board.struck("here")) == (4, 2)


def test_a_board_of_other_names_is_refused(tmp_path: Path, board: FaultBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another size is none; without the variable there is none."""
    del board
    with pytest.raises(ValueError, match="no board of 1 names"):
        FaultBoard(tmp_path / "board", ["here"])
    monkeypatch.delenv(VARIABLE, raising=False)
    assert FaultBoard.of_environment(NAMES) is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "board"))
    assert FaultBoard.of_environment(NAMES) is not None
