"""The memory of a task whose client does not map it: bytes go to and from the kernel daemon in messages.

Slower than a window by two processes' wake-ups, and with the same results: what is accessed is faulted in, and counts
as accessed and dirty. One object serves all threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from numaemu.window import byte_view
from numaemu_core import limits
from numaemu_core.errors import SegmentationFault

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from numaemu_core.columns import U1


class Call(Protocol):
    """Makes a call of the task, and gives its result."""

    def __call__(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - whatever the call takes and gives
        """See the class."""


class RemoteAccess:
    """What a `Window` does, by calls; each moves at most REMOTE_BYTES_MAX bytes."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        """Access by `call`."""
        self._call = call

    def read(self, addr: int, n: int) -> bytes:
        """`n` bytes from `addr`. SegmentationFault, OutOfMemory; ValueError for a negative `n`."""
        if n < 0:
            raise ValueError(f"the number of bytes may not be negative, got {n}")
        parts = []
        while n > 0:
            part = self._part(addr, n)
            parts.append(part)
            addr, n = addr + len(part), n - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, addr: int, target: U1) -> None:
        """Fill `target`, a flat array of bytes, from `addr`. On an error the head is filled."""
        view, done = memoryview(target).cast("B"), 0  # type: ignore[arg-type]  # an array is a buffer
        while done < len(view):
            part = self._part(addr + done, len(view) - done)
            view[done : done + len(part)] = part
            done += len(part)

    def _part(self, addr: int, n: int) -> bytes:
        found: bytes = self._call("read", _checked(addr), min(n, limits.REMOTE_BYTES_MAX))
        return found

    def write(self, addr: int, data: ReadableBuffer) -> None:
        """Copy all bytes of a buffer to `addr`. On an error, what lies before is written."""
        source, done = byte_view(data), 0
        while done < len(source):
            part = bytes(source[done : done + limits.REMOTE_BYTES_MAX])
            done += self._call("write", _checked(addr + done), part)

    def touch(self, addr: int, length: int, *, write: bool) -> None:
        """Access every page of [addr, addr + length), changing no byte. SegmentationFault, OutOfMemory, ValueError."""
        if length < 0:
            raise ValueError(f"a length may not be negative, got {length}")
        done = 0
        while done < length:
            done += self._call("touch", _checked(addr + done), min(length - done, limits.TASK_SIZE_BYTES), write)


def _checked(addr: int) -> int:
    """An address that a message can carry. SegmentationFault: nothing is ever mapped there."""
    if not 0 <= addr < limits.TASK_SIZE_BYTES:
        raise SegmentationFault(addr)
    return addr
