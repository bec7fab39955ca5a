"""Address spaces: merging of VMAs, and the host's own kernel."""

import contextlib
import ctypes
import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from numaemu_core import mlock, mmap, mprotect
from numaemu_core.errors import MmError
from numaemu_core.limits import TASK_UNMAPPED_BASE
from numaemu_core.mm_types import Task, VmArea
from numaemu_core.uapi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_PRIVATE,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

PAGE = 4096
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
RW = PROT_READ | PROT_WRITE


def errno_of(call: Callable[[], object]) -> int:
    """0, or the errno of the refusal."""
    try:
        call()
    except MmError as error:
        return error.errno
    return 0


# -- merging and splitting ---------------------------------------------------------------------------------------------

A = TASK_UNMAPPED_BASE
Steps = Callable[["Machine", Task], object]


def at(first: int, pages: int) -> tuple[int, int]:
    return A + first * PAGE, pages


def mapped(m: "Machine", task: Task, first: int, pages: int, prot: int = RW, flags: int = 0) -> None:
    assert m.mmap(task, pages, A + first * PAGE, prot, MAP_FIXED | flags) == A + first * PAGE


def two_maps(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 2, 3)


def map_below(m: "Machine", task: Task) -> None:
    mapped(m, task, 2, 3)
    mapped(m, task, 0, 2)


def map_between(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 4, 2)
    mapped(m, task, 2, 2)


def map_with_gap(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 3, 2)


def map_other_prot(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 2, 2, PROT_READ)


def map_locked(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 2, 2, RW, MAP_LOCKED)


def map_both_touched(m: "Machine", task: Task) -> None:
    """Two anon_vmas cannot be one, even where the hole between them is filled."""
    mapped(m, task, 0, 2)
    mapped(m, task, 3, 2)
    m.touch(task, A, 2)
    m.touch(task, A + 3 * PAGE, 2)
    mapped(m, task, 2, 1)


def map_one_touched(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    m.touch(task, A, 2)
    mapped(m, task, 2, 2)


def map_over_the_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    mapped(m, task, 2, 2)


def protect_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.call(mprotect.sys_mprotect(m.k, task, A + 2 * PAGE, 2 * PAGE, PROT_READ))


def protect_and_back(m: "Machine", task: Task) -> None:
    protect_middle(m, task)
    m.call(mprotect.sys_mprotect(m.k, task, A + 2 * PAGE, 2 * PAGE, RW))


def protect_touched_and_back(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.touch(task, A, 6)
    m.call(mprotect.sys_mprotect(m.k, task, A + 2 * PAGE, 2 * PAGE, PROT_READ))
    m.call(mprotect.sys_mprotect(m.k, task, A + 2 * PAGE, 2 * PAGE, RW))


def protect_piecewise(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 3)
    for first in (2, 0, 1):
        m.call(mprotect.sys_mprotect(m.k, task, A + first * PAGE, PAGE, PROT_READ))


def protect_across(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 2, 2, PROT_READ)
    m.call(mprotect.sys_mprotect(m.k, task, A + PAGE, 2 * PAGE, 0))


def lock_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.call(mlock.sys_mlock(m.k, task, A + 2 * PAGE, 2 * PAGE))


def lock_and_back(m: "Machine", task: Task) -> None:
    lock_middle(m, task)
    m.call(mlock.sys_munlock(m.k, task, A + 2 * PAGE, 2 * PAGE))


def lock_two_halves(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 4)
    m.call(mlock.sys_mlock(m.k, task, A, 2 * PAGE))
    m.call(mlock.sys_mlock(m.k, task, A + 2 * PAGE, 2 * PAGE))


def bind_half(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 4)
    m.mbind(task, *at(0, 2), MPOL_BIND, {1})


def bind_and_back(m: "Machine", task: Task) -> None:
    bind_half(m, task)
    m.mbind(task, *at(0, 2), MPOL_DEFAULT, set())


def bind_two_halves(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 4)
    m.mbind(task, *at(0, 2), MPOL_BIND, {1})
    m.mbind(task, *at(2, 2), MPOL_BIND, {1})


def bind_then_protect(m: "Machine", task: Task) -> None:
    """What mbind left apart, the next mprotect joins."""
    bind_two_halves(m, task)
    m.call(mprotect.sys_mprotect(m.k, task, A, 4 * PAGE, PROT_READ))


def bind_then_map(m: "Machine", task: Task) -> None:
    """A new mapping has no policy."""
    mapped(m, task, 0, 2)
    m.mbind(task, *at(0, 2), MPOL_BIND, {1})
    mapped(m, task, 2, 2)


def bind_in_the_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.mbind(task, *at(2, 2), MPOL_INTERLEAVE, {0, 1})


def unmap_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.call(mmap.sys_munmap(m.k, task, A + 2 * PAGE, 2 * PAGE))


def unmap_and_map(m: "Machine", task: Task) -> None:
    unmap_middle(m, task)
    mapped(m, task, 2, 2)


def unmap_touched_and_map(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.touch(task, A, 6)
    m.call(mmap.sys_munmap(m.k, task, A + 2 * PAGE, 2 * PAGE))
    mapped(m, task, 2, 2)


#: Name: the VMAs that are left, as pages from the base.
VMAS: dict[Steps, list[tuple[int, int]]] = {
    two_maps: [(0, 5)],
    map_below: [(0, 5)],
    map_between: [(0, 6)],
    map_with_gap: [(0, 2), (3, 5)],
    map_other_prot: [(0, 2), (2, 4)],
    map_locked: [(0, 2), (2, 4)],
    map_both_touched: [(0, 3), (3, 5)],
    map_one_touched: [(0, 4)],
    map_over_the_middle: [(0, 6)],
    protect_middle: [(0, 2), (2, 4), (4, 6)],
    protect_and_back: [(0, 6)],
    protect_touched_and_back: [(0, 6)],
    protect_piecewise: [(0, 3)],
    protect_across: [(0, 1), (1, 2), (2, 3), (3, 4)],  # one of the two could be written to: it stays accounted for
    lock_middle: [(0, 2), (2, 4), (4, 6)],
    lock_and_back: [(0, 6)],
    lock_two_halves: [(0, 4)],
    bind_half: [(0, 2), (2, 4)],
    bind_and_back: [(0, 2), (2, 4)],
    bind_two_halves: [(0, 2), (2, 4)],
    bind_then_protect: [(0, 4)],
    bind_then_map: [(0, 2), (2, 4)],
    bind_in_the_middle: [(0, 2), (2, 4), (4, 6)],
    unmap_middle: [(0, 2), (4, 6)],
    unmap_and_map: [(0, 6)],
    unmap_touched_and_map: [(0, 6)],
}


@pytest.mark.parametrize(("steps", "vmas"), VMAS.items(), ids=[steps.__name__ for steps in VMAS])
def test_vmas_are_merged_and_split(
    machine: "Callable[..., Machine]", steps: Steps, vmas: list[tuple[int, int]]
) -> None:
    """mmap, mprotect, mlock merge what is alike, mbind never does; a split keeps the offset of every page."""
    m = machine()
    task = m.attach()
    steps(m, task)
    left: list[VmArea] = list(task.mm.vmas)
    assert [((vma.vm_start - A) // PAGE, (vma.vm_end - A) // PAGE) for vma in left] == vmas
    assert [vma.vm_pgoff for vma in left] == [A // PAGE + first for first, _ in vmas]


def test_an_interleave_goes_on_across_a_split(machine: "Callable[..., Machine]") -> None:
    """Pages keep their node when their VMA is cut: the offset counts from where it was mapped."""
    m = machine()
    task = m.attach()
    addr = m.mmap(task, 8)
    m.mbind(task, addr, 8, MPOL_INTERLEAVE, {0, 1})
    m.call(mprotect.sys_mprotect(m.k, task, addr + 3 * PAGE, PAGE, PROT_READ))
    m.call(mmap.sys_munmap(m.k, task, addr, PAGE))
    m.call(mprotect.sys_mprotect(m.k, task, addr + 3 * PAGE, PAGE, RW))
    m.touch(task, addr + PAGE, 7)
    first = (addr // PAGE) % 2
    assert m.where(task, addr + PAGE, 7) == [(first + i) % 2 for i in range(1, 8)]


# -- the host's own kernel ---------------------------------------------------------------------------------------------

HOST_PAGES = 24
MARGIN = 2
MAP_NORESERVE = 0x4000
PERMISSIONS = ((PROT_READ, "r"), (PROT_WRITE, "w"), (PROT_EXEC, "x"))
Areas = list[tuple[int, int, str]]


class HostRange:
    """A range of this very process: what the host's kernel makes of the same calls."""

    def __init__(self) -> None:
        """Reserved without any right; mappings of other parts of the process stay out of it while it is whole."""
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.base = 0
        self.base = self.mmap(-MARGIN, HOST_PAGES + 2 * MARGIN, 0, 0) + MARGIN * PAGE

    def mmap(self, first: int, pages: int, prot: int, flags: int = MAP_FIXED) -> int:
        wanted = self.base + first * PAGE if flags else None
        got = self.libc.mmap(wanted, pages * PAGE, prot, PRIVATE | MAP_NORESERVE | flags, -1, 0)
        assert got not in (None, (1 << 64) - 1), errno.errorcode[ctypes.get_errno()]
        return int(got)

    def munmap(self, first: int, pages: int) -> int:
        failed = self.libc.munmap(self.base + first * PAGE, pages * PAGE)
        return ctypes.get_errno() if failed else 0

    def mprotect(self, first: int, pages: int, prot: int) -> int:
        failed = self.libc.mprotect(self.base + first * PAGE, pages * PAGE, prot)
        return ctypes.get_errno() if failed else 0

    def areas(self) -> Areas:
        """The mappings inside of the range, in pages from its base."""
        found = []
        for line in Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines():
            span, permissions = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            first = max((start - self.base) // PAGE, 0)
            last = min((end - self.base) // PAGE, HOST_PAGES)
            if first < last:
                found.append((first, last, permissions[:3]))
        return found

    def close(self) -> None:
        self.munmap(-MARGIN, HOST_PAGES + 2 * MARGIN)


@contextlib.contextmanager
def host_range() -> Iterator[HostRange]:
    host = HostRange()
    try:
        yield host
    finally:
        host.close()


def core_areas(task: Task, base: int) -> Areas:
    found = []
    for vma in task.mm.vmas:
        first, last = max((vma.vm_start - base) // PAGE, 0), min((vma.vm_end - base) // PAGE, HOST_PAGES)
        if first < last:
            found.append((first, last, "".join(c if vma.vm_flags & bit else "-" for bit, c in PERMISSIONS)))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_mappings_are_those_of_the_host_kernel(machine: "Callable[..., Machine]", seed: int) -> None:
    """The same calls give the same mappings, merged and split alike, and the same errors as on the host."""
    m = machine()
    task = m.attach()
    base = A + MARGIN * PAGE
    m.mmap(task, HOST_PAGES + 2 * MARGIN, A, 0, MAP_FIXED | MAP_NORESERVE)
    rng = random.Random(seed)
    with host_range() as host:
        for _ in range(60):
            first = rng.randrange(HOST_PAGES)
            pages = rng.randint(1, min(8, HOST_PAGES - first))
            prot = rng.choice([0, PROT_READ, RW, RW, PROT_READ | PROT_EXEC])
            addr, length = base + first * PAGE, pages * PAGE
            call = rng.choice(["mmap", "mmap", "mprotect", "mprotect", "munmap"])
            if call == "mmap":
                host.mmap(first, pages, prot)
                m.mmap(task, pages, addr, prot, MAP_FIXED | MAP_NORESERVE)
            elif call == "munmap":
                assert host.munmap(first, pages) == errno_of(
                    lambda: m.call(mmap.sys_munmap(m.k, task, addr, length))  # noqa: B023 - called at once
                )
            else:
                assert host.mprotect(first, pages, prot) == errno_of(
                    lambda: m.call(mprotect.sys_mprotect(m.k, task, addr, length, prot))  # noqa: B023 - called at once
                )
            assert core_areas(task, base) == host.areas()
