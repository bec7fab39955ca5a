"""mlock faults in what it locks: which pages, and which it leaves alone.

Sources: mm/mlock.c (2.6.15, 6.1).
"""

import errno
from collections.abc import Callable

import pytest

from numaemu_core import fork, mlock, mprotect
from numaemu_core.errors import MmError
from numaemu_core.mm_types import Task
from numaemu_core.uapi import MAP_FIXED, MCL_CURRENT, PROT_NONE, PROT_READ, PROT_WRITE

from .conftest import PAGE, Machine

Make = Callable[..., Machine]
BASE = 0x10000000
NODES = [{"id": 0, "memory": "256K", "cpus": [0]}]
NOTHING, UNMAPPED = -2, -14


def lock(m: Machine, task: Task, first: int, pages: int) -> int:
    """The errno of an mlock."""
    try:
        m.call(mlock.sys_mlock(m.k, task, BASE + first * PAGE, pages * PAGE))
    except MmError as error:
        return error.errno
    return 0


@pytest.mark.parametrize(("profile", "there"), [("swap-v3", [0, 0]), ("linux-6.12", [NOTHING, NOTHING])])
def test_a_hole_ends_it(machine: Make, profile: str, there: list[int]) -> None:
    """In front of a hole 2005 faults in and today nothing is; behind it nothing ever is, though it be locked."""
    m = machine(profile=profile, node=NODES)
    task = m.attach()
    for page in (0, 4):
        m.mmap(task, 2, BASE + page * PAGE, flags=MAP_FIXED)
    assert lock(m, task, 4, 2) == 0
    m.call(fork.sys_fork(m.k, task))
    before = [m.entry(task, BASE + page * PAGE) for page in (4, 5)]
    assert lock(m, task, 0, 6) == 12
    assert m.where(task, BASE, 6) == [*there, UNMAPPED, UNMAPPED, 0, 0]
    assert [m.entry(task, BASE + page * PAGE) for page in (4, 5)] == before


@pytest.mark.parametrize(("profile", "copied"), [("swap-v3", False), ("linux-6.12", True)])
@pytest.mark.parametrize("everything", [False, True], ids=["mlock", "mlockall"])
def test_what_is_locked_already(machine: Make, profile: str, *, copied: bool, everything: bool) -> None:
    """2005 leaves locked mappings alone; today their pages are faulted in again, which copies what a fork shares."""
    m = machine(profile=profile, node=NODES)
    task = m.attach()
    m.mmap(task, 2, BASE, flags=MAP_FIXED)
    assert lock(m, task, 0, 2) == 0
    before = [m.entry(task, BASE + i * PAGE) // PAGE for i in range(2)]
    m.call(fork.sys_fork(m.k, task))
    if everything:
        m.call(mlock.sys_mlockall(m.k, task, MCL_CURRENT))
    else:
        assert lock(m, task, 0, 2) == 0
    assert (before != [m.entry(task, BASE + i * PAGE) // PAGE for i in range(2)]) == copied


@pytest.mark.parametrize(("profile", "there"), [("swap-v3", NOTHING), ("linux-6.1", 0), ("linux-6.12", 0)])
def test_locked_memory_that_becomes_writable(machine: Make, profile: str, there: int) -> None:
    """Since 4.2 private memory that is locked has a page of its own wherever it may be written to."""
    m = machine(profile=profile, node=NODES)
    task = m.attach()
    m.mmap(task, 2, BASE, flags=MAP_FIXED, prot=PROT_NONE)
    assert lock(m, task, 0, 2) == (0 if profile == "swap-v3" else errno.ENOMEM)
    assert m.call(mprotect.sys_mprotect(m.k, task, BASE, 2 * PAGE, PROT_READ | PROT_WRITE)) == 0
    assert m.where(task, BASE, 2) == [there, there]
