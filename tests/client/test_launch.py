"""Starting a machine, with a program in place of the daemon."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import numaemu_host
from numaemu import launch, places
from numaemu_core.errors import PeerError
from numaemu_core.topology import from_dict, uniform
from numaemu_host import fdsock

if TYPE_CHECKING:
    from collections.abc import Callable

TOPOLOGY = uniform(2, "1M", "1M", "swap-v3", 4096)
PRELUDE = """
import argparse, json, os, pathlib, sys, time
parser = argparse.ArgumentParser()
for option in ("dir", "name", "topology", "ready-fd", "owner-pid"):
    parser.add_argument("--" + option)
args = parser.parse_args()
place = pathlib.Path(args.dir)
def say(line):
    os.write(int(args.ready_fd), line if isinstance(line, bytes) else json.dumps(line).encode() + b"\\n")
"""


@pytest.fixture
def daemon(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Makes `python -m numaemu_daemon` run the given code; gives the directory of the machine box."""
    runtime = tmp_path_factory.mktemp("n") / "run"  # short enough for sockets
    package = tmp_path / "code" / "numaemu_daemon"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(package.parent), str(Path(numaemu_host.__file__).parents[1])])
    )
    monkeypatch.setenv("NUMAEMU_RUNTIME", str(runtime))
    monkeypatch.chdir(tmp_path)

    def install(code: str) -> Path:
        (package / "__main__.py").write_text(PRELUDE + textwrap.dedent(code))
        return runtime / "box"

    return install


def test_ready(daemon: Callable[[str], Path]) -> None:
    """The machine's endpoint and pid come from its ready line; the daemon gets everything, in a session of its own."""
    place = daemon(
        """
        (place / "told").write_text(json.dumps([vars(args), os.getsid(0) == os.getpid(), sys.stdin.read()]))
        print("to the log")
        sys.stdout.flush()
        say({"ready": True, "endpoint": "ipc://" + args.dir + "/kernel.ipc", "pid": os.getpid()})
        """
    )
    started = launch.start("box", TOPOLOGY, owner_pid=77)
    assert started.process.wait(10) == 0
    assert (started.endpoint, started.init_pid) == (f"ipc://{place}/kernel.ipc", started.process.pid)
    told, own_session, stdin = json.loads((place / "told").read_text())
    assert (told["dir"], told["name"], told["owner_pid"]) == (str(place), "box", "77")
    assert from_dict(json.loads(told["topology"])) == TOPOLOGY
    assert own_session
    assert stdin == ""
    assert (place / "log").read_text() == "to the log\n"


def test_error_line(daemon: Callable[[str], Path]) -> None:
    """The reason that the daemon gives is the error, and nothing is left of the machine."""
    place = daemon("""say({"error": "no memory to spare"})""")
    with pytest.raises(PeerError, match="did not start: no memory to spare"):
        launch.start("box", TOPOLOGY)
    assert not place.exists()


@pytest.mark.parametrize("line", [b"", b"nonsense\n", b"[1]\n", b'{"neither": 1}\n', b'{"ready": tr'])
def test_no_ready_line(daemon: Callable[[str], Path], line: bytes) -> None:
    """A daemon that ends, or says nonsense, is told by the last lines of its log."""
    place = daemon(f"print('first'); print('a story'); sys.stdout.flush(); say({line!r})")
    with pytest.raises(PeerError, match="the end of its log:\nfirst\na story"):
        launch.start("box", TOPOLOGY)
    assert not place.exists()


def test_daemon_that_never_answers(daemon: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """After some time it is ended, and that is an error."""
    monkeypatch.setattr(launch, "READY_S", 0.3)
    place = daemon("time.sleep(1000)")
    with pytest.raises(PeerError, match="did not start"):
        launch.start("box", TOPOLOGY)
    assert not place.exists()


def test_name_in_use(daemon: Callable[[str], Path]) -> None:
    """Where a machine of that name runs, no second one is started."""
    place = daemon("say(b'never')")
    place.mkdir(parents=True)
    with fdsock.listen(place / "init.sock"), pytest.raises(FileExistsError, match="is running already"):
        launch.start("box", TOPOLOGY)
    assert not (place / "log").exists()


def test_foreground_has_no_log_file(daemon: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    """In the foreground the log goes where our own messages go."""
    place = daemon("""print("here", file=sys.stderr); say({"ready": True, "endpoint": "e", "pid": 1})""")
    assert launch.start("box", TOPOLOGY, foreground=True).process.wait(10) == 0
    assert capfd.readouterr().err == "here\n"
    assert not (place / "log").exists()


def test_a_directory_that_goes_away_is_made_again(
    daemon: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine that ends takes the directory of all machines with it; the start makes it again."""
    place = daemon("""say({"ready": True, "endpoint": "ipc://x", "pid": os.getpid()})""")
    real = places.make_machine_dir
    ends = iter([True, False])

    def make(path: Path) -> None:
        if next(ends):
            raise FileNotFoundError(path)
        real(path)

    monkeypatch.setattr(places, "make_machine_dir", make)
    assert launch.start("box", TOPOLOGY).process.wait(10) == 0
    assert place.exists()
