"""A bound thread touches a page, is told on the pipe of that name to go on, touches the others, and ends."""

import ctypes
import os
import sys
import threading

from calls import BIND, PAGE, Memory, node_of, set_mempolicy

PAGES = 10
memory = Memory(PAGES)
go_on = os.open(sys.argv[1], os.O_RDWR)


def touch() -> None:
    assert set_mempolicy(BIND, 2) == 0
    ctypes.memset(memory.start, 1, 1)
    os.read(go_on, 1)
    ctypes.memset(memory.start + PAGE, 1, (PAGES - 1) * PAGE)


thread = threading.Thread(target=touch)
thread.start()
thread.join()
print(sum(node_of(memory.start + page * PAGE) == 2 for page in range(PAGES)), "pages right")
