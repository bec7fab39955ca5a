"""Ranges of pages: scattered frames, faults on the way, pages that go away again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.client.conftest import PAGE, READ, START, FakeKernel

from numaemu.ranges import RANGE_BYTES
from numaemu_core.errors import SegmentationFault

if TYPE_CHECKING:
    from numaemu.task import Task

VPN = START >> 12


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("order", ["ascending", "descending", "interleaved", "shuffled"])
@pytest.mark.parametrize(("offset", "length"), [(0, 64 * PAGE), (1, 3), (100, 5 * PAGE), (PAGE - 1, 2), (4000, 40_000)])
def test_scattered_frames(kernel: FakeKernel, task: Task, order: str, offset: int, length: int) -> None:
    """However the frames of a range lie, over both nodes too, its bytes come back as they were written."""
    frames = {
        "ascending": list(range(230, 294)),
        "descending": list(range(293, 229, -1)),
        "interleaved": [10 + i // 2 + 256 * (i % 2) for i in range(64)],
        "shuffled": random.Random(7).sample(range(1, 512), 64),
    }[order]
    for i, pfn in enumerate(frames):
        kernel.map(VPN + i, pfn)
    data = pattern(length)
    task.write(START + offset, data)
    assert task.read(START + offset, length) == data
    target = bytearray(length)
    task.read_into(START + offset, target)
    assert target == data
    flat = b"".join(bytes(kernel.frame(pfn)) for pfn in frames)
    assert flat == bytes(offset) + data + bytes(64 * PAGE - offset - length)
    assert not kernel.asked("fault")


def test_marks_what_was_accessed(kernel: FakeKernel, task: Task) -> None:
    """A range marks its own pages, across two tables, and no neighbour."""
    start = (VPN | 511) - 3 << 12
    kernel.add_pages(12, start=start)
    kernel.bring_in(start, 12 * PAGE, write=True)
    flats = kernel.flats(12, start)
    task.read(start + PAGE + 5, 8 * PAGE)
    assert kernel.views.accessed_array[flats].tolist() == [0] + [1] * 9 + [0] * 2
    assert not kernel.views.dirty_array[flats].any()
    task.write(start + 5 * PAGE, bytes(2 * PAGE))
    assert kernel.views.dirty_array[flats].tolist() == [0] * 5 + [1] * 2 + [0] * 5


def test_faults_come_in_batches(kernel: FakeKernel, task: Task) -> None:
    """A range of which nothing is there is asked for at once, not page by page."""
    data = pattern(64 * PAGE)
    task.write(START, data)
    assert task.read(START, len(data)) == data
    assert kernel.asked("fault") == [(START, 64 * PAGE, True)]


def test_copies_up_to_the_fault(kernel: FakeKernel, task: Task) -> None:
    """What lies before a page that may not be accessed is written or filled in."""
    del kernel.mapped[VPN + 3]
    with pytest.raises(SegmentationFault) as caught:
        task.write(START, b"y" * 5 * PAGE)
    assert caught.value.address == START + 3 * PAGE
    assert task.read(START, 3 * PAGE) == b"y" * 3 * PAGE
    target = bytearray(5 * PAGE)
    with pytest.raises(SegmentationFault):
        task.read_into(START, target)
    assert target == b"y" * 3 * PAGE + bytes(2 * PAGE)


@pytest.mark.parametrize("room", [1, 2, 7])
def test_range_larger_than_memory(kernel: FakeKernel, task: Task, room: int) -> None:
    """A range makes progress although only the last few pages that were faulted in are ever there."""
    kept: list[int] = []
    store: dict[int, bytes] = {}

    def evict(vpn: int) -> None:
        if vpn in kept:
            return
        pfn = int(kernel.views.pte[kernel.flat(vpn)]) >> 12
        kernel.frame(pfn)[:] = store.get(vpn, bytes(PAGE))
        kept.append(vpn)
        while len(kept) > room:
            old = kept.pop(0)
            pfn = int(kernel.views.pte[kernel.flat(old)]) >> 12
            store[old] = bytes(kernel.frame(pfn))
            kernel.unmap(old)
            kernel.free.append(pfn)

    kernel.on_fault = evict
    data = pattern(64 * PAGE)
    task.write(START, data)
    assert task.read(START, len(data)) == data
    assert len(kernel.asked("fault")) < 64 * 8


def test_long_ranges_open_many_windows(task: Task, kernel: FakeKernel) -> None:
    """No window copies more than its share, so that nobody waits long for it."""
    pages = RANGE_BYTES // PAGE + 44
    kernel.add_pages(pages)
    kernel.bring_in(START, pages * PAGE, write=True)
    task.window()
    before = sum(kernel.counters)
    data = pattern(pages * PAGE)
    task.write(START, data)
    assert sum(kernel.counters) - before == 4
    assert task.read(START, len(data)) == data


def test_touch_changes_no_byte(kernel: FakeKernel, task: Task) -> None:
    """Touching brings pages in and marks them; a write touch makes them dirty and leaves their bytes alone."""
    task.write(START, b"keep")
    flats = kernel.flats(4)
    kernel.views.dirty_array[flats] = 0
    task.touch(START + 10, 3 * PAGE)
    assert kernel.views.accessed_array[flats].all()
    assert not kernel.views.dirty_array[flats].any()
    task.touch(START, 2 * PAGE, write=True)
    assert kernel.views.dirty_array[flats].tolist() == [1, 1, 0, 0]
    assert task.read(START, 6) == b"keep\0\0"


def test_touch_for_writing_needs_the_right(kernel: FakeKernel, task: Task) -> None:
    """A write touch of pages that may only be read is a segmentation fault, a read touch is none."""
    kernel.add_pages(2, READ)
    task.touch(START, 2 * PAGE)
    with pytest.raises(SegmentationFault):
        task.touch(START, 2 * PAGE, write=True)


def test_read_into_any_buffer(kernel: FakeKernel, task: Task) -> None:
    """A numpy array of any type is filled; what cannot be written to is refused."""
    task.write(START, np.arange(1024, dtype="<i8").tobytes())
    target = np.zeros((32, 32), "<i8")
    task.read_into(START, target)  # type: ignore[arg-type] # an array is a buffer
    assert (target.reshape(-1) == np.arange(1024)).all()
    sent = len(kernel.calls)
    for buffer in (b"frozen", memoryview(bytearray(8))[::2]):
        with pytest.raises(ValueError, match="contiguous"):
            task.read_into(START, buffer)
    assert len(kernel.calls) == sent
