"""The kernel's side of a supervised program: installing the filter, receiving calls, answering them.

Source: linux/seccomp.h, seccomp_unotify(2). Needs Linux 5.14, for a descriptor and the end of a call in one step.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from numaemu_host.libc import checked, failure, libc
from numaemu_run.abi import Abi

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_SET_MODE_FILTER: Final = 1
_GET_NOTIF_SIZES: Final = 3
_FLAG_NEW_LISTENER: Final = 1 << 3
#: Once it was received, only a fatal signal interrupts a call (5.19).
_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5

_IOCTL_RECV: Final = 0xC0502100
_IOCTL_SEND: Final = 0xC0182101
_IOCTL_ID_VALID: Final = 0x40082102
_IOCTL_ADDFD: Final = 0x40182103
_IOCTL_SET_FLAGS: Final = 0x40082104

_CONTINUE: Final = 1
#: Whoever calls and whoever answers take turns on one processor (6.6).
_SYNC_WAKE_UP: Final = 1
_ADDFD_SEND: Final = 2
#: id, pid, (flags), number, (architecture, instruction), arguments.
_NOTIFICATION: Final = struct.Struct("=QI4xi12x6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_ADDFD: Final = struct.Struct("=QIIII")
_ID: Final = struct.Struct("=Q")
#: Sizes of the three structs, which the kernel tells; they have not changed since 5.0.
_SIZES: Final = struct.Struct("=HHH")
_EMPTY: Final = bytes(_NOTIFICATION.size)

_prctl = libc.prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def set_no_new_privs() -> None:
    """No program that this process executes gains a right. OSError."""
    checked(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Orphans among our descendants become our children meanwhile. OSError."""
    before = ctypes.c_int()
    checked(_prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(before), 0, 0, 0), "subreaper")
    checked(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def install_filter(abi: Abi, program: bytes) -> int:
    """Install a filter on this thread, for good; gives the descriptor on which its calls come.

    Raises:
        OSError: EBUSY: a supervisor is there already; EINVAL, EACCES, ENOSYS: the kernel or an outer filter refuses.
    """
    described = _Program(len(program) // 8, program)
    for flags in (_FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV, _FLAG_NEW_LISTENER):
        fd = int(
            libc.syscall(
                ctypes.c_long(abi.seccomp),
                ctypes.c_ulong(_SET_MODE_FILTER),
                ctypes.c_ulong(flags),
                ctypes.byref(described),
            )
        )
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise failure("seccomp")


def check_sizes(abi: Abi) -> None:
    """Does the kernel speak of notifications as we do? OSError."""
    sizes = ctypes.create_string_buffer(_SIZES.size)
    asked = libc.syscall(ctypes.c_long(abi.seccomp), ctypes.c_ulong(_GET_NOTIF_SIZES), ctypes.c_ulong(0), sizes)
    checked(asked, "seccomp user notification")
    received, answered, _ = _SIZES.unpack(sizes.raw)
    if (received, answered) != (_NOTIFICATION.size, _RESPONSE.size):
        raise OSError(errno.ENOSYS, f"seccomp notifications of {received} and {answered} bytes are not known")


def _ioctl(fd: int, request: int, argument: bytearray) -> None:
    """An ioctl that begins again when a signal of ours comes between; with bytes it would take half as long again."""
    while True:
        try:
            fcntl.ioctl(fd, request, argument)
        except InterruptedError:
            continue
        return


class Notification(NamedTuple):
    """A call that waits for its answer; `tid` is the thread that made it, as this process sees it."""

    id: int
    tid: int
    number: int
    args: list[int]


class Listener:
    """The descriptor on which calls come. Whoever is gone when its answer comes misses nothing: that is no error."""

    def __init__(self, fd: int) -> None:
        """Owns the descriptor from now on."""
        self.fd = fd
        self._buffer = bytearray(_NOTIFICATION.size)
        self._answer = bytearray(_RESPONSE.size)
        with contextlib.suppress(OSError):  # older kernels wake up elsewhere, and that takes longer
            fcntl.ioctl(fd, _IOCTL_SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Notification | None:
        """The next call; None: its thread died, or the call was interrupted before we came. Sleeps if there is none."""
        self._buffer[:] = _EMPTY  # the kernel wants it so
        try:
            _ioctl(self.fd, _IOCTL_RECV, self._buffer)
        except FileNotFoundError:
            return None
        identity, tid, number, *args = _NOTIFICATION.unpack(self._buffer)
        return Notification(identity, tid, number, args)

    def is_waiting(self, call: Notification) -> bool:
        """Is it still the same thread that waits? What was read of its memory before is of that thread then."""
        try:
            _ioctl(self.fd, _IOCTL_ID_VALID, bytearray(_ID.pack(call.id)))
        except FileNotFoundError:
            return False
        return True

    def let_through(self, call: Notification) -> None:
        """The host's kernel is to serve it."""
        self._send(call, 0, 0, _CONTINUE)

    def give(self, call: Notification, value: int) -> None:
        """It returns `value`."""
        self._send(call, value, 0, 0)

    def refuse(self, call: Notification, code: int) -> None:
        """It fails with an errno."""
        self._send(call, 0, -code, 0)

    def give_descriptor(self, call: Notification, fd: int, flags: int) -> None:
        """It returns a new descriptor in the caller, a duplicate of ours; `flags`: 0 or O_CLOEXEC."""
        try:
            _ioctl(self.fd, _IOCTL_ADDFD, bytearray(_ADDFD.pack(call.id, _ADDFD_SEND, fd, 0, flags)))
        except FileNotFoundError:
            return
        except OSError as error:  # EMFILE: the caller has no descriptor left, and is told so
            self.refuse(call, error.errno or errno.EMFILE)

    def _send(self, call: Notification, value: int, error: int, flags: int) -> None:
        try:
            _RESPONSE.pack_into(self._answer, 0, call.id, value, error, flags)
            _ioctl(self.fd, _IOCTL_SEND, self._answer)
        except FileNotFoundError:
            return

    def close(self) -> None:
        """Calls that still come fail with ENOSYS from now on."""
        os.close(self.fd)
