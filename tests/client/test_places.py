"""Where machines live."""

import os
from pathlib import Path

import pytest

from numaemu import places

FALLBACK = Path(f"/tmp/numaemu-{os.getuid()}")  # noqa: S108 - the name that is promised


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUMAEMU_RUNTIME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_order_of_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NUMAEMU_RUNTIME comes before XDG_RUNTIME_DIR, that before /tmp; a session directory that is not there is none."""
    assert places.runtime_dir() == FALLBACK
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert places.runtime_dir() == FALLBACK
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert places.runtime_dir() == tmp_path / "numaemu"
    monkeypatch.setenv("NUMAEMU_RUNTIME", "/run/mine")
    assert places.machine_dir("box") == Path("/run/mine/box")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ü", "x" * 33, "a\n", "a\0"])
def test_bad_names(name: str) -> None:
    """What could leave the directory, or be mistaken for something else, is no name."""
    with pytest.raises(ValueError, match="a machine's name has 1 to 32 characters"):
        places.machine_dir(name)


def test_path_too_long_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory whose sockets nobody could bind is refused, with the way out."""
    room = 80 - len("/name")
    monkeypatch.setenv("NUMAEMU_RUNTIME", "/" + "d" * (room - 1))
    assert places.machine_dir("name").name == "name"
    monkeypatch.setenv("NUMAEMU_RUNTIME", "/" + "d" * room)
    with pytest.raises(ValueError, match="by 1 bytes: set NUMAEMU_RUNTIME"):
        places.machine_dir("name")


def test_directories_are_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine's directory is for its user alone, whatever the umask, and may be there already."""
    monkeypatch.setenv("NUMAEMU_RUNTIME", str(tmp_path / "run"))
    previous = os.umask(0)
    try:
        places.make_machine_dir(places.machine_dir("box"))
    finally:
        os.umask(previous)
    places.make_machine_dir(places.machine_dir("box"))
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "run", tmp_path / "run/box")] == [0o700, 0o700]
    assert places.machine_names() == ["box"]


def test_foreign_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A directory that others can write to, or that is a link, is not used."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("open", "link"):
        monkeypatch.setenv("NUMAEMU_RUNTIME", str(tmp_path / name))
        with pytest.raises(PermissionError, match="only this user can write"):
            places.make_machine_dir(places.machine_dir("box"))


def test_no_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no directory, there are no machines."""
    monkeypatch.setenv("NUMAEMU_RUNTIME", str(tmp_path / "none"))
    assert places.machine_names() == []


# -- machines of other users -------------------------------------------------------------------------------------------


def test_the_directory_for_other_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It lies beside the machine's own, or in /tmp where that is in the session's directory; its name is none."""
    assert places.visitors_dir(FALLBACK / "box") == FALLBACK / "box+visitors"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert places.visitors_dir(tmp_path / "numaemu" / "box") == FALLBACK / "box+visitors"
    (tmp_path / "numaemu" / "box+visitors").mkdir(parents=True)
    assert places.machine_names() == []


def test_finding_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One's own comes first; then, in a runtime directory that was named, one that admits others; paths are taken."""
    monkeypatch.setenv("NUMAEMU_RUNTIME", str(tmp_path))
    assert places.find("box") == tmp_path / "box"
    (tmp_path / "box+visitors").mkdir()
    assert places.find("box") == tmp_path / "box+visitors"
    (tmp_path / "box").mkdir()
    assert places.find("box") == tmp_path / "box"
    assert places.find("/some/where/box+visitors") == Path("/some/where/box+visitors")
    assert places.find("54321/box") == Path("/tmp/numaemu-54321/box+visitors")  # noqa: S108 - the name that is promised
    assert places.find("root/box") == Path("/tmp/numaemu-0/box+visitors")  # noqa: S108 - as above


@pytest.mark.parametrize("name", ["../box", "a/../b", "no-such-user/box", "root/", "root/a/b", "root/..", "a b/c"])
def test_names_that_lead_nowhere(name: str) -> None:
    """Neither a name nor an owner can leave the directories of machines."""
    with pytest.raises(ValueError, match=r"a machine's name has|user of this host"):
        places.find(name)


def test_a_directory_of_somebody_else_is_not_the_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who puts up a directory under another's uid is found out."""
    monkeypatch.setattr(places, "_shared_dir", lambda _uid: Path("/"))
    with pytest.raises(PermissionError, match="does not belong to uid 54321"):
        places.find("54321/box")
