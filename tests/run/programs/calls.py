"""The system calls of memory policy, for scripts: numbers by architecture, arguments as the kernel takes them."""

import ctypes
import errno
import mmap
import os

PAGE = 4096
BIND, INTERLEAVE = 2, 3
NUMBERS = {
    "x86_64": {
        "mbind": 237,
        "set_mempolicy": 238,
        "get_mempolicy": 239,
        "getcpu": 309,
        "migrate_pages": 256,
        "move_pages": 279,
        "openat": 257,
        "personality": 135,
        "sched_setaffinity": 203,
        "truncate": 76,
        "exit": 60,
    },
    "aarch64": {
        "mbind": 235,
        "set_mempolicy": 237,
        "get_mempolicy": 236,
        "getcpu": 168,
        "migrate_pages": 238,
        "move_pages": 239,
        "openat": 56,
        "personality": 92,
        "sched_setaffinity": 122,
        "truncate": 45,
        "exit": 93,
    },
}[os.uname().machine]

_call = ctypes.CDLL(None, use_errno=True).syscall
_call.restype = ctypes.c_long


def syscall(name: str, *args: object) -> int:
    """The result, or -errno."""
    words = [ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args]
    result = int(_call(ctypes.c_long(NUMBERS[name]), *words))
    return -ctypes.get_errno() if result == -1 else result


def mask(*nodes: int) -> object:
    """A pointer to a mask of one word."""
    return ctypes.byref(ctypes.c_ulong(sum(1 << node for node in nodes)))


def mbind(address: int, length: int, *nodes: int, mode: int = BIND, flags: int = 0) -> int:
    """Bind a range."""
    return syscall("mbind", address, length, mode, mask(*nodes), 65, flags)


def set_mempolicy(mode: int, *nodes: int) -> int:
    """set_mempolicy; mode 0 without nodes is the default."""
    return syscall("set_mempolicy", mode, mask(*nodes) if nodes else None, 65 if nodes else 0)


def policy() -> tuple[int, list[int]]:
    """Mode and nodes of the calling thread."""
    mode, nodes = ctypes.c_int(-1), ctypes.c_ulong(0)
    found = syscall("get_mempolicy", ctypes.byref(mode), ctypes.byref(nodes), 65, 0, 0)
    assert found == 0, errno.errorcode[-found]
    return mode.value, [node for node in range(64) if nodes.value >> node & 1]


def node_of(address: int) -> int:
    """The node of a page, or -errno."""
    node = ctypes.c_int(-1)
    found = syscall("get_mempolicy", ctypes.byref(node), None, 0, address, 3)
    return found or node.value


class Memory:
    """Some pages, by address; shared between processes or not."""

    def __init__(self, pages: int, *, shared: bool = False) -> None:
        flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | mmap.MAP_ANONYMOUS
        self.pages, self.length = pages, pages * PAGE
        self.map = mmap.mmap(-1, self.length, flags=flags)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def write(self) -> None:
        """Touch every page."""
        for page in range(self.pages):
            self.map[page * PAGE] = 1

    def nodes(self) -> list[int]:
        """The nodes of its pages, each once."""
        return sorted({node_of(self.start + page * PAGE) for page in range(self.pages)})
