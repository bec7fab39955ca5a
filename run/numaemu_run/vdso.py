"""getcpu without the kernel: the vDSO of a new program is changed so that it asks the kernel, and so the supervisor.

libc asks the vDSO which CPU it is on, or restartable sequences if it could register for them. Both tell the host's CPU
without a system call. So the call rseq is refused, and `__vdso_getcpu` overwritten before the program's own code runs:
libc registers while a program starts. Source: vdso(7), arch/x86/entry/vdso (6.12), sysdeps/unix/sysv/linux/getcpu.c
and rseq-internal.h of glibc 2.36.
"""

import ctypes
import functools
import os
import struct
from pathlib import Path
from typing import Final

from numaemu_run.abi import X86_64, Abi

_AT_SYSINFO_EHDR: Final = 33
_ENTRY: Final = struct.Struct("=QQ")


def needs_change(abi: Abi) -> bool:
    """Has the vDSO of this architecture a getcpu at all? That of aarch64 has none."""
    return abi is X86_64


def change(abi: Abi, pid: int) -> None:
    """Let `__vdso_getcpu` of a process make the system call.

    Raises:
        OSError: we may not write to the process (EIO, EACCES), it is gone, or has no vDSO that we know.
    """
    offset = _offset()
    base = _base(pid)
    # mov eax, number; syscall; ret: the arguments are where the system call wants them
    code = b"\xb8" + abi.numbers["getcpu"].to_bytes(4, "little") + b"\x0f\x05\xc3"
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.pread(fd, 4, base) != b"\x7fELF":
            raise OSError("no vDSO where the process has been told that it is")
        os.pwrite(fd, code, base + offset)
    finally:
        os.close(fd)


def _base(pid: int) -> int:
    """Where a process has its vDSO."""
    with Path(f"/proc/{pid}/auxv").open("rb") as file:
        auxv = file.read()
    for kind, value in _ENTRY.iter_unpack(auxv[: len(auxv) // _ENTRY.size * _ENTRY.size]):
        if kind == _AT_SYSINFO_EHDR:
            return int(value)
    raise OSError("the process has no vDSO")


@functools.cache
def _offset() -> int:
    """Where `__vdso_getcpu` lies in the vDSO, which is the same for every program of this kernel."""
    try:
        function = ctypes.CDLL("linux-vdso.so.1")["__vdso_getcpu"]
    except (OSError, AttributeError):
        raise OSError("the vDSO has no __vdso_getcpu") from None
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address - _base(os.getpid())
