"""membarrier(2): one process orders the memory accesses of all registered others, which then need no fence themselves.

The side that runs often stores and loads plainly; the side that runs seldom calls `barrier` between its store and its
load. Rules: a process registers once after it was started (an exec forgets it); whoever calls `barrier` need not be
registered; where `register` says False the processes must order themselves by other means.
"""

import ctypes
import errno
import os
import platform

_NUMBERS = {"x86_64": 324, "aarch64": 283}
_GLOBAL_EXPEDITED = 1 << 1
_REGISTER_GLOBAL_EXPEDITED = 1 << 2

_number = _NUMBERS.get(platform.machine(), -1)
# PyDLL keeps the GIL: the call takes microseconds, winning the GIL back from a busy thread could take milliseconds.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)
_syscall.restype = ctypes.c_long


def _membarrier(command: int) -> int:
    """0, or the errno of the refusal."""
    if _syscall(_number, command, 0, 0) == 0:
        return 0
    return ctypes.get_errno() or errno.ENOSYS


def register() -> bool:
    """Let `barrier` of any process order this one's memory accesses; False where the host refuses (some sandboxes)."""
    return _membarrier(_REGISTER_GLOBAL_EXPEDITED) == 0


def barrier() -> None:
    """Return once every running thread of every registered process has passed a full memory barrier.

    OSError where the host refuses, as `register` would have told.
    """
    code = _membarrier(_GLOBAL_EXPEDITED)
    if code:
        raise OSError(code, f"membarrier: {os.strerror(code)}")
