"""The seccomp filter as a program of classic BPF, assembled from labels.

Source of the instructions: linux/filter.h and linux/bpf_common.h; of struct seccomp_data and the return values:
linux/seccomp.h.
"""

import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from numaemu_run.abi import HANDED_OVER, OPEN_CALLS, PATH_CALLS, RSEQ_CALL, Abi

RET_USER_NOTIF: Final = 0x7FC00000
RET_ALLOW: Final = 0x7FFF0000
RET_ERRNO: Final = 0x00050000

_LD_W_ABS: Final = 0x20
_JEQ_K: Final = 0x15
_JGE_K: Final = 0x35
_JSET_K: Final = 0x45
_RET_K: Final = 0x06
_INSTRUCTION: Final = struct.Struct("=HBBI")

#: Offsets in struct seccomp_data.
_NR: Final = 0
_ARCH: Final = 4
_ARGS: Final = 16

#: Where the flags of a call are, if these say whether it is handed over.
_FLAGS_ARGUMENT: Final = {"open": 1, "openat": 2, "fallocate": 1, "madvise": 2}
_PUNCH_HOLE: Final = 2
_MADV_REMOVE: Final = 9


@dataclass(frozen=True, slots=True)
class Jump:
    """If the test holds go to `then`, else to the next instruction."""

    code: int
    value: int
    then: str


@dataclass(frozen=True, slots=True)
class _Plain:
    code: int
    value: int


_Line = Jump | _Plain | str  # a str is a label


def assemble(lines: Iterable[_Line]) -> bytes:
    """Instructions as struct sock_filter, labels as distances. ValueError: a label is missing, behind or too far."""
    lines = list(lines)
    places: dict[str, int] = {}
    count = 0
    for line in lines:
        if isinstance(line, str):
            places[line] = count
        else:
            count += 1
    made = bytearray()
    at = 0
    for line in lines:
        if isinstance(line, str):
            continue
        at += 1
        if isinstance(line, _Plain):
            made += _INSTRUCTION.pack(line.code, 0, 0, line.value)
            continue
        distance = places.get(line.then, -1) - at
        if not 0 <= distance <= 0xFF:  # noqa: PLR2004 - a jump has eight bits
            raise ValueError(f"no jump to {line.then!r} from instruction {at - 1}")
        made += _INSTRUCTION.pack(line.code, distance, 0, line.value)
    return bytes(made)


def make_filter(abi: Abi, *, paths: bool) -> bytes:
    """A filter that hands over policy calls, opens for reading, mremap, sysinfo, and begin and end of programs.

    And what may take pages out of a file. `paths`: every call that looks at a path, too.

    Opens that write or create, and do not truncate, cannot be of the files that are answered, and go to the kernel;
    without `paths`, so do those of directories. Policy calls of 32-bit programs, all calls of x32, and rseq are refused
    with ENOSYS: they would see the host.
    """
    numbers = abi.numbers
    handed = [*HANDED_OVER, *(PATH_CALLS if paths else ())]
    lines: list[_Line] = [
        _Plain(_LD_W_ABS, _ARCH),
        Jump(_JEQ_K, abi.foreign_arch, "foreign"),
        Jump(_JEQ_K, abi.audit_arch, "native"),
        _Plain(_RET_K, RET_ALLOW),
        "foreign",
        _Plain(_LD_W_ABS, _NR),
        *(Jump(_JEQ_K, number, "refuse") for number in abi.foreign_policy_numbers),
        _Plain(_RET_K, RET_ALLOW),
        "native",
        _Plain(_LD_W_ABS, _NR),
    ]
    if abi.other_abi_from:
        lines.append(Jump(_JGE_K, abi.other_abi_from, "refuse"))
    lines.append(Jump(_JEQ_K, numbers[RSEQ_CALL], "refuse"))
    handed = [name for name in (*OPEN_CALLS, *handed) if name in numbers]
    lines += [Jump(_JEQ_K, numbers[name], name if name in _FLAGS_ARGUMENT else "hand over") for name in handed]
    lines.append(_Plain(_RET_K, RET_ALLOW))
    for name in handed:
        if name in _FLAGS_ARGUMENT:
            lines += [
                name,
                _Plain(_LD_W_ABS, _ARGS + 8 * _FLAGS_ARGUMENT[name]),  # both hosts are little-endian
                *_by_flags(name, os.O_ACCMODE | os.O_CREAT | (0 if paths else abi.o_directory)),
            ]
    lines += [
        "allow",
        _Plain(_RET_K, RET_ALLOW),
        "refuse",
        _Plain(_RET_K, RET_ERRNO | errno.ENOSYS),
        "hand over",
        _Plain(_RET_K, RET_USER_NOTIF),
    ]
    return assemble(lines)


def _by_flags(name: str, passed: int) -> list[_Line]:
    """What becomes of a call whose flags are at hand; `passed`: those of opens that are for the kernel."""
    if name == "fallocate":
        return [Jump(_JSET_K, _PUNCH_HOLE, "hand over"), _Plain(_RET_K, RET_ALLOW)]
    if name == "madvise":
        return [Jump(_JEQ_K, _MADV_REMOVE, "hand over"), _Plain(_RET_K, RET_ALLOW)]
    return [
        Jump(_JSET_K, os.O_TRUNC, "hand over"),
        Jump(_JSET_K, passed, "allow"),
        _Plain(_RET_K, RET_USER_NOTIF),
    ]
