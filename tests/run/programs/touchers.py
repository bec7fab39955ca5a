"""Threads on four nodes touch every fourth page of one range each, and have ended when somebody looks.

Argument: how they come to differ: by a CPU or a policy of their own; or there are a hundred, one after another.
"""

import ctypes
import os
import sys
import threading

from calls import BIND, PAGE, Memory, node_of, set_mempolicy

PAGES = 2000
NODES = 4
memory = Memory(PAGES)
# Pages of their own, whatever the host makes of long ranges.
ctypes.CDLL(None).madvise(ctypes.c_ulong(memory.start), ctypes.c_ulong(memory.length), 15)
at_once = threading.Barrier(NODES)


def touch(number: int, pages: range) -> None:
    assert set_mempolicy(BIND, number) == 0
    for page in pages:
        ctypes.memset(memory.start + page * PAGE, 1, 1)


def thread(number: int) -> None:
    if sys.argv[1] == "cpu":
        os.sched_setaffinity(0, {number})
    else:
        assert set_mempolicy(BIND, number) == 0
    at_once.wait()
    for page in range(number, PAGES, NODES):
        ctypes.memset(memory.start + page * PAGE, 1, 1)


if sys.argv[1] == "one after another":
    for first in range(0, PAGES, 20):
        for part in (range(first, first + 20, 2), range(first + 1, first + 20, 2)):
            each = threading.Thread(target=touch, args=(part[0] % NODES, part))
            each.start()
            each.join()
    right = sum(node_of(memory.start + page * PAGE) == (page // 20 * 20 + page % 2) % NODES for page in range(PAGES))
    print(right, "pages right")
    sys.exit()
threads = [threading.Thread(target=thread, args=(number,)) for number in range(NODES)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(sum(node_of(memory.start + page * PAGE) == page % NODES for page in range(PAGES)), "pages right")
