"""The host's page faults of a program, each with the thread and the address, for whoever is allowed to ask for them.

Nothing is recorded until somebody needs it, and nothing is asked while the program runs: the host writes into rings in
memory, one for each of its processors. Source: perf_event_open(2); linux/perf_event.h, kernel/events/core.c (6.12).
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import struct
import threading
import time
from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from numaemu_host import sigmask
from numaemu_host.libc import failure, libc
from numaemu_run.abi import Abi
from numaemu_run.procfs import PAGE_SIZE

#: Faults, as the host writes them; times are those of `now_ns`.
Touches = npt.NDArray[np.void]
TOUCH: Final = np.dtype(
    [
        ("type", "<u4"),
        ("misc", "<u2"),
        ("size", "<u2"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("time_ns", "<u8"),
        ("address", "<u8"),
    ]
)
NO_TOUCHES: Final[Touches] = np.empty(0, TOUCH)

#: struct perf_event_attr up to clockid: type, size, config, period, what is sampled, what is read, flags, watermark.
_ATTRIBUTES: Final = struct.Struct("=IIQQQQQI40xi16x")
_SOFTWARE: Final = 1
_PAGE_FAULTS: Final = 2
_TID_TIME_ADDRESS: Final = 1 << 1 | 1 << 2 | 1 << 3
_DISABLED: Final = 1 << 0
_INHERIT: Final = 1 << 1
_EXCLUDE_KERNEL: Final = 1 << 5 | 1 << 6
_WATERMARK: Final = 1 << 14
_USE_CLOCK: Final = 1 << 25
_CLOSE_ON_EXEC: Final = 1 << 3
_ENABLE: Final = 0x2400

_SAMPLE_TYPE: Final = 9
#: Where a record says how long it is.
_SIZE: Final = struct.Struct("=6xH")
#: Where the ring's page of numbers has how far it is written and read.
_HEAD_AT: Final = 1024
_TAIL_AT: Final = 1032
_NUMBER: Final = struct.Struct("=Q")
#: What is kept until somebody asks: two million faults.
_TAKEN_BYTES_MAX: Final = 64 << 20
#: With its page of numbers it is what the host lets a user lock for each processor (perf_event_mlock_kb).
_RING_BYTES: Final = 512 << 10


def now_ns() -> int:
    """The time by the clock of the faults."""
    return time.monotonic_ns()


class FaultEvents:
    """The faults of a process that has not begun yet, and of all that will descend from it."""

    def __init__(self, abi: Abi, pid: int) -> None:
        """Prepared, and not begun.

        Raises:
            OSError: EACCES, EPERM, ENOSYS: the host, or an outer filter, does not allow it.
        """
        with contextlib.ExitStack() as stack:
            self._rings = [_Ring(_opened(abi, pid, cpu), stack) for cpu in sorted(os.sched_getaffinity(0))]
            self._closed, self._closing = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, self._closed)
            stack.callback(os.close, self._closing)
            self._stack = stack.pop_all()
        self._emptier: threading.Thread | None = None
        self._guard = threading.Lock()
        self._taken: deque[bytes] = deque()
        self._taken_bytes = 0

    def begin(self) -> None:
        """Record from now on. A second call does nothing.

        Raises:
            OSError: EPERM: the user may lock no more memory. ENOMEM.
        """
        if self._emptier is None:
            for ring in self._rings:
                ring.begin(self._stack)
            # Rings are soon full, and whoever wants the faults may wait for the machine just then.
            self._emptier = threading.Thread(target=self._empty, name="fault events", daemon=True)
            with sigmask.held(signal.valid_signals()):  # those are for others
                self._emptier.start()

    def take(self) -> Touches:
        """What was recorded since this was called last, in no order; what there was no room for is missing."""
        with self._guard:
            self._empty_rings()
            bodies = list(self._taken)
            self._taken.clear()
            self._taken_bytes = 0
        return np.concatenate([NO_TOUCHES, *map(parsed, bodies)])

    def _empty(self) -> None:
        """The thread: whenever a part of a ring is full, until all is over."""
        poll = select.poll()
        for fd in (self._closed, *(ring.fd for ring in self._rings)):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, event in poll.poll():
                if fd == self._closed:
                    return
                if event & ~select.POLLIN:  # the whole program has ended
                    poll.unregister(fd)
            with self._guard:
                self._empty_rings()

    def _empty_rings(self) -> None:
        for ring in self._rings:
            body = ring.take()
            if body:
                self._taken.append(body)
                self._taken_bytes += len(body)
        while self._taken_bytes > _TAKEN_BYTES_MAX:
            self._taken_bytes -= len(self._taken.popleft())

    def close(self) -> None:
        """No more."""
        if self._emptier is not None:
            os.write(self._closing, b"x")
            self._emptier.join()
        self._stack.close()


def parsed(body: bytes) -> Touches:
    """The faults among records; of others there are few: how many found no room."""
    parts = [NO_TOUCHES]
    at = 0
    while at < len(body):
        rest = np.frombuffer(body, TOUCH, (len(body) - at) // TOUCH.itemsize, at)
        others = np.flatnonzero((rest["type"] != _SAMPLE_TYPE) | (rest["size"] != TOUCH.itemsize))
        parts.append(rest[: others[0]] if len(others) else rest)
        at += parts[-1].nbytes
        if at < len(body):
            at += _SIZE.unpack_from(body, at)[0] or len(body)
    return np.concatenate(parts)


class _Ring:
    """What one processor records."""

    def __init__(self, fd: int, stack: contextlib.ExitStack) -> None:
        """Owns the descriptor until the stack is closed. Memory is only taken by `begin`."""
        self.fd = fd
        stack.callback(os.close, fd)
        self._memory: mmap.mmap | None = None
        self._read = 0

    def begin(self, stack: contextlib.ExitStack) -> None:
        """Record from now on."""
        self._memory = mmap.mmap(self.fd, PAGE_SIZE + _RING_BYTES)
        stack.callback(self._memory.close)
        fcntl.ioctl(self.fd, _ENABLE, 0)

    def take(self) -> bytes:
        """The records that are new."""
        memory = self._memory
        if memory is None:
            return b""
        (written,) = _NUMBER.unpack_from(memory, _HEAD_AT)
        if written == self._read:
            return b""
        at, end = PAGE_SIZE + self._read % _RING_BYTES, PAGE_SIZE + written % _RING_BYTES
        body = memory[at:end] if at < end else memory[at:] + memory[PAGE_SIZE:end]
        self._read = written
        _NUMBER.pack_into(memory, _TAIL_AT, written)
        return body


def _opened(abi: Abi, pid: int, cpu: int) -> int:
    """A descriptor of the faults of a process on one processor, those in the kernel too if that may be."""
    for exclude in (0, _EXCLUDE_KERNEL):
        flags = _DISABLED | _INHERIT | _WATERMARK | _USE_CLOCK | exclude
        attributes = _ATTRIBUTES.pack(
            _SOFTWARE,
            _ATTRIBUTES.size,
            _PAGE_FAULTS,
            1,
            _TID_TIME_ADDRESS,
            0,
            flags,
            _RING_BYTES // 4,
            time.CLOCK_MONOTONIC,
        )
        fd = int(
            libc.syscall(
                ctypes.c_long(abi.perf_event_open),
                ctypes.c_char_p(attributes),
                ctypes.c_int(pid),
                ctypes.c_int(cpu),
                ctypes.c_int(-1),
                ctypes.c_ulong(_CLOSE_ON_EXEC),
            )
        )
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in {errno.EACCES, errno.EPERM}:
            break
    raise failure("perf_event_open")
