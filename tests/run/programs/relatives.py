"""Threads and processes whose story is not the usual one, by name; each says what came of it."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from calls import BIND, PAGE, Memory, mask, mbind, node_of, policy, set_mempolicy, syscall

EPERM, ENOENT, ESRCH, EACCES, EFAULT, EINVAL = 1, 2, 3, 13, 14, 22
DEFAULT: tuple[int, list[int]] = (0, [])
NO_RANDOM_ADDRESSES = 0x0040000
MOVE, MOVE_ALL = 2, 4
PR_SET_KEEPCAPS, CAP_SYS_NICE, CAPABILITY_VERSION, CLONE_NEWUSER = 8, 23, 0x20080522, 0x10000000
NOBODY = 4_190_000
RESERVED = 0x4000


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def word(value: int) -> object:
    """A pointer to it."""
    return ctypes.byref(ctypes.c_ulong(value))


def child(work: Callable[[], object]) -> int:
    """The status with which a child ends that is right if the work says so."""
    pid = os.fork()
    if not pid:
        os._exit(not work())
    return os.waitpid(pid, 0)[1]


def odd_name() -> None:
    """A file is mapped whose name has what Python takes for line feeds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "odd\x0cna\x85me\u2028"
        path.write_bytes(bytes(PAGE))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as mapped:
            assert mapped[0] == 0
            assert set_mempolicy(BIND, 1) == 0
            assert policy() == (BIND, [1])


def huge() -> None:
    """A shared mapping is longer than the machine lets one be."""
    memory = mmap.mmap(-1, (1 << 40) + 8 * PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | RESERVED)
    assert set_mempolicy(BIND, 1) == 0
    memory[0] = memory[(1 << 40) + PAGE] = 1
    assert set_mempolicy(BIND, 2) == 0
    assert policy() == (BIND, [2])


def deep() -> None:
    """The last of a line of descendants asks, and none of its ancestors ever has."""
    for _ in range(int(sys.argv[2])):
        pid = os.fork()
        if pid:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert set_mempolicy(BIND, 1) == 0
    assert policy() == (BIND, [1])


def crowd() -> None:
    """Children that do nothing, while their parent asks."""
    assert set_mempolicy(BIND, 1) == 0
    begin, end = os.pipe()
    pids = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            os.close(end)
            os.read(begin, 1)
            os._exit(0)
        pids.append(pid)
    assert set_mempolicy(BIND, 2) == 0
    assert policy() == (BIND, [2])
    os.close(end)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def in_common() -> None:
    """Nobody has called when the children are forked, who have all of their parent's memory."""
    memory = Memory(4000)
    memory.write()
    pids = []
    for node in range(4):
        pid = os.fork()
        if not pid:
            os._exit(set_mempolicy(BIND, node) != 0 or memory.map[0] != 1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def short_lived() -> None:
    """Threads come one after the other, each asks for its CPU, and none is left."""
    descriptors = Path(f"/proc/{os.getppid()}/fd")
    assert set_mempolicy(BIND, 1) == 0

    def thread() -> None:
        syscall("getcpu", None, None, None)

    before = len(list(descriptors.iterdir()))
    for _ in range(150):
        in_a_thread(thread)
    assert len(list(descriptors.iterdir())) < before + 40


def headless() -> None:
    """The first thread ends before the others, which go on."""
    assert set_mempolicy(BIND, 1) == 0
    main = threading.get_native_id()

    def thread() -> None:
        while " Z " not in Path(f"/proc/self/task/{main}/stat").read_text():
            time.sleep(0.01)
        memory = Memory(8)
        right = mbind(memory.start, memory.length, 2) == 0
        memory.write()
        right = right and memory.nodes() == [2] and set_mempolicy(BIND, 3) == 0
        right = right and child(lambda: policy() == (BIND, [3])) == 0
        print("well" if right else "wrong", flush=True)
        os._exit(0)

    threading.Thread(target=thread).start()
    syscall("exit", 0)


def forked_by_a_thread() -> None:
    """A child has the policy and the CPUs of the thread that has forked it."""
    found = []

    def thread() -> None:
        assert set_mempolicy(BIND, 2) == 0
        os.sched_setaffinity(0, {3})
        found.append(child(lambda: policy() == (BIND, [2]) and os.sched_getaffinity(0) == {3}))

    in_a_thread(thread)
    assert found == [0]
    assert child(lambda: policy() == DEFAULT and len(os.sched_getaffinity(0)) == 4) == 0


def executed_by_a_thread() -> None:
    """A program has the policy of the thread that has executed it, though others were there."""
    if sys.argv[2:] == ["again"]:
        assert policy() == (BIND, [2])
        assert os.sched_getaffinity(0) == {3}
        assert set_mempolicy(BIND, 1) == 0
        return
    others = threading.Event()

    def other() -> None:
        set_mempolicy(BIND, 0)
        others.wait()

    def thread() -> None:
        assert set_mempolicy(BIND, 2) == 0
        os.sched_setaffinity(0, {3})
        with_no_such_program = ["/nonexistent"]
        try:
            os.execv(with_no_such_program[0], with_no_such_program)
        except FileNotFoundError:
            assert policy() == (BIND, [2])
        os.execv(sys.executable, [sys.executable, __file__, "executed_by_a_thread", "again"])

    for work in (other, thread, other):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(60)


def executed_by_a_thread_without_a_word() -> None:
    """A program that is executed by a thread that has made no call has the policy that it was born with."""
    if sys.argv[2:] == ["again"]:
        assert policy() == (BIND, [2])
        return
    assert set_mempolicy(BIND, 2) == 0
    ready = threading.Event()

    def thread() -> None:
        ready.wait()
        os.execv(sys.executable, [sys.executable, __file__, "executed_by_a_thread_without_a_word", "again"])

    threading.Thread(target=thread, daemon=True).start()
    in_a_thread(lambda: print(end="" if set_mempolicy(BIND, 1) == 0 else "refused"))
    ready.set()
    while True:  # a call is on its way at any moment
        assert policy() == (BIND, [2])


def executed_again() -> None:
    """The same program at the same addresses is another one: what it maps has no policy of ranges."""
    memory = Memory(1000)
    match sys.argv[2:]:
        case []:
            assert syscall("personality", NO_RANDOM_ADDRESSES) >= 0
            os.execv(sys.executable, [sys.executable, *sys.argv, "1"])
        case ["1"]:
            assert mbind(memory.start, memory.length, 2) == 0
            memory.write()
            os.execv(sys.executable, [sys.executable, *sys.argv[:2], "2"])
    memory.write()
    assert "bind:2" not in Path("/proc/self/numa_maps").read_text()


def shared_with_a_child() -> None:
    """A page of a shared mapping is its child's, too, when that has touched it, though it has made no call."""
    memory, private = Memory(2, shared=True), Memory(1)
    assert mbind(memory.start, memory.length, 1) == 0
    memory.write()
    private.write()
    assert move_to([memory.start, private.start], 2) == [2, 2]
    touched, wait = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        memory.map[0] = private.map[0] = 1
        os.write(touched[1], b"x")
        os.read(wait[0], 1)
        everywhere, there = mask(0, 1, 2, 3), mask(3)
        os._exit(syscall("migrate_pages", 0, 5, everywhere, there) < 0)
    os.read(touched[0], 1)
    # What both have is left alone, but for what the child has not touched yet.
    second = memory.start + PAGE
    assert move_to([memory.start, second], 0) == [-EACCES, 0]
    os.write(wait[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    assert [node_of(memory.start), node_of(second)] == [3, 0]


def only_read() -> None:
    """Pages that were read and never written are the page of zeros: EFAULT to move_pages, and none that is missing."""
    memory = Memory(3)
    assert memory.map[0] + memory.map[PAGE] == 0
    pages = [memory.start + page * PAGE for page in range(3)]
    assert move_to(pages, 1) == [-EFAULT, -EFAULT, -ENOENT]
    memory.map[0] = 1
    assert move_to(pages, 1) == [1, -EFAULT, -ENOENT]
    memory.map.madvise(mmap.MADV_DONTNEED)
    assert memory.map[0] == 0
    assert move_to(pages, 1) == [-EFAULT, -ENOENT, -ENOENT]


def move_to(pages: list[int], node: int) -> list[int]:
    """What move_pages says of each."""
    count = len(pages)
    statuses = (ctypes.c_int * count)()
    addresses, nodes = (ctypes.c_ulong * count)(*pages), (ctypes.c_int * count)(*[node] * count)
    assert syscall("move_pages", 0, count, addresses, nodes, statuses, MOVE) >= 0
    return list(statuses)


def zombies() -> None:
    """Children that have ended, and that nobody has waited for, are left alone."""
    assert set_mempolicy(BIND, 0) == 0
    pids = [os.fork() or os._exit(0) for _ in range(20)]
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    for _ in range(10):
        assert set_mempolicy(BIND, 1) == 0


def capable_user() -> None:
    """Capabilities count for whoever has kept them, and not if they are those of a user namespace of his own."""
    memory = Memory(4)
    memory.write()
    libc = ctypes.CDLL(None, use_errno=True)

    def moves_all() -> int:
        return mbind(memory.start, memory.length, 1, flags=MOVE_ALL)

    def as_capable() -> bool:
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresuid(12345, 12345, 12345)
        right = moves_all() == -EPERM
        nice = 1 << CAP_SYS_NICE
        libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)(nice, nice))
        return right and moves_all() == 0

    def in_own_namespace() -> bool:
        return moves_all() == 0 and libc.unshare(CLONE_NEWUSER) == 0 and moves_all() == -EPERM

    assert set_mempolicy(BIND, 0) == 0
    assert child(as_capable) == 0
    assert child(in_own_namespace) == 0


def another_user() -> None:
    """Who was root when it was met, and is no more, moves no pages of others."""
    memory = Memory(4)
    memory.write()
    parent = os.getpid()

    def as_nobody() -> bool:
        right = mbind(memory.start, memory.length, 1, flags=MOVE_ALL) == 0
        os.setresuid(12345, 12345, 12345)
        right = right and mbind(memory.start, memory.length, 2, flags=MOVE_ALL) == -EPERM
        right = right and syscall("migrate_pages", parent, 65, mask(0), mask(1)) == -EPERM
        right = right and syscall("sched_setaffinity", parent, 8, word(0)) == -EPERM
        right = right and syscall("sched_setaffinity", parent, 8, 8) == -EFAULT
        right = right and syscall("sched_setaffinity", 0, 8, word(2)) == 0
        return right and syscall("move_pages", parent, 1, word(memory.start), word(1), word(0), MOVE) == -EPERM

    assert set_mempolicy(BIND, 0) == 0
    assert child(as_nobody) == 0
    assert child(lambda: syscall("sched_setaffinity", parent, 8, word(0)) == -EINVAL) == 0
    assert child(lambda: syscall("sched_setaffinity", parent, 8, word(8)) == 0) == 0
    assert os.sched_getaffinity(0) == {3}


def set_uid() -> None:
    """Who becomes another user asks, binds and reads on, and what he executes has what he has."""
    tree = Path("/sys/devices/system/node")
    memory = Memory(8)
    assert set_mempolicy(BIND, 1) == 0
    os.setgroups([])
    os.setgid(12345)
    os.setuid(12345)
    assert policy() == (BIND, [1])
    assert set_mempolicy(BIND, 2) == 0
    assert mbind(memory.start, memory.length, 3) == 0
    memory.write()
    assert memory.nodes() == [3]
    assert mbind(memory.start, memory.length, 0, flags=MOVE) == 0
    assert memory.nodes() == [0]
    assert (tree / "online").read_text() == "0-3\n"
    assert {f"node{node}" for node in range(4)} < {path.name for path in tree.iterdir()}
    assert "Node 3 MemTotal:" in (tree / "node3" / "meminfo").read_text()
    assert " bind:0 " in Path("/proc/self/numa_maps").read_text()
    assert "Mems_allowed_list:\t0-3\n" in Path("/proc/self/status").read_text()
    found = subprocess.check_output(["cat", tree / "online", "/proc/self/numa_maps"], text=True)
    assert found.startswith("0-3\n")
    assert " bind:2 " in found


def errors() -> None:
    """What is wrong is told in the kernel's order, and words are as wide as there."""
    memory = Memory(1)
    pages, nodes, status = word(memory.start), word(0), word(0)
    for expected, name, *args in (
        (-EINVAL, "move_pages", NOBODY, 1, pages, nodes, status, 1 << 5),
        (-ESRCH, "move_pages", NOBODY, 1, pages, nodes, status, 2),
        (0, "move_pages", 0, 1, pages, nodes, status, 1 << 32 | 2),
        (-EFAULT, "migrate_pages", NOBODY, 64, 8, 8),
        (-EINVAL, "migrate_pages", NOBODY, 1 << 40, mask(0), mask(1)),
        (-ESRCH, "migrate_pages", NOBODY, 65, mask(0), mask(1)),
    ):
        found = syscall(name, *args)
        assert found == expected, (name, args, found)
    assert os.sched_getaffinity(os.getppid())


def overfull() -> None:
    """A child has more memory than the machine; it is the one that ends, whoever looks at it."""
    begin, end = os.pipe()
    pid = os.fork()
    if not pid:
        threading.Thread(target=signal.pause, daemon=True).start()  # it is not looked at by itself
        set_mempolicy(BIND, 0)
        memory = Memory(int(sys.argv[3]))
        memory.write()
        os.write(end, b"x")
        signal.pause()
    os.read(begin, 1)
    if sys.argv[2] == "meminfo":
        assert "MemTotal" in Path("/proc/meminfo").read_text()
    else:
        assert syscall("migrate_pages", pid, 65, mask(0), mask(1)) == -ESRCH
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert set_mempolicy(BIND, 1) == 0


globals()[sys.argv[1]]()
print("well", flush=True)
