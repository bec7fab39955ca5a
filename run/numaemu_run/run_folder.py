"""The folder of a run, for its tree of nodes: it goes with the run, or with a later one if the run was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PREFIX: Final = "numaemu-run-"


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A new one, held by a lock on it. OSError: there is no place for it."""
    _remove_abandoned()
    with contextlib.ExitStack() as stack:
        while not _is_held(path := Path(tempfile.mkdtemp(prefix=_PREFIX)), stack):
            pass  # another run took it for an abandoned one
        yield path


def _is_held(path: Path, stack: contextlib.ExitStack) -> bool:
    """Hold a new folder until the end of `stack`, which removes it; False: another run was quicker."""
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody else removes it either
        return True
    return path.exists()


def _remove_abandoned() -> None:
    """Those of ours that nobody holds: the host drops the lock of whoever is killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
