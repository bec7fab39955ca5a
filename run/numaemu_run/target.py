"""The memory of another process, read and written by address: arguments of its calls, and what they are to find.

Source: process_vm_readv(2), process_vm_writev(2). Both find the memory that the thread has now: nothing goes stale when
it executes another program.
"""

import ctypes
import errno
import struct
from typing import Final

from numaemu_host.libc import failure, libc
from numaemu_run.procfs import PAGE_SIZE

_PATH_MAX: Final = 4096
_ADDRESS_END: Final = 1 << 64
#: How much is short.
_SHORT_BYTES: Final = 256
_WORD_BYTES: Final = 4

#: struct iovec, and two of them.
_VECTOR: Final = struct.Struct("@PN")
_PAIR: Final = struct.Struct("@PNPN")

#: Arguments: pid, local vectors and how many, remote ones and how many, flags; ready to be handed over: to have ctypes
#: convert numbers at each call takes as long as the call.
_readv = libc.process_vm_readv
_writev = libc.process_vm_writev
_readv.restype = _writev.restype = ctypes.c_ssize_t
#: Without errno, and without letting other threads run meanwhile.
_quick_writev = ctypes.PyDLL(None).process_vm_writev
_quick_writev.restype = ctypes.c_ssize_t
_NO_FLAGS: Final = ctypes.c_ulong.from_param(0)
_ONE: Final = ctypes.c_ulong.from_param(1)
_TWO: Final = ctypes.c_ulong.from_param(2)


class _Scratch:
    """Memory that ctypes and Python both see: what is short is written from here, by one thread at a time.

    To make new buffers for each call takes longer than the call.
    """

    def __init__(self, size_bytes: int) -> None:
        self.bytes = bytearray(size_bytes)
        shared = (ctypes.c_char * size_bytes).from_buffer(self.bytes)
        self.address = ctypes.addressof(shared)
        self.reference = ctypes.byref(shared)


_LOCAL: Final = _Scratch(_PAIR.size)
_REMOTE: Final = _Scratch(_PAIR.size)
_HERE: Final = _LOCAL.reference
_THERE: Final = _REMOTE.reference
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
    done: int = _readv(tid, _HERE, _ONE, _THERE, _ONE, _NO_FLAGS)
    if done >= 0:
        return buffer.raw[:done]
    if ctypes.get_errno() == errno.EFAULT:
        return b""
    raise failure(f"memory at {address:#x}")


def read(tid: int, address: int, length: int) -> bytes:
    """Exactly so many bytes. OSError: EFAULT: they cannot all be read; ESRCH, EPERM as `read_some`."""
    found = read_some(tid, address, length)
    if len(found) < length:
        raise OSError(errno.EFAULT, f"{length} bytes at {address:#x} cannot be read")
    return found


def write(tid: int, address: int, data: bytes) -> None:
    """Write bytes. OSError: EFAULT: they cannot all be written; ESRCH, EPERM as `read_some`."""
    length = len(data)
    if not length:
        return
    if length <= _SHORT_BYTES:
        _DATA.bytes[:length] = data
        local = _DATA.address
    else:
        buffer = ctypes.create_string_buffer(data, length)
        local = ctypes.addressof(buffer)
    _VECTOR.pack_into(_LOCAL.bytes, 0, local, length)
    _VECTOR.pack_into(_REMOTE.bytes, 0, address, length)
    done: int = _writev(tid, _HERE, _ONE, _THERE, _ONE, _NO_FLAGS)
    if done != length:
        _refuse_write(done, address)


class PairWriter:
    """Writes two numbers of four bytes, each at an address of its own; whoever asks again mostly has the same ones."""

    def __init__(self) -> None:
        self._first_at = self._second_at = self._length = 0
        self._pair = b""
        #: Both, and the first one again: where they lie side by side, in either order, they are written at one go.
        self._data = _Scratch(3 * _WORD_BYTES)
        self._local, self._remote = _Scratch(_PAIR.size), _Scratch(_PAIR.size)
        self._at_once = (self._local.reference, _ONE, self._remote.reference, _ONE, _NO_FLAGS)
        self._apart = (self._local.reference, _TWO, self._remote.reference, _TWO, _NO_FLAGS)
        self._vectors = self._apart

    def write(self, tid: int, first_at: int, second_at: int, pair: bytes) -> None:
        """At 0 nothing is written.

        Raises:
            OSError: as `write`. If one address is wrong, the other number is written, as by put_user twice.
        """
        if first_at != self._first_at or second_at != self._second_at:
            self._aim(first_at, second_at)
        if pair is not self._pair:
            self._data.bytes[:] = pair + pair[:_WORD_BYTES]
            self._pair = pair
        if _quick_writev(tid, *self._vectors) != self._length:  # one of them has no place
            try:
                write(tid, first_at, pair[:_WORD_BYTES] if first_at else b"")
            finally:
                write(tid, second_at, pair[_WORD_BYTES:] if second_at else b"")

    def _aim(self, first_at: int, second_at: int) -> None:
        here, word = self._data.address, _WORD_BYTES
        first, second = first_at and word, second_at and word
        self._first_at, self._second_at, self._length = first_at, second_at, first + second
        self._vectors = self._at_once
        if first and second_at in {0, first_at + word}:
            self._lay(here, first_at, self._length)
        elif second and first_at in {0, second_at + word}:
            self._lay(here + word, second_at, self._length)
        else:
            self._vectors = self._apart
            self._lay(here, first_at, first, second_at, second)

    def _lay(self, here: int, there: int, length: int, second_there: int = 0, second_length: int = 0) -> None:
        _PAIR.pack_into(self._local.bytes, 0, here, length, here + length, second_length)
        _PAIR.pack_into(self._remote.bytes, 0, there, length, second_there, second_length)


def _refuse_write(done: int, address: int) -> None:
    """`done`: how many bytes were written, fewer than all; -1: see errno."""
    if done < 0 and ctypes.get_errno() != errno.EFAULT:
        raise failure(f"memory at {address:#x}")
    raise OSError(errno.EFAULT, f"memory at {address:#x} cannot be written")


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
