"""More processes and threads than their supervisor has descriptors for: what came of the calls of each, a letter each.

`.` all are right, `f` but for a file or a call that found none left, `-` the thread is refused, `!` wrong.
"""

import errno
import os
import sys
import threading
from pathlib import Path

from calls import BIND, Memory, mbind, policy, set_mempolicy

CHILDREN, THREADS = int(sys.argv[1]), int(sys.argv[2])
NONE_LEFT = -errno.ENOMEM


def asked(number: int) -> bytes:
    """What came of the calls of this thread, and of an open."""
    node = number % 4
    memory = Memory(1)
    found = set_mempolicy(BIND, node), mbind(memory.start, memory.length, node)
    try:
        told = "Mems_allowed_list:\t0-3\n" in Path("/proc/self/status").read_text()
    except OSError as error:
        told = error.errno == errno.ENFILE
        file_refused = True
    else:
        file_refused = False
    if not told:
        return b"!"
    if found == (NONE_LEFT, NONE_LEFT):
        return b"-"
    if not {0, NONE_LEFT}.issuperset(found) or (found[0] == 0 and policy() != (BIND, [node])):
        return b"!"
    return b"f" if file_refused or NONE_LEFT in found else b"."


def together() -> str:
    """When all are there at the same time."""
    told, tell = os.pipe()
    wait, go = os.pipe()
    pids = []
    for number in range(CHILDREN):
        pid = os.fork()
        if not pid:
            os.close(go)
            os.write(tell, asked(number))
            os.read(wait, 1)
            os._exit(0)
        pids.append(pid)
    found = read(told, CHILDREN)
    everybody = threading.Barrier(THREADS + 1)

    def thread(number: int) -> None:
        os.write(tell, asked(number))
        everybody.wait()

    for number in range(THREADS):
        threading.Thread(target=thread, args=(number,)).start()
    found += read(told, THREADS)
    everybody.wait()
    os.close(go)
    for pid in pids:
        os.waitpid(pid, 0)
    return found.decode()


def read(fd: int, length: int) -> bytes:
    found = b""
    while len(found) < length:
        found += os.read(fd, length - len(found))
    return found


first, all_of_them = asked(3), together()
last = asked(2)  # with its answer the ends of the others are known
new = os.fork()
if not new:
    os._exit(asked(1) != b".")
print(first.decode(), all_of_them, last.decode(), os.waitpid(new, 0)[1], flush=True)
