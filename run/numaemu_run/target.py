"""The memory of another process, read and written by address: arguments of its calls, and what they are to find.

Source: process_vm_readv(2), process_vm_writev(2). Both find the memory that the thread has now: nothing goes stale when
it executes another program.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from typing import Final

from numaemu_run.procfs import PAGE_SIZE

_PATH_MAX: Final = 4096
_ADDRESS_END: Final = 1 << 64
#: Addresses that one write goes to, and how much is short.
_PARTS_MAX: Final = 8
_SHORT_BYTES: Final = 256


#: struct iovec.
_VECTOR: Final = struct.Struct("@PN")

_libc = ctypes.CDLL(None, use_errno=True)


def _entry(name: str) -> "ctypes._NamedFuncPointer":
    """Arguments: pid, address and number of the local vectors, of the remote ones, flags."""
    call = getattr(_libc, name)
    call.restype = ctypes.c_ssize_t
    call.argtypes = [ctypes.c_int, *[ctypes.c_void_p, ctypes.c_ulong] * 2, ctypes.c_ulong]
    return call


_readv = _entry("process_vm_readv")
_writev = _entry("process_vm_writev")


class _Scratch:
    """Memory that ctypes and Python both see: what is short is written from here, by one thread at a time.

    To make new buffers for each call takes longer than the call.
    """

    def __init__(self, size_bytes: int) -> None:
        self.bytes = bytearray(size_bytes)
        self.address = ctypes.addressof((ctypes.c_char * size_bytes).from_buffer(self.bytes))


_LOCAL: Final = _Scratch(_VECTOR.size)
_REMOTE: Final = _Scratch(_VECTOR.size * _PARTS_MAX)
_DATA: Final = _Scratch(_SHORT_BYTES)


def read_some(tid: int, address: int, length: int) -> bytes:
    """Up to `length` bytes from an address: fewer if the memory ends before; none if nothing is there.

    Raises:
        OSError: ESRCH: the thread is gone; EPERM: we may not look into it.
    """
    if not length > 0 or address + length > _ADDRESS_END:
        return b""
    buffer = ctypes.create_string_buffer(length)
    _VECTOR.pack_into(_LOCAL.bytes, 0, ctypes.addressof(buffer), length)
    _VECTOR.pack_into(_REMOTE.bytes, 0, address, length)
    done: int = _readv(tid, _LOCAL.address, 1, _REMOTE.address, 1, 0)
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
    if data:
        write_parts(tid, [(address, data)])


def write_parts(tid: int, parts: Sequence[tuple[int, bytes]]) -> None:
    """Write bytes at up to 8 addresses, in their order. OSError: as `write`; what comes before is written then."""
    together = b"".join([data for _, data in parts])
    length = len(together)
    if length <= _SHORT_BYTES:
        _DATA.bytes[:length] = together
        local = _DATA.address
    else:
        buffer = ctypes.create_string_buffer(together, length)
        local = ctypes.addressof(buffer)
    _VECTOR.pack_into(_LOCAL.bytes, 0, local, length)
    for at, (address, data) in enumerate(parts):
        _VECTOR.pack_into(_REMOTE.bytes, at * _VECTOR.size, address, len(data))
    done: int = _writev(tid, _LOCAL.address, 1, _REMOTE.address, len(parts), 0)
    code = ctypes.get_errno()
    if done < 0 and code != errno.EFAULT:
        raise OSError(code, os.strerror(code))
    if done < length:
        raise OSError(errno.EFAULT, f"{length} bytes at {parts[0][0]:#x} cannot be written")


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
