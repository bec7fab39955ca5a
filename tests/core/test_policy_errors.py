"""Which errno mbind, set_mempolicy, get_mempolicy and set_mempolicy_home_node give in 6.1 and 6.12, and in which order.

The rows are answers of real kernels, or follow mm/mempolicy.c. Those of the kernel of 2005 are among the facts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from numaemu_core import get_mempolicy, home_node, interleave, mbind, mempolicy
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.mm_types import Task
from numaemu_core.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_ADDR,
    MPOL_F_MEMS_ALLOWED,
    MPOL_F_NODE,
    MPOL_F_NUMA_BALANCING,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

Make = Callable[..., "Machine"]
Words = Sequence[int] | None

PAGE = 4096
BASE = 0x10000000000
ULONG_MAX = (1 << 64) - 1
STATIC, RELATIVE, BALANCING = MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING
NODES = [{"id": i, "memory": "64K", "cpus": [i]} for i in range(4)]
BOTH = pytest.mark.parametrize("profile", ["linux-6.1", "linux-6.12"])
#: A mask pointer that cannot be read; a mask of zeros that ends nowhere.
BAD: Words = ()
ONES = [1] + [0] * 511


def errno_of(m: Machine, body: KernelTask[Any]) -> int:
    """The errno of a call, 0 when it is done."""
    try:
        m.call(body)
    except MmError as error:
        return error.errno
    return 0


# -- modes, flags and masks: the same for mbind and set_mempolicy ------------------------------------------------------

#: name → mode, words, maxnode, errno.
POLICY_ROWS: dict[str, tuple[int, Words, int, int]] = {
    "mode: 7": (7, (1,), 64, errno.EINVAL),
    "mode: 99 before an unreadable mask": (99, BAD, 64, errno.EINVAL),
    "mode: -1": (ULONG_MAX, (1,), 64, errno.EINVAL),
    "mode: an unknown flag": (0x1000 | MPOL_BIND, (1,), 64, errno.EINVAL),
    "mode: bits above an int do not count": (1 << 32 | MPOL_BIND, (1,), 64, 0),
    "flags: STATIC and RELATIVE": (MPOL_BIND | STATIC | RELATIVE, (3,), 64, errno.EINVAL),
    "flags: before an unreadable mask": (MPOL_BIND | STATIC | RELATIVE, BAD, 64, errno.EINVAL),
    "flags: BALANCING with BIND": (MPOL_BIND | BALANCING, (3,), 64, 0),
    "flags: BALANCING and STATIC with BIND": (MPOL_BIND | BALANCING | STATIC, (3,), 64, 0),
    "flags: BALANCING with INTERLEAVE": (MPOL_INTERLEAVE | BALANCING, (3,), 64, errno.EINVAL),
    "flags: BALANCING with PREFERRED": (MPOL_PREFERRED | BALANCING, (1,), 64, errno.EINVAL),
    "flags: BALANCING with DEFAULT": (MPOL_DEFAULT | BALANCING, None, 0, errno.EINVAL),
    "flags: BALANCING with LOCAL": (MPOL_LOCAL | BALANCING, None, 0, errno.EINVAL),
    "flags: DEFAULT and STATIC": (MPOL_DEFAULT | STATIC, (0,), 64, 0),
    "flags: DEFAULT and RELATIVE": (MPOL_DEFAULT | RELATIVE, (0,), 64, 0),
    "flags: empty PREFERRED and STATIC": (MPOL_PREFERRED | STATIC, (0,), 64, errno.EINVAL),
    "flags: empty PREFERRED and RELATIVE": (MPOL_PREFERRED | RELATIVE, (0,), 64, errno.EINVAL),
    "flags: LOCAL and STATIC": (MPOL_LOCAL | STATIC, (0,), 64, errno.EINVAL),
    "flags: LOCAL and RELATIVE": (MPOL_LOCAL | RELATIVE, None, 0, errno.EINVAL),
    "mask: unreadable": (MPOL_BIND, BAD, 64, errno.EFAULT),
    "mask: unreadable, PREFERRED": (MPOL_PREFERRED, BAD, 64, errno.EFAULT),
    "mask: maxnode 1 is empty and not read": (MPOL_PREFERRED, BAD, 1, 0),
    "mask: maxnode 1 leaves BIND nothing": (MPOL_BIND, BAD, 1, errno.EINVAL),
    "mask: maxnode 0": (MPOL_DEFAULT, BAD, 0, errno.EINVAL),
    "mask: maxnode 0 without a mask": (MPOL_DEFAULT, None, 0, 0),
    "mask: maxnode counts one more than its bits": (MPOL_BIND, (1 << 3,), 4, errno.EINVAL),
    "mask: 1024 bits": (MPOL_BIND, ONES, 1025, 0),
    "mask: a page of bits": (MPOL_BIND, ONES, 32769, 0),
    "mask: more than a page of bits": (MPOL_BIND, ONES, 32770, errno.EINVAL),
    "mask: more than a page of bits, but no mask": (MPOL_DEFAULT, None, 32770, 0),
    "mask: maxnode -1": (MPOL_BIND, ONES, ULONG_MAX, errno.EINVAL),
    "mask: bit 64 is a node that is not there": (MPOL_BIND, (1, 1), 128, 0),
    "mask: bit 64 alone": (MPOL_BIND, (0, 1), 128, errno.EINVAL),
    "mask: bit 64 is not covered": (MPOL_BIND, (1, 1), 65, 0),
    "mask: bit 1024": (MPOL_BIND, [1] + [0] * 15 + [1], 1026, errno.EINVAL),
    "mask: words above 1024 count whole": (MPOL_BIND, [1] + [0] * 15 + [2], 1026, errno.EINVAL),
    "mask: words above 1024 are read first": (MPOL_BIND, [1] * 17, 1300, errno.EFAULT),
    "nodes: DEFAULT takes none": (MPOL_DEFAULT, (1,), 64, errno.EINVAL),
    "nodes: LOCAL takes none": (MPOL_LOCAL, (1,), 64, errno.EINVAL),
    "nodes: BIND needs one": (MPOL_BIND, (0,), 64, errno.EINVAL),
    "nodes: INTERLEAVE needs one": (MPOL_INTERLEAVE, None, 0, errno.EINVAL),
    "nodes: PREFERRED_MANY needs one": (MPOL_PREFERRED_MANY, (0,), 64, errno.EINVAL),
    "nodes: PREFERRED needs none": (MPOL_PREFERRED, None, 0, 0),
    "nodes: one that is not there": (MPOL_BIND, (0x10,), 64, errno.EINVAL),
    "nodes: one that is not there, PREFERRED": (MPOL_PREFERRED, (0x30,), 64, errno.EINVAL),
    "nodes: one that is not there, STATIC": (MPOL_BIND | STATIC, (0x10,), 64, errno.EINVAL),
    "nodes: RELATIVE folds": (MPOL_BIND | RELATIVE, (0x10,), 64, 0),
    "nodes: one that is not there beside one that is": (MPOL_BIND, (0x12,), 64, 0),
}


@BOTH
@pytest.mark.parametrize(("mode", "words", "maxnode", "expected"), POLICY_ROWS.values(), ids=POLICY_ROWS)
def test_a_policy_is_refused(machine: Make, profile: str, mode: int, words: Words, maxnode: int, expected: int) -> None:
    """Mbind and set_mempolicy check mode, mask and both together alike, and a refused call leaves no policy."""
    m = machine(node=NODES, profile=profile)
    task = m.attach()
    m.mmap(task, 4, BASE)
    assert errno_of(m, mempolicy.sys_set_mempolicy(m.k, task, mode, words, maxnode)) == expected
    assert errno_of(m, mbind.sys_mbind(m.k, task, BASE, 4 * PAGE, mode, words, maxnode, 0)) == expected
    of_vma = next(iter(task.mm.vmas)).vm_policy
    assert of_vma == task.policy
    assert (of_vma is None) == (bool(expected) or mode & 7 == MPOL_DEFAULT)


#: profile → mode, errno.
NEWER_ROWS = {
    "6.1 balances BIND alone": ("linux-6.1", MPOL_PREFERRED_MANY | BALANCING, errno.EINVAL),
    "6.12 balances PREFERRED_MANY, too": ("linux-6.12", MPOL_PREFERRED_MANY | BALANCING, 0),
    "6.1 has no weights": ("linux-6.1", MPOL_WEIGHTED_INTERLEAVE, errno.EINVAL),
    "6.12 has weights": ("linux-6.12", MPOL_WEIGHTED_INTERLEAVE, 0),
    "6.12 does not balance weights": ("linux-6.12", MPOL_WEIGHTED_INTERLEAVE | BALANCING, errno.EINVAL),
    "2005 has no LOCAL": ("swap-v3", MPOL_LOCAL, errno.EINVAL),
    "2005 has no flags": ("swap-v3", MPOL_BIND | STATIC, errno.EINVAL),
}


@pytest.mark.parametrize(("profile", "mode", "expected"), NEWER_ROWS.values(), ids=NEWER_ROWS)
def test_what_a_kernel_does_not_know_yet(machine: Make, profile: str, mode: int, expected: int) -> None:
    """A mode or flag of a later kernel is EINVAL."""
    m = machine(node=NODES, profile=profile)
    task = m.attach()
    assert errno_of(m, mempolicy.sys_set_mempolicy(m.k, task, mode, (3,), 64)) == expected


# -- mbind -------------------------------------------------------------------------------------------------------------

ABOVE, HOLE = BASE + 100 * PAGE, BASE + 4 * PAGE
#: name → start, length, mode, words, flags, errno. Pages 0 to 3 and 6 to 7 are mapped; the caller has no capability.
MBIND_ROWS: dict[str, tuple[int, int, int, Words, int, int]] = {
    "mask before flags": (BASE, PAGE, MPOL_BIND, BAD, 16, errno.EFAULT),
    "unknown flag": (BASE, PAGE, MPOL_BIND, (2,), 16, errno.EINVAL),
    "LAZY is refused": (BASE, PAGE, MPOL_BIND, (2,), 8, errno.EINVAL),
    "the flag of the kernel's own": (BASE, PAGE, MPOL_BIND, (2,), 1 << 20, errno.EINVAL),
    "flags are an unsigned int": (BASE, PAGE, MPOL_BIND, (2,), 1 << 32, 0),
    "unknown flag before EPERM": (BASE, PAGE, MPOL_BIND, (2,), MPOL_MF_MOVE_ALL | 16, errno.EINVAL),
    "MOVE_ALL without the capability": (BASE, PAGE, MPOL_BIND, (2,), MPOL_MF_MOVE_ALL, errno.EPERM),
    "mask before EPERM": (BASE, PAGE, MPOL_BIND, BAD, MPOL_MF_MOVE_ALL, errno.EFAULT),
    "EPERM before alignment": (BASE + 1, PAGE, MPOL_BIND, (2,), MPOL_MF_MOVE_ALL, errno.EPERM),
    "EPERM before length 0": (BASE, 0, MPOL_BIND, (2,), MPOL_MF_MOVE_ALL, errno.EPERM),
    "unaligned": (BASE + 1, PAGE, MPOL_BIND, (2,), 0, errno.EINVAL),
    "unaligned before length 0": (BASE + 1, 0, MPOL_BIND, (2,), 0, errno.EINVAL),
    "wraps around": (BASE, ULONG_MAX - 2 * PAGE, MPOL_BIND, (2,), 0, errno.EINVAL),
    "length wraps to 0": (BASE, ULONG_MAX, MPOL_BIND, (2,), 0, 0),
    "length 0, nothing mapped, no such node": (ABOVE, 0, MPOL_BIND, (0x10,), 0, 0),
    "length 0, no nodes": (BASE, 0, MPOL_BIND, (0,), 0, 0),
    "nodes before holes": (ABOVE, PAGE, MPOL_BIND, (0,), 0, errno.EINVAL),
    "DEFAULT with nodes before holes": (ABOVE, PAGE, MPOL_DEFAULT, (1,), 0, errno.EINVAL),
    "nothing mapped": (ABOVE, PAGE, MPOL_BIND, (2,), 0, errno.EFAULT),
    "nothing mapped, DEFAULT": (ABOVE, PAGE, MPOL_DEFAULT, None, 0, errno.EFAULT),
    "nothing mapped below a mapping": (HOLE, PAGE, MPOL_BIND, (2,), 0, errno.EFAULT),
    "nothing mapped below a mapping, DEFAULT": (HOLE, PAGE, MPOL_DEFAULT, None, 0, errno.EFAULT),
    "hole at the head": (HOLE, 3 * PAGE, MPOL_BIND, (2,), 0, errno.EFAULT),
    "hole in the middle": (BASE, 7 * PAGE, MPOL_BIND, (2,), 0, errno.EFAULT),
    "hole at the tail": (BASE, 5 * PAGE, MPOL_BIND, (2,), 0, errno.EFAULT),
    "hole at the tail, above all": (BASE + 6 * PAGE, 3 * PAGE, MPOL_BIND, (2,), 0, errno.EFAULT),
    "hole by a byte": (BASE, 4 * PAGE + 1, MPOL_BIND, (2,), 0, errno.EFAULT),
    "holes are no error for DEFAULT": (BASE, 9 * PAGE, MPOL_DEFAULT, None, 0, 0),
    "hole behind a misplaced page": (BASE, 7 * PAGE, MPOL_BIND, (2,), MPOL_MF_STRICT, errno.EFAULT),
    "misplaced page": (BASE, 4 * PAGE, MPOL_BIND, (2,), MPOL_MF_STRICT, errno.EIO),
    "misplaced page, local": (BASE, 4 * PAGE, MPOL_LOCAL, None, MPOL_MF_STRICT, errno.EIO),
    "DEFAULT drops STRICT": (BASE, 4 * PAGE, MPOL_DEFAULT, None, MPOL_MF_STRICT, 0),
    "page in place": (BASE, 4 * PAGE, MPOL_BIND, (1,), MPOL_MF_STRICT, 0),
}


@BOTH
@pytest.mark.parametrize(("start", "length", "mode", "words", "flags", "expected"), MBIND_ROWS.values(), ids=MBIND_ROWS)
def test_mbind_errno_of_today(
    machine: Make, profile: str, start: int, length: int, mode: int, words: Words, flags: int, expected: int
) -> None:
    """The first check that fails decides; a refused call changes no policy at all."""
    m = machine(node=NODES, profile=profile)
    task = m.attach()
    m.mmap(task, 4, BASE)
    m.mmap(task, 2, BASE + 6 * PAGE)
    m.touch(task, BASE, 2)
    assert errno_of(m, mbind.sys_mbind(m.k, task, start, length, mode, words, 64, flags)) == expected
    if expected:
        assert [vma.vm_policy for vma in task.mm.vmas] == [None, None]


# -- get_mempolicy -----------------------------------------------------------------------------------------------------

#: name → maxnode (None: no mask), address, flags; errno or (mode or node, mask). The task binds to {1, 2}; page 0 is
#: STATIC over {0, 4}, page 1 has none, page 2 is local, page 3 RELATIVE over {0, 3}; page 4 is not mapped.
GET_ROWS: dict[str, tuple[int | None, int, int, int | tuple[int, int | None]]] = {
    "task": (64, 0, 0, (MPOL_BIND, 6)),
    "no mask": (None, 0, 0, (MPOL_BIND, None)),
    "maxnode: less than the possible nodes": (3, 0, 0, errno.EINVAL),
    "maxnode: the possible nodes": (4, 0, 0, (MPOL_BIND, 6)),
    "maxnode: a page of bits": (32769, 0, 0, (MPOL_BIND, 6)),
    "maxnode: more than a page": (65537, 0, 0, errno.EINVAL),
    "maxnode before flags": (3, 0, 8, errno.EINVAL),
    "unknown flag": (64, 0, 8, errno.EINVAL),
    "MEMS_ALLOWED": (64, 0, MPOL_F_MEMS_ALLOWED, (0, 15)),
    "MEMS_ALLOWED does not look at the address": (64, BASE, MPOL_F_MEMS_ALLOWED, (0, 15)),
    "MEMS_ALLOWED with NODE": (64, 0, MPOL_F_MEMS_ALLOWED | MPOL_F_NODE, errno.EINVAL),
    "MEMS_ALLOWED with ADDR": (64, BASE, MPOL_F_MEMS_ALLOWED | MPOL_F_ADDR, errno.EINVAL),
    "address without ADDR": (64, BASE, 0, errno.EINVAL),
    "nothing mapped": (64, BASE + 4 * PAGE, MPOL_F_ADDR, errno.EFAULT),
    "nothing mapped, NODE": (None, BASE + 4 * PAGE, MPOL_F_ADDR | MPOL_F_NODE, errno.EFAULT),
    "NODE of a task that does not interleave": (None, 0, MPOL_F_NODE, errno.EINVAL),
    "STATIC gives the mask as it was given": (64, BASE + 9, MPOL_F_ADDR, (MPOL_BIND | STATIC, 17)),
    "RELATIVE gives the mask as it was given": (64, BASE + 3 * PAGE, MPOL_F_ADDR, (MPOL_INTERLEAVE | RELATIVE, 9)),
    "no policy says DEFAULT, whatever the task's": (64, BASE + PAGE, MPOL_F_ADDR, (MPOL_DEFAULT, 0)),
    "empty PREFERRED has become LOCAL": (64, BASE + 2 * PAGE, MPOL_F_ADDR, (MPOL_LOCAL, 0)),
    "NODE of a page never touched is that of the zero page": (None, BASE, MPOL_F_ADDR | MPOL_F_NODE, (0, None)),
}


@BOTH
@pytest.mark.parametrize(("maxnode", "addr", "flags", "expected"), GET_ROWS.values(), ids=GET_ROWS)
def test_get_mempolicy_of_today(
    machine: Make, profile: str, maxnode: int | None, addr: int, flags: int, expected: int | tuple[int, int | None]
) -> None:
    """get_mempolicy answers with mode and flags, with the user's mask where that is kept; errors in their order."""
    m = machine(node=NODES, profile=profile)
    task = m.attach(2)
    m.mmap(task, 4, BASE)
    m.call(mempolicy.sys_set_mempolicy(m.k, task, MPOL_BIND, (6,), 64))
    given = ((0, MPOL_BIND | STATIC, 17), (2, MPOL_PREFERRED, 0), (3, MPOL_INTERLEAVE | RELATIVE, 9))
    for page, mode, mask in given:
        m.call(mbind.sys_mbind(m.k, task, BASE + page * PAGE, PAGE, mode, (mask,), 64, 0))
    try:
        answer = m.call(get_mempolicy.sys_get_mempolicy(m.k, task, maxnode, addr, flags))
    except MmError as error:
        answer = error.errno
    assert answer == expected


@BOTH
@pytest.mark.parametrize(("nodes", "first"), [(15, 0), (10, 1), (5, 0)], ids=["all", "1 and 3", "0 and 2"])
def test_the_next_node_is_that_after_the_last_one(machine: Make, profile: str, nodes: int, first: int) -> None:
    """A new interleave begins at its first node, whatever the old one had come to; asking does not advance it."""
    m = machine(node=NODES, profile=profile)
    task = m.attach()
    m.call(mempolicy.sys_set_mempolicy(m.k, task, MPOL_INTERLEAVE, (15,), 64))
    interleave.interleave_nodes(m.k, task, 2)
    m.call(mempolicy.sys_set_mempolicy(m.k, task, MPOL_INTERLEAVE, (nodes,), 64))
    for _ in range(2):
        assert m.call(get_mempolicy.sys_get_mempolicy(m.k, task, None, 0, MPOL_F_NODE)) == (first, None)


# -- set_mempolicy_home_node -------------------------------------------------------------------------------------------

#: name → start, length, node, flags; errno. Pages 0 to 3 BIND {2, 3}, 4 to 5 none, 6 to 7 INTERLEAVE.
HOME_ROWS: dict[str, tuple[int, int, int, int, int]] = {
    "a part of a mapping": (BASE, 2 * PAGE, 3, 0, 0),
    "twice the same": (BASE + PAGE, PAGE, 3, 0, 0),
    "mappings without a policy are passed over": (BASE, 6 * PAGE, 3, 0, 0),
    "unaligned": (BASE + 1, PAGE, 3, 0, errno.EINVAL),
    "flags": (BASE, PAGE, 3, 1, errno.EINVAL),
    "no such node": (BASE, PAGE, 9, 0, errno.EINVAL),
    "a node that no machine has": (BASE, PAGE, ULONG_MAX, 0, errno.EINVAL),
    "wraps around": (BASE, ULONG_MAX - 2 * PAGE, 3, 0, errno.EINVAL),
    "length 0": (BASE, 0, 3, 0, 0),
    "length 0 of a node that is not there": (BASE, 0, 9, 0, errno.EINVAL),
    "no policy": (BASE + 4 * PAGE, 2 * PAGE, 3, 0, errno.ENOENT),
    "nothing mapped": (ABOVE, PAGE, 3, 0, errno.ENOENT),
    "another mode": (BASE + 6 * PAGE, PAGE, 3, 0, errno.EOPNOTSUPP),
    "another mode behind one that can": (BASE, 8 * PAGE, 3, 0, errno.EOPNOTSUPP),
}


def homes(task: Task) -> list[tuple[int, int]]:
    """First page and home node of each mapping that has one."""
    policies = ((vma.vm_start, vma.vm_policy) for vma in task.mm.vmas)
    return [((start - BASE) // PAGE, p.home_node) for start, p in policies if p is not None and p.home_node >= 0]


@BOTH
@pytest.mark.parametrize(("start", "length", "node", "flags", "expected"), HOME_ROWS.values(), ids=HOME_ROWS)
def test_home_node(machine: Make, profile: str, start: int, length: int, node: int, flags: int, expected: int) -> None:
    """A home node goes to the BIND and PREFERRED_MANY policies of a range; what comes before an error keeps it."""
    m = machine(node=NODES, profile=profile)
    task = m.attach()
    m.mmap(task, 8, BASE)
    m.mbind(task, BASE, 4, MPOL_BIND, {2, 3})
    m.mbind(task, BASE + 6 * PAGE, 2, MPOL_INTERLEAVE, {2, 3})
    call = home_node.sys_set_mempolicy_home_node(m.k, task, start, length, node, flags)
    assert errno_of(m, call) == expected
    done = start < BASE + 4 * PAGE and length and expected in (0, errno.EOPNOTSUPP)
    assert homes(task) == ([((start - BASE) // PAGE, 3)] if done else [])


def test_the_kernel_of_2005_has_no_home_nodes(machine: Make) -> None:
    """ENOSYS before 5.17."""
    m = machine(node=NODES)
    task = m.attach()
    assert errno_of(m, home_node.sys_set_mempolicy_home_node(m.k, task, BASE, PAGE, 0, 0)) == errno.ENOSYS
