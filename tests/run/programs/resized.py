"""Memory with a policy of its own that mremap makes longer, moves and makes shorter."""

import ctypes
import mmap

from calls import PAGE, mbind, node_of

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
MAYMOVE, PROT_NONE = 1, 0


def long(value: int) -> ctypes.c_ulong:
    """An argument of libc."""
    return ctypes.c_ulong(value)


def write(start: int, pages: int) -> None:
    """Touch every page."""
    for page in range(pages):
        ctypes.c_char.from_address(start + page * PAGE).value = b"x"


def show(what: str, start: int, pages: int) -> None:
    """Where they are."""
    print(what, sorted({node_of(start + page * PAGE) for page in range(pages)}), flush=True)


flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
room = libc.mmap(None, long(64 * PAGE), PROT_NONE, flags, -1, long(0))
start = room + 8 * PAGE
libc.munmap(ctypes.c_void_p(start), long(24 * PAGE))  # a hole, in which it can grow
assert libc.mmap(ctypes.c_void_p(start), long(4 * PAGE), 3, flags | 0x10, -1, long(0)) == start
assert mbind(start, 4 * PAGE, 3) == 0
write(start, 4)
show("bound", start, 4)
assert libc.mremap(ctypes.c_void_p(start), long(4 * PAGE), long(8 * PAGE), long(0)) == start
write(start, 8)
show("grown", start, 8)
moved = libc.mremap(ctypes.c_void_p(start), long(8 * PAGE), long(4000 * PAGE), long(MAYMOVE))
assert moved != start
write(moved, 100)
show("moved", moved, 100)
assert libc.mremap(ctypes.c_void_p(moved), long(4000 * PAGE), long(2 * PAGE), long(0)) == moved
show("shrunk", moved, 2)
other = libc.mmap(None, long(8 * PAGE), 3, flags, -1, long(0))
write(other, 8)
show("other", other, 8)
