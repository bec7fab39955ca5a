"""A remote task: how reads and writes are cut into messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numaemu.remote import RemoteAccess
from numaemu_core import limits
from numaemu_core.errors import OutOfMemory, SegmentationFault

CHUNK = limits.REMOTE_BYTES_MAX


class Memory:
    """Bytes from address 0 to `end`; gives no more than `most` of them at a time."""

    def __init__(self, end: int, most: int = CHUNK) -> None:
        self.bytes = bytearray(end)
        self.most = most
        self.asked: list[tuple[str, int, int]] = []

    def call(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - as the call has it
        addr, what = args[:2]
        length = len(what) if name == "write" else what
        self.asked.append((name, addr, length))
        assert length <= CHUNK or name == "touch"
        done = min(length, self.most, len(self.bytes) - addr)
        if done <= 0:
            raise SegmentationFault(addr)
        if name == "write":
            self.bytes[addr : addr + done] = what[:done]
        return bytes(self.bytes[addr : addr + done]) if name == "read" else done


def test_long_accesses_travel_in_pieces() -> None:
    """No message carries more than the limit, and what an answer left out is asked for again."""
    memory = Memory(3 * CHUNK, most=100_000)
    access = RemoteAccess(memory.call)
    data = np.random.default_rng(1).bytes(2 * CHUNK + 5)
    access.write(7, data)
    assert access.read(7, len(data)) == data
    target = np.zeros(len(data), np.uint8)
    access.read_into(7, target)
    assert target.tobytes() == data


def test_an_access_that_fails_has_done_what_lies_before() -> None:
    """As in a window: the head is written or filled, and the error names the address behind it."""
    memory = Memory(CHUNK + 10)
    access = RemoteAccess(memory.call)
    with pytest.raises(SegmentationFault) as caught:
        access.write(CHUNK - 10, b"x" * 100)
    assert (caught.value.address, memory.bytes.count(b"x")) == (CHUNK + 10, 20)
    target = np.zeros(100, np.uint8)
    with pytest.raises(SegmentationFault):
        access.read_into(CHUNK - 10, target)
    assert target.tobytes() == b"x" * 20 + bytes(80)


@pytest.mark.parametrize("addr", [-1, -(1 << 70), limits.TASK_SIZE_BYTES, 1 << 64])
def test_addresses_that_no_task_has(addr: int) -> None:
    """They are refused like any that is not mapped, whether a message could carry them or not."""
    access = RemoteAccess(Memory(10).call)
    for act in (
        lambda: access.read(addr, 1),
        lambda: access.write(addr, b"x"),
        lambda: access.touch(addr, 1, write=False),
    ):
        with pytest.raises(SegmentationFault):
            act()


def test_nothing_is_nothing() -> None:
    """Accesses of no byte send no message, wherever they are; a negative number is none."""
    memory = Memory(0)
    access = RemoteAccess(memory.call)
    assert access.read(-5, 0) == b""
    access.write(-5, b"")
    access.touch(-5, 0, write=True)
    assert memory.asked == []
    with pytest.raises(ValueError, match="negative"):
        access.read(0, -1)
    with pytest.raises(ValueError, match="negative"):
        access.touch(0, -1, write=False)


def test_other_errors_pass() -> None:
    """What the machine says is what the program gets."""

    def call(name: str, *_args: Any) -> Any:  # noqa: ANN401, ARG001 - the shape of a call
        raise OutOfMemory

    with pytest.raises(OutOfMemory):
        RemoteAccess(call).read(0, 1)
