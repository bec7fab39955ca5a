"""Shared memory that is mapped, and then by nobody: its path, or the number of a segment, and what happens then."""

import ctypes
import mmap
import os
import signal
import sys
import time
from pathlib import Path

from calls import PAGE, Memory, mbind, node_of

PAGES = 8
NODE = 2
SOME, MANY, ALL = 1000, 25_000, 100_000
SECONDS = 20
IPC_RMID = 0
MEMINFO = Path(f"/sys/devices/system/node/node{NODE}/meminfo")

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = libc.mmap.restype = ctypes.c_void_p
where = sys.argv[1]


def attach(pages: int = PAGES) -> int:
    """Map it; gives its address."""
    if not where.startswith("/"):
        return int(libc.shmat(int(where), None, 0))
    fd = os.open(where, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, pages * PAGE)
    at = libc.mmap(None, ctypes.c_size_t(pages * PAGE), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    return int(at)


def detach(at: int, pages: int = PAGES) -> None:
    """Unmap it."""
    if where.startswith("/"):
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(pages * PAGE))
    else:
        libc.shmdt(ctypes.c_void_p(at))


def remove() -> None:
    """Nobody can map it any more."""
    if where.startswith("/"):
        Path(where).unlink()
    else:
        libc.shmctl(int(where), IPC_RMID, None)


def write(at: int, pages: int) -> None:
    """Touch its first pages."""
    for page in range(pages):
        ctypes.memset(at + page * PAGE, 1, 1)


def be_looked_at() -> None:
    """Make a call for which everything that was mapped and unmapped is told."""
    memory = Memory(1)
    mbind(memory.start, memory.length, 0)


def bind_and_part(way: str) -> None:
    """Touch half of it under a policy; its only mapping ends with this process at the latest."""
    at = attach()
    mbind(at, PAGES * PAGE, NODE)
    write(at, PAGES // 2)
    assert node_of(at) == NODE
    if way == "unmapped":
        detach(at)
        be_looked_at()
    elif way == "mapped elsewhere":
        again = attach()
        detach(at)
        be_looked_at()
        assert node_of(again) == NODE
    elif way == "executed":
        os.execv(sys.executable, [sys.executable, "-c", ""])
    elif way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "out of memory":
        be_looked_at()
        memory = Memory(ALL)
        memory.write()
        mbind(memory.start, memory.length, 0)
    os._exit(0)


def free_kb() -> int:
    """Of the node."""
    return next(int(line.split()[3]) for line in MEMINFO.read_text().splitlines() if "MemFree" in line)


def part(way: str) -> None:
    """Another process has set the policy, and parted with it; then it is removed."""
    be_looked_at()
    before = free_kb()
    pid = os.fork()
    if not pid:
        bind_and_part(way)
    os.waitpid(pid, 0)
    print("kept", (before - free_kb()) // 4, "pages")
    at = attach()
    write(at, PAGES)
    print("nodes", sorted({node_of(at + page * PAGE) for page in range(PAGES)}))
    detach(at)
    be_looked_at()
    print("kept", (before - free_kb()) // 4, "pages")
    remove()
    wait_until_free(before)


def wait_until_free(expected_kb: int) -> None:
    """Somebody looks now and then."""
    be_looked_at()
    deadline = time.monotonic() + SECONDS
    while free_kb() != expected_kb and time.monotonic() < deadline:
        time.sleep(0.05)
    print("kept", (expected_kb - free_kb()) // 4, "pages")


def remove_while_mapped() -> None:
    """It has lost its name between two looks, and is mapped: by this process, or by another one."""
    pid = os.fork()
    if not pid:
        bind_and_part("ended")
    os.waitpid(pid, 0)
    at = attach()
    remove()
    memory = Memory(SOME)
    memory.write()
    be_looked_at()
    print("nodes", sorted({node_of(at + page * PAGE) for page in range(PAGES)}))


def fill() -> None:
    """Half of what there is goes into a file that nobody maps then."""
    at = attach(MANY)
    mbind(at, MANY * PAGE, NODE)
    write(at, MANY)
    assert node_of(at) == NODE
    detach(at, MANY)
    be_looked_at()


def fill_again() -> None:
    """More than half of it, at one time."""
    memory = Memory(MANY)
    mbind(memory.start, memory.length, NODE)
    memory.write()
    print("node", node_of(memory.start + memory.length - PAGE))


if sys.argv[2] == "removed":
    fill()
    remove()
    fill_again()
elif sys.argv[2] == "filled":
    fill()
elif sys.argv[2] == "filled again":
    fill_again()
elif sys.argv[2] == "removed while mapped":
    remove_while_mapped()
elif sys.argv[2] == "left":
    bind_and_part("ended")
elif sys.argv[2] == "awaited":
    wait_until_free(int(sys.argv[3]))
else:
    part(sys.argv[2])
