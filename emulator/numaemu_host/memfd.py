"""Nameless shared memory (memfds), and three ways to map it.

`Segment` maps one memfd; `FlatMapping` maps several back to back so that one view covers all; `Reservation` is address
space into which pieces are mapped, replaced and withdrawn.

Rules:

* A memfd is sealed at its size, so no attacher can make another one fault by cutting it.
* Descriptors stay the caller's: `close` unmaps and never closes them, and a mapping outlives its descriptor.
* **Drop your views first.** `close` releases the views that this file handed out, but slices and arrays made from them
  it cannot reach: touching one of those after `close` is a segmentation fault.
* A forked child does not inherit the mappings: touching a view in it is a segmentation fault, `close` in it does
  nothing to the child's memory.
"""

import contextlib
import errno
import fcntl
import os
import weakref
from collections.abc import Container, Sequence
from pathlib import Path

from numaemu_host import _mman

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(name: str, size_bytes: int, *, preallocate: bool) -> int:
    """Create a memfd of `size` bytes, sealed at that size, and return its descriptor.

    `name` shows in /proc only. With `preallocate` the memory is taken now, so that no later touch can lack it.
    ValueError for a size below 1; OSError where the host refuses, with ENOMEM if less than `size` is to spare (a limit
    of the control group is not seen: past it the kernel kills).
    """
    if size_bytes < 1:
        raise ValueError(f"a memfd needs at least one byte, not {size_bytes}")
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        if preallocate:
            _check_memory(size_bytes)
            os.posix_fallocate(fd, 0, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_memory(size_bytes: int) -> None:
    """Refuse what the host has no memory for: fallocate would go on until the kernel kills processes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, _, amount = line.partition(":")
        if name == "MemAvailable" and size_bytes > int(amount.removesuffix("kB")) * 1024:
            raise OSError(
                errno.ENOMEM, f"the host has {amount.strip()} of memory to spare, too little for {size_bytes} bytes"
            )


def _check_extent(fd: int, end: int) -> None:
    """Refuse a mapping past the end of the file: touching it would be a SIGBUS."""
    size = os.fstat(fd).st_size
    if end > size:
        raise ValueError(f"descriptor {fd} holds {size} bytes, too few to map up to byte {end}")


def _check_pages(what: str, value: int, least: int = 0) -> None:
    if value < least or value % _mman.PAGE_SIZE:
        raise ValueError(f"{what} must be a multiple of {_mman.PAGE_SIZE} and at least {least}, not {value}")


def _release(view: memoryview) -> None:
    # An array made from the view still exports it; its owner was told to drop it first.
    with contextlib.suppress(BufferError):
        view.release()


class _Range:
    """A range of this process's address space; unmapped once, and only by the process that made it."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address = address
        self.size = size_bytes
        self._owner = os.getpid()
        self._mapped = True

    def _check_open(self) -> None:
        if not self._mapped:
            raise ValueError("the mapping is closed")
        if os.getpid() != self._owner:
            raise ValueError("the mapping belongs to the process that this one was forked from")

    def _unmap(self) -> None:
        if not self._mapped:
            return
        self._mapped = False
        # In a forked child the range was never inherited; something else may live there by now.
        if os.getpid() == self._owner:
            _mman.unmap_memory(self.address, self.size)


class Segment(_Range):
    """A writable shared mapping of one memfd.

    Attributes: `fd` (the caller's), `size` in bytes, `address`, and `view`, a writable memoryview of format "B".
    """

    def __init__(self, fd: int, size_bytes: int, *, populate: bool = False) -> None:
        """Map the first `size_bytes` bytes; `populate` faults all pages in. ValueError past the end, else OSError."""
        if size_bytes < 1:
            raise ValueError(f"a segment needs at least one byte, not {size_bytes}")
        _check_extent(fd, size_bytes)
        super().__init__(_mman.map_shared(0, fd, 0, size_bytes, writable=True, populate=populate), size_bytes)
        self.fd = fd
        self.view = _mman.raw_view(self.address, size_bytes)

    def close(self) -> None:
        """Release `view` and unmap; a second call does nothing. Drop slices and arrays of the view before."""
        _release(self.view)
        self._unmap()


_flat: "weakref.WeakSet[FlatMapping]" = weakref.WeakSet()


class FlatMapping(_Range):
    """Several memfds mapped back to back into one contiguous range, writable and shared.

    Attributes: `address`, `size` (the sum, in bytes), `memory`, an `mmap.mmap` of all parts, whose slices are the
    quickest way to a few bytes, and `view`, one writable memoryview of format "B" over it.
    """

    def __init__(self, parts: Sequence[tuple[int, int]], *, populate: Container[int] = ()) -> None:
        """Map `parts`, pairs of descriptor and size, in their order; all pages of those in `populate` are faulted in.

        ValueError where there are no parts, a size is no positive multiple of the host's page size, or a descriptor
        holds less; OSError where the host refuses. Nothing stays mapped after an error.
        """
        for fd, size in parts:
            _check_pages("a part's size", size, least=_mman.PAGE_SIZE)
            _check_extent(fd, size)
        total = sum(size for _, size in parts)
        if not total:
            raise ValueError("a flat mapping needs at least one part")
        self.memory = _mman.reserved_memory(total)
        super().__init__(_mman.address_of(self.memory), total)
        try:
            _mman.keep_from_children(self.address, total)
            self._map_parts(parts, populate)
        except BaseException:
            self.memory.close()
            raise
        self.view = memoryview(self.memory)
        _flat.add(self)

    def _map_parts(self, parts: Sequence[tuple[int, int]], populate: Container[int]) -> None:
        address = self.address
        for fd, size in parts:
            _mman.map_shared(address, fd, 0, size, writable=True, populate=fd in populate)
            address += size

    def close(self) -> None:
        """Release `view` and unmap; a second call does nothing. What is still seen through an array stays mapped."""
        if not self._mapped:
            return
        self._mapped = False
        _release(self.view)
        if os.getpid() == self._owner:
            with contextlib.suppress(BufferError):
                self.memory.close()


def _keep_from_unmapping() -> None:
    # A child did not inherit the range, and an `mmap` that is taken apart would unmap what lives there by now.
    for mapping in list(_flat):
        _mman.make_immortal(mapping.memory)


os.register_at_fork(after_in_child=_keep_from_unmapping)


class Reservation(_Range):
    """Address space that holds nothing at first, and into which pieces of files are mapped.

    Attributes: `address` and `size` in bytes. Touching a part into which nothing was mapped is a segmentation fault, as
    is a write to a part mapped read-only.
    """

    def __init__(self, size_bytes: int) -> None:
        """Reserve `size` bytes. ValueError unless a positive multiple of the host's page size, else OSError."""
        _check_pages("a reservation's size", size_bytes, least=_mman.PAGE_SIZE)
        super().__init__(_mman.reserve(size_bytes), size_bytes)
        self._views: dict[bool, memoryview] = {}

    def map_at(self, offset: int, fd: int, fd_offset: int, length: int, *, writable: bool) -> None:
        """Map `length` bytes of `fd` from `fd_offset` at `offset` of the reservation, replacing what was there.

        ValueError where a number is no multiple of the host's page size or leaves the reservation or the file, or the
        reservation is closed or inherited by fork; OSError where the host refuses.
        """
        self._check_open()
        _check_pages("the offset", offset)
        _check_pages("the offset in the file", fd_offset)
        _check_pages("the length", length, least=_mman.PAGE_SIZE)
        if offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} do not fit into a reservation of {self.size}")
        _check_extent(fd, fd_offset + length)
        _mman.map_shared(self.address + offset, fd, fd_offset, length, writable=writable)

    def reset(self) -> None:
        """Withdraw all that was mapped: the whole range reads as zeros, and a stale view sees nobody's bytes.

        A write through a stale view is a segmentation fault. ValueError if closed or inherited by fork, else OSError.
        """
        self._check_open()
        _mman.map_zeros(self.address, self.size)

    def view(self, *, writable: bool) -> memoryview:
        """The view (format "B") over the whole range; the same object each time. ValueError if closed or inherited."""
        self._check_open()
        found = self._views.get(writable)
        if found is None:
            raw = _mman.raw_view(self.address, self.size)
            found = self._views[writable] = raw if writable else raw.toreadonly()
        return found

    def close(self) -> None:
        """Release the views and unmap; a second call does nothing. Drop slices and arrays of the views before."""
        for view in self._views.values():
            _release(view)
        self._views.clear()
        self._unmap()
