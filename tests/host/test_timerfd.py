"""A descriptor that tells the time."""

import os
import select
from collections.abc import Iterator

import pytest

from numaemu_host.timerfd import Timer


@pytest.fixture
def timer() -> Iterator[Timer]:
    made = Timer()
    yield made
    made.close()


def is_readable(timer: Timer, timeout_s: float = 0) -> bool:
    return bool(select.select([timer.fd], [], [], timeout_s)[0])


def test_it_is_readable_once_its_time_has_come(timer: Timer) -> None:
    """And stays so until it is set again; a child that executes a program does not have it."""
    assert not is_readable(timer)
    timer.set(1e-6)
    assert is_readable(timer, 10)
    assert is_readable(timer)
    timer.set(3600)
    assert not is_readable(timer)
    assert not os.get_inheritable(timer.fd)


@pytest.mark.parametrize("after_s", [0, 1e-12])
def test_no_time_at_all_is_a_short_one(timer: Timer, after_s: float) -> None:
    """For the kernel, 0 would be never."""
    timer.set(after_s)
    assert is_readable(timer, 10)


def test_one_that_is_closed_cannot_be_set() -> None:
    """It says so, with the kernel's reason."""
    timer = Timer()
    timer.close()
    with pytest.raises(OSError, match="timerfd_settime: Bad file descriptor"):
        timer.set(1)
