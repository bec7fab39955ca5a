"""How many descriptors the supervisor may have: each process and thread of the program takes one that stays.

Some are left for what is opened for a moment: who could not be met then is refused, and all others are served.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from typing import Final

#: What an open fails with where none is left: to this process, or to the whole host.
NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})
#: So many are not for those that stay. The most at one time: a machine's new daemon is found while a file is made.
SPARE: Final = 16


@contextlib.contextmanager
def many() -> Iterator[None]:
    """As many as may be, meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def kept(fd: int) -> int:
    """A new descriptor, if it may stay.

    Raises:
        OSError: EMFILE: it is closed, as it was one of the last.
    """
    if fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE:  # the lowest number that is free is given
        os.close(fd)
        raise OSError(errno.EMFILE, "no descriptor is left for another process or thread of the program")
    return fd
