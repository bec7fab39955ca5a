"""The directory of a machine that other users may pass through: 0711, and beside the private one.

Nobody but the owner can list it or put anything into it. The sockets in it can be connected to by everybody, and each
asks the host who has come; what leads to the machine's memory is in no other user's reach.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from numaemu_daemon.options import LOCK_FILE, StartError
from numaemu_daemon.rundir import check_not_foreign
from numaemu_host import ofdlock

_MODE: Final = 0o711
#: So that other users can connect: they need the right to write to a socket.
SOCKET_MODE: Final = 0o666
_PASSAGE: Final = stat.S_IXOTH


class VisitorDirectory:
    """The directory of one machine, held by its init."""

    def __init__(self, path: Path) -> None:
        """Make it, take its lock, clear away sockets of a machine that was killed.

        Raises:
            StartError: it is another machine's, belongs to somebody else, or other users cannot get to it.
        """
        self.path = path
        try:
            self._make()
            lock = ofdlock.try_lock_path(path / LOCK_FILE)
        except OSError as error:
            raise StartError(f"{error.filename or path}: {error.strerror}") from None
        if lock is None:
            raise StartError(f"{path} belongs to another machine")
        self._lock_fd = lock
        self._remove_sockets()

    def _make(self) -> None:
        parent = self.path.parent
        with contextlib.suppress(FileExistsError):
            parent.mkdir(_MODE)
        check_not_foreign(parent)
        if parent == _shared_parent():
            parent.chmod(_MODE)  # a directory of machines, each of them in one that is private or like this
        closed = [one for one in (parent, *parent.parents) if not one.stat().st_mode & _PASSAGE]
        if closed:
            raise StartError(
                f"{closed[0]}: other users cannot pass through it to {self.path.name}; chmod o+x lets them"
            )
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(_MODE)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise StartError(f"{self.path}: expected a directory of uid {os.getuid()} that only they can write to")
        self.path.chmod(_MODE)

    def _remove_sockets(self) -> None:
        for path in self.path.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()

    def remove(self) -> None:
        """Remove what the machine made; what somebody else put there stays."""
        with contextlib.suppress(OSError):
            self._remove_sockets()
            (self.path / LOCK_FILE).unlink()
            self.path.rmdir()
            if self.path.parent == _shared_parent():
                self.path.parent.rmdir()  # fails where others are in it
        os.close(self._lock_fd)


def _shared_parent() -> Path:
    """Where these directories are when the machines are where nobody else gets to."""
    return Path(f"/tmp/numaemu-{os.getuid()}")  # noqa: S108 - checked to be ours before it is used
