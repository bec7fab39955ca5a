"""Asks libc for its CPU until that makes no call any more; so do a thread, a child, and what it then executes."""

import ctypes
import os
import resource
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
#: Whoever takes longer never comes.
SECONDS = 30
ROUND = 1000
ROUNDS_MAX = 2000


def who() -> int:
    return int(libc.sched_getcpu())


def wait_until_told() -> int:
    """A call makes this thread sleep. Gives the CPU, which must be the same all the time."""
    first = who()
    for _ in range(ROUNDS_MAX):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        assert all(who() == first for _ in range(ROUND))
        if resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < ROUND // 10:
            return first
    raise AssertionError("nobody has told")


def both() -> tuple[int, int]:
    cpu, node = ctypes.c_uint(99), ctypes.c_uint(99)
    assert libc.getcpu(ctypes.byref(cpu), ctypes.byref(node)) == 0
    assert libc.getcpu(None, None) == 0
    return cpu.value, node.value


def child() -> None:
    """What was told before the fork holds for it, too, until it moves; its parent does not."""
    pid = os.fork()
    if not pid:
        try:
            assert both() == (1, 1), both()
            os.sched_setaffinity(0, {3})
            assert both() == (3, 3), both()
            assert wait_until_told() == 3
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert both() == (1, 1), both()


def thread() -> None:
    """As soon as one thread is elsewhere, each is told its own CPU."""
    moved, done = threading.Event(), threading.Event()

    def body() -> None:
        assert both() == (1, 1), both()
        os.sched_setaffinity(0, {2})
        assert both() == (2, 2), both()
        moved.set()
        assert done.wait(SECONDS)
        found.append(both())

    found: list[tuple[int, int]] = []
    other = threading.Thread(target=body)
    other.start()
    assert moved.wait(SECONDS)
    for _ in range(3 * ROUND):
        assert both() == (1, 1), both()
    done.set()
    other.join()
    assert found == [(2, 2)], found
    assert both() == (1, 1), both()


if len(sys.argv) > 1:  # executed by itself
    assert both() == (3, 3), both()
    assert wait_until_told() == 3
    sys.exit(0)
assert wait_until_told() == 0
assert both() == (0, 0), both()
os.sched_setaffinity(0, {1, 2})
assert both() == (1, 1), both()
assert wait_until_told() == 1
child()
thread()
assert wait_until_told() == 1
os.sched_setaffinity(0, {3})
os.execv(sys.executable, [sys.executable, __file__, "again"])
