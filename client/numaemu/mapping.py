"""A piece of a task's address space, read and written like a buffer."""

from __future__ import annotations

import errno
import operator
from typing import TYPE_CHECKING, Self, overload

from numaemu.pin import pinned
from numaemu.window import byte_view

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer

    from numaemu.task import Task
    from numaemu_core.columns import U1


class Mapping:
    """`length` bytes from address `start` of a task, as `mmap` gave them; a context manager that unmaps at the end.

    Offsets count from `start`, in bytes. Slices go by the rules of `bytes` (step 1 only), one index gives a number. An
    access may raise SegmentationFault (it was unmapped or protected meanwhile) and OutOfMemory.
    """

    __slots__ = ("_closed", "_read", "_task", "_write", "length", "start")

    def __init__(self, task: Task, start: int, length: int) -> None:
        self.start = start
        self.length = length
        self._task = task
        self._read, self._write = task.read, task.write
        self._closed = False

    @property
    def task(self) -> Task:
        """Whose it is."""
        return self._task

    def read(self, offset: int, n: int) -> bytes:
        """`n` bytes from `offset`. ValueError if they do not all lie in the mapping."""
        self._check(offset, n)
        return self._read(self.start + offset, n)

    def read_into(self, offset: int, buffer: WriteableBuffer) -> None:
        """Fill a buffer with the bytes from `offset`. ValueError if they do not all lie in the mapping."""
        self._check(offset, memoryview(buffer).nbytes)
        self._task.read_into(self.start + offset, buffer)

    def write(self, offset: int, data: ReadableBuffer) -> None:
        """Copy all bytes of `data` to `offset`. ValueError if they do not all lie in the mapping."""
        self._check(offset, memoryview(data).nbytes)
        self._write(self.start + offset, data)

    def touch(self, offset: int = 0, length: int | None = None, *, write: bool = False) -> None:
        """Access each page of a part, all up to the end if `length` is None, without reading or changing a byte."""
        length = self.length - offset if length is None else length
        self._check(offset, length)
        self._task.touch(self.start + offset, length, write=write)

    def pin(self) -> AbstractContextManager[U1]:
        """Hold all pages in their frames, and map them into one range of this process: a flat array of bytes.

        The array can be written to if the mapping can. Pinned pages are neither evicted nor migrated, as under
        get_user_pages; on exit the range becomes zeros that nobody can write to, so that a stale view harms nobody.

        Raises:
            OSError: ENOMEM: more pages than a thread may pin, or than stay in memory together; EBUSY: the address space
            was busy for too long; EOPNOTSUPP: the task is remote. SegmentationFault, OutOfMemory: a page cannot be had.
        """
        self._check(0, 0)
        if self._task.remote:
            raise OSError(errno.EOPNOTSUPP, "a remote task does not map its memory, so nothing of it can be pinned")
        return pinned(self._task, self.start, self.length)

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: int | slice) -> int | bytes:
        if self._closed:
            self._check(0, 0)
        if isinstance(key, slice):
            start, stop = key.start, key.stop
            # The common slice, without the cost of the general rule.
            if type(start) is int and type(stop) is int and 0 <= start <= stop <= self.length and key.step is None:
                return self._read(self.start + start, stop - start)
            start, stop, step = key.indices(self.length)
            if step != 1:
                raise ValueError(f"a slice of a mapping has step 1, got {step}")
            return self._read(self.start + start, stop - start if stop > start else 0)
        return self._read(self.start + self._index(key), 1)[0]

    @overload
    def __setitem__(self, key: int, value: int) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: ReadableBuffer) -> None: ...
    def __setitem__(self, key: int | slice, value: int | ReadableBuffer) -> None:
        if self._closed:
            self._check(0, 0)
        if not isinstance(key, slice):
            self._write(self.start + self._index(key), bytes((operator.index(value),)))  # type: ignore[arg-type] # an int here
            return
        start, stop, step = key.indices(self.length)
        if step != 1:
            raise ValueError(f"a slice of a mapping has step 1, got {step}")
        data = byte_view(value)  # type: ignore[arg-type] # a buffer here
        if len(data) != max(stop - start, 0):
            raise ValueError(f"a mapping cannot change its length: {max(stop - start, 0)} bytes, got {len(data)}")
        self._write(self.start + start, data)

    def __len__(self) -> int:
        return self.length

    def _index(self, key: int) -> int:
        index = operator.index(key)
        if index < 0:
            index += self.length
        if not 0 <= index < self.length:
            raise IndexError(f"index {key} lies outside a mapping of {self.length} bytes")
        return index

    def _check(self, offset: int, n: int) -> None:
        if self._closed:
            raise ValueError("the mapping is closed")
        if offset < 0 or n < 0 or offset + n > self.length:
            raise ValueError(f"{n} bytes at {offset} do not lie in a mapping of {self.length} bytes")

    def close(self) -> None:
        """Unmap it, unless its task is closed already; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._task.unmap_quietly(self.start, self.length)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Mapping {self.start:#x}-{self.start + self.length:#x}{', closed' if self._closed else ''}>"
