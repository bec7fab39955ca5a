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

from calls import BIND, PAGE, Memory, mbind, node_of, policy, set_mempolicy, syscall

EFAULT, EINVAL, ESRCH, EMFILE = 14, 22, 3, 24


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
    for number in range(60):
        pid = os.fork()
        if not pid:
            os._exit(set_mempolicy(BIND, number % 4) != 0 or policy() != (BIND, [number % 4]))
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 60


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
    """Pointers that lead nowhere, in each place where a call takes one."""
    memory = Memory(2)
    memory.write()
    edge = memory.start + memory.length - 4
    closed = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    assert closed[0] == 0
    for bad in (8, 1 << 63, (1 << 64) - 8):
        assert syscall("mbind", memory.start, PAGE, BIND, bad, 65, 0) == -EFAULT
        assert syscall("set_mempolicy", BIND, bad, 65) == -EFAULT
        assert syscall("get_mempolicy", bad, None, 0, 0, 0) == -EFAULT
        assert syscall("get_mempolicy", None, bad, 64, 0, 0) == -EFAULT
        assert syscall("getcpu", bad, None, None) == -EFAULT
        assert node_of(bad) == -EFAULT
    assert syscall("set_mempolicy", BIND, 8, 1 << 62) == -EINVAL
    assert syscall("mbind", memory.start, (1 << 64) - 1, BIND, edge, 33, 0) in {-EINVAL, 0}
    assert policy() == (0, [])


def descriptors() -> None:
    """No descriptor is left to give, and every one of ours is closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
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
        os._exit(set_mempolicy(BIND, 3) != 0 or policy() != (BIND, [3]))
    assert os.waitpid(pid, 0)[1] == 0


def crowd() -> None:
    """Many threads that call and end, while others are born."""
    wrong = []

    def thread(number: int) -> None:
        if set_mempolicy(BIND, number % 4) or policy() != (BIND, [number % 4]):
            wrong.append(number)

    for _ in range(4):
        threads = [threading.Thread(target=thread, args=(number,)) for number in range(24)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert not wrong
    assert policy() == (0, [])


def executed_by_a_thread() -> None:
    """A thread that is not the first executes another program."""

    def thread() -> None:
        os.execv(sys.executable, [sys.executable, __file__, "pointers"])

    threading.Thread(target=thread).start()
    time.sleep(60)


def undumpable() -> None:
    """A process that lets nobody look into it is served as far as that goes, and hangs in no call."""
    assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
    for name in ("/proc/self/status", "/etc/hostname"):
        try:
            os.close(os.open(name, os.O_RDONLY))
        except OSError as error:
            assert error.errno in {1, 2, 13}, error
    set_mempolicy(BIND, 1)


globals()[sys.argv[1]]()
print("well", flush=True)
