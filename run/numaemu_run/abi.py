"""Numbers of system calls, audit architectures and open flags, as data: x86_64 and aarch64, and their 32-bit siblings.

Source: asm/unistd_64.h, asm-generic/unistd.h, asm/unistd_32.h, arch/arm/tools/syscall.tbl, linux/audit.h,
asm/fcntl.h (6.12).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

#: Calls about memory policy, and about the CPUs of a task: always answered here.
POLICY_CALLS: Final = (
    "get_mempolicy",
    "getcpu",
    "mbind",
    "migrate_pages",
    "move_pages",
    "sched_getaffinity",
    "sched_setaffinity",
    "set_mempolicy",
    "set_mempolicy_home_node",
)
#: The one that asks nobody, if the thread is known.
QUICK_CALL: Final = "getcpu"
#: Calls that open a file for reading.
OPEN_CALLS: Final = ("open", "openat", "openat2")
#: Restartable sequences, which tell a thread its CPU: refused by the filter, so that libc asks.
RSEQ_CALL: Final = "rseq"
#: What every libc calls when a program begins, before code of the program's own runs. Looked at where vDSOs need it.
BEGIN_CALL: Final = "set_tid_address"
#: How much memory there is.
SYSINFO_CALL: Final = "sysinfo"
#: Memory that moves or grows keeps its policy, and maps do not tell from where it came.
MREMAP_CALL: Final = "mremap"
#: The end of a process, which is looked at once more then.
EXIT_CALL: Final = "exit_group"
#: Whoever executes a program takes the place of the first thread of its process.
EXEC_CALLS: Final = ("execve", "execveat")
#: Calls that may take pages out of shared memory; opens that truncate are another.
HOLE_CALLS: Final = ("creat", "fallocate", "ftruncate", "madvise", "truncate")
#: Calls that are handed over in every run; opens, fallocate and madvise are by their arguments.
HANDED_OVER: Final = (
    *POLICY_CALLS,
    BEGIN_CALL,
    MREMAP_CALL,
    SYSINFO_CALL,
    EXIT_CALL,
    *EXEC_CALLS,
    *HOLE_CALLS,
)
#: Calls that look at a path: answered only where the tree of nodes cannot be mounted.
PATH_CALLS: Final = (
    "access",
    "faccessat",
    "faccessat2",
    "getxattr",
    "lgetxattr",
    "listxattr",
    "llistxattr",
    "lstat",
    "newfstatat",
    "readlink",
    "readlinkat",
    "stat",
    "statx",
)


@dataclass(frozen=True, slots=True)
class Abi:
    """What programs of one architecture call the calls that are looked at."""

    #: As `uname -m` says.
    machine: str
    #: AUDIT_ARCH_*.
    audit_arch: int
    #: Number of each call, without those that the architecture lacks, or has no need of.
    numbers: Mapping[str, int]
    #: Calls that we make: seccomp, kcmp, perf_event_open.
    seccomp: int
    kcmp: int
    perf_event_open: int
    o_directory: int
    #: Numbers from here on belong to a second ABI (x32); 0: there is none.
    other_abi_from: int
    #: The 32-bit programs that the same kernel runs: their AUDIT_ARCH_*, and the numbers of their policy calls.
    foreign_arch: int
    foreign_policy_numbers: tuple[int, ...]


X86_64: Final = Abi(
    machine="x86_64",
    audit_arch=0xC000003E,
    numbers=MappingProxyType(
        {
            "access": 21,
            "creat": 85,
            "execve": 59,
            "execveat": 322,
            "exit_group": 231,
            "faccessat": 269,
            "faccessat2": 439,
            "fallocate": 285,
            "ftruncate": 77,
            "get_mempolicy": 239,
            "getcpu": 309,
            "getxattr": 191,
            "lgetxattr": 192,
            "listxattr": 194,
            "llistxattr": 195,
            "lstat": 6,
            "madvise": 28,
            "mbind": 237,
            "migrate_pages": 256,
            "move_pages": 279,
            "mremap": 25,
            "newfstatat": 262,
            "open": 2,
            "openat": 257,
            "openat2": 437,
            "readlink": 89,
            "readlinkat": 267,
            "rseq": 334,
            "sched_getaffinity": 204,
            "sched_setaffinity": 203,
            "set_mempolicy": 238,
            "set_mempolicy_home_node": 450,
            "set_tid_address": 218,
            "stat": 4,
            "statx": 332,
            "sysinfo": 99,
            "truncate": 76,
        }
    ),
    seccomp=317,
    kcmp=312,
    perf_event_open=298,
    o_directory=0o200000,
    other_abi_from=0x40000000,
    foreign_arch=0x40000003,
    foreign_policy_numbers=(274, 275, 276, 294, 317, 450),
)

AARCH64: Final = Abi(
    machine="aarch64",
    audit_arch=0xC00000B7,
    numbers=MappingProxyType(
        {
            "execve": 221,
            "execveat": 281,
            "exit_group": 94,
            "faccessat": 48,
            "faccessat2": 439,
            "fallocate": 47,
            "ftruncate": 46,
            "get_mempolicy": 236,
            "getcpu": 168,
            "getxattr": 8,
            "lgetxattr": 9,
            "listxattr": 11,
            "llistxattr": 12,
            "madvise": 233,
            "mbind": 235,
            "migrate_pages": 238,
            "move_pages": 239,
            "mremap": 216,
            "newfstatat": 79,
            "openat": 56,
            "openat2": 437,
            "readlinkat": 78,
            "rseq": 293,
            "sched_getaffinity": 123,
            "sched_setaffinity": 122,
            "set_mempolicy": 237,
            "set_mempolicy_home_node": 450,
            "statx": 291,
            "sysinfo": 179,
            "truncate": 45,
        }
    ),
    seccomp=277,
    kcmp=272,
    perf_event_open=241,
    o_directory=0o40000,
    other_abi_from=0,
    foreign_arch=0x40000028,
    foreign_policy_numbers=(319, 320, 321, 344, 400, 450),
)

ABIS: Final = MappingProxyType({abi.machine: abi for abi in (X86_64, AARCH64)})


class UnknownArchitectureError(OSError):
    """The host is of an architecture that is not in the tables."""


def abi_of_host() -> Abi:
    """The tables for this host.

    Raises:
        UnknownArchitectureError: there are none.
    """
    machine = os.uname().machine
    if machine not in ABIS:
        raise UnknownArchitectureError(f"programs of {machine} cannot be run: expected {' or '.join(ABIS)}")
    return ABIS[machine]
