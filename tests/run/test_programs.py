"""Programs of several kinds: static, threads, forks, exec, shared memory."""

import errno
import json
import os
import re
import sys
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, Done, Run, compiled, faults_refused

import numaemu as nm
from numaemu_run.abi import abi_of_host
from numaemu_run.kernel import Kernel

pytestmark = pytest.mark.shares_machines

EXPECTED = """\
local: 0 0 0 0 0 0 0 0
strict: -5
move: 0
moved: 2 2 2 2 2 2 2 2
bad mode: -22
bad pointer: -14
hole: -14
move_pages: 0
0 1 2 3 0 1 2 3
one by one: 0 1 2 3 0 1 2 3
set: 0
get: 0 3 0xa
interleaved: A B A B A B A B
getcpu: 0 0 0
child, inherited: A B A B A B A B
child, new: A B A B A B A B
default: 0
affinity: 0 2 0 2
local again: 2 2 2 2 2 2 2 2
"""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that makes the calls without libc's help."""
    return compiled("policies.c", tmp_path_factory.mktemp("c"), "-static")


@pytest.mark.parametrize("options", [(), ("--no-mount",)], ids=["mounted", "answered"])
def test_a_static_program_gets_the_kernels_answers(run: Run, policies: Path, options: tuple[str, ...]) -> None:
    """mbind, move_pages, set_mempolicy, errors and a fork are answered as on a machine of four nodes."""
    check_answers(run(policies, options=options))


OPENED = """\
place of nodes True
place of status EBADF
directory ENOTDIR
nonblocking True
openat2 b'Name'
short how EINVAL
beneath EXDEV
no path 0
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86_64")
@pytest.mark.parametrize("options", [(), ("--no-mount",)], ids=["mounted", "answered"])
def test_files_are_opened_as_the_kernel_opens_them(run: Run, options: tuple[str, ...]) -> None:
    """Places without rights, directories that are none, flags, openat2: what is answered fails as the host's does."""
    done = run(sys.executable, PROGRAMS / "opened.py", options=options)
    assert (done.stdout, done.returncode) == (OPENED, 0), done.stderr


def test_a_dynamic_program_gets_them_too(run: Run, tmp_path: Path) -> None:
    """The same calls through a loader and a shared libc."""
    check_answers(run(compiled("policies.c", tmp_path)))


@pytest.mark.parametrize("options", [(), ("-static",)], ids=["dynamic", "static"])
def test_another_libc_gets_them_as_well(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    """musl, which knows nothing of rseq: it begins with the same call."""
    check_answers(run(compiled("policies.c", tmp_path, *options, compiler="musl-gcc")))


def check_answers(done: Done) -> None:
    assert done.returncode == 7
    text = "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"
    for one, other in (("1", "3"), ("3", "1")):  # an interleave goes by the address, which differs
        text = text.replace(f"{one} {other} {one} {other} {one} {other} {one} {other}", "A B A B A B A B")
    assert text == EXPECTED


def python(run: Run, name: str, *words: object, options: tuple[str, ...] = ()) -> list[str]:
    """The lines that a script of this folder prints."""
    done = run(sys.executable, PROGRAMS / name, *words, options=options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_threads_and_children_have_policies_of_their_own(run: Run) -> None:
    """Threads bind ranges, children set policies, all at once; each page is where its own binding says.

    Where the host does not tell of faults, which thread has touched a page that no range's policy is for is a guess.
    """
    bound, own, *rest = python(run, "threads.py")
    assert (bound, rest) == ("8 threads right", ["6 children right", "shared [3]", "4 CPUs [0, 1, 2, 3]"])
    count, _, what = own.partition(" ")
    assert what == "ranges under policies of their own right"
    assert int(count) >= (6 if faults_refused() else 8)


def test_a_process_takes_its_policy_through_exec_and_forks(run: Run) -> None:
    """A child that executes, and an orphan whose parent has ended, are still under the policy of their ancestor."""
    found = python(run, "heirs.py")
    assert found == ["child bind {2}", "executed bind {2}", "grandchild bind {2}", "after bind {1}"]


def test_a_fork_parts_with_its_parent_where_one_of_them_writes(run: Run) -> None:
    """Pages in common are on one node; those that the child has written to are its own, and move by themselves."""
    assert python(run, "parting.py") == ["common [0]", "child 0 [3]", "parent [0]", "moved 0 [1]"]


def test_a_policy_goes_along_with_mremap(run: Run) -> None:
    """Memory that grows in its place, moves and shrinks keeps its policy and its pages; other memory has none of it."""
    assert python(run, "resized.py") == ["bound [3]", "grown [3]", "moved [3]", "shrunk [3]", "other [0]"]


MEMORY = """
import ctypes, os
fields = dict(line.split(":") for line in open("/proc/meminfo"))
total, free = (int(fields[name].split()[0]) // 4 for name in ("MemTotal", "MemFree"))
print(total, os.sysconf("SC_PHYS_PAGES"), abs(os.sysconf("SC_AVPHYS_PAGES") - free) < 1000)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(ctypes.c_long(NUMBER), ctypes.c_void_p(4096)), ctypes.get_errno())
"""


def test_the_memory_is_that_of_the_machine(run: Run) -> None:
    """sysinfo, by which runtimes size their heaps, tells what /proc/meminfo does; a bad pointer is EFAULT."""
    done = run(sys.executable, "-c", MEMORY.replace("NUMBER", str(abi_of_host().numbers["sysinfo"])))
    assert (done.stdout, done.stderr) == (f"{4 * 64 * 256} {4 * 64 * 256} True\n-1 {errno.EFAULT}\n", "")


def test_memory_that_is_gone_gives_its_frames_back(run: Run, machine: nm.Machine) -> None:
    """Unmapped and discarded pages leave the nodes; with the end of the program all are free."""
    free = free_pages(machine)
    assert python(run, "come_and_go.py") == ["touched 256", "discarded 128", "unmapped 0"]
    assert free_pages(machine) == free


WANDERING = f"""
import sys; sys.path.insert(0, {str(PROGRAMS)!r})
from calls import *
memory = Memory(5000)
for node in (0, 1, 2, 3):
    memory.write()
    assert mbind(memory.start, memory.length, node, flags=2) == 0
    if not os.fork():
        memory.write()
        os._exit(node_of(memory.start) != node)
    assert os.wait()[1] == 0
    memory.map.madvise(mmap.MADV_DONTNEED)
more = Memory(20000)  # than the node has
assert mbind(more.start, more.length, 3) == 0
more.write()
assert node_of(more.start + more.length - PAGE) == 3
"""


def test_bytes_stay_in_the_program(run: Run, machine: nm.Machine) -> None:
    """Pages that are touched, moved, forked, discarded and swapped take none of the host's memory for the machine."""
    before, swapped = memory_kb(machine), swapped_out(machine)
    done = run(sys.executable, "-c", WANDERING)
    assert (done.stderr, done.returncode) == ("", 0)
    assert memory_kb(machine) - before < 1000
    assert swapped_out(machine) - swapped > 3000


def test_frames_of_a_program_are_not_mapped_by_clients(machine: nm.Machine) -> None:
    """They count as zeros: a client that shares the address space gets no window to them."""
    at, end = 0x7F0000000000, 0x7F0000001000
    with machine.attach(remote=True) as far:
        Kernel(machine).mirror(far, [], [[at, end, None, 0, False, None]], [], [[at, end]], [])
        with machine.attach(share_mm=far.pid) as near, pytest.raises(PermissionError):
            near.read(at, 1)


def swapped_out(machine: nm.Machine) -> int:
    """Pages since boot."""
    return next(int(line.split()[1]) for line in machine.vmstat().splitlines() if line.startswith("pswpout "))


def memory_kb(machine: nm.Machine) -> int:
    """What the host has given for the frames of all nodes, and for the swap area."""
    kernel = next(each["pid"] for each in machine.status()["processes"] if each["role"] == "kernel")
    fds = list(Path(f"/proc/{kernel}/fd").iterdir())
    return sum(fd.stat().st_blocks // 2 for fd in fds if re.search(r"numaemu\.(pool|swap\b)", str(fd.readlink())))


def free_pages(machine: nm.Machine) -> int:
    return sum(int(node["MemFree"]) // 4 for node in machine.figures("meminfo"))


def test_two_programs_and_a_client_share_a_machine(run: Run, machine: nm.Machine) -> None:
    """What a client has on a node is seen by a program, and the program's pages by the client while it runs."""
    with machine.attach(cpu=1) as task:
        buf = task.mmap(1 << 20)
        task.touch(buf.start, buf.length, write=True)
        done = run("sh", "-c", "cat /sys/devices/system/node/node1/meminfo")
        used = next(line for line in done.stdout.splitlines() if "AnonPages" in line)
        assert int(used.split()[3]) >= 1024


def test_a_machine_that_is_full_kills_as_the_kernel_does(run: Run) -> None:
    """Memory beyond what the nodes of a bind and the swap area have ends the program with SIGKILL, and is told."""
    done = run(sys.executable, PROGRAMS / "glutton.py", options=("--report", "json"))
    assert done.returncode == -9
    assert "out of memory: killed process" in done.stderr
    report = json.loads(done.stderr[done.stderr.index("{") :])
    assert report["killed_out_of_memory"] == 1
