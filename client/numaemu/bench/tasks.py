"""Tasks come and go: fork and exit, beside the host kernel's own."""

import os
import time
from collections.abc import Iterator

from numaemu.bench.machines import MOVED_BYTES, booted, seconds, small_pages
from numaemu.bench.rounds import Figure, compare, times


def fork_64m() -> Iterator[Figure]:
    """A fork of a task that has written 64 MiB, beside os.fork of a process that has."""
    with booted() as machine, machine.attach() as task, small_pages(MOVED_BYTES) as memory:
        buf = task.mmap(MOVED_BYTES)

        def ours() -> float:
            buf.touch(write=True)
            began = time.perf_counter()
            child = task.fork()
            took = time.perf_counter() - began
            child.close()
            return took * 1e3

        def peer() -> float:
            memory[:] = bytes(MOVED_BYTES)
            began = time.perf_counter()
            pid = os.fork()
            if not pid:
                os._exit(0)
            took = time.perf_counter() - began
            os.waitpid(pid, 0)
            return took * 1e3

        yield compare("fork-64M", "ms", ours, peer, peer_is="os.fork with as many pages", reach=times(3))


def exit_64m() -> Iterator[Figure]:
    """The exit of a task that has 64 MiB of its own, beside that of a process that has."""
    with booted() as machine:

        def ours() -> float:
            task = machine.attach()
            task.mmap(MOVED_BYTES).touch(write=True)
            return seconds(task.close) * 1e3

        yield compare("exit-64M", "ms", ours, _exit_of_a_process, peer_is="_exit with as many pages", reach=times(3))


def _exit_of_a_process() -> float:
    """Milliseconds from the word to exit until the end is known."""
    told, tell = os.pipe()
    ready, say_ready = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(tell)
        memory = small_pages(MOVED_BYTES)
        memory[:] = bytes(MOVED_BYTES)
        os.write(say_ready, b"x")
        os.read(told, 1)
        os._exit(0)
    os.read(ready, 1)

    def end() -> None:
        os.write(tell, b"x")
        os.waitpid(pid, 0)

    took = seconds(end) * 1e3
    for descriptor in (told, tell, ready, say_ready):
        os.close(descriptor)
    return took
