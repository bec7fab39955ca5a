"""Calls of libc that the standard library does not offer, by way of ctypes: those that fail are `OSError`."""

import ctypes
import os
from typing import Final

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def failure(what: str) -> OSError:
    """Why the last call of this thread has failed: its errno, and in the text what it was about."""
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def checked(result: int, what: str) -> int:
    """What a call has returned. OSError: it was negative, so the call has failed; `what` it was about."""
    if result < 0:
        raise failure(what)
    return result
