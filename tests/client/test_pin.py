"""Pins: records, the array, and what happens to both in the end."""

from __future__ import annotations

import errno
import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.client.conftest import MM, PAGE, READ, START

from numaemu import pin
from numaemu.mapping import Mapping
from numaemu.task import Task
from numaemu_core import limits
from numaemu_core.errors import SegmentationFault
from numaemu_host.ofdlock import OfdLock

if TYPE_CHECKING:
    from tests.client.conftest import FakeKernel

VPN = START >> 12
SLOT = 5


@pytest.fixture
def mapping(kernel: FakeKernel, task: Task) -> Mapping:
    """64 pages in frames of both nodes, scattered."""
    kernel.free = [10, 11, 12, 300, 301, 9, 8, 7, 255, 256, 257, *range(400, 512)]
    found = Mapping(task, START, 64 * PAGE)
    task.touch(START, found.length, write=True)
    return found


def records(kernel: FakeKernel) -> list[int]:
    """What the slot holds pinned."""
    row: list[int] = kernel.views.pins[SLOT, : kernel.views.pin_counts[SLOT]].tolist()
    return row


def test_array_is_the_memory(kernel: FakeKernel, task: Task, mapping: Mapping) -> None:
    """Array and task see the same bytes, both ways; the records name the frames."""
    task.write(START + 3 * PAGE - 2, b"four")
    with mapping.pin() as array:
        assert array.dtype == np.uint8
        assert array.shape == (64 * PAGE,)
        assert array.flags.writeable
        assert array[3 * PAGE - 2 : 3 * PAGE + 2].tobytes() == b"four"
        array[-1] = 99
        assert mapping[-1] == 99
        assert [record - 1 for record in records(kernel)] == (kernel.views.pte[kernel.flats(64)] >> 12).tolist()
        assert kernel.views.dirty_array[kernel.flats(64)].all()
    assert records(kernel) == []
    assert kernel.asked("unpinned") == [()]


def test_stale_view_sees_zeros(mapping: Mapping) -> None:
    """After the pin the array reads as zeros, wherever the bytes are now; the range goes when nobody holds it."""
    mapping[0:4] = b"gone"
    with mapping.pin() as array:
        start = array.ctypes.data
    assert array[:4].tobytes() == bytes(4)

    def mapped() -> bool:
        return f"{start:x}-" in Path("/proc/self/maps").read_text()

    assert mapped()
    del array
    gc.collect()
    assert not mapped()


def test_read_only_mapping(kernel: FakeKernel, mapping: Mapping) -> None:
    """Pages that may only be read give an array that may only be read, and do not become dirty."""
    flats = kernel.flats(64)
    kernel.views.pte[flats] = kernel.views.pte[flats] & ~np.uint64(4)
    kernel.add_pages(64, READ)
    kernel.views.dirty_array[flats] = 0
    with mapping.pin() as array:
        assert not array.flags.writeable
    assert not kernel.views.dirty_array[flats].any()


def test_length_as_asked(task: Task) -> None:
    """A mapping that ends in the middle of a page has an array that ends there."""
    with Mapping(task, START, 2 * PAGE + 100).pin() as array:
        assert len(array) == 2 * PAGE + 100


def test_pins_end_in_any_order(kernel: FakeKernel, task: Task) -> None:
    """The first pin may end before the second: its records are cleared, the others stay."""
    first, second = pin.Pin(task, START, 2 * PAGE), pin.Pin(task, START + 8 * PAGE, PAGE)
    first.take()
    second.take()
    both = records(kernel)
    assert len(both) == 3
    first.undo()
    assert records(kernel) == [0, 0, both[2]]
    second.undo()
    second.undo()
    assert records(kernel) == []


def test_page_that_goes_away_is_faulted_again(
    kernel: FakeKernel, mapping: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is gone when its table is locked is brought back; what was recorded before it stays recorded."""
    record_piece = pin.Pin.record_piece
    taken = iter([VPN + 5, VPN + 6])

    def steal_first(self: pin.Pin, *args: object, **options: object) -> int:
        vpn = next(taken, None)
        if vpn is not None:
            kernel.unmap(vpn)
        return record_piece(self, *args, **options)  # type: ignore[arg-type] # handed on as it came

    monkeypatch.setattr(pin.Pin, "record_piece", steal_first)
    with mapping.pin():
        assert [record - 1 for record in records(kernel)] == (kernel.views.pte[kernel.flats(64)] >> 12).tolist()


def test_moved_epoch_begins_anew(kernel: FakeKernel, mapping: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the mm's tables changed while pages were recorded, all records are taken back and made again."""
    record_piece = pin.Pin.record_piece
    moves = iter([1, 2])

    def move_epoch(self: pin.Pin, *args: object, **options: object) -> int:
        done = record_piece(self, *args, **options)  # type: ignore[arg-type] # handed on as it came
        kernel.views.epochs[MM] = next(moves, kernel.views.epochs[MM])
        return done

    monkeypatch.setattr(pin.Pin, "record_piece", move_epoch)
    with mapping.pin():
        assert len(records(kernel)) == 64
        assert kernel.views.epochs[MM] == 2


def test_waits_for_mmap_sem(kernel: FakeKernel, mapping: Mapping) -> None:
    """While somebody holds mmap_sem for writing no page is pinned; once it is free, all are."""
    writer = OfdLock(kernel.fds["mmap_sem"])
    assert writer.try_write(MM)
    events: list[str] = []

    def let_go() -> None:
        events.append("unlocked")
        writer.unlock(MM)

    threading.Timer(0.1, let_go).start()
    with mapping.pin():
        assert events == ["unlocked"]
    writer.close()


def test_gives_up_on_mmap_sem(kernel: FakeKernel, mapping: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address space that stays locked is an error after a while, and nothing stays pinned."""
    monkeypatch.setattr(pin, "PIN_S", 0.05)
    writer = OfdLock(kernel.fds["mmap_sem"])
    assert writer.try_write(MM)
    with pytest.raises(OSError, match="locked") as caught, mapping.pin():
        pass
    assert caught.value.errno == errno.EBUSY
    assert records(kernel) == []
    writer.close()


def test_gives_up_on_pages(kernel: FakeKernel, mapping: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that never stay in memory together are an error after a while, and nothing stays pinned."""
    monkeypatch.setattr(pin, "PIN_S", 0.05)
    kernel.unmap(VPN + 3)
    kernel.on_fault = kernel.unmap
    monkeypatch.setattr(Task, "touch", lambda *_args, **_options: None)
    with pytest.raises(OSError, match="stay in memory") as caught, mapping.pin():
        pass
    assert caught.value.errno == errno.ENOMEM
    assert records(kernel) == []


def test_too_many_pages(kernel: FakeKernel, task: Task) -> None:
    """More pages than a thread has records are refused before anything is done."""
    with (
        pytest.raises(OSError, match="pin") as caught,
        Mapping(task, START, (limits.MAX_PINS_PER_SLOT + 1) * PAGE).pin(),
    ):
        pass
    assert caught.value.errno == errno.ENOMEM
    assert not kernel.asked("fault")


def test_unmapped_pages(kernel: FakeKernel, task: Task) -> None:
    """A range with a hole is a segmentation fault, and nothing stays pinned."""
    del kernel.mapped[VPN + 2]
    with pytest.raises(SegmentationFault), Mapping(task, START, 4 * PAGE).pin():
        pass
    assert records(kernel) == []


def test_closing_the_task_ends_its_pins(kernel: FakeKernel) -> None:
    """A pin does not outlive its task: the array becomes zeros before the frames are given back."""
    kernel.add_pages(2)
    task = kernel.task()
    held = pin.Pin(task, START, 2 * PAGE)
    array = held.take()
    array[:] = 1
    task.close()
    assert not array.any()
    held.undo()
    assert kernel.asked("exit") == [()]
