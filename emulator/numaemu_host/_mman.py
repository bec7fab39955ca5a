"""libc's mmap, munmap and madvise at addresses of the caller's choice; failures are `OSError`.

The `mmap` of the standard library can neither place a mapping at an address nor reserve address space. Rule:
`MAP_FIXED` is only ever used inside a range that this process has reserved before.
"""

import ctypes
import mmap

from numaemu_host.libc import checked, failure, libc

PAGE_SIZE = mmap.PAGESIZE
"""Bytes in a page of the host."""

PROT_NONE = 0
MAP_FIXED = 0x10
MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value

_mmap = libc.mmap
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_mmap.restype = ctypes.c_void_p
_munmap = libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_munmap.restype = ctypes.c_int
_madvise = libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_madvise.restype = ctypes.c_int


def map_memory(address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Map `length` bytes and return their address; `address` 0 lets the kernel choose. OSError on refusal."""
    found: int | None = _mmap(address, length, prot, flags, fd, offset)
    if found is None or found == _MAP_FAILED:
        raise failure("mmap")
    return found or 0


def unmap_memory(address: int, length: int) -> None:
    """Unmap `length` bytes at `address`. OSError on refusal."""
    checked(_munmap(address, length), "munmap")


def keep_from_children(address: int, length: int) -> None:
    """Leave the range out of the address space of forked children (MADV_DONTFORK). OSError on refusal."""
    checked(_madvise(address, length, mmap.MADV_DONTFORK), "madvise")


def reserve(length: int) -> int:
    """Reserve address space that nothing may touch yet, and return its address. OSError on refusal."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    address = map_memory(0, length, PROT_NONE, flags)
    keep_from_children(address, length)
    return address


def reserved_memory(length: int) -> mmap.mmap:
    """Private address space as an object, into which pieces are to be mapped. OSError on refusal."""
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)


def address_of(memory: mmap.mmap) -> int:
    """Where it lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def make_immortal(thing: object) -> None:
    """Have this never be taken apart, not even at the end of the process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def map_shared(address: int, fd: int, fd_offset: int, length: int, *, writable: bool, populate: bool = False) -> int:
    """Map bytes of a file, shared: at `address`, replacing what is there, or anywhere if 0. OSError on refusal."""
    prot = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    flags = mmap.MAP_SHARED | (MAP_FIXED if address else 0) | (mmap.MAP_POPULATE if populate else 0)
    found = map_memory(address, length, prot, flags, fd, fd_offset)
    keep_from_children(found, length)
    return found


def map_zeros(address: int, length: int) -> None:
    """Replace what is mapped at `address` by private zeros that can be read but not written. OSError on refusal."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    map_memory(address, length, mmap.PROT_READ, flags)
    keep_from_children(address, length)


def raw_view(address: int, length: int) -> memoryview:
    """A writable view (format "B") of memory at a bare address. It keeps nothing mapped: after munmap it is a trap."""
    return memoryview((ctypes.c_ubyte * length).from_address(address)).cast("B")
