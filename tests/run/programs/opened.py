"""Opens what is answered in every way that open has, and says how each goes."""

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
OPENAT2 = 437
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
RESOLVE_BENEATH = 8
NODES = "/sys/devices/system/node"
STATUS = "/proc/self/status"


def say(what: str, body: Callable[[], object]) -> None:
    """What it gives, or the name of its error."""
    try:
        print(what, body())
    except OSError as error:
        print(what, errno.errorcode[error.errno or 0])


def openat2(path: str, *how: int, size: int = 24) -> int:
    """-1: raises."""
    words = (ctypes.c_uint64 * 3)(*how)
    fd = int(libc.syscall(OPENAT2, AT_FDCWD, path.encode(), ctypes.byref(words), size))
    if fd < 0:
        raise OSError(ctypes.get_errno(), path)
    return fd


def nonblocking() -> bool:
    """Is that flag kept?"""
    return not os.get_blocking(os.open(STATUS, os.O_RDONLY | os.O_NONBLOCK))


say("place of nodes", Path(f"/proc/self/fd/{os.open(NODES, os.O_PATH)}/online").exists)
say("place of status", lambda: os.read(os.open(STATUS, os.O_PATH), 1))
say("directory", lambda: os.open(STATUS, os.O_RDONLY | os.O_DIRECTORY))
say("nonblocking", nonblocking)
say("openat2", lambda: os.read(openat2(STATUS, 0, 0, 0), 4))
say("short how", lambda: openat2(STATUS, 0, 0, 0, size=0))
say("beneath", lambda: openat2(STATUS, 0, 0, RESOLVE_BENEATH))
say("no path", lambda: libc.syscall(332, 0, None, AT_EMPTY_PATH, 0x7FF, ctypes.create_string_buffer(256)))
