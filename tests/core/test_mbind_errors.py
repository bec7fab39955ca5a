"""Which errno a call gets, in the order in which 2.6.14-rc4-mm1 with "Swap migration V3" looks: one fault or several.

Sources: mm/mempolicy.c (2.6.15), "Swap migration V3: MPOL_MF_MOVE interface".
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from numaemu_core import fork, get_mempolicy, interleave, limits, madvise, mbind, mempolicy, mlock
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.mm_types import VM_RESERVED, Task
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.uapi import (
    MADV_PAGEOUT,
    MAP_FIXED,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_ADDR,
    MPOL_F_NODE,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_PREFERRED,
    PROT_NONE,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

Make = Callable[..., "Machine"]

PAGE = 4096
BASE = 0x10000000
ULONG_MAX = (1 << 64) - 1
#: A mask of 32,769 bits takes 513 words of 64 bits: one more than a page holds.
TOO_LONG = 32_770
#: What no caller may pass: MPOL_MF_DISCONTIG_OK, and the bit above the known ones.
INTERNAL_FLAG, UNKNOWN_FLAG = 1 << 20, 8
#: Pages of the world: [0, 4) mapped and touched on node 0, [4, 8) a hole, [8, 12) the same again, nothing above.
LOW, HOLE, HIGH, ABOVE = 0, 4, 8, 12
MAPPED = (*range(LOW, HOLE), *range(HIGH, ABOVE))


@dataclass(frozen=True)
class Call:
    """Arguments of an mbind that is in order; a row of the table says what is different."""

    page: int = LOW
    length: int = PAGE
    mode: int = MPOL_BIND
    words: Sequence[int] | None = (1,)
    maxnode: int = 65
    flags: int = 0
    #: Bytes that the start is off.
    off: int = 0


def world(machine: Make) -> tuple[Machine, Task]:
    """Two mapped areas with a hole between them, all of their pages on node 0 of three."""
    m = machine(nodes=3, memory="128K", swap="128K")
    task = m.attach()
    for first in (LOW, HIGH):
        m.mmap(task, 4, BASE + first * PAGE, flags=MAP_FIXED)
        m.touch(task, BASE + first * PAGE, 4)
    return m, task


def run(m: Machine, body: KernelTask[object]) -> int:
    """The errno of a call, 0 when it succeeds."""
    try:
        m.call(body)
    except MmError as error:
        return error.errno
    return 0


def run_mbind(m: Machine, task: Task, call: Call) -> int:
    """The errno of an mbind."""
    start = BASE + call.page * PAGE + call.off
    body = mbind.sys_mbind(m.k, task, start, call.length, call.mode, call.words, call.maxnode, call.flags)
    return run(m, body)


def nodes_there(m: Machine, task: Task) -> list[int]:
    """The node of each mapped page of the world."""
    return m.where(task, BASE, 4) + m.where(task, BASE + HIGH * PAGE, 4)


def policy_at(task: Task, page_number: int) -> Mempolicy | None:
    """The policy of the VMA of a page."""
    vma = task.mm.vmas.find_vma(BASE + page_number * PAGE)
    assert vma is not None
    assert vma.vm_start <= BASE + page_number * PAGE
    return vma.vm_policy


@contextmanager
def reserved(m: Machine, task: Task, page_number: int) -> Iterator[None]:
    """The VMA of a page is VM_RESERVED for a while, as a driver's would be."""
    vma = task.mm.vmas.find_vma(BASE + page_number * PAGE)
    assert vma is not None
    vma.vm_flags |= VM_RESERVED
    yield
    vma.vm_flags &= ~VM_RESERVED
    m.k.journal.vmas(task.mm, vma.vm_start, vma.vm_end)


#: name → call, its errno (0: success). Numbers are those of the checks, in the order in which they are made.
MBIND_ROWS: dict[str, tuple[Call, int]] = {
    "in order": (Call(), 0),
    "1 mask longer than a page": (Call(words=(1,) * 513, maxnode=TOO_LONG), errno.EINVAL),
    "1 mask of a whole page passes": (Call(words=(1, *(0,) * 511), maxnode=TOO_LONG - 1), 0),
    "1 bit 64 set": (Call(words=(1, 1), maxnode=129), errno.EINVAL),
    "1 bit 64 set, last bit that counts": (Call(words=(1, 1), maxnode=66), errno.EINVAL),
    "1 bit 64 set, one bit too far": (Call(words=(1, 1), maxnode=65), 0),
    "1 bits from maxnode - 1 up do not count": (Call(words=(0b101001,), maxnode=4), 0),
    "1 maxnode 0 with a mask": (Call(maxnode=0), errno.EINVAL),
    "1 maxnode 0 without a mask": (Call(mode=MPOL_DEFAULT, words=None, maxnode=0), 0),
    "1 before 2, longer than a page and unreadable": (Call(words=(), maxnode=TOO_LONG), errno.EINVAL),
    "1 before 2, bit 64 set and the word behind it unreadable": (Call(words=(1, 1), maxnode=193), errno.EINVAL),
    "2 no word readable": (Call(words=()), errno.EFAULT),
    "2 second word unreadable": (Call(words=(1,), maxnode=66), errno.EFAULT),
    "2 no bits, so nothing is read": (Call(mode=MPOL_DEFAULT, words=(), maxnode=1), 0),
    "2 before 3": (Call(words=(), flags=UNKNOWN_FLAG), errno.EFAULT),
    "2 before 4": (Call(words=(), flags=MPOL_MF_MOVE_ALL), errno.EFAULT),
    "2 before 5": (Call(words=(), off=1), errno.EFAULT),
    "2 before 7": (Call(words=(), length=0), errno.EFAULT),
    "3 unknown flag": (Call(flags=UNKNOWN_FLAG), errno.EINVAL),
    "3 internal flag": (Call(flags=INTERNAL_FLAG), errno.EINVAL),
    "3 mode 4": (Call(mode=4), errno.EINVAL),
    "3 negative mode, an unsigned long": (Call(mode=ULONG_MAX), errno.EINVAL),
    "3 before 4, flag": (Call(flags=MPOL_MF_MOVE_ALL | UNKNOWN_FLAG), errno.EINVAL),
    "3 before 4, mode": (Call(mode=4, flags=MPOL_MF_MOVE_ALL), errno.EINVAL),
    "3 before 7": (Call(mode=4, length=0), errno.EINVAL),
    "3 before 10": (Call(mode=4, page=ABOVE), errno.EINVAL),
    "4 MOVE_ALL without the capability": (Call(flags=MPOL_MF_MOVE_ALL), errno.EPERM),
    "4 before 5": (Call(flags=MPOL_MF_MOVE_ALL, off=1), errno.EPERM),
    "4 before 6": (Call(flags=MPOL_MF_MOVE_ALL, length=ULONG_MAX - 2 * PAGE), errno.EPERM),
    "4 before 7": (Call(flags=MPOL_MF_MOVE_ALL, length=0), errno.EPERM),
    "4 before 8": (Call(flags=MPOL_MF_MOVE_ALL, words=None), errno.EPERM),
    "4 before 10": (Call(flags=MPOL_MF_MOVE_ALL, page=ABOVE), errno.EPERM),
    "5 unaligned start": (Call(off=1), errno.EINVAL),
    "5 before 7": (Call(off=1, length=0), errno.EINVAL),
    "5 before 10": (Call(off=1, page=ABOVE), errno.EINVAL),
    "6 the range wraps": (Call(length=ULONG_MAX - 2 * PAGE), errno.EINVAL),
    "6 before 10": (Call(page=ABOVE, length=ULONG_MAX - 2 * PAGE), errno.EINVAL),
    "7 length 0": (Call(length=0), 0),
    "7 length rounds to 0": (Call(length=ULONG_MAX), 0),
    "7 last length that rounds to 0": (Call(length=ULONG_MAX - PAGE + 2), 0),
    "7 before 8, BIND without nodes": (Call(length=0, words=None), 0),
    "7 before 8, INTERLEAVE without nodes": (Call(length=0, mode=MPOL_INTERLEAVE, words=(0,)), 0),
    "7 before 8, DEFAULT with nodes": (Call(length=0, mode=MPOL_DEFAULT), 0),
    "7 before 8, node offline": (Call(length=0, words=(1 << 5,)), 0),
    "7 before 10": (Call(length=0, page=ABOVE), 0),
    "8 DEFAULT with nodes": (Call(mode=MPOL_DEFAULT), errno.EINVAL),
    "8 BIND without nodes": (Call(words=None), errno.EINVAL),
    "8 BIND with an empty mask": (Call(words=(0,)), errno.EINVAL),
    "8 INTERLEAVE without nodes": (Call(mode=MPOL_INTERLEAVE, words=None), errno.EINVAL),
    "8 PREFERRED without nodes passes": (Call(mode=MPOL_PREFERRED, words=None), 0),
    "8 one node of BIND offline": (Call(words=(0b1001,)), errno.EINVAL),
    "8 one node of INTERLEAVE offline": (Call(mode=MPOL_INTERLEAVE, words=(0b1001,)), errno.EINVAL),
    "8 one node of PREFERRED offline": (Call(mode=MPOL_PREFERRED, words=(0b1001,)), errno.EINVAL),
    "8 last possible node offline": (Call(words=(1 << 63,)), errno.EINVAL),
    "8 before 10": (Call(words=None, page=ABOVE), errno.EINVAL),
    "8 before 12": (Call(words=None, length=12 * PAGE), errno.EINVAL),
    "8 before 13": (Call(words=(0b1010,), flags=MPOL_MF_STRICT), errno.EINVAL),
    "10 nothing ends above start": (Call(page=ABOVE), errno.EFAULT),
    "10 holds for DEFAULT, too": (Call(page=ABOVE, mode=MPOL_DEFAULT, words=None), errno.EFAULT),
    "12 hole in the middle": (Call(length=12 * PAGE), errno.EFAULT),
    "12 hole in the middle, first page of it on": (Call(length=9 * PAGE), errno.EFAULT),
    "12 past the last mapping": (Call(page=HIGH, length=5 * PAGE), errno.EFAULT),
    "12 hole at the head passes": (Call(page=HOLE, length=8 * PAGE), 0),
    "12 hole at the tail passes below a mapping": (Call(length=8 * PAGE), 0),
    "12 nothing but a hole passes below a mapping": (Call(page=HOLE, length=4 * PAGE), 0),
    "12 DEFAULT accepts a hole in the middle": (Call(length=12 * PAGE, mode=MPOL_DEFAULT, words=None), 0),
    "12 DEFAULT accepts the end of everything": (Call(page=HIGH, length=9 * PAGE, mode=MPOL_DEFAULT, words=None), 0),
    "13 BIND elsewhere": (Call(words=(2,), flags=MPOL_MF_STRICT), errno.EIO),
    "13 BIND here and elsewhere": (Call(words=(3,), flags=MPOL_MF_STRICT), 0),
    "13 INTERLEAVE elsewhere": (Call(mode=MPOL_INTERLEAVE, words=(6,), flags=MPOL_MF_STRICT), errno.EIO),
    "13 PREFERRED elsewhere": (Call(mode=MPOL_PREFERRED, words=(2,), flags=MPOL_MF_STRICT), errno.EIO),
    "13 PREFERRED, second of its nodes": (Call(mode=MPOL_PREFERRED, words=(3,), flags=MPOL_MF_STRICT), 0),
    "13 PREFERRED local has no node that is right": (
        Call(mode=MPOL_PREFERRED, words=None, flags=MPOL_MF_STRICT),
        errno.EIO,
    ),
    "13 DEFAULT drops STRICT": (Call(mode=MPOL_DEFAULT, words=None, flags=MPOL_MF_STRICT), 0),
    "13 a page in front of the hole of 12": (Call(length=12 * PAGE, words=(2,), flags=MPOL_MF_STRICT), errno.EIO),
    "12 before 13 at the last mapping": (
        Call(page=HIGH, length=5 * PAGE, words=(2,), flags=MPOL_MF_STRICT),
        errno.EFAULT,
    ),
}


@pytest.mark.parametrize(("call", "expected"), MBIND_ROWS.values(), ids=MBIND_ROWS)
def test_mbind_errno(machine: Make, call: Call, expected: int) -> None:
    """The first check that fails decides; a refused call sets no policy and moves no page."""
    m, task = world(machine)
    assert run_mbind(m, task, call) == expected
    assert nodes_there(m, task) == [0] * 8
    if expected:
        assert [policy_at(task, page) for page in MAPPED] == [None] * 8


@pytest.mark.parametrize(
    ("length", "pages"),
    [(1, 1), (PAGE, 1), (PAGE + 1, 2), (4 * PAGE - 1, 4)],
    ids=["a byte", "a page", "a page and a byte", "a byte less"],
)
def test_length_is_rounded_up(machine: Make, length: int, pages: int) -> None:
    """A length counts in whole pages, and a part of one is one."""
    m, task = world(machine)
    assert run_mbind(m, task, Call(length=length)) == 0
    given = [policy_at(task, page) is not None for page in range(4)]
    assert given == [page < pages for page in range(4)]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (Call(), errno.EACCES),
        (Call(mode=MPOL_DEFAULT, words=None), errno.EACCES),
        (Call(length=12 * PAGE), errno.EACCES),
        (Call(words=(2,), flags=MPOL_MF_STRICT), errno.EACCES),
        (Call(page=HOLE, length=PAGE), errno.EACCES),
        (Call(words=None), errno.EINVAL),
        (Call(page=ABOVE), errno.EFAULT),
    ],
    ids=["11", "11 for DEFAULT, too", "11 before 12", "11 before 13", "the first above a hole", "8 before 11", "10"],
)
def test_a_reserved_first_mapping_refuses(machine: Make, call: Call, expected: int) -> None:
    """EACCES when the first VMA that ends above start is reserved."""
    m, task = world(machine)
    with reserved(m, task, LOW if call.page != HOLE else HIGH):
        assert run_mbind(m, task, call) == expected


def test_only_the_first_mapping_is_asked_whether_it_is_reserved(machine: Make) -> None:
    """A reserved VMA behind the first one gets its policy, and MOVE leaves its pages alone."""
    m, task = world(machine)
    assert run_mbind(m, task, Call(length=2 * PAGE, mode=MPOL_PREFERRED)) == 0
    with reserved(m, task, 2):
        assert run_mbind(m, task, Call(length=4 * PAGE, words=(2,), flags=MPOL_MF_MOVE)) == 0
    assert m.where(task, BASE, 4) == [-errno.ENOENT, -errno.ENOENT, 0, 0]
    assert policy_at(task, 2) == Mempolicy(MPOL_BIND, nodes=2)


def test_strict_alone_changes_nothing_when_it_fails(machine: Make) -> None:
    """EIO of STRICT without MOVE: the old policy stays, and no page leaves."""
    m, task = world(machine)
    assert run_mbind(m, task, Call(length=4 * PAGE, mode=MPOL_PREFERRED)) == 0
    assert run_mbind(m, task, Call(length=4 * PAGE, words=(2,), flags=MPOL_MF_STRICT)) == errno.EIO
    assert policy_at(task, 0) == Mempolicy(MPOL_PREFERRED, preferred=0)
    assert nodes_there(m, task) == [0] * 8
    assert m.k.nr_swap_pages == 32


def test_strict_looks_only_at_pages_that_are_there(machine: Make) -> None:
    """A page in the swap area is on no wrong node, whatever the policy."""
    m, task = world(machine)
    assert run(m, madvise.sys_madvise(m.k, task, BASE, 4 * PAGE, MADV_PAGEOUT)) == 0
    assert m.where(task, BASE, 4) == [-errno.ENOENT] * 4
    assert run_mbind(m, task, Call(length=4 * PAGE, words=(2,), flags=MPOL_MF_STRICT)) == 0


def test_strict_with_move_keeps_the_policy_when_it_fails(machine: Make) -> None:
    """EIO of STRICT with MOVE comes last: the policy is set, and what could leave has left (row 16)."""
    m, task = world(machine)
    assert run(m, mlock.sys_mlock(m.k, task, BASE + 2 * PAGE, 2 * PAGE)) == 0
    call = Call(length=4 * PAGE, words=(2,), flags=MPOL_MF_STRICT | MPOL_MF_MOVE)
    assert run_mbind(m, task, call) == errno.EIO
    assert [policy_at(task, page) for page in range(4)] == [Mempolicy(MPOL_BIND, nodes=2)] * 4
    assert m.where(task, BASE, 4) == [-errno.ENOENT, -errno.ENOENT, 0, 0]


def test_a_hole_behind_queued_pages_puts_them_back(machine: Make) -> None:
    """EFAULT of a hole that is found when pages are queued already: they stay, and no policy is set."""
    m, task = world(machine)
    call = Call(length=12 * PAGE, words=(2,), flags=MPOL_MF_STRICT | MPOL_MF_MOVE)
    assert run_mbind(m, task, call) == errno.EFAULT
    assert nodes_there(m, task) == [0] * 8
    assert m.k.nr_swap_pages == 32


@pytest.mark.parametrize("strict", [0, MPOL_MF_STRICT], ids=["MOVE", "STRICT and MOVE"])
def test_too_many_mappings_leave_half_a_policy(machine: Make, monkeypatch: pytest.MonkeyPatch, strict: int) -> None:
    """ENOMEM of a split: VMAs in front have the new policy, and the pages are evicted all the same (14 before 16)."""
    m, task = world(machine)
    assert run_mbind(m, task, Call(length=2 * PAGE, mode=MPOL_PREFERRED)) == 0
    monkeypatch.setattr(limits, "MAX_MAP_COUNT", len(task.mm.vmas))
    assert run_mbind(m, task, Call(length=3 * PAGE, words=(2,), flags=MPOL_MF_MOVE | strict)) == errno.ENOMEM
    assert policy_at(task, 0) == Mempolicy(MPOL_BIND, nodes=2)
    assert policy_at(task, 2) is None
    assert m.where(task, BASE, 4) == [-errno.ENOENT] * 3 + [0]


# -- set_mempolicy -----------------------------------------------------------------------------------------------------

#: name → mode, words, maxnode; errno, and the policy afterwards (before: PREFERRED 1).
BEFORE = Mempolicy(MPOL_PREFERRED, preferred=1)
SET_ROWS: dict[str, tuple[int, Sequence[int] | None, int, int, Mempolicy | None]] = {
    "mode 4": (4, (1,), 65, errno.EINVAL, BEFORE),
    "mode -1, as it arrives": (ULONG_MAX, (1,), 65, errno.EINVAL, BEFORE),
    "mode before an unreadable mask": (4, (), 65, errno.EINVAL, BEFORE),
    "unreadable mask": (MPOL_BIND, (), 65, errno.EFAULT, BEFORE),
    "mask longer than a page": (MPOL_BIND, (1,) * 513, TOO_LONG, errno.EINVAL, BEFORE),
    "bit 64": (MPOL_BIND, (1, 1), 66, errno.EINVAL, BEFORE),
    "DEFAULT with nodes": (MPOL_DEFAULT, (1,), 65, errno.EINVAL, BEFORE),
    "DEFAULT with nodes that are all dropped": (MPOL_DEFAULT, (1 << 5,), 65, 0, None),
    "DEFAULT": (MPOL_DEFAULT, None, 0, 0, None),
    "BIND without nodes": (MPOL_BIND, None, 65, errno.EINVAL, BEFORE),
    "BIND offline only": (MPOL_BIND, (1 << 5,), 65, errno.EINVAL, BEFORE),
    "BIND drops offline nodes": (MPOL_BIND, (0b101001,), 65, 0, Mempolicy(MPOL_BIND, nodes=1)),
    "INTERLEAVE without nodes": (MPOL_INTERLEAVE, (0,), 65, errno.EINVAL, BEFORE),
    "INTERLEAVE drops offline nodes": (MPOL_INTERLEAVE, (0b1110,), 65, 0, Mempolicy(MPOL_INTERLEAVE, nodes=6)),
    "PREFERRED, first of several": (MPOL_PREFERRED, (6,), 65, 0, Mempolicy(MPOL_PREFERRED, preferred=1)),
    "PREFERRED offline only is local": (MPOL_PREFERRED, (1 << 5,), 65, 0, Mempolicy(MPOL_PREFERRED)),
}


@pytest.mark.parametrize(("mode", "words", "maxnode", "expected", "after"), SET_ROWS.values(), ids=SET_ROWS)
def test_set_mempolicy(
    machine: Make, mode: int, words: Sequence[int] | None, maxnode: int, expected: int, after: Mempolicy | None
) -> None:
    """set_mempolicy looks at the mode, then reads the mask and drops what the task may not use, then checks."""
    m = machine(nodes=3, memory="64K", swap="64K")
    task = m.attach()
    assert run(m, mempolicy.sys_set_mempolicy(m.k, task, MPOL_PREFERRED, (2,), 65)) == 0
    assert run(m, mempolicy.sys_set_mempolicy(m.k, task, mode, words, maxnode)) == expected
    assert task.policy == after


def test_set_mempolicy_is_of_one_thread(machine: Make) -> None:
    """Another task with the same memory keeps its own policy."""
    m = machine(nodes=2, memory="64K", swap="64K")
    task = m.attach()
    thread = fork.attach(m.k, 0, [], task.pid)
    assert run(m, mempolicy.sys_set_mempolicy(m.k, task, MPOL_INTERLEAVE, (2,), 65)) == 0
    assert task.policy == Mempolicy(MPOL_INTERLEAVE, nodes=2)
    assert task.il_next == 1
    assert thread.policy is None


# -- get_mempolicy -----------------------------------------------------------------------------------------------------

#: name → maxnode (None: no mask asked), page or address, flags; errno, or the answer. The task interleaves over {1, 2};
#: page 0 is bound to {0, 2} and pages 1 to 3 have no policy of their own.
GET_ROWS: dict[str, tuple[int | None, int, int, int | tuple[int, int | None]]] = {
    "task": (64, 0, 0, (MPOL_INTERLEAVE, 6)),
    "task, no mask asked": (None, 0, 0, (MPOL_INTERLEAVE, None)),
    "task, next node": (64, 0, MPOL_F_NODE, (1, 6)),
    "page with a policy": (64, BASE, MPOL_F_ADDR, (MPOL_BIND, 5)),
    "middle of a page": (64, BASE + 9, MPOL_F_ADDR, (MPOL_BIND, 5)),
    "page without a policy says DEFAULT": (64, BASE + PAGE, MPOL_F_ADDR, (MPOL_DEFAULT, 0)),
    "node of a page": (64, BASE + 9, MPOL_F_ADDR | MPOL_F_NODE, (0, 5)),
    "maxnode 63": (63, 0, 0, errno.EINVAL),
    "maxnode 0": (0, 0, 0, errno.EINVAL),
    "unknown flag": (None, 0, 4, errno.EINVAL),
    "address without ADDR": (64, BASE, 0, errno.EINVAL),
    "address without ADDR, with NODE": (64, BASE, MPOL_F_NODE, errno.EINVAL),
    "hole": (64, BASE + HOLE * PAGE, MPOL_F_ADDR, errno.EFAULT),
    "above everything": (64, BASE + ABOVE * PAGE, MPOL_F_ADDR | MPOL_F_NODE, errno.EFAULT),
    "maxnode before the hole": (63, BASE + HOLE * PAGE, MPOL_F_ADDR, errno.EINVAL),
    "flags before the hole": (64, BASE + HOLE * PAGE, MPOL_F_ADDR | 4, errno.EINVAL),
    "mask longer than a page": (TOO_LONG, 0, 0, errno.EINVAL),
    "mask of a whole page": (TOO_LONG - 1, 0, 0, (MPOL_INTERLEAVE, 6)),
    "hole before the mask longer than a page": (TOO_LONG, BASE + HOLE * PAGE, MPOL_F_ADDR, errno.EFAULT),
}


def get(m: Machine, task: Task, maxnode: int | None, addr: int, flags: int) -> int | tuple[int, int | None]:
    """The answer of get_mempolicy, or its errno."""
    try:
        answer: tuple[int, int | None] = m.call(get_mempolicy.sys_get_mempolicy(m.k, task, maxnode, addr, flags))
    except MmError as error:
        return error.errno
    return answer


@pytest.mark.parametrize(("maxnode", "addr", "flags", "expected"), GET_ROWS.values(), ids=GET_ROWS)
def test_get_mempolicy(
    machine: Make, maxnode: int | None, addr: int, flags: int, expected: int | tuple[int, int | None]
) -> None:
    """get_mempolicy answers for the task or for the VMA, which never falls back to the task; errors in their order."""
    m, task = world(machine)
    assert run_mbind(m, task, Call(words=(5,))) == 0
    assert run(m, mempolicy.sys_set_mempolicy(m.k, task, MPOL_INTERLEAVE, (6,), 65)) == 0
    assert get(m, task, maxnode, addr, flags) == expected


@pytest.mark.parametrize(
    ("mode", "nodes", "mask"),
    [
        (MPOL_DEFAULT, 0, 0),
        (MPOL_PREFERRED, 6, 2),
        (MPOL_PREFERRED, 0, 7),
        (MPOL_BIND, 6, 6),
        (MPOL_INTERLEAVE, 7, 7),
    ],
    ids=["default", "preferred", "local says all nodes online", "bind", "interleave"],
)
def test_get_mempolicy_mask(machine: Make, mode: int, nodes: int, mask: int) -> None:
    """The mask of each mode; NODE without ADDR is for tasks that interleave."""
    m = machine(nodes=3, memory="64K", swap="64K")
    task = m.attach()
    assert run(m, mempolicy.sys_set_mempolicy(m.k, task, mode, (nodes,), 65)) == 0
    assert get(m, task, 64, 0, 0) == (mode, mask)
    answer = get(m, task, 64, 0, MPOL_F_NODE)
    assert answer == ((0, 7) if mode == MPOL_INTERLEAVE else errno.EINVAL)


def test_asking_for_a_node_faults_the_zero_page_in(machine: Make) -> None:
    """NODE with ADDR reads the page: one that nobody touched becomes the zero page, and its node is told."""
    m = machine(nodes=2, memory="64K", swap="64K")
    task = m.attach(1)
    base = m.mmap(task, 1)
    free = [zone.nr_free for zone in m.k.zones.values()]
    assert get(m, task, None, base, MPOL_F_ADDR | MPOL_F_NODE) == (0, None)
    assert m.entry(task, base) >> 12 == m.k.zero_pfn
    assert [zone.nr_free for zone in m.k.zones.values()] == free


def test_asking_for_the_node_of_a_page_that_may_not_be_read(machine: Make) -> None:
    """NODE with ADDR gives the error of the fault."""
    m = machine(nodes=2, memory="64K", swap="64K")
    task = m.attach()
    base = m.mmap(task, 1, prot=PROT_NONE)
    assert get(m, task, None, base, MPOL_F_ADDR | MPOL_F_NODE) == errno.EFAULT
    assert get(m, task, None, base, MPOL_F_ADDR) == (MPOL_DEFAULT, None)


def test_asking_for_the_next_node_does_not_advance_it(machine: Make) -> None:
    """NODE without ADDR gives il_next, the same as often as one asks."""
    m = machine(nodes=3, memory="64K", swap="64K")
    task = m.attach()
    assert run(m, mempolicy.sys_set_mempolicy(m.k, task, MPOL_INTERLEAVE, (6,), 65)) == 0
    assert [get(m, task, None, 0, MPOL_F_NODE) for _ in range(3)] == [(1, None)] * 3
    assert [interleave.interleave_nodes(m.k, task, 1).tolist() for _ in range(3)] == [[1], [2], [1]]
    m.k.journal.task(task)
    assert get(m, task, None, 0, MPOL_F_NODE) == (2, None)
