"""Reader/writer locks on single bytes of a file, owned by an open file description (F_OFD_SETLK).

The kernel frees them when the last descriptor of the description is closed, so they die with their holder, and
/proc/locks shows them. Rules:

* The description is the owner: two locks exclude each other only if each opened the file itself. A descriptor that was
  passed or inherited is the same owner, excludes nobody, and keeps the lock alive after its holder died. So `OfdLock`
  always opens anew, and the fork hook closes its description in a child without unlocking (that would unlock the
  parent).
* Nothing here waits: callers try, and do something else meanwhile.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
import weakref
from pathlib import Path

# struct flock with 64-bit off_t: l_type, l_whence, l_start, l_len, l_pid (which must be 0).
_pack = struct.Struct("hhqqi4x").pack
_LENGTH = 1
_READ = fcntl.F_RDLCK
_WRITE = fcntl.F_WRLCK
_UNLOCK = fcntl.F_UNLCK

_REFUSED = frozenset((errno.EAGAIN, errno.EACCES))

_alive: "weakref.WeakSet[OfdLock]" = weakref.WeakSet()
# Held over a fork, so that no other thread is between opening a description and listing it here.
_alive_guard = threading.RLock()


def _try(fd: int, kind: int, offset: int) -> bool:
    """Set one byte to a kind of lock; False where another description is in the way."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _pack(kind, os.SEEK_SET, offset, _LENGTH, 0))
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
    except ValueError:  # fcntl's word on a descriptor of -1
        raise OSError(errno.EBADF, "the lock is closed, or belongs to the process this one was forked from") from None
    return True


class OfdLock:
    """Reader/writer locks on the bytes of one file, with one owner: this object.

    A byte that this object holds may be asked for again: `try_write` on a read lock turns it into a write lock (or
    leaves it as it is, if others read), `try_read` on a write lock turns it into a read lock. There is no count: one
    `unlock` frees the byte. In a forked child the object is closed.
    """

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        """Open the file behind `fd` (which stays the caller's) anew, for reading and writing. OSError if it cannot."""
        self._fd = -1
        with _alive_guard:
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
            _alive.add(self)

    def try_read(self, offset: int) -> bool:
        """Share byte `offset` with other readers; False if someone else holds it for writing. OSError if closed."""
        return _try(self._fd, _READ, offset)

    def try_write(self, offset: int) -> bool:
        """Have byte `offset` alone; False if someone else holds it in any way. OSError if closed."""
        return _try(self._fd, _WRITE, offset)

    def unlock(self, offset: int) -> None:
        """Give byte `offset` back, or do nothing if it is not held. OSError if closed."""
        _try(self._fd, _UNLOCK, offset)

    def close(self) -> None:
        """Close the description, which frees all its locks; a second call does nothing."""
        with _alive_guard:
            fd, self._fd = self._fd, -1
            _alive.discard(self)
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        """Free the locks of an object that nobody can unlock any more."""
        self.close()


def _close_in_child() -> None:
    # Closing is enough and harmless: the parent's descriptor keeps the description and its locks.
    try:
        for lock in list(_alive):
            with contextlib.suppress(OSError):
                lock.close()
    finally:
        _alive_guard.release()


os.register_at_fork(before=_alive_guard.acquire, after_in_parent=_alive_guard.release, after_in_child=_close_in_child)


def try_lock_path(path: str | os.PathLike[str], *, create: bool = True) -> int | None:
    """Become the only holder of a lock file: the descriptor that holds it, or None if another process does.

    The file is made with mode 0600 if `create`, else FileNotFoundError where it is missing. Closing the descriptor
    frees the lock; a forked child that keeps its copy keeps the lock alive.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            held = _try(fd, _WRITE, 0)
            current = held and _is_at(fd, path)
        except BaseException:
            os.close(fd)
            raise
        if current:
            return fd
        os.close(fd)
        if not held:
            return None


def _is_at(fd: int, path: str | os.PathLike[str]) -> bool:
    """Whether the path still names the file; its last holder may have removed it after we opened it."""
    try:
        return os.path.samestat(os.fstat(fd), Path(path).stat())
    except FileNotFoundError:
        return False
