"""getcpu without the kernel: the vDSO of a new program is changed so that it asks the kernel, and so the supervisor.

libc asks the vDSO which CPU it is on, or restartable sequences if it could register for them. Both tell the host's CPU
without a system call. So the call rseq is refused, and `__vdso_getcpu` overwritten before the program's own code runs,
when libc calls set_tid_address. The new one looks at a word of its own first, in which a program that asks often
is told its CPU and node, for as long as all of its threads have the same.

Source: vdso(7), elf(5), arch/x86/entry/vdso (6.12), sysdeps/unix/sysv/linux/getcpu.c and rseq-internal.h of glibc 2.36,
src/sched/sched_getcpu.c and src/env/__init_tls.c of musl 1.2.3.
"""

import contextlib
import ctypes
import functools
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from numaemu_run.abi import X86_64, Abi
from numaemu_run.procfs import auxv_of

_AT_SYSINFO_EHDR: Final = 33
_ELF: Final = b"\x7fELF"
_NAME: Final = b"__vdso_getcpu"

#: The system call: mov eax, number; syscall; ret. The arguments are where it wants them.
_ASK_BEGINS, _ASK_ENDS = b"\xb8", b"\x0f\x05\xc3"
#: CPU in the lower half, node in the upper one …
_WORD: Final = struct.Struct("<HH")
#: … or this as its last byte: it asks. That byte is written by itself, so that no half of a word is ever believed.
_LAST: Final = _WORD.size - 1
_UNKNOWN: Final = b"\x80"

# fmt: off
_LOOK: Final = bytes((
    0x8B, 0x05, 0x26, 0, 0, 0,  # mov eax, [word]
    0x85, 0xC0,                 # test eax, eax
    0x78, 0x19,                 # js ask
    0x48, 0x85, 0xF6,           # test rsi, rsi
    0x74, 0x07,                 # je cpu
    0x89, 0xC2,                 # mov edx, eax
    0xC1, 0xEA, 0x10,           # shr edx, 16
    0x89, 0x16,                 # mov [rsi], edx
    0x0F, 0xB7, 0xC0,           # cpu: movzx eax, ax
    0x48, 0x85, 0xFF,           # test rdi, rdi
    0x74, 0x02,                 # je done
    0x89, 0x07,                 # mov [rdi], eax
    0x31, 0xC0,                 # done: xor eax, eax
    0xC3,                       # ret
))
# fmt: on
_ALIGNMENT: Final = 16
_WORD_AT: Final = 44
_SIZE: Final = _WORD_AT + _WORD.size


class _NoVdsoError(OSError):
    """A process has none, or not where it was told."""


def needs_change(abi: Abi) -> bool:
    """Has the vDSO of this architecture a getcpu at all? That of aarch64 has none."""
    return abi is X86_64


def change(abi: Abi, folder: str) -> None:
    """Let `__vdso_getcpu` of a process make the system call, until `tell`. `folder`: where /proc has a thread of it.

    Raises:
        OSError: we may not write to the process (EIO, EACCES), it is gone, or has no vDSO that we know.
    """
    with _memory(folder) as (fd, base):
        where = place_of_getcpu()
        if (word_at := _word_at(abi, fd, base)) is not None:  # once more: somebody may be looking at it
            os.pwrite(fd, _UNKNOWN, word_at + _LAST)
        else:
            code = _function(abi) + bytes(_LAST) + _UNKNOWN if where.has_room else _ask(abi)
            os.pwrite(fd, code, base + where.offset)


def tell(abi: Abi, folder: str, cpu: int, node: int) -> None:
    """Let `__vdso_getcpu` of a process answer that by itself. Nothing happens if it was not changed, or not so.

    Raises:
        ProcessLookupError: the thread has ended. PermissionError: we may not write to it.
    """
    word = _WORD.pack(cpu, node)
    _write(abi, folder, (_LAST, _UNKNOWN), (0, word[:_LAST]), (_LAST, word[_LAST:]))


def ask(abi: Abi, folder: str) -> None:
    """What a process was told is no longer so: it asks again. As `tell`."""
    _write(abi, folder, (_LAST, _UNKNOWN))


def _write(abi: Abi, folder: str, *parts: tuple[int, bytes]) -> None:
    """Write parts of the word of a process, each at its offset, one after the other."""
    if not needs_change(abi):
        return
    with contextlib.suppress(_NoVdsoError), _memory(folder) as (fd, base):
        word_at = _word_at(abi, fd, base)
        if word_at is not None:
            for offset, part in parts:
                os.pwrite(fd, part, word_at + offset)


def _word_at(abi: Abi, fd: int, base: int) -> int | None:
    """Where the word of a process is; None: its function was not changed, or has none."""
    where = place_of_getcpu()
    at = base + where.offset
    return at + _WORD_AT if where.has_room and os.pread(fd, _WORD_AT, at) == _function(abi) else None


def _ask(abi: Abi) -> bytes:
    return _ASK_BEGINS + abi.numbers["getcpu"].to_bytes(4, "little") + _ASK_ENDS


def _function(abi: Abi) -> bytes:
    """All of the new function but its word."""
    return (_LOOK + _ask(abi)).ljust(_WORD_AT, b"\xcc")


@contextlib.contextmanager
def _memory(folder: str) -> Iterator[tuple[int, int]]:
    """A descriptor of the memory of a process, and where its vDSO lies. OSError as `change`."""
    base = _base(folder)
    try:
        fd = os.open(f"{folder}/mem", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(f"{folder} is gone") from None
    try:
        if _begins(fd, base) != _ELF:
            raise _NoVdsoError("no vDSO where the process has been told that it is")
        yield fd, base
    finally:
        os.close(fd)


def _begins(fd: int, base: int) -> bytes:
    """The first bytes there, none if nothing is: it executes another program just now, or has unmapped it."""
    with contextlib.suppress(OSError):
        return os.pread(fd, len(_ELF), base)
    return b""


def _base(folder: str) -> int:
    """Where a process has its vDSO."""
    base = auxv_of(folder).get(_AT_SYSINFO_EHDR)
    if base is None:
        raise _NoVdsoError("the process has no vDSO")
    return base


class _Place(NamedTuple):
    """Where `__vdso_getcpu` lies in the vDSO, and whether the new one has room there with its word."""

    offset: int
    has_room: bool


@functools.cache
def place_of_getcpu() -> _Place:
    """In our own vDSO, which is that of every program of this kernel. OSError: there is none."""
    functions = _functions(_base("/proc/self"))
    if _NAME not in functions:
        raise _NoVdsoError("the vDSO has no __vdso_getcpu")
    offset, _ = functions[_NAME]
    return _Place(offset, has_room(offset, dict(functions.values())))


def has_room(offset: int, sizes: dict[int, int]) -> bool:
    """Is there room for the new function at an offset, given the sizes of all functions by their offsets?

    It is no longer than the old one and the gap behind that, in which nothing begins that is not aligned.
    """
    end = -(-(offset + sizes.get(offset, 0)) // _ALIGNMENT) * _ALIGNMENT
    nothing_inside = not any(offset < other < offset + _SIZE for other in sizes)
    return offset % _ALIGNMENT == 0 and end >= offset + _SIZE and nothing_inside


#: Of struct Elf64_Ehdr, Elf64_Phdr, Elf64_Sym and Elf64_Dyn what is looked at: where and how many headers; kind and
#: place; name, place and size; kind and value.
_EHDR: Final = struct.Struct("=32xQ14xHH6x")
_PHDR: Final = struct.Struct("=I12xQ32x")
_SYM: Final = struct.Struct("=I4xQQ")
_DYN: Final = struct.Struct("=2Q")
_PT_DYNAMIC, _DT_NULL, _DT_STRTAB, _DT_SYMTAB = 2, 0, 5, 6


def _functions(base: int) -> dict[bytes, tuple[int, int]]:
    """Offsets and sizes of the functions of an ELF file in our memory; none if they are not where they mostly are.

    The table of names comes right after that of symbols, whose length is not told.
    """

    def at(offset: int, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(ctypes.string_at(base + offset, form.size))

    table, size, count = at(0, _EHDR)
    headers = [at(table + i * size, _PHDR) for i in range(count)]
    entry = next((where for kind, where in headers if kind == _PT_DYNAMIC), 0)
    dynamic: dict[int, int] = {}
    while entry and (pair := at(entry, _DYN))[0] != _DT_NULL:
        dynamic[pair[0]] = pair[1]
        entry += _DYN.size
    symbols, names = dynamic.get(_DT_SYMTAB, 0), dynamic.get(_DT_STRTAB, 0)
    found = [at(where, _SYM) for where in range(symbols, names - _SYM.size + 1, _SYM.size)]
    return {ctypes.string_at(base + names + name): (offset, length) for name, offset, length in found}
