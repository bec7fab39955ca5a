"""Requests to the swap node: copies both ways, and what is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu_core.columns import Columns, columns_in_memory
from numaemu_core.layout import layout_of
from numaemu_core.topology import from_dict
from numaemu_daemon.bus_client import BusMessageError
from numaemu_daemon.swap_copy import SwapCopier

LAYOUT = layout_of(from_dict({"swap": "128K", "node": [{"memory": "64K", "cpus": [0]}, {"memory": "64K"}]}))
FRAMES, SLOTS = LAYOUT.frame_count, LAYOUT.slot_count
BEYOND = SLOTS + LAYOUT.disk_count


def packed(*numbers: int) -> bytes:
    return np.array(numbers, "<i8").tobytes()


def random_columns() -> Columns:
    columns = columns_in_memory(LAYOUT)
    generator = np.random.default_rng(3)
    columns.frames[:] = generator.integers(0, 256, columns.frames.shape, np.uint8)
    columns.swap[:] = generator.integers(0, 256, columns.swap.shape, np.uint8)
    return columns


def distinct(count: int) -> st.SearchStrategy[list[int]]:
    return st.permutations(range(count))


@given(pfns=distinct(FRAMES), slots=distinct(SLOTS), pages=st.integers(0, min(FRAMES, SLOTS)))
def test_pages_go_out_and_come_back(pfns: list[int], slots: list[int], pages: int) -> None:
    """What is written to slots is read from them into any frames, in any order, however often it is asked."""
    columns = random_columns()
    frames, swap = columns.frames.copy(), columns.swap.copy()
    copier = SwapCopier(columns)
    pfns, slots = pfns[:pages], slots[:pages]
    for _ in range(2):
        assert copier.perform(["write", 4, packed(*pfns), packed(*slots)]) == ["done", 4, pages]
    swap[slots] = frames[pfns]
    assert (columns.swap == swap).all()
    assert (columns.frames == frames).all()
    back = pfns[::-1]
    for _ in range(2):
        assert copier.perform(["read", 5, packed(*slots), packed(*back)]) == ["done", 5, pages]
    expected = frames.copy()
    expected[back] = frames[pfns]
    assert (columns.frames == expected).all()
    assert copier.counters() == {"pages_in": 2 * pages, "pages_out": 2 * pages, "messages": 4}


@pytest.mark.parametrize(
    "message",
    [
        ["write"],
        ["write", 1, packed(0)],
        ["write", 1, packed(0), packed(0), 1],
        ["swapoff", 1, packed(0), packed(0)],
        ["write", "1", packed(0), packed(0)],
        ["write", True, packed(0), packed(0)],
        ["write", -1, packed(0), packed(0)],
        ["write", 1, [0], packed(0)],
        ["write", 1, packed(0)[:7], packed(0)],
        ["write", 1, packed(0, 1), packed(0)],
        ["write", 1, packed(-1), packed(0)],
        ["write", 1, packed(FRAMES), packed(0)],
        ["write", 1, packed(0), packed(BEYOND)],
        ["read", 1, packed(BEYOND), packed(0)],
        ["read", 1, packed(0), packed(FRAMES)],
        ["read", 1, packed(0), packed(-(1 << 63))],
    ],
    ids=repr,
)
def test_wrong_requests_change_nothing(message: list[Any]) -> None:
    """A request of the wrong shape or with numbers from outside is refused, and nothing is copied or counted."""
    columns = random_columns()
    frames, swap = columns.frames.copy(), columns.swap.copy()
    copier = SwapCopier(columns)
    with pytest.raises(BusMessageError):
        copier.perform(message)
    assert (columns.frames == frames).all()
    assert (columns.swap == swap).all()
    assert copier.counters() == {"pages_in": 0, "pages_out": 0, "messages": 0}


def test_slots_beyond_the_swap_area_are_pages_of_the_disk() -> None:
    """A write to a slot past the swap area goes to the disk segment; one request never names both."""
    columns = random_columns()
    copier = SwapCopier(columns)
    copier.perform(["write", 1, packed(3), packed(SLOTS + 2)])
    assert (columns.disk[2] == columns.frames[3]).all()
    copier.perform(["read", 2, packed(SLOTS + 2), packed(5)])
    assert (columns.frames[5] == columns.frames[3]).all()
    with pytest.raises(BusMessageError):
        copier.perform(["write", 3, packed(3, 4), packed(SLOTS - 1, SLOTS)])
