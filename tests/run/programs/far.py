"""Binds pages to node 70, moves some of them to node 1000, and asks for a node that is not there."""

import ctypes

from calls import BIND, PAGE, Memory, syscall

WORDS = 16
MOVE_STRICT, MOVE = 3, 2


def bind(memory: Memory, node: int) -> int:
    """Bind all of it, and move what is there."""
    words = (ctypes.c_ulong * WORDS)()
    words[node // 64] = 1 << node % 64
    return syscall("mbind", memory.start, memory.length, BIND, words, WORDS * 64 + 1, MOVE_STRICT)


memory = Memory(4)
memory.write()
print(bind(memory, 70), memory.nodes())
pages = (ctypes.c_ulong * 3)(*range(memory.start, memory.start + 3 * PAGE, PAGE))
status = (ctypes.c_int * 3)()
moved = syscall("move_pages", 0, 3, pages, (ctypes.c_int * 3)(1000, 1000, 1000), status, MOVE)
print(moved, list(status), memory.nodes())
print(bind(memory, 999))
