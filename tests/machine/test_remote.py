"""Remote tasks: the same program has the same results through the daemon as in mapped memory."""

import errno
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

import numaemu as nm

Boot = Callable[..., nm.Machine]
PAGE = 4096
PAGES = 96


def outcome(act: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever was done gives
    """What came of a step: its result, or its error."""
    try:
        return act()
    except nm.SegmentationFault as error:
        return (type(error).__name__, error.address)
    except nm.OutOfMemory:
        return "OutOfMemory"
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Program:
    """Random steps on one task, every one with a result that can be compared; forks are followed."""

    def __init__(self, seed: int, task: nm.Task) -> None:
        self.draw = random.Random(seed)
        self.tasks = [task]
        self.start = task.mmap(PAGES * PAGE).start
        self.results: list[Any] = []

    def span(self) -> tuple[int, int]:
        """Some bytes; now and then beyond the end."""
        first = self.draw.randrange(PAGES * PAGE)
        return self.start + first, self.draw.choice((1, 7, 64, PAGE, 5 * PAGE + 3, 40 * PAGE))

    def pages(self) -> tuple[int, int]:
        """Whole pages."""
        return self.start + self.draw.randrange(PAGES) * PAGE, self.draw.randrange(1, 20) * PAGE

    def step(self) -> None:
        """One of everything that a program does with memory."""
        draw, task = self.draw, self.draw.choice(self.tasks)
        addr, length = self.span()
        low, size = self.pages()
        data = draw.randbytes(length)
        target = bytearray(b"\xee" * length)
        node = {draw.randrange(2)}
        mode = draw.choice((nm.MPOL_BIND, nm.MPOL_INTERLEAVE, nm.MPOL_PREFERRED))
        steps: dict[str, Callable[[], Any]] = {
            "read": lambda: task.read(addr, length),
            "read_into": lambda: task.read_into(addr, target),
            "write": lambda: task.write(addr, data),
            "write more": lambda: task.write(addr, memoryview(data)[::2]),
            "touch": lambda: task.touch(addr, length, bool(length & 1)),
            "munmap": lambda: task.munmap(low, min(size, 3 * PAGE)),
            "mmap": lambda: task.mmap(size, low, flags=nm.MAP_PRIVATE | nm.MAP_ANONYMOUS | nm.MAP_FIXED).start,
            "mprotect": lambda: task.mprotect(low, size, draw.choice((nm.PROT_NONE, nm.PROT_READ, 3))),
            "mbind": lambda: task.mbind(low, size, mode, node, nm.MPOL_MF_MOVE),
            "madvise": lambda: task.madvise(low, size, nm.MADV_DONTNEED),
            "fork": self.fork,
        }
        name = draw.choice(list(steps))
        result = outcome(steps[name])
        where = [one.where(self.start, PAGES * PAGE).tolist() for one in self.tasks]
        self.results.append((name, addr, length, low, size, result, bytes(target), where))

    def fork(self) -> int:
        """Another task, at most three of them."""
        if len(self.tasks) < 3:
            self.tasks.append(self.draw.choice(self.tasks).fork())
        return len(self.tasks)

    def run(self, steps: int) -> list[Any]:
        """All steps, and the whole memory in the end."""
        for _ in range(steps):
            self.step()
        for task in self.tasks:
            self.results.append(task.numa_maps())
            for page in range(PAGES):
                addr = self.start + page * PAGE
                self.results.append(outcome(lambda task=task, addr=addr: task.read(addr, PAGE)))  # type: ignore[misc]  # bound now
        for task in self.tasks[1:]:
            task.close()
        return self.results


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_program_has_the_same_results(seed: int, profile: str, boot: Boot) -> None:
    """Bytes, errors, addresses of faults, nodes of pages and numa_maps of a remote task are those of a local one."""
    found = []
    for remote in (False, True):
        machine = boot(profile=profile)
        with machine.attach(remote=remote) as task:
            assert task.remote is remote
            found.append(Program(seed, task).run(120))
    for local, remote_one in zip(*found, strict=True):
        assert remote_one == local
    assert len({step[0] for step in found[0] if isinstance(step, tuple) and len(step) == 8}) == 11


def test_a_mapping_of_a_remote_task_is_used_like_any(boot: Boot) -> None:
    """Slices, single bytes and buffers work; pinning is refused with the reason."""
    machine = boot()
    with machine.attach(remote=True) as task:
        buf = task.mmap(600 * 1024)
        buf[0:5] = b"hello"
        buf[5] = 33
        buf.write(300 * 1024, b"x" * 300 * 1024)
        assert (buf[0:6], buf[-1], buf.read(300 * 1024 - 1, 2)) == (b"hello!", 120, b"\0x")
        with pytest.raises(OSError, match="remote task does not map") as caught, buf.pin():
            pass
        assert caught.value.errno == errno.EOPNOTSUPP
        with task.fork() as child:
            assert child.remote
            child.write(buf.start, b"H")
            assert (child.read(buf.start, 5), buf[0:5]) == (b"Hello", b"hello")


def test_a_remote_task_shares_an_address_space_with_a_local_one(boot: Boot) -> None:
    """Each sees at once what the other has written, also after the pages were migrated."""
    machine = boot(profile="linux-6.12")
    with machine.attach() as local, machine.attach(share_mm=local.pid, remote=True) as far:
        buf = local.mmap(32 * PAGE)
        for round_number in range(20):
            local.write(buf.start, bytes([round_number]) * 32 * PAGE)
            local.mbind(buf.start, buf.length, nm.MPOL_BIND, {round_number % 2}, nm.MPOL_MF_MOVE)
            assert far.read(buf.start, buf.length) == bytes([round_number]) * 32 * PAGE
            far.write(buf.start + 5, b"far")
            assert local.read(buf.start, 9) == bytes([round_number]) * 5 + b"far" + bytes([round_number])


def test_more_than_memory_goes_through_a_remote_task(boot: Boot) -> None:
    """A range larger than memory is written and read back; what does not fit memory and swap is out of memory."""
    machine = boot(memory="2M", swap="4M")
    data = random.Random(5).randbytes(5 << 20)
    with machine.attach(remote=True) as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        assert buf.read(0, len(data)) == data
    with machine.attach(remote=True) as task:
        buf = task.mmap(32 << 20)
        with pytest.raises(nm.OutOfMemory):
            buf.write(0, bytes(32 << 20))


def test_remote_accesses_and_a_daemon_that_dies(boot: Boot, pid_of: Callable[..., int]) -> None:
    """A remote task writes and reads on while daemons die; every byte is the last one that was written."""
    machine = boot()
    with machine.attach(remote=True) as task:
        buf = task.mmap(64 * PAGE)
        for number in range(4):
            data = bytes([number + 1]) * buf.length
            buf.write(0, data)
            os.kill(pid_of(machine, "kernel"), signal.SIGKILL)
            assert buf.read(0, buf.length) == data
