"""The directory of a machine: private to its user, held by one init at a time, and gone when the machine goes.

Rules:

* The lock is taken before anything is bound: a second bind on a live ipc path silently steals it.
* Only what a machine makes itself is ever removed: sockets, the lock file, its log, its keys, and then the directory if
  it is empty. A `--dir` that names somebody's home loses nothing.
"""

import contextlib
import os
import stat
from pathlib import Path

from numaemu_daemon.options import LOCK_FILE, SERVER_KEY_FILE, StartError
from numaemu_host import ofdlock

#: A socket's path has at most 107 bytes, and the longest name that is bound in the directory about 20.
DIRECTORY_BYTES_MAX = 80
_PRIVATE = 0o700
_LOCK_ATTEMPTS = 10
_STDERR_FD = 2


def default_directory(name: str) -> Path:
    """Where the machine `name` of this user lives unless told otherwise; the client library looks there, too."""
    told = os.environ.get("NUMAEMU_RUNTIME")
    return (Path(told).absolute() if told else _own_parent()) / name


def _own_parent() -> Path:
    """The directory that all machines of this user lie in if nobody says another one; it comes and goes with them."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute():
        return runtime / "numaemu"
    return Path(f"/tmp/numaemu-{os.getuid()}")  # noqa: S108 - made private, and checked to be ours


class RunDirectory:
    """The locked directory of one machine."""

    def __init__(self, path: Path, name: str) -> None:
        """Make the directory if it is missing, take its lock, clear away sockets of a machine that was killed.

        Raises:
            StartError: the machine is running, or the directory is not private to this user.
        """
        self.path = path
        if len(os.fsencode(path)) > DIRECTORY_BYTES_MAX:
            raise StartError(f"{path}: expected a path of at most {DIRECTORY_BYTES_MAX} bytes, sockets are bound in it")
        try:
            self._lock_fd = self._lock(name)
        except OSError as error:
            raise StartError(f"{error.filename or path}: {error.strerror}") from None
        self._remove_sockets()

    def _lock(self, name: str) -> int:
        for _ in range(_LOCK_ATTEMPTS):
            try:
                self._make_private()
                fd = ofdlock.try_lock_path(self.path / LOCK_FILE)
            except FileNotFoundError:  # another init is just removing the directory
                continue
            if fd is None:
                raise StartError(f"machine {name} is running")
            return fd
        raise StartError(f"{self.path} is removed again and again")

    def _make_private(self) -> None:
        parent = self.path.parent
        parent.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            parent.mkdir(_PRIVATE)
        check_not_foreign(parent)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(_PRIVATE)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise StartError(f"{self.path}: expected a directory of uid {os.getuid()} with mode 0700")

    def _remove_sockets(self) -> None:
        for path in self.path.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()

    def _remove_log(self) -> None:
        for path in self.path.iterdir():
            if _is_stderr(path):
                path.unlink()

    def remove(self, *, with_log: bool) -> bool:
        """Remove what the machine made and give the lock back; whether the directory is gone.

        `with_log`: also the file of the directory that standard error goes to, if there is one. A machine that did not
        come up leaves it, so that its starter can show it.
        """
        try:
            self._remove_sockets()
            (self.path / SERVER_KEY_FILE).unlink(missing_ok=True)
            if with_log:
                self._remove_log()
            (self.path / LOCK_FILE).unlink()
            self.path.rmdir()
        except OSError:  # somebody put a file of their own into it, or started the next machine there
            return False
        finally:
            os.close(self._lock_fd)
        if self.path.parent == _own_parent():
            with contextlib.suppress(OSError):  # other machines live there
                self.path.parent.rmdir()
        return True


def _is_stderr(path: Path) -> bool:
    found, ours = path.lstat(), os.fstat(_STDERR_FD)
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def check_not_foreign(parent: Path) -> None:
    """Refuse a parent in which somebody else could replace our directory: /tmp/numaemu-UID made by another user."""
    found = parent.stat()
    if found.st_uid not in {0, os.getuid()}:
        raise StartError(f"{parent}: belongs to uid {found.st_uid}, who could replace what is in it")
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise StartError(f"{parent}: others may replace what is in it")
