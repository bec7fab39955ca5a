"""Reading and writing the memory of a process by address."""

import contextlib
import ctypes
import errno
import mmap
import os
import re
from collections.abc import Iterator

import pytest

from numaemu_run import target
from numaemu_run.procfs import PAGE_SIZE

ME = os.getpid()
REASONS = {errno.EFAULT: "at 0x", errno.ENAMETOOLONG: "4096 bytes"}


@contextlib.contextmanager
def refusal(code: int) -> Iterator[None]:
    """What happens inside fails with that errno."""
    with pytest.raises(OSError, match=re.escape(REASONS[code])) as refused:
        yield
    assert refused.value.errno == code


@pytest.fixture
def edge() -> int:
    """The end of a mapping of four pages, behind which nothing is mapped."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = libc.mmap(None, ctypes.c_size_t(8 * PAGE_SIZE), 3, flags, -1, ctypes.c_long(0))
    libc.munmap(ctypes.c_void_p(start + 4 * PAGE_SIZE), ctypes.c_size_t(4 * PAGE_SIZE))
    ctypes.memset(start, 0x41, 4 * PAGE_SIZE)
    return int(start) + 4 * PAGE_SIZE


def test_what_is_mapped_is_read_and_what_is_not_ends_it(edge: int) -> None:
    """A read that runs over the end gives what lies before; one that must be whole is EFAULT."""
    assert target.read_some(ME, edge - 100, 4096) == b"A" * 100
    assert target.read_some(ME, edge - 3 * PAGE_SIZE, 9 * PAGE_SIZE) == b"A" * 3 * PAGE_SIZE
    assert target.read_some(ME, edge, 8) == b""
    assert target.read(ME, edge - 8, 8) == b"A" * 8
    with refusal(errno.EFAULT):
        target.read(ME, edge - 4, 8)


@pytest.mark.parametrize("address", [0, 8, (1 << 64) - 1, (1 << 64) - PAGE_SIZE, 1 << 63])
def test_wild_addresses_are_refused(address: int) -> None:
    """Null, the kernel's half and the last byte are EFAULT, not an error of ours."""
    assert target.read_some(ME, address, 64) == b""
    with refusal(errno.EFAULT):
        target.read(ME, address, 64)
    with refusal(errno.EFAULT):
        target.read_path(ME, address)
    with refusal(errno.EFAULT):
        target.write(ME, address, b"x")


def test_paths_end_with_their_zero_byte(edge: int) -> None:
    """A path may cross pages and end with the last byte that is mapped; one without an end is EFAULT or too long."""
    for length in (0, 1, 300):
        at = edge - length - 1
        ctypes.memmove(at, b"p" * length + b"\0", length + 1)
        assert target.read_path(ME, at) == b"p" * length
    ctypes.memset(edge - 2 * PAGE_SIZE, 0x41, 2 * PAGE_SIZE)
    with refusal(errno.EFAULT):
        target.read_path(ME, edge - 10)
    with refusal(errno.ENAMETOOLONG):
        target.read_path(ME, edge - 2 * PAGE_SIZE)


def test_writes_reach_the_memory(edge: int) -> None:
    """Bytes are where they were written; across the end they are EFAULT."""
    target.write(ME, edge - 5, b"hello")
    assert target.read(ME, edge - 5, 5) == b"hello"
    with refusal(errno.EFAULT):
        target.write(ME, edge - 2, b"hello")


#: Where two numbers are to go, counted from a place, None: nowhere; and what is there then.
PAIRS = {
    "apart": (0, 8, b"ABCDaaaaWXYZ"),
    "apart, the second one first": (8, 0, b"WXYZaaaaABCD"),
    "side by side": (4, 8, b"aaaaABCDWXYZ"),
    "side by side, the second one first": (8, 4, b"aaaaWXYZABCD"),
    "at one place": (4, 4, b"aaaaWXYZaaaa"),
    "the first one only": (4, None, b"aaaaABCDaaaa"),
    "the second one only": (None, 4, b"aaaaWXYZaaaa"),
    "nowhere": (None, None, b"aaaaaaaaaaaa"),
}


@pytest.mark.parametrize("before", list(PAIRS))
@pytest.mark.parametrize("now", list(PAIRS))
def test_two_numbers_go_to_two_places_or_nowhere(edge: int, before: str, now: str) -> None:
    """Each number is where it was asked for, wherever others went before; what lies between stays."""
    start = edge - 12
    writer = target.PairWriter()
    for case, pair in ((before, b"abcdwxyz"), (now, b"abcdwxyz"), (now, b"ABCDWXYZ")):
        target.write(ME, start, b"a" * 12)
        first, second, _ = PAIRS[case]
        writer.write(ME, 0 if first is None else start + first, 0 if second is None else start + second, pair)
        expected = PAIRS[case][2]
        if pair.islower():
            expected = expected.lower()
        assert target.read(ME, start, 12) == expected


@pytest.mark.parametrize("first_is_bad", [True, False])
def test_of_two_numbers_the_one_that_has_a_place_is_written(edge: int, *, first_is_bad: bool) -> None:
    """EFAULT, as the other has none; which of the two it is makes no difference."""
    first, second = (edge, edge - 4) if first_is_bad else (edge - 4, edge)
    with refusal(errno.EFAULT):
        target.PairWriter().write(ME, first, second, b"ABCDWXYZ")
    assert target.read(ME, edge - 4, 4) == (b"WXYZ" if first_is_bad else b"ABCD")


def test_a_thread_that_is_gone_is_told_as_such() -> None:
    """ESRCH, which is no fault of the program."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        target.read_some(pid, 4096, 8)
