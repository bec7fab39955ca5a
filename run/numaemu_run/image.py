"""Which program a process executes: others have other places, or other random bytes where these are the same.

And whether two processes have one address space, as after clone with CLONE_VM, and so one program.
Source: fs/binfmt_elf.c, create_elf_tables (6.12): each execve writes 16 new random bytes, and tells where (AT_RANDOM);
kcmp(2).
"""

import contextlib
import ctypes
import struct
from dataclasses import dataclass
from typing import Final

from numaemu_run import target
from numaemu_run.abi import abi_of_host
from numaemu_run.procfs import auxv_of, places_of

_ENTRY: Final = struct.Struct("=2Q")
_AT_RANDOM: Final = 25
_RANDOM_BYTES: Final = 16
#: Places of a process that we may not look into.
_HIDDEN: Final = (1, 0)
_KCMP_VM: Final = 1

_syscall = ctypes.CDLL(None).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 6


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
        random_at = earlier.random_at if earlier is not None and same else _random_at(auxv_of(tid))
        random = target.read_some(tid, random_at, _RANDOM_BYTES)
    return Image(places, random_at, random)


def _random_at(auxv: bytes) -> int:
    whole = len(auxv) // _ENTRY.size * _ENTRY.size
    return next((value for kind, value in _ENTRY.iter_unpack(auxv[:whole]) if kind == _AT_RANDOM), 0)


def have_one_memory(tid: int, other: int) -> bool:
    """Are two threads of one address space? False if one is gone, or does not let us look."""
    return int(_syscall(abi_of_host().kcmp, tid, other, _KCMP_VM, 0, 0)) == 0
