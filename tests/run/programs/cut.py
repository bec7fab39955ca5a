"""Shared memory, of a kind, which loses pages in some way: those that are touched again are placed anew."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

from calls import PAGE, mbind, node_of

PAGES, STAYING = 8, 4
PUNCH_HOLE, MADV_REMOVE = 3, 9
OLD, NEW = 2, 1

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = libc.mmap.restype = ctypes.c_void_p
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
kind, way = sys.argv[1:]
fd = -1
if kind == "memfd":
    fd = os.memfd_create("cut")
elif not kind.isdigit():
    fd = os.open(kind, os.O_RDWR | os.O_CREAT, 0o600)


def attach() -> int:
    """Map it; gives its address."""
    if fd < 0:
        return int(libc.shmat(int(kind), None, 0))
    os.ftruncate(fd, PAGES * PAGE)
    length = ctypes.c_size_t(PAGES * PAGE)
    return int(libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, ctypes.c_int64(0)))


def write(at: int) -> None:
    """Touch all of it."""
    for page in range(PAGES):
        ctypes.memset(at + page * PAGE, 1, 1)


def cut(at: int) -> None:
    """Take away its end, all of it by an open; it is as long as before then."""
    first, length = STAYING * PAGE, (PAGES - STAYING) * PAGE
    if way == "madvise":
        assert libc.madvise(ctypes.c_void_p(at + first), ctypes.c_size_t(length), MADV_REMOVE) == 0
    elif way == "fallocate":  # the pages at both ends lose bytes only
        assert libc.fallocate(fd, PUNCH_HOLE, first - 1, length + 1) == 0
    elif way == "ftruncate":
        os.ftruncate(fd, first - 1)
    elif way == "truncate":
        os.truncate(kind, first)
    elif way == "open":
        os.close(os.open(kind, os.O_WRONLY | os.O_TRUNC))
    elif way == "relative":
        os.chdir(Path(kind).parent)
        os.close(os.open(Path(kind).name, os.O_WRONLY | os.O_TRUNC))
    if fd >= 0:
        os.ftruncate(fd, PAGES * PAGE)


def show(at: int) -> None:
    """The node of each page."""
    print(*(node_of(at + page * PAGE) for page in range(PAGES)))


first_at = attach()
mbind(first_at, PAGES * PAGE, OLD)
write(first_at)
if way in {"open", "relative"}:  # by another process, when this one has unmapped it
    show(first_at)
    libc.munmap(ctypes.c_void_p(first_at), ctypes.c_size_t(PAGES * PAGE))
    second_at = attach()
    mbind(second_at, PAGES * PAGE, NEW)
    if not os.fork():
        cut(second_at)
        os._exit(0)
    os.wait()
else:
    second_at = attach()  # it is mapped twice
    write(second_at)
    mbind(second_at, PAGES * PAGE, NEW)
    cut(second_at)
write(second_at)
show(second_at)
