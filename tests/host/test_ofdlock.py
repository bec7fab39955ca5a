"""Reader/writer locks on open file descriptions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from numaemu_host import ofdlock
from numaemu_host.ofdlock import OfdLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.host.conftest import Child

HOLDER = """
from numaemu_host.ofdlock import OfdLock
lock = OfdLock(int(sys.argv[1]))
say(getattr(lock, sys.argv[2])(int(sys.argv[3])))
wait_for_parent()
lock.unlock(int(sys.argv[3]))
say("unlocked")
wait_for_parent()
"""


@pytest.fixture
def lock(shared_fd: int) -> Iterator[OfdLock]:
    """A lock of this process on the shared file."""
    found = OfdLock(shared_fd)
    yield found
    found.close()


def hold(spawn: Callable[..., Child], fd: int, how: str, offset: int) -> Child:
    """A child that holds one byte until told to go on."""
    child = spawn(HOLDER, fd, how, offset, pass_fds=[fd])
    assert child.hear() == "True"
    return child


def test_writers_exclude_each_other(lock: OfdLock, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """While another process writes, nobody else gets that byte, all others are free, and unlocking gives it back."""
    child = hold(spawn, shared_fd, "try_write", 5)
    assert not lock.try_write(5)
    assert not lock.try_read(5)
    assert lock.try_write(4)
    assert lock.try_write(6)
    child.go_on()
    assert child.hear() == "unlocked"
    assert lock.try_write(5)


def test_readers_share(lock: OfdLock, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """Two processes read together, and neither can write before the other stops reading."""
    child = hold(spawn, shared_fd, "try_read", 1 << 40)
    assert lock.try_read(1 << 40)
    assert not lock.try_write(1 << 40)
    child.go_on()
    assert child.hear() == "unlocked"
    assert lock.try_write(1 << 40)


def test_failed_upgrade_keeps_the_read_lock(lock: OfdLock, shared_fd: int) -> None:
    """A reader that may not write goes on reading, and a writer may step down to reading."""
    other = OfdLock(shared_fd)
    assert lock.try_read(0)
    assert other.try_read(0)
    assert not lock.try_write(0)
    other.unlock(0)
    assert not other.try_write(0)
    assert lock.try_write(0)
    assert not other.try_read(0)
    assert lock.try_read(0)
    assert other.try_read(0)
    other.close()


def test_each_object_is_an_owner(shared_fd: int) -> None:
    """Two locks of one process exclude each other, and closing one frees what it held."""
    first, second = OfdLock(shared_fd), OfdLock(shared_fd)
    assert first.try_write(0)
    assert not second.try_write(0)
    first.close()
    first.close()
    assert second.try_write(0)
    second.close()


def test_forgotten_object_frees_its_locks(lock: OfdLock, shared_fd: int) -> None:
    """A lock object that is collected frees what it held."""
    other = OfdLock(shared_fd)
    assert other.try_write(0)
    assert not lock.try_write(0)
    del other
    assert lock.try_write(0)


@pytest.mark.parametrize("how", ["try_read", "try_write"])
def test_killed_holder_frees_its_locks(lock: OfdLock, shared_fd: int, spawn: Callable[..., Child], how: str) -> None:
    """SIGKILL of the holder frees its lock."""
    child = hold(spawn, shared_fd, how, 0)
    assert not lock.try_write(0)
    child.kill()
    assert lock.try_write(0)


def test_forked_child_does_not_unlock_its_parent(lock: OfdLock, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """In a forked child the lock is closed and refuses use, while the parent keeps holding it."""
    child = spawn(
        """
        import errno
        from numaemu_host.ofdlock import OfdLock
        lock = OfdLock(int(sys.argv[1]))
        say(lock.try_write(0))
        pid = os.fork()
        if not pid:
            refused = 0
            for use in (lock.unlock, lock.try_read, lock.try_write):
                try:
                    use(0)
                except OSError as error:
                    refused += error.errno == errno.EBADF
            own = OfdLock(int(sys.argv[1]))
            excluded = not own.try_read(0)
            lock.close()
            os._exit(0 if refused == 3 and excluded and own.try_write(1) else 1)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        wait_for_parent()
        """,
        shared_fd,
        pass_fds=[shared_fd],
    )
    assert (child.hear(), child.hear()) == ("True", "0")
    assert not lock.try_read(0)
    assert lock.try_write(1)


def test_living_fork_does_not_keep_the_lock(lock: OfdLock, shared_fd: int, spawn: Callable[..., Child]) -> None:
    """The lock of a killed holder is free although a child that it forked lives on."""
    child = spawn(
        """
        from numaemu_host.ofdlock import OfdLock
        lock = OfdLock(int(sys.argv[1]))
        lock.try_write(0)
        if not os.fork():
            say("child lives")
            wait_for_parent()
            say("child ends")
            os._exit(0)
        os.waitpid(-1, 0)
        """,
        shared_fd,
        pass_fds=[shared_fd],
    )
    assert child.hear() == "child lives"
    assert not lock.try_write(0)
    child.kill()
    assert lock.try_write(0)
    child.go_on()
    assert child.hear() == "child ends"


def test_descriptor_stays_the_callers(shared_fd: int, descriptors: Callable[[], set[int]]) -> None:
    """The lock opens the file anew, close-on-exec, and leaves the given descriptor open."""
    before = descriptors()
    lock = OfdLock(shared_fd)
    (own,) = descriptors() - before
    assert not os.get_inheritable(own)
    lock.close()
    assert os.fstat(shared_fd).st_size


def test_bad_descriptor_is_refused() -> None:
    """A descriptor that is not open cannot be locked."""
    with pytest.raises(FileNotFoundError):
        OfdLock(-1)


def test_path_lock_is_single(tmp_path: Path, spawn: Callable[..., Child]) -> None:
    """Of two processes only one gets the lock file, and the other gets it when that one is killed."""
    path = tmp_path / "lock"
    code = """
        from numaemu_host import ofdlock
        say(ofdlock.try_lock_path(sys.argv[1]) is not None)
        wait_for_parent()
        """
    child = spawn(code, path)
    assert child.hear() == "True"
    assert ofdlock.try_lock_path(path) is None
    second = spawn(code, path)
    assert second.hear() == "False"
    child.kill()
    fd = ofdlock.try_lock_path(path)
    assert fd is not None
    assert not os.get_inheritable(fd)
    assert path.stat().st_mode & 0o777 == 0o600
    os.close(fd)


def test_path_lock_needs_the_file(tmp_path: Path) -> None:
    """Without leave to create it a missing lock file is an error, and none is made."""
    with pytest.raises(FileNotFoundError):
        ofdlock.try_lock_path(tmp_path / "none", create=False)
    assert not list(tmp_path.iterdir())


def test_path_lock_is_on_the_file_at_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock file that was removed between opening and locking it does not count."""
    path = tmp_path / "lock"
    attempt = ofdlock._try  # noqa: SLF001 - the moment between opening and locking has no other name

    def remove_first(fd: int, kind: int, offset: int) -> bool:
        monkeypatch.undo()
        path.unlink()
        return attempt(fd, kind, offset)

    monkeypatch.setattr(ofdlock, "_try", remove_first)
    fd = ofdlock.try_lock_path(path)
    assert fd is not None
    assert os.path.samestat(os.fstat(fd), path.stat())
    assert ofdlock.try_lock_path(path) is None
    os.close(fd)
