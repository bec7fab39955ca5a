"""Where pages go under the policies of 6.1 and 6.12, what cpusets do to policies, and which mappings merge.

What is expected was seen on real kernels with these two machines, or follows mm/mempolicy.c and kernel/cpuset.c.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from numaemu_core import cpuset, files, fork, home_node, interleave, limits, mbind, mempolicy, mmap, mmzone
from numaemu_core.errors import MmError
from numaemu_core.mm_types import Task
from numaemu_core.mmzone import NUMA_FOREIGN, NUMA_HIT, NUMA_MISS, build_zonelists
from numaemu_core.nodemask import node_remap, nodes_relative, nodes_remap
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.topology import from_dict
from numaemu_core.uapi import (
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
    PROT_READ,
    PROT_WRITE,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

Make = Callable[..., "Machine"]

PAGE = 4096
BASE = 0x10000000000
STATIC, RELATIVE = MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES
BOTH = pytest.mark.parametrize("profile", ["linux-6.1", "linux-6.12"])
QUAD: dict[str, Any] = {
    "node": [{"id": i, "memory": "64K", "cpus": [i]} for i in range(4)],
    "distances": [[10, 15, 20, 25], [16, 10, 21, 30], [20, 24, 10, 17], [28, 30, 17, 10]],
}
MEMONLY: dict[str, Any] = {
    "node": [{"id": i, "memory": "64K", "cpus": cpus} for i, cpus in enumerate(([0, 1], [2, 3], [], []))],
    "distances": [[10, 20, 15, 25], [20, 10, 25, 15], [15, 25, 10, 30], [25, 15, 30, 10]],
}
RING: dict[str, Any] = {
    "node": QUAD["node"],
    "distances": [[10, 20, 30, 20], [20, 10, 20, 30], [30, 20, 10, 20], [20, 30, 20, 10]],
}


def set_policy(m: Machine, task: Task, mode: int, mask: int) -> None:
    """set_mempolicy."""
    m.call(mempolicy.sys_set_mempolicy(m.k, task, mode, [mask], 64))


def bind(m: Machine, task: Task, first: int, pages: int, mode: int, mask: int) -> None:
    """Mbind without flags."""
    m.call(mbind.sys_mbind(m.k, task, BASE + first * PAGE, pages * PAGE, mode, [mask], 64, 0))


def map_file(
    m: Machine, task: Task, first: int, pages: int, name: str, flags: int = MAP_SHARED, offset: int = 0
) -> None:
    """Map a file from page `offset` on."""
    addr, prot = BASE + first * PAGE, PROT_READ | PROT_WRITE
    m.call(mmap.sys_mmap(m.k, task, addr, pages * PAGE, prot, flags | MAP_FIXED, name, offset * PAGE))


def placed(m: Machine, task: Task, pages: int, first: int = 0) -> str:
    """Touch pages one after the other; a digit for the node of each."""
    m.touch(task, BASE + first * PAGE, pages)
    return "".join(map(str, m.where(task, BASE + first * PAGE, pages)))


def spans(task: Task) -> list[tuple[int, int, Mempolicy | None]]:
    """First page, pages and policy of each mapping."""
    return [((v.vm_start - BASE) // PAGE, (v.vm_end - v.vm_start) // PAGE, v.vm_policy) for v in task.mm.vmas]


# -- zonelists ---------------------------------------------------------------------------------------------------------

ZONELISTS = {
    "quad": (QUAD, "linux-6.1", ["0123", "1023", "2301", "3201"]),
    "memory only": (MEMONLY, "linux-6.1", ["0213", "1302", "2013", "3102"]),
    "ring": (RING, "linux-6.12", ["0132", "1203", "2310", "3021"]),
    "ring in 2005": (RING, "swap-v3", ["0132", "1023", "2310", "3201"]),
}


@pytest.mark.parametrize(("topology", "profile", "expected"), ZONELISTS.values(), ids=ZONELISTS)
def test_zonelists(topology: dict[str, Any], profile: str, expected: list[str]) -> None:
    """Near nodes first; of equal ones those without CPUs, then, since 5.16, those above the local node."""
    found = build_zonelists(from_dict({**topology, "profile": profile}))
    assert ["".join(map(str, row)) for row in found.values()] == expected


# -- placement ---------------------------------------------------------------------------------------------------------

#: name → topology, CPU, mode, mask, nodes of six pages. Page 0 has a number that leaves 1 when divided by 3.
PLACEMENT: dict[str, tuple[dict[str, Any], int, int, int, str]] = {
    "BIND: nearest of the mask": (QUAD, 3, MPOL_BIND, 14, "333333"),
    "BIND: not the lowest": (MEMONLY, 0, MPOL_BIND, 14, "222222"),
    "BIND: nearest from node 1": (QUAD, 1, MPOL_BIND, 12, "222222"),
    "PREFERRED: lowest of the mask": (QUAD, 3, MPOL_PREFERRED, 6, "111111"),
    "PREFERRED_MANY: nearest of the mask": (QUAD, 3, MPOL_PREFERRED_MANY, 7, "222222"),
    "LOCAL": (QUAD, 2, MPOL_LOCAL, 0, "222222"),
    "INTERLEAVE: by address": (QUAD, 0, MPOL_INTERLEAVE, 7, "120120"),
    "RELATIVE: folded": (QUAD, 0, MPOL_BIND | RELATIVE, 0x20, "111111"),
}


@BOTH
@pytest.mark.parametrize(("topology", "cpu", "mode", "mask", "expected"), PLACEMENT.values(), ids=PLACEMENT)
def test_placement_of_today(
    machine: Make, profile: str, topology: dict[str, Any], cpu: int, mode: int, mask: int, expected: str
) -> None:
    """Pages go where the policy says, be it of the mapping or of the task."""
    m = machine(**topology, profile=profile)
    task = m.attach(cpu)
    m.mmap(task, 6, BASE)
    bind(m, task, 0, 6, mode, mask)
    assert placed(m, task, 6) == expected
    other = m.attach(cpu)
    m.mmap(other, 6, BASE)
    set_policy(m, other, mode, mask)
    assert placed(m, other, 6) == expected


def test_home_nodes_decide_what_is_near(machine: Make) -> None:
    """With a home node BIND and PREFERRED_MANY look from there and not from the CPU."""
    m = machine(**QUAD, profile="linux-6.1")
    task = m.attach(0)
    m.mmap(task, 8, BASE)
    bind(m, task, 0, 8, MPOL_BIND, 12)
    m.call(home_node.sys_set_mempolicy_home_node(m.k, task, BASE, 4 * PAGE, 3, 0))
    assert placed(m, task, 8) == "33332222"


def test_a_preference_overflows_from_where_it_is(machine: Make) -> None:
    """PREFERRED_MANY fills its nodes, then goes on as if there were no mask; the counters see two allocations."""
    m = machine(**QUAD, profile="linux-6.12")
    task = m.attach(0)
    m.mmap(task, 36, BASE)
    bind(m, task, 0, 36, MPOL_PREFERRED_MANY, 12)
    assert placed(m, task, 36) == "2" * 16 + "3" * 16 + "0" * 4
    stat = m.k.c.numastat
    assert stat[:4, NUMA_HIT].tolist() == [4, 0, 16, 0]
    assert stat[:4, NUMA_MISS].tolist() == [0, 0, 0, 16]
    assert stat[:4, NUMA_FOREIGN].tolist() == [0, 0, 16, 0]


def test_weights(machine: Make) -> None:
    """Weighted interleaving gives each node its share of a round, by address; weights are 1 unless set."""
    m = machine(**QUAD, profile="linux-6.12")
    task = m.attach()
    m.mmap(task, 12, BASE)
    bind(m, task, 0, 6, MPOL_WEIGHTED_INTERLEAVE, 6)
    assert placed(m, task, 6) == "121212"
    interleave.set_il_weight(m.k, 1, 2)
    bind(m, task, 6, 6, MPOL_WEIGHTED_INTERLEAVE, 6)
    assert placed(m, task, 6, 6) == "121121"
    interleave.set_il_weight(m.k, 1, 0)
    assert m.k.il_weights == {1: 1}


@pytest.mark.parametrize(
    ("nid", "weight", "expected"), [(1, 256, errno.EINVAL), (1, -1, errno.EINVAL), (9, 1, errno.ENOENT)]
)
def test_weights_that_are_refused(machine: Make, nid: int, weight: int, expected: int) -> None:
    """A weight is 0 to 255, of a node that is there."""
    m = machine(**QUAD, profile="linux-6.12")
    with pytest.raises(MmError) as refused:
        interleave.set_il_weight(m.k, nid, weight)
    assert refused.value.errno == expected


# -- interleaving without an address -----------------------------------------------------------------------------------

#: name → profile, mode, calls; nodes of all pages, and the one that comes next. Mask {0, 1, 3}, node 1 weighs 3.
COUNTERS: dict[str, tuple[str, int, list[int], list[int], int]] = {
    "2005": ("swap-v3", MPOL_INTERLEAVE, [1, 3, 1], [0, 1, 3, 0, 1], 3),
    "today": ("linux-6.1", MPOL_INTERLEAVE, [2, 3], [0, 1, 3, 0, 1], 3),
    "weighted": ("linux-6.12", MPOL_WEIGHTED_INTERLEAVE, [7], [0, 1, 1, 1, 3, 0, 1], 1),
    "weighted, in pieces": ("linux-6.12", MPOL_WEIGHTED_INTERLEAVE, [1, 1, 1, 2, 2], [0, 1, 1, 1, 3, 0, 1], 1),
    "weighted, a round": ("linux-6.12", MPOL_WEIGHTED_INTERLEAVE, [2, 3], [0, 1, 1, 1, 3], 0),
}


@pytest.mark.parametrize(("profile", "mode", "calls", "expected", "following"), COUNTERS.values(), ids=COUNTERS)
def test_page_cache_goes_round(
    machine: Make, profile: str, mode: int, calls: list[int], expected: list[int], following: int
) -> None:
    """Page cache is interleaved by a counter of the task, many pages at a time as one by one; a fork copies it."""
    m = machine(**QUAD, profile=profile)
    interleave.set_il_weight(m.k, 1, 3)
    task = m.attach(2)
    set_policy(m, task, mode, 11)
    found = [m.call(mempolicy.alloc_page_cache(m.k, task, count)) for count in calls]
    pfns = np.concatenate(found)
    assert m.k.nid_of_pfn[pfns].tolist() == expected
    child: Task = m.call(fork.sys_fork(m.k, task))
    assert [interleave.next_il_node(m.k, one) for one in (task, child)] == [following] * 2
    m.call(mmzone.free_pages(m.k, pfns))


# -- policies of objects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "shared", "private"),
    [("swap-v3", "012301", "0123"), ("linux-6.1", "230123", "0123"), ("linux-6.12", "230123", "2301")],
)
def test_interleaving_on_tmpfs(machine: Make, profile: str, shared: str, private: str) -> None:
    """Pages of a tmpfs file go by file page; the inode number is added today, for private copies only in 6.12."""
    m = machine(**QUAD, profile=profile)
    files.create_file(m.k, "f", "tmpfs", 16 * PAGE).i_ino = 2
    m.k.journal.file(m.k.files["f"])
    task = m.attach()
    map_file(m, task, 0, 6, "f")
    bind(m, task, 0, 6, MPOL_INTERLEAVE, 15)
    assert placed(m, task, 6) == shared
    map_file(m, task, 20, 4, "f", MAP_PRIVATE)
    assert placed(m, task, 4, 20) == private


@pytest.mark.parametrize("flags", [MAP_SHARED, MAP_PRIVATE], ids=["shared", "private"])
def test_the_policy_of_a_tmpfs_mapping_is_that_of_the_file(machine: Make, flags: int) -> None:
    """Mbind on any mapping of the file rules all mappings, later ones too; pages outside follow who touches them."""
    m = machine(**QUAD, profile="linux-6.1")
    files.create_file(m.k, "f", "tmpfs", 16 * PAGE)
    task = m.attach()
    map_file(m, task, 0, 8, "f", flags, offset=2)
    bind(m, task, 2, 4, MPOL_BIND, 4)
    m.call(mmap.sys_munmap(m.k, task, BASE, 8 * PAGE))
    other = m.attach(3)
    map_file(m, other, 0, 12, "f")
    assert placed(m, other, 12) == "333322223333"
    set_policy(m, other, MPOL_BIND, 2)
    files.create_file(m.k, "g", "tmpfs", 2 * PAGE)
    map_file(m, other, 0, 2, "g")
    assert placed(m, other, 2) == "11"


def test_the_policies_of_objects_are_counted(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOMEM when all objects together would have too many; what takes policies away is never refused."""
    m = machine(**QUAD, profile="linux-6.1")
    monkeypatch.setattr(limits, "MAX_SHARED_POLICIES", 4)
    files.create_file(m.k, "f", "tmpfs", 16 * PAGE)
    task = m.attach()
    map_file(m, task, 0, 16, "f")
    for page in (0, 4, 8):
        bind(m, task, page, 1, MPOL_BIND, 4)
    with pytest.raises(MmError) as refused:
        bind(m, task, 12, 1, MPOL_BIND, 4)
    assert refused.value.errno == errno.ENOMEM
    assert m.k.journal.replay().policies[m.k.files["f"].id] == m.k.truth().policies[m.k.files["f"].id]
    bind(m, task, 0, 16, MPOL_DEFAULT, 0)
    assert m.k.files["f"].policy.ranges == []


def test_page_cache_of_other_files_ignores_the_mapping(machine: Make) -> None:
    """A ramfs file is placed by the task that touches it, whatever its mapping says."""
    m = machine(**QUAD, profile="linux-6.1")
    files.create_file(m.k, "r", "ramfs", 8 * PAGE)
    task = m.attach()
    map_file(m, task, 0, 8, "r")
    bind(m, task, 0, 8, MPOL_BIND, 4)
    assert placed(m, task, 2) == "00"
    set_policy(m, task, MPOL_INTERLEAVE, 15)
    assert placed(m, task, 6, 2) == "012301"


def test_an_object_gets_the_policy_of_what_its_mapping_merges_with(machine: Make) -> None:
    """DEFAULT on a mapping clears the policy that others set on the pages of a neighbour without one of its own."""
    m = machine(**QUAD, profile="linux-6.1")
    files.create_file(m.k, "f", "tmpfs", 8 * PAGE)
    ours, theirs = m.attach(), m.attach()
    for task in (ours, theirs):
        map_file(m, task, 0, 8, "f")
    bind(m, theirs, 0, 8, MPOL_BIND, 4)
    bind(m, ours, 2, 6, MPOL_DEFAULT, 0)
    assert m.k.files["f"].policy.lookup(4) == Mempolicy(MPOL_BIND, 4)
    bind(m, ours, 0, 2, MPOL_LOCAL, 0)
    bind(m, ours, 0, 8, MPOL_DEFAULT, 0)
    assert m.k.files["f"].policy.ranges == []


# -- cpusets -----------------------------------------------------------------------------------------------------------

#: name → mode, mask; nodes in force after cpusets {2, 3}, {1} and {0, 1, 2, 3} (of PREFERRED: the node).
REBINDS: dict[str, tuple[int, int, list[int]]] = {
    "BIND": (MPOL_BIND, 3, [12, 2, 1]),
    "INTERLEAVE": (MPOL_INTERLEAVE, 15, [12, 2, 1]),
    "BIND STATIC": (MPOL_BIND | STATIC, 3, [12, 2, 3]),
    "BIND RELATIVE": (MPOL_BIND | RELATIVE, 3, [12, 2, 3]),
    "PREFERRED": (MPOL_PREFERRED, 2, [2, 2, 2]),
    "PREFERRED STATIC": (MPOL_PREFERRED | STATIC, 2, [2, 2, 2]),
    "PREFERRED_MANY": (MPOL_PREFERRED_MANY, 3, [3, 3, 3]),
}


def in_force(policy: Mempolicy | None) -> int:
    """The nodes of a policy."""
    assert policy is not None
    return policy.nodes or 1 << policy.preferred


@BOTH
@pytest.mark.parametrize(("mode", "mask", "expected"), REBINDS.values(), ids=REBINDS)
def test_a_cpuset_rebinds_policies(machine: Make, profile: str, mode: int, mask: int, expected: list[int]) -> None:
    """Policies of task and mapping follow the cpuset by position, and lose nodes for good when it shrinks."""
    m = machine(**QUAD, profile=profile)
    task = m.attach()
    m.mmap(task, 4, BASE)
    bind(m, task, 0, 4, mode, mask)
    set_policy(m, task, mode, mask)
    found = []
    for nodes in (12, 2, 15):
        m.call(cpuset.sys_set_cpuset(m.k, task, [nodes]))
        assert task.mems_allowed == nodes
        assert spans(task)[0][2] == task.policy
        found.append(in_force(task.policy))
    assert found == expected


#: name → policy of the mapping; nodes of four pages in the cpuset {2, 3}, CPU 0.
CONFINED: dict[str, tuple[int, int, str]] = {
    "local": (MPOL_LOCAL, 0, "2222"),
    "PREFERRED outside": (MPOL_PREFERRED, 2, "2222"),
    "PREFERRED_MANY outside": (MPOL_PREFERRED_MANY, 3, "2222"),
    "INTERLEAVE": (MPOL_INTERLEAVE, 15, "2323"),
}


@BOTH
@pytest.mark.parametrize(("mode", "mask", "expected"), CONFINED.values(), ids=CONFINED)
def test_allocation_stays_in_the_cpuset(machine: Make, profile: str, mode: int, mask: int, expected: str) -> None:
    """Pages come from the nodes of the cpuset, the nearest ones where the policy names none of them."""
    m = machine(**QUAD, profile=profile)
    task = m.attach(0)
    m.mmap(task, 4, BASE)
    bind(m, task, 0, 4, mode, mask)
    m.call(cpuset.sys_set_cpuset(m.k, task, [12]))
    assert placed(m, task, 4) == expected
    assert m.k.c.numastat[:, NUMA_MISS].sum() == 0


def test_new_policies_are_made_for_the_cpuset(machine: Make) -> None:
    """A new mask loses the nodes outside, RELATIVE counts inside, and nothing left is EINVAL."""
    m = machine(**QUAD, profile="linux-6.1")
    task = m.attach()
    m.call(cpuset.sys_set_cpuset(m.k, task, [14]))
    for mode, mask, nodes in ((MPOL_BIND, 3, 2), (MPOL_BIND | RELATIVE, 9, 2), (MPOL_BIND | STATIC, 5, 4)):
        set_policy(m, task, mode, mask)
        assert in_force(task.policy) == nodes
    with pytest.raises(MmError) as refused:
        set_policy(m, task, MPOL_BIND | STATIC, 1)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("profile", "first", "then"), [("swap-v3", 1, 1), ("linux-6.1", 4, 1), ("linux-6.12", 1, 1)], ids=str
)
def test_attaching_resets_the_affinity(machine: Make, profile: str, first: int, then: int) -> None:
    """The CPUs of the task after it was attached, and after its cpuset was changed; a child is attached anew."""
    m = machine(**QUAD, profile=profile)
    task = m.attach()
    assert [m.call(cpuset.sys_set_cpuset(m.k, task, [nodes])) for nodes in (3, 7)] == [first, then]
    child: Task = m.call(fork.sys_fork(m.k, task))
    m.call(cpuset.sys_set_cpuset(m.k, task, [6]))
    assert child.mems_allowed == 6
    assert m.call(cpuset.sys_set_cpuset(m.k, child, [1])) == first
    assert (task.mems_allowed, child.mems_allowed) == (6, 1)


@pytest.mark.parametrize(
    ("profile", "words", "expected"),
    [
        ("swap-v3", [0], errno.ENOSPC),
        ("swap-v3", [16], errno.ENOSPC),
        ("swap-v3", [17], 1),
        ("swap-v3", [0, 1], errno.ERANGE),
        ("linux-6.1", [0], 15),
        ("linux-6.1", [17], errno.EINVAL),
        ("linux-6.12", [0] * 16 + [1], errno.ERANGE),
    ],
    ids=str,
)
def test_cpuset_nodes(machine: Make, profile: str, words: list[int], expected: int) -> None:
    """Nodes that are not there are dropped in 2005 and refused today; none at all are those of the parent today."""
    m = machine(**QUAD, profile=profile)
    task = m.attach()
    found = 0
    try:
        m.call(cpuset.sys_set_cpuset(m.k, task, words))
    except MmError as error:
        found = error.errno
    refused = expected in (errno.ENOSPC, errno.EINVAL, errno.ERANGE)
    assert (found, task.mems_allowed, task.cpuset) == ((expected, 15, 0) if refused else (0, expected, task.pid))


def test_remapping_by_position() -> None:
    """Nodes go to the same position of the new set, counted round; nodes outside of the old set stay."""
    assert [node_remap(node, 0b1110, 0b110000) for node in range(4)] == [0, 4, 5, 4]
    assert node_remap(-1, 15, 3) == -1
    assert nodes_remap(0b1011, 0b1111, 0b1100) == 0b1100
    assert nodes_relative(0b100001, 0b1110) == 0b1010


# -- which mappings merge ----------------------------------------------------------------------------------------------


def test_mappings_with_equal_policies_merge_again(machine: Make) -> None:
    """Today mbind merges what it made equal; other flags keep mappings apart."""
    m = machine(**QUAD, profile="linux-6.1")
    task = m.attach()
    m.mmap(task, 8, BASE)
    bind(m, task, 0, 4, MPOL_BIND, 2)
    bind(m, task, 4, 4, MPOL_BIND | STATIC, 2)
    assert [span[:2] for span in spans(task)] == [(0, 4), (4, 4)]
    bind(m, task, 4, 4, MPOL_PREFERRED, 0)
    bind(m, task, 0, 4, MPOL_LOCAL, 0)
    assert spans(task) == [(0, 8, Mempolicy(MPOL_LOCAL))]


@pytest.mark.parametrize(("profile", "apart"), [("swap-v3", False), ("linux-6.1", True)])
def test_what_a_fork_copied_stays_apart(machine: Make, profile: str, apart: bool) -> None:  # noqa: FBT001 - a table
    """Since 3.0 a child's mappings that have anonymous pages merge with no other; the parent's still do."""
    m = machine(**QUAD, profile=profile)
    task = m.attach()
    m.mmap(task, 4, BASE)
    m.touch(task, BASE, 4)
    child: Task = m.call(fork.sys_fork(m.k, task))
    for one in (task, child):
        m.mmap(one, 2, BASE + 4 * PAGE)
    assert [span[:2] for span in spans(task)] == [(0, 6)]
    assert [span[:2] for span in spans(child)] == ([(0, 4), (4, 2)] if apart else [(0, 6)])
