"""Tables of robust pthread mutexes in memory that processes share.

When the thread that holds one dies, however it dies, the kernel marks the mutex, and the next taker gets it with
`OWNER_DIED`: it holds the mutex, must see to what it protects, then call `make_consistent` and `unlock`. Unlocking
without `make_consistent` spoils the mutex until it is initialised anew: the next taker gets OSError(ENOTRECOVERABLE),
later ones that or BUSY for ever (glibc's trylock leaves its own mark in a spoilt mutex).

Rules:

* The owner is a thread of the host, not a process: only the thread that locked may unlock (else OSError(EPERM)), and
  one that asks for what it holds gets OSError(EDEADLK).
* Never unmap a table while a thread of this process holds one of its mutexes: libc and the kernel keep their list of
  held mutexes inside the mutexes themselves.
* A thread holds at most 1,024 at a time: the kernel gives up on a dead thread's list after 2,048.
* Initialise a mutex once, before any other process can see it.
"""

import ctypes
import enum
import errno
import os
import platform
import time
from typing import Any

MUTEX_BYTES = 64
"""Bytes from one mutex of a table to the next: a cache line, so that neighbours do not disturb each other."""

_SIZEOF_MUTEX = {"x86_64": 40, "aarch64": 48}
assert _SIZEOF_MUTEX.get(platform.machine(), 0) <= MUTEX_BYTES
_ATTRIBUTE_BYTES = 64  # more than any pthread_mutexattr_t

_PROCESS_SHARED = 1
_ROBUST = 1
_ERRORCHECK = 2

#: The bits of a mutex's first word that number its holder (FUTEX_TID_MASK).
_OWNER_MASK = 0x3FFFFFFF

_SLICE_S = 0.1  # Python's signal handlers run between waits of this length
_NS_PER_S = 1_000_000_000


class MutexState(enum.Enum):
    """What came of an attempt to lock."""

    ACQUIRED = "acquired"
    """The caller holds the mutex."""
    BUSY = "busy"
    """Someone else holds it."""
    OWNER_DIED = "owner died"
    """The caller holds it, and its last holder died with it: `make_consistent` before `unlock`."""


_ACQUIRED = MutexState.ACQUIRED
_BUSY = MutexState.BUSY
_STATES = {
    0: MutexState.ACQUIRED,
    errno.EBUSY: MutexState.BUSY,
    errno.ETIMEDOUT: MutexState.BUSY,
    errno.EOWNERDEAD: MutexState.OWNER_DIED,
}


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


# PyDLL keeps the GIL over calls that never wait; CDLL lets it go for the one that does.
_quick = ctypes.PyDLL(None)
_waiting = ctypes.CDLL(None)

_trylock = _quick.pthread_mutex_trylock
_trylock.argtypes = (ctypes.c_void_p,)
_unlock = _quick.pthread_mutex_unlock
_unlock.argtypes = (ctypes.c_void_p,)
_consistent = _quick.pthread_mutex_consistent
_consistent.argtypes = (ctypes.c_void_p,)
_init = _quick.pthread_mutex_init
_init.argtypes = (ctypes.c_void_p, ctypes.c_void_p)

_clocklock: Any = getattr(_waiting, "pthread_mutex_clocklock", None)
if _clocklock is not None:
    _clocklock.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec))
_timedlock = _waiting.pthread_mutex_timedlock
_timedlock.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Timespec))


def _error(code: int, what: str) -> OSError:
    return OSError(code, f"{what}: {os.strerror(code)}")


def _check(code: int, what: str) -> None:
    if code:
        raise _error(code, what)


def _robust_attributes() -> ctypes.Array[ctypes.c_char]:
    """A pthread_mutexattr_t for mutexes that are robust, shared and checked."""
    attributes = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
    _check(_quick.pthread_mutexattr_init(attributes), "pthread_mutexattr_init")
    _check(_quick.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED), "pthread_mutexattr_setpshared")
    _check(_quick.pthread_mutexattr_setrobust(attributes, _ROBUST), "pthread_mutexattr_setrobust")
    _check(_quick.pthread_mutexattr_settype(attributes, _ERRORCHECK), "pthread_mutexattr_settype")
    return attributes


def _after(clock: int, seconds: float) -> _Timespec:
    """The moment `seconds` from now on a clock of the host."""
    return _Timespec(*divmod(time.clock_gettime_ns(clock) + int(seconds * _NS_PER_S), _NS_PER_S))


def _lock_within(address: int, seconds: float) -> int:
    """Wait at most `seconds` for a mutex; the code that pthread gave."""
    if _clocklock is not None:
        clock = time.CLOCK_MONOTONIC
        code: int = _clocklock(address, clock, ctypes.byref(_after(clock, seconds)))
    else:  # libc without clocklock knows only the clock that can be set; the slices keep the harm small
        code = _timedlock(address, ctypes.byref(_after(time.CLOCK_REALTIME, seconds)))
    return code


class MutexTable:
    """`count` mutexes, `MUTEX_BYTES` apart, from an address in shared memory; it owns neither the memory nor the locks.

    An index outside 0 … count - 1 is an IndexError everywhere.
    """

    __slots__ = ("_addresses",)

    def __init__(self, address: int, count: int) -> None:
        """Look at a table that lies at `address`; ValueError unless that is a multiple of `MUTEX_BYTES`."""
        if address <= 0 or address % MUTEX_BYTES:
            raise ValueError(f"a table of mutexes must lie at a multiple of {MUTEX_BYTES}, not at {address:#x}")
        if count < 0:
            raise ValueError(f"a table cannot hold {count} mutexes")
        self._addresses = range(address, address + count * MUTEX_BYTES, MUTEX_BYTES)

    def _address(self, index: int) -> int:
        if index < 0:
            raise IndexError(f"no mutex {index}")
        return self._addresses[index]

    def initialise(self, index: int) -> None:
        """Make a free mutex of the 64 bytes at `index`, whatever they held. OSError where libc refuses."""
        self.initialise_range(index, 1)

    def initialise_range(self, first: int, count: int) -> None:
        """Make free mutexes of `count` entries from `first`, whatever they held. OSError where libc refuses."""
        if first < 0 or count < 0 or first + count > len(self._addresses):
            raise IndexError(f"no mutexes {first} to {first + count - 1}")
        attributes = _robust_attributes()
        try:
            for address in self._addresses[first : first + count]:
                _check(_init(address, attributes), "pthread_mutex_init")
        finally:
            _quick.pthread_mutexattr_destroy(attributes)

    def trylock(self, index: int) -> MutexState:
        """Take a mutex if it is free. OSError: EDEADLK if this thread holds it, ENOTRECOVERABLE if it is spoilt."""
        if index < 0:
            raise IndexError(f"no mutex {index}")
        code = _trylock(self._addresses[index])
        if code == 0:
            return _ACQUIRED
        state = _STATES.get(code)
        if state is None:
            raise _error(code, f"trylock of mutex {index}")
        return state

    def lock(self, index: int, timeout_s: float) -> MutexState:
        """Take a mutex, waiting at most `timeout_s` seconds for it (BUSY after that). OSError as in `trylock`."""
        state = self.trylock(index)
        if state is not _BUSY:
            return state
        address = self._addresses[index]
        deadline = time.monotonic() + timeout_s
        while state is _BUSY and (left := deadline - time.monotonic()) > 0:
            code = _lock_within(address, min(left, _SLICE_S))
            if code not in _STATES:
                raise _error(code, f"lock of mutex {index}")
            state = _STATES[code]
        return state

    def unlock(self, index: int) -> None:
        """Give a mutex back. OSError(EPERM) if this thread does not hold it."""
        if index < 0:
            raise IndexError(f"no mutex {index}")
        code = _unlock(self._addresses[index])
        if code:
            raise _error(code, f"unlock of mutex {index}")

    def owner(self, index: int) -> int:
        """The thread that holds a mutex, by the host's number; 0 where nobody does, or the holder has died with it.

        The kernel itself reads this word when a thread dies (Documentation/locking/robust-futex-ABI.rst).
        """
        return ctypes.c_uint32.from_address(self._address(index)).value & _OWNER_MASK

    def make_consistent(self, index: int) -> None:
        """Say that what the mutex protects is in order again, after OWNER_DIED. OSError(EINVAL) without that."""
        _check(_consistent(self._address(index)), f"make_consistent of mutex {index}")
