"""Signals that a thread holds for a while. Source: pthread_sigmask(3), signal(7)."""

import contextlib
import signal
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def held(numbers: Iterable[int]) -> Iterator[set[int]]:
    """This thread gets none of them meanwhile, and a thread that it starts begins so; gives what it held before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:  # Python runs the handler of one that came just before in the middle of this
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield set(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
