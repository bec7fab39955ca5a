"""Mappings as buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.client.conftest import PAGE, START

from numaemu.mapping import Mapping

if TYPE_CHECKING:
    from tests.client.conftest import FakeKernel

    from numaemu.task import Task

LENGTH = 3 * PAGE
CONTENT = bytes(i % 251 for i in range(LENGTH))


@pytest.fixture
def mapping(task: Task) -> Mapping:
    """Three pages with known bytes."""
    found = Mapping(task, START, LENGTH)
    found[:] = CONTENT
    return found


@pytest.mark.parametrize(
    "key",
    [
        slice(None),
        slice(0, 0),
        slice(5, 2),
        slice(-10, None),
        slice(None, -PAGE),
        slice(PAGE - 3, PAGE + 3),
        slice(LENGTH - 1, LENGTH + 100),
        slice(LENGTH + 5, LENGTH + 9),
        slice(-(1 << 70), 1 << 70),
        0,
        -1,
        PAGE,
        -LENGTH,
    ],
)
def test_reads_like_bytes(mapping: Mapping, key: int | slice) -> None:
    """Slices and indexes have the bounds that those of bytes have."""
    assert mapping[key] == CONTENT[key]
    assert len(mapping) == LENGTH


def test_writes_like_a_buffer(mapping: Mapping) -> None:
    """A slice takes as many bytes as it has, an index one number; anything else is refused and changes nothing."""
    mapping[PAGE - 1 : PAGE + 1] = bytearray(b"ab")
    mapping[-1] = 200
    mapping[5:2] = b""
    expected = bytearray(CONTENT)
    expected[PAGE - 1 : PAGE + 1] = b"ab"
    expected[-1] = 200
    for wrong in (b"", b"abc"):
        with pytest.raises(ValueError, match="length"):
            mapping[0:2] = wrong
    with pytest.raises(ValueError, match="range"):
        mapping[0] = 256
    with pytest.raises(ValueError, match="step 1"):
        mapping[::2] = b"x"
    assert mapping[:] == expected


def test_bounds(mapping: Mapping) -> None:
    """What would reach beyond the mapping is refused, although the task may have memory there."""
    for offset, n in ((-1, 1), (0, LENGTH + 1), (LENGTH, 1), (0, -1)):
        with pytest.raises(ValueError, match="do not lie"):
            mapping.read(offset, n)
    with pytest.raises(ValueError, match="do not lie"):
        mapping.write(LENGTH - 1, b"ab")
    with pytest.raises(ValueError, match="do not lie"):
        mapping.read_into(LENGTH - 1, bytearray(2))
    with pytest.raises(ValueError, match="do not lie"):
        mapping.touch(1, LENGTH)
    for index in (LENGTH, -LENGTH - 1):
        with pytest.raises(IndexError):
            mapping[index]
    with pytest.raises(ValueError, match="step 1"):
        mapping[::-1]


def test_unmaps_once(kernel: FakeKernel, mapping: Mapping) -> None:
    """Leaving the context unmaps; closing twice is fine; a closed mapping says so."""
    with mapping:
        assert mapping[0] == 0
    mapping.close()
    assert kernel.asked("munmap") == [(START, LENGTH)]
    with pytest.raises(ValueError, match="the mapping is closed"):
        mapping[0]
    with pytest.raises(ValueError, match="the mapping is closed"):
        mapping.write(0, b"x")
    with pytest.raises(ValueError, match="the mapping is closed"), mapping.pin():
        pass


def test_outlives_its_task(kernel: FakeKernel) -> None:
    """A mapping of a closed task can be closed, and does nothing else."""
    kernel.add_pages(1)
    with kernel.task() as task:
        mapping = Mapping(task, START, PAGE)
    with pytest.raises(ValueError, match="the task is closed"):
        mapping[0]
    mapping.close()
    assert not kernel.asked("munmap")
