"""Threads that bind ranges, children that set policies, a shared range, and what Python says of CPUs."""

import os
import threading

from calls import BIND, Memory, mbind, set_mempolicy

right: list[int] = []


def thread(number: int) -> None:
    """Bind, write, look, again and again."""
    for turn in range(4):
        memory, node = Memory(8), (number + turn) % 4
        assert mbind(memory.start, memory.length, node) == 0
        memory.write()
        assert memory.nodes() == [node]
    right.append(number)


threads = [threading.Thread(target=thread, args=(number,)) for number in range(8)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(len(right), "threads right")

alone: list[int] = []
kept: list[Memory] = []
at_once = threading.Barrier(4)
turn = threading.Lock()


def under_its_own_policy(number: int) -> None:
    """Set a policy as the others do, write to memory of its own, look where it is before somebody else writes."""
    at_once.wait()
    assert set_mempolicy(BIND, number) == 0
    at_once.wait()  # a thread that begins faults as much as the smaller range does
    for pages in (40, 300):
        memory = Memory(pages)
        kept.append(memory)  # else another one may be mapped where this was, and nobody sees the difference
        with turn:
            memory.write()
            if memory.nodes() == [number]:
                alone.append(number)


threads = [threading.Thread(target=under_its_own_policy, args=(number,)) for number in range(4)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(len(alone), "ranges under policies of their own right")

children = []
for number in range(6):
    pid = os.fork()
    if not pid:
        assert set_mempolicy(BIND, number % 4) == 0
        own = Memory(8)
        own.write()
        os._exit(own.nodes() != [number % 4])
    children.append(pid)
print(sum(os.waitpid(pid, 0)[1] == 0 for pid in children), "children right")

shared = Memory(8, shared=True)
mbind(shared.start, shared.length, 3)
if not os.fork():
    shared.write()
    os._exit(0)
os.wait()
shared.write()
print("shared", shared.nodes())
print(os.cpu_count(), "CPUs", sorted(os.sched_getaffinity(0)))
