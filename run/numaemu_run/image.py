"""Which program a process executes: others have other places, or other random bytes where these are the same.

And whether two processes have one address space, as after clone with CLONE_VM, and so one program.
Source: fs/binfmt_elf.c, create_elf_tables (6.12): each execve writes 16 new random bytes, and tells where (AT_RANDOM);
kcmp(2).
"""

import contextlib
import ctypes
import errno
from dataclasses import dataclass
from typing import Final

from numaemu_host.libc import libc
from numaemu_run import target
from numaemu_run.abi import abi_of_host
from numaemu_run.procfs import auxv_of, places_of

_AT_RANDOM: Final = 25
_RANDOM_BYTES: Final = 16
#: Places of a process that we may not look into.
_HIDDEN: Final = (1, 0)
_KCMP_VM: Final = 1


@dataclass(frozen=True, slots=True)
class Image:
    """One execution of a program."""

    #: Where its code and its stack begin.
    places: tuple[int, int]
    #: Where its random bytes are, 0: not known; the bytes, none if they cannot be read.
    random_at: int
    random: bytes

    def is_still(self, earlier: "Image") -> bool:
        """Is it the execution that was seen earlier? Some runtimes (Go) wipe the bytes when they have used them."""
        return self.places == earlier.places and (self.random == earlier.random or not any(self.random))


def image_of(tid: int, earlier: Image | None = None) -> Image:
    """That of a thread's process; an earlier one tells where the bytes are, and is the answer if all of it is hidden.

    Raises:
        ProcessLookupError: the thread is gone, or has ended and has no memory any more.
    """
    places = places_of(tid)
    if places == _HIDDEN and earlier is not None:
        return earlier
    if not places[0]:
        raise ProcessLookupError(f"thread {tid} has ended")
    random_at, random = 0, b""
    with contextlib.suppress(PermissionError):
        same = earlier is not None and earlier.places == places
        random_at = earlier.random_at if earlier is not None and same else auxv_of(f"/proc/{tid}").get(_AT_RANDOM, 0)
        random = target.read_some(tid, random_at, _RANDOM_BYTES)
    return Image(places, random_at, random)


def have_one_memory(tid: int, other: int) -> bool:
    """Are two threads of one address space? False if one is gone, or does not let us look."""
    return kcmp_vm(tid, other) == 0


def may_have_one_memory(tid: int, other: int) -> bool:
    """The same, and True also where the host does not tell and both execute one program: a fork would, too."""
    order = kcmp_vm(tid, other)
    if order >= 0 or ctypes.get_errno() == errno.ESRCH:
        return order == 0
    try:
        return image_of(tid).is_still(image_of(other))
    except ProcessLookupError:
        return False


def kcmp_vm(tid: int, other: int) -> int:
    """0: two threads are of one address space; -1, with errno: nobody knows (kcmp(2))."""
    numbers = (abi_of_host().kcmp, tid, other, _KCMP_VM, 0, 0)
    return int(libc.syscall(*map(ctypes.c_long, numbers)))
