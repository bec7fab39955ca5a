"""The vDSO of a process, changed so that it asks the kernel, or tells by itself."""

import ctypes
import errno
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, compiled

import numaemu as nm
from numaemu_run import image, supervisor, vdso
from numaemu_run import session as session_module
from numaemu_run.abi import AARCH64, X86_64, abi_of_host
from numaemu_run.session import Session

#: Answers each line with CPU, node and what getcpu returned; the kernel answers -1, -1, as the call is refused.
PROGRAM = """
import ctypes, sys
libc = ctypes.CDLL(None)
def getcpu(*which):
    cpu, node = ctypes.c_int(-1), ctypes.c_int(-1)
    result = libc.getcpu(*(ctypes.byref(one) if asked else None for one, asked in zip((cpu, node), which)))
    return cpu.value, node.value, result
for line in sys.stdin:
    print(*getcpu("c" in line, "n" in line), flush=True)
"""
Ask = Callable[[str], tuple[int, ...]]
pytestmark = pytest.mark.shares_machines
needs_vdso = pytest.mark.skipif(not vdso.needs_change(abi_of_host()), reason="the vDSO of this host has no getcpu")
AT = 3840


@pytest.fixture
def process() -> Iterator[tuple[str, Ask]]:
    """A process that asks when it is told to: where /proc has it, and how to tell it."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def ask(which: str) -> tuple[int, ...]:
            stdin.write(which + "\n")
            stdin.flush()
            return tuple(map(int, stdout.readline().split()))

        ask("")  # it is ready
        yield f"/proc/{child.pid}", ask
        child.kill()


def number_of_the_kernel(ask: Ask) -> bool:
    """Does the kernel answer? It has CPUs of its own, and none of the high numbers that are told here."""
    cpu, node, result = ask("cn")
    return 0 <= cpu < (os.cpu_count() or 1) and 0 <= node < 512 and result == 0


@needs_vdso
def test_who_is_told_does_not_ask(process: tuple[str, Ask]) -> None:
    """CPU and node are those told, whatever of the two is wanted; told anew, the new ones; then the kernel is asked."""
    folder, ask = process
    vdso.change(X86_64, folder)
    assert number_of_the_kernel(ask)
    for cpu, node in (1023, 1022), (515, 0), (0, 513), (0xFFFF, 0x7FFF):
        vdso.tell(X86_64, folder, cpu, node)
        assert [ask(which) for which in ("cn", "c", "n", "")] == [
            (cpu, node, 0),
            (cpu, -1, 0),
            (-1, node, 0),
            (-1, -1, 0),
        ]
    vdso.ask(X86_64, folder)
    assert number_of_the_kernel(ask)


@needs_vdso
def test_one_that_was_not_changed_is_not_told(process: tuple[str, Ask]) -> None:
    """It is as the kernel has made it."""
    folder, ask = process
    vdso.tell(X86_64, folder, 1023, 1022)
    assert number_of_the_kernel(ask)
    vdso.ask(X86_64, folder)
    assert number_of_the_kernel(ask)


@needs_vdso
def test_where_there_is_no_room_it_always_asks(
    process: tuple[str, Ask], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What is told then is not believed."""
    folder, ask = process
    monkeypatch.setattr(vdso, "has_room", lambda _offset, _sizes: False)
    vdso.place_of_getcpu.cache_clear()
    request.addfinalizer(vdso.place_of_getcpu.cache_clear)
    vdso.change(X86_64, folder)
    assert number_of_the_kernel(ask)
    vdso.tell(X86_64, folder, 1023, 1022)
    assert number_of_the_kernel(ask)


@needs_vdso
def test_changed_twice_it_is_as_changed_once(process: tuple[str, Ask]) -> None:
    """Some runtimes begin once more, while others of their threads ask."""
    folder, ask = process
    vdso.change(X86_64, folder)
    vdso.tell(X86_64, folder, 1023, 1022)
    vdso.change(X86_64, folder)
    assert number_of_the_kernel(ask)
    vdso.tell(X86_64, folder, 1023, 1022)
    assert ask("cn") == (1023, 1022, 0)


@needs_vdso
def test_who_has_ended_cannot_be_told() -> None:
    """Nor can whoever has its number now, where the folder is that of the one who has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        place = os.open(f"/proc/{gone.pid}", os.O_PATH)
    with pytest.raises(ProcessLookupError):
        vdso.tell(X86_64, f"/proc/self/fd/{place}", 1, 1)
    os.close(place)


def test_other_architectures_are_left_alone() -> None:
    """There is nothing to be told."""
    assert not vdso.needs_change(AARCH64)
    vdso.tell(AARCH64, "/proc/self", 1, 1)
    vdso.ask(AARCH64, "/proc/self")


@pytest.mark.parametrize(
    ("sizes", "room"),
    [
        ({AT: 44, AT + 64: 9}, True),
        ({AT: 38, AT + 48: 9}, True),
        ({AT: 33, 0: AT}, True),
        ({AT: 32}, False),
        ({AT: 44, AT + 46: 1}, False),
        ({AT: 44, AT + 4: 1}, False),
        ({AT + 64: 44}, False),
        ({}, False),
    ],
)
def test_room_is_what_the_old_function_leaves(sizes: dict[int, int], room: bool) -> None:  # noqa: FBT001 - a table
    """With the gap behind it, up to the next multiple of 16: nothing begins before that."""
    assert vdso.has_room(AT, sizes) == room
    assert not vdso.has_room(AT + 8, {AT + 8: 64})


def refuse(*_: object) -> None:
    raise PermissionError


def not_compared(code: int, _tid: int, _other: int) -> int:
    ctypes.set_errno(code)
    return -1


@pytest.fixture
def session(machine: nm.Machine) -> Iterator[Session]:
    """A run that has not begun; how paths are answered is no matter here."""
    with Session(None, machine.name) as made:
        yield made


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are looked at all the time, as far as that takes a small part of it."""
    monkeypatch.setattr(supervisor, "_LOOK_EVERY_S", 0.001)


@needs_vdso
@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "guessed"])
def test_a_program_that_asks_often_is_told(
    session: Session, monkeypatch: pytest.MonkeyPatch, *, recorded: bool
) -> None:
    """What changes is told at once, and each of its threads and children, and what it executes, its own CPU.

    Threads that have ended do not count, whether or not the host records page faults, by which they are forgotten.
    """
    if not recorded:
        monkeypatch.setattr(session_module, "FaultEvents", refuse)
    assert session.run([sys.executable, str(PROGRAMS / "asks.py")], os.environ).code == 0


@needs_vdso
@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("compares", [True, False], ids=["kcmp", "no kcmp"])
@pytest.mark.parametrize("relation", ["child", "sibling"])
def test_who_has_the_memory_of_another_has_a_cpu_of_its_own(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relation: str, *, compares: bool
) -> None:
    """Neither is told that of the other one, however often they ask, and whoever is the parent of the new one."""
    if not compares:  # as in a container that may not
        monkeypatch.setattr(image, "kcmp_vm", functools.partial(not_compared, errno.EPERM))
    program = compiled("borrowed_cpu.c", tmp_path)
    assert session.run(["sh", "-c", f"{program} {relation}; exit $?"], os.environ).code == 0


@needs_vdso
@pytest.mark.usefixtures("often")
def test_a_process_whose_first_thread_has_ended_is_told_too(session: Session, tmp_path: Path) -> None:
    """And asks again when another thread moves."""
    program = compiled("headless.c", tmp_path, "-pthread")
    assert session.run([str(program)], os.environ).code == 0
