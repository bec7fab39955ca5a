"""Signals that are held."""

import signal
import threading

import pytest

from numaemu_host import sigmask


def mask() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_threads_that_begin_meanwhile_hold_them_too() -> None:
    """And go on holding them; the mask of before is told, and is there again afterwards."""
    before = mask()
    found: list[set[int]] = []
    with sigmask.held({signal.SIGUSR1}) as told:
        thread = threading.Thread(target=lambda: found.append(mask()))
        thread.start()
        thread.join()
        assert found == [before | {signal.SIGUSR1}] == [mask()]
    assert told == before == mask()


def test_a_handler_that_raises_leaves_the_mask_as_it_was() -> None:
    """A signal that comes meanwhile strikes at the end."""
    before = mask()
    handler = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), sigmask.held({signal.SIGUSR1}):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert mask() == before
