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
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, lock)
            with contextlib.suppress(OSError):  # a file system without locks: nobody else removes it either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():  # else another run was quicker than the lock
                break
        yield path


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
