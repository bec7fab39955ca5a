"""The directory of a machine: private, locked, and removed without harm to what others put there."""

import os
import socket
from pathlib import Path

import pytest

from numaemu_daemon import rundir
from numaemu_daemon.options import StartError
from numaemu_daemon.rundir import RunDirectory


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_directory_is_made_private_and_removed(short_path: Path) -> None:
    """A missing directory is made for this user alone; sockets in it go with it."""
    directory = RunDirectory(short_path / "a" / "b", "x")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    make_socket(directory.path / "kernel.ipc")
    assert directory.remove(with_log=True)
    assert not directory.path.exists()


def test_one_machine_a_directory(short_path: Path) -> None:
    """While one holds the directory a second one is refused; once it is gone another may have it."""
    first = RunDirectory(short_path / "m", "x")
    with pytest.raises(StartError, match="machine x is running"):
        RunDirectory(short_path / "m", "x")
    assert first.remove(with_log=True)
    assert RunDirectory(short_path / "m", "x").remove(with_log=True)


def test_sockets_of_a_killed_machine_are_cleared(short_path: Path) -> None:
    """What a machine that was killed has left does not stop the next one."""
    path = short_path / "m"
    path.mkdir(mode=0o700)
    (path / "lock").touch(0o600)
    make_socket(path / "init.sock")
    directory = RunDirectory(path, "x")
    assert not (path / "init.sock").exists()
    assert directory.remove(with_log=True)


def test_files_of_others_are_never_removed(short_path: Path) -> None:
    """A directory with somebody's file in it stays, and the file too."""
    path = short_path / "m"
    directory = RunDirectory(path, "x")
    (path / "thesis.txt").write_text("years of work")
    assert not directory.remove(with_log=True)
    assert [entry.name for entry in path.iterdir()] == ["thesis.txt"]


def test_directory_open_to_others_is_refused(short_path: Path) -> None:
    """A directory that others may look into, or a link in its place, is no place for sockets."""
    path = short_path / "m"
    path.mkdir()
    path.chmod(0o755)
    with pytest.raises(StartError, match="mode 0700"):
        RunDirectory(path, "x")
    (short_path / "link").symlink_to(path)
    with pytest.raises(StartError, match="mode 0700"):
        RunDirectory(short_path / "link", "x")


def test_parent_open_to_others_is_refused(short_path: Path) -> None:
    """Where others could replace the directory by their own, no machine is started."""
    parent = short_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(StartError, match="others may replace"):
        RunDirectory(parent / "m", "x")


def test_long_path_is_refused(tmp_path: Path) -> None:
    """A path that leaves no room for the name of a socket is refused with the bound."""
    with pytest.raises(StartError, match="at most 80 bytes"):
        RunDirectory(tmp_path / ("x" * 80), "x")


def test_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's runtime directory where there is one, else one in /tmp that carries the user's number."""
    monkeypatch.setenv("NUMAEMU_RUNTIME", "/srv/machines")
    assert rundir.default_directory("m") == Path("/srv/machines/m")
    monkeypatch.delenv("NUMAEMU_RUNTIME")
    expected = Path("/") / "tmp" / f"numaemu-{os.getuid()}" / "m"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert rundir.default_directory("m") == Path("/run/user/7/numaemu/m")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert rundir.default_directory("m") == expected
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert rundir.default_directory("m") == expected
