"""The filter, run by a small machine for classic BPF: what is handed over, let through and refused."""

import errno
import os
import struct

import pytest

from numaemu_run.abi import (
    AARCH64,
    ABIS,
    BEGIN_CALL,
    EXEC_CALLS,
    EXIT_CALL,
    MREMAP_CALL,
    OPEN_CALLS,
    PATH_CALLS,
    POLICY_CALLS,
    RSEQ_CALL,
    SYSINFO_CALL,
    X86_64,
    Abi,
)
from numaemu_run.bpf import RET_ALLOW, RET_ERRNO, RET_USER_NOTIF, Jump, assemble, make_filter

#: Whatever their arguments are.
CUTTING = ("creat", "ftruncate", "truncate")
REFUSED = RET_ERRNO | errno.ENOSYS
ABI = [pytest.param(abi, id=abi.machine) for abi in ABIS.values()]


def verdict(program: bytes, arch: int, number: int, *args: int) -> int:
    """What a filter says to a call."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        code, then, otherwise, value = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += then if holds else otherwise


@pytest.mark.parametrize("abi", ABI)
def test_policy_calls_are_handed_over_and_others_are_not(abi: Abi) -> None:
    """Of all numbers, those of policy calls, opens, mremap, sysinfo, and begin and end reach the supervisor.

    rseq is refused: it would tell the host's CPU. All others are let through.
    """
    program = make_filter(abi, paths=False)
    wanted = {
        abi.numbers[name]
        for name in (
            *POLICY_CALLS,
            *OPEN_CALLS,
            BEGIN_CALL,
            MREMAP_CALL,
            SYSINFO_CALL,
            EXIT_CALL,
            *EXEC_CALLS,
            *CUTTING,
        )
        if name in abi.numbers
    }
    assert {n for n in range(600) if verdict(program, abi.audit_arch, n) == RET_USER_NOTIF} == wanted
    rseq = abi.numbers[RSEQ_CALL]
    assert verdict(program, abi.audit_arch, rseq) == REFUSED
    assert {n for n in range(600) if verdict(program, abi.audit_arch, n) == RET_ALLOW} == {*range(600)} - wanted - {
        rseq
    }


@pytest.mark.parametrize("abi", ABI)
def test_calls_that_take_pages_away_are_handed_over(abi: Abi) -> None:
    """Holes, and opens that truncate; what else madvise, fallocate and opens for writing do is for the host."""
    program = make_filter(abi, paths=False)

    def said(name: str, *args: int) -> int:
        return verdict(program, abi.audit_arch, abi.numbers[name], *args)

    assert {said("madvise", 0, 0, advice) for advice in range(30) if advice != 9} == {RET_ALLOW}
    assert said("madvise", 0, 0, 9) == RET_USER_NOTIF
    assert [said("fallocate", 3, mode) for mode in (0, 1, 3, 16)] == [RET_ALLOW, RET_ALLOW, RET_USER_NOTIF, RET_ALLOW]
    assert said("openat", 0, 0, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) == RET_USER_NOTIF


@pytest.mark.parametrize("abi", ABI)
def test_calls_about_paths_are_handed_over_where_they_have_to_be(abi: Abi) -> None:
    """Without the mounted tree, stat and its kin reach the supervisor as well."""
    paths = make_filter(abi, paths=True)
    for name in PATH_CALLS:
        if name in abi.numbers:
            assert verdict(paths, abi.audit_arch, abi.numbers[name]) == RET_USER_NOTIF


@pytest.mark.parametrize(
    ("flags", "mounted", "answered"),
    [
        (os.O_RDONLY, RET_USER_NOTIF, RET_USER_NOTIF),
        (os.O_RDONLY | os.O_CLOEXEC, RET_USER_NOTIF, RET_USER_NOTIF),
        (X86_64.o_directory, RET_ALLOW, RET_USER_NOTIF),
        (os.O_WRONLY, RET_ALLOW, RET_ALLOW),
        (os.O_RDWR, RET_ALLOW, RET_ALLOW),
        (os.O_RDONLY | os.O_CREAT, RET_ALLOW, RET_ALLOW),
    ],
)
def test_opens_that_write_go_to_the_kernel(flags: int, mounted: int, answered: int) -> None:
    """Nothing that is answered is written to; directories matter only where the tree is not mounted."""
    for paths, expected in ((False, mounted), (True, answered)):
        program = make_filter(X86_64, paths=paths)
        assert verdict(program, X86_64.audit_arch, X86_64.numbers["openat"], 0, 0, flags) == expected
        assert verdict(program, X86_64.audit_arch, X86_64.numbers["open"], 0, flags) == expected
        assert verdict(program, X86_64.audit_arch, X86_64.numbers["openat2"], 0, 0, flags) == RET_USER_NOTIF


@pytest.mark.parametrize("abi", ABI)
def test_policy_calls_of_another_architecture_are_refused(abi: Abi) -> None:
    """A 32-bit program is told that there is no such call: it would see the host. Its other calls are let through."""
    program = make_filter(abi, paths=True)
    seen = {n for n in range(600) if verdict(program, abi.foreign_arch, n) == REFUSED}
    assert seen == set(abi.foreign_policy_numbers)
    assert verdict(program, 0x12345678, abi.numbers["mbind"]) == RET_ALLOW


def test_calls_of_x32_are_refused() -> None:
    """The second ABI of x86_64, whose numbers have a bit more, would see the host, too."""
    program = make_filter(X86_64, paths=False)
    assert verdict(program, X86_64.audit_arch, 0x40000000 | X86_64.numbers["mbind"]) == REFUSED
    assert verdict(make_filter(AARCH64, paths=False), AARCH64.audit_arch, 0x40000000) == RET_ALLOW


def test_a_jump_needs_its_label() -> None:
    """Labels that are missing, or lie behind, are errors of the assembler and no filter."""
    for lines in ((Jump(0x15, 1, "nowhere"),), ("here", Jump(0x15, 1, "here"))):
        with pytest.raises(ValueError, match="no jump"):
            assemble(lines)
