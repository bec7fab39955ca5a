"""Ways to trouble a supervisor, by name; each says what came of it."""

import ctypes
import mmap
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from calls import BIND, PAGE, Memory, mask, mbind, node_of, policy, set_mempolicy, syscall

EFAULT, EINVAL, EMFILE = 14, 22, 24
MOVE = 2


def interrupted() -> None:
    """Signals come all the time while calls wait for their answer."""
    count = 0

    def handler(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1

    signal.signal(signal.SIGALRM, handler)
    signal.siginterrupt(signal.SIGALRM, False)  # noqa: FBT003 - its only name; SA_RESTART: calls begin again
    memory = Memory(4)
    memory.write()
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for turn in range(60):
        assert mbind(memory.start, memory.length, turn % 4, flags=2) == 0
        assert memory.nodes() == [turn % 4]
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert count > 10, count


def storm() -> None:
    """Many children at once, each of which calls and is gone."""
    pids = []
    for number in range(40):
        pid = os.fork()
        if not pid:
            os._exit(set_mempolicy(BIND, number % 4) != 0 or policy() != (BIND, [number % 4]))
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def killed() -> None:
    """Children are killed in the middle of their calls."""
    for number in range(20):
        pid = os.fork()
        if not pid:
            memory = Memory(64)
            while True:
                memory.write()
                mbind(memory.start, memory.length, random.randrange(4), flags=2)
        time.sleep(0.002 * number)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert policy() == (0, [])


def pointers() -> None:
    """Pointers that lead nowhere, in each place where a call takes one, and lengths that wrap around."""
    memory = Memory(2)
    memory.write()
    values = ctypes.c_ulong(memory.start), ctypes.c_int(0), ctypes.c_int(7)
    pages, nodes, status = (ctypes.addressof(value) for value in values)
    edge, nothing = edge_of_memory()
    maps = Path("/proc/self/maps").read_text().splitlines()
    code = next(int(line.split("-")[0], 16) for line in maps if " r-xp " in line)
    unreadable, unwritable = [8, nothing, 1 << 63, (1 << 64) - 8], [8, nothing, 1 << 63, (1 << 64) - 8, code]
    for bad in (edge, *unreadable):
        refuses("mbind", memory.start, PAGE, BIND, bad, 65, 0)
        refuses("set_mempolicy", BIND, bad, 65)
        refuses("migrate_pages", 0, 65, bad, mask(0))
        refuses("migrate_pages", 0, 65, mask(0), bad)
        refuses("move_pages", 0, 1, bad, nodes, status, MOVE)
    for bad in (edge + 2, *unreadable):
        refuses("move_pages", 0, 1, pages, bad, status, MOVE)
    for bad in unreadable:
        refuses("truncate", bad, 0)
        refuses("openat", 1 << 20, bad, os.O_WRONLY | os.O_TRUNC)
    for bad in (edge, *unwritable):
        refuses("get_mempolicy", None, bad, 64, 0, 0)
    for bad in (edge + 2, *unwritable):
        refuses("get_mempolicy", bad, None, 0, 0, 0)
        refuses("getcpu", bad, None, None)
        refuses("getcpu", None, bad, None)
        refuses("move_pages", 0, 1, pages, nodes, bad, MOVE)
    for bad in (nothing, 1 << 63):
        assert node_of(bad) == -EFAULT, hex(bad)
    refuses("set_mempolicy", BIND, pages, 1 << 62, error=EINVAL)
    refuses("mbind", memory.start, (1 << 64) - 1, BIND, mask(0), 65, 0, error=0)  # rounded up it is 0
    refuses("mbind", memory.start, (1 << 64) - PAGE, BIND, mask(0), 65, 0, error=EINVAL)
    refuses("mbind", memory.start, 1 << 46, BIND, mask(0), 65, 0)
    assert (policy(), [value.value for value in values]) == ((0, []), [memory.start, 0, 7])


def refuses(name: str, *args: object, error: int = EFAULT) -> None:
    """A call fails so."""
    found = syscall(name, *args)
    assert found == -error, (name, args, found)


def edge_of_memory() -> tuple[int, int]:
    """The last four bytes of a page behind which nothing is mapped, and an address there."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = libc.mmap(None, ctypes.c_size_t(2 * PAGE), 3, flags, -1, ctypes.c_long(0))
    assert libc.munmap(ctypes.c_void_p(start + PAGE), ctypes.c_size_t(PAGE)) == 0
    return start + PAGE - 4, start + PAGE + 8


def descriptors() -> None:
    """No descriptor is left to give, and every one of the program's is closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    for _ in range(20):
        try:
            os.open("/proc/self/numa_maps", os.O_RDONLY)
        except OSError as error:
            assert error.errno == EMFILE, error
        else:
            raise AssertionError
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    pid = os.fork()
    if not pid:
        os.closerange(0, 64)
        right = set_mempolicy(BIND, 3) == 0 and policy() == (BIND, [3])
        right = right and os.open("/proc/self/numa_maps", os.O_RDONLY) == 0 and b"bind:3" in os.read(0, 1 << 16)
        os._exit(not right)
    assert os.waitpid(pid, 0)[1] == 0


def crowd() -> None:
    """Many threads with policies and CPUs of their own, which end while others are born."""
    right = []

    def thread(number: int, everybody: threading.Barrier) -> None:
        node = number % 4
        asked = [policy() == (0, []), set_mempolicy(BIND, node) == 0]
        os.sched_setaffinity(0, {node})
        everybody.wait()
        asked += [policy() == (BIND, [node]), os.sched_getaffinity(0) == {node}]
        right.append(all(asked))

    threads = []
    for _ in range(4):
        everybody = threading.Barrier(25)
        threads += [threading.Thread(target=thread, args=(number, everybody)) for number in range(24)]
        for each in threads[-24:]:
            each.start()
        everybody.wait()
    for each in threads:
        each.join()
    assert right == [True] * len(threads)
    assert (policy(), os.sched_getaffinity(0)) == ((0, []), {0, 1, 2, 3})


def executed_by_a_thread() -> None:
    """A thread that is not the first executes another program while others are in the middle of their calls."""
    if sys.argv[2:] == ["again"]:
        assert (policy(), os.sched_getaffinity(0)) == ((BIND, [2]), {3})
        assert " bind:1 " not in Path("/proc/self/numa_maps").read_text()
        assert set_mempolicy(BIND, 0) == 0
        return
    memory = Memory(64)
    memory.write()
    busy = threading.Semaphore(0)

    def caller() -> None:
        while mbind(memory.start, memory.length, 1, flags=MOVE) == 0:
            busy.release()

    def executor() -> None:
        assert set_mempolicy(BIND, 2) == 0
        os.sched_setaffinity(0, {3})
        for _ in range(20):
            busy.acquire()
        assert " bind:1 " in Path("/proc/self/numa_maps").read_text()
        os.execv(sys.executable, [sys.executable, __file__, "executed_by_a_thread", "again"])

    for work in (caller, caller, executor, caller):
        threading.Thread(target=work).start()
    signal.pause()


def undumpable() -> None:
    """A process that lets nobody but root look into it."""
    assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
    assert (set_mempolicy(BIND, 1), policy()) == (0, (BIND, [1]))
    assert "Mems_allowed_list:\t0-3\n" in Path("/proc/self/status").read_text()


globals()[sys.argv[1]]()
print("well", flush=True)
