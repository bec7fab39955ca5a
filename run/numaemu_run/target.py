"""The memory of another process, read and written by address: arguments of its calls, and what they are to find.

Source: process_vm_readv(2), process_vm_writev(2). Both find the memory that the thread has now: nothing goes stale when
it executes another program.
"""

import ctypes
import errno
import os
from typing import Final

from numaemu_run.procfs import PAGE_SIZE

_PATH_MAX: Final = 4096
_ADDRESS_END: Final = 1 << 64


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)


def _entry(name: str) -> "ctypes._NamedFuncPointer":
    call = getattr(_libc, name)
    call.restype = ctypes.c_ssize_t
    vectors = ctypes.POINTER(_Vector)
    call.argtypes = [ctypes.c_int, vectors, ctypes.c_ulong, vectors, ctypes.c_ulong, ctypes.c_ulong]
    return call


_readv = _entry("process_vm_readv")
_writev = _entry("process_vm_writev")


def read_some(tid: int, address: int, length: int) -> bytes:
    """Up to `length` bytes from an address: fewer if the memory ends before; none if nothing is there.

    Raises:
        OSError: ESRCH: the thread is gone; EPERM: we may not look into it.
    """
    if not length > 0 or address + length > _ADDRESS_END:
        return b""
    buffer = ctypes.create_string_buffer(length)
    local, remote = _Vector(ctypes.addressof(buffer), length), _Vector(address, length)
    done: int = _readv(tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done >= 0:
        return buffer.raw[:done]
    code = ctypes.get_errno()
    if code == errno.EFAULT:
        return b""
    raise OSError(code, os.strerror(code))


def read(tid: int, address: int, length: int) -> bytes:
    """Exactly so many bytes. OSError: EFAULT: they cannot all be read; ESRCH, EPERM as `read_some`."""
    found = read_some(tid, address, length)
    if len(found) < length:
        raise OSError(errno.EFAULT, f"{length} bytes at {address:#x} cannot be read")
    return found


def write(tid: int, address: int, data: bytes) -> None:
    """Write bytes. OSError: EFAULT: they cannot all be written; ESRCH, EPERM as `read_some`."""
    if not data:
        return
    buffer = ctypes.create_string_buffer(data, len(data))
    local = _Vector(ctypes.addressof(buffer), len(data))
    remote = _Vector(address, len(data))
    done: int = _writev(tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    code = ctypes.get_errno()
    if done < 0 and code != errno.EFAULT:
        raise OSError(code, os.strerror(code))
    if done < len(data):
        raise OSError(errno.EFAULT, f"{len(data)} bytes at {address:#x} cannot be written")


def read_path(tid: int, address: int) -> bytes:
    """A path that ends with a zero byte. OSError: EFAULT: it cannot be read; ENAMETOOLONG."""
    found = b""
    while len(found) < _PATH_MAX:
        here = address + len(found)
        part = read_some(tid, here, PAGE_SIZE - here % PAGE_SIZE)
        if not part:
            raise OSError(errno.EFAULT, f"no path at {address:#x}")
        path, end, _ = part.partition(b"\0")
        found += path
        if end:
            return found
    raise OSError(errno.ENAMETOOLONG, "a path of more than 4096 bytes")
