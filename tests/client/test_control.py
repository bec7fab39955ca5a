"""Talking to an init that a thread plays."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from numaemu import control
from numaemu.errors import MachineGone
from numaemu_host import fdsock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STATUS = {"machine": "box", "boot_id": "b", "generation": 1, "processes": []}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of a machine named box."""
    found = tmp_path / "box"
    found.mkdir()
    return found


@pytest.fixture
def play_init(place: Path) -> Iterator[Callable[[object], list[object]]]:
    """Answers the next message with the given one, or hangs up if that is None; gives what was asked."""
    with contextlib.ExitStack() as stack:

        def play(answer: object) -> list[object]:
            asked: list[object] = []
            listener = stack.enter_context(fdsock.listen(place / "init.sock"))

            def serve() -> None:
                sock, _ = listener.accept()
                with sock:
                    asked.append(fdsock.recv(sock)[0])
                    if answer is not None:
                        fdsock.send(sock, answer)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return asked

        yield play


def test_status(place: Path, play_init: Callable[[object], list[object]]) -> None:
    """What init answers is given as it is."""
    asked = play_init(STATUS)
    assert control.status(place) == STATUS
    assert asked == [{"command": "status"}]


@pytest.mark.parametrize("answer", [{"error": "no"}, ["x"], 7])
def test_refusal(place: Path, play_init: Callable[[object], list[object]], answer: object) -> None:
    """An answer that is no status is an error that shows it."""
    play_init(answer)
    with pytest.raises(OSError, match="answered"):
        control.status(place)


def test_init_that_hangs_up(place: Path, play_init: Callable[[object], list[object]]) -> None:
    """An init that ends before it answers is a machine that has ended."""
    play_init(None)
    with pytest.raises(MachineGone, match="'box'"):
        control.status(place)


def test_no_machine(place: Path) -> None:
    """Where nobody listens no machine runs, and the error says how to start one."""
    with pytest.raises(ConnectionRefusedError, match="numaemu up -m box"):
        control.status(place)
    assert not control.is_running(place)
    with pytest.raises(ConnectionRefusedError):
        control.down(place)
    assert place.exists()
    with pytest.raises(ConnectionRefusedError):
        control.down(place.with_name("missing"))


def test_down_clears_a_killed_machine_away(place: Path) -> None:
    """What a machine left whose init was killed is removed."""
    fdsock.listen(place / "init.sock").close()
    (place / "log").write_text("last words")
    control.down(place)
    assert not place.exists()


def test_down_waits_for_the_end(place: Path) -> None:
    """`down` gives when init is over and the directory gone, the log with it."""
    code = """
import pathlib, sys
from numaemu_host import fdsock
place = pathlib.Path(sys.argv[1])
listener = fdsock.listen(place / "init.sock")
print("listens", flush=True)
sock, _ = listener.accept()
assert fdsock.recv(sock)[0] == {"command": "down"}
fdsock.send(sock, {"ok": True})
(place / "init.sock").unlink()
"""
    root = Path(fdsock.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as init:
        assert init.stdout is not None
        assert init.stdout.readline() == b"listens\n"
        (place / "log").write_text("all is well")
        control.down(place)
        assert init.wait(5) == 0
    assert not place.exists()


def test_down_tells_what_stays(
    place: Path, play_init: Callable[[object], list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory with somebody's files in it stays, and `down` says so."""
    monkeypatch.setattr(control, "_TIDY_S", 0.1)
    monkeypatch.setattr(fdsock, "peer_credentials", lambda _sock: (2**22, 0, 0))  # no such process
    (place / "precious").write_text("data")
    play_init({"ok": True})
    with pytest.raises(OSError, match=r"left .* behind"):
        control.down(place)
    assert (place / "precious").exists()
