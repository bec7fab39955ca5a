"""Machines with more node ids than a word has bits, and with many nodes."""

from collections.abc import Callable

import numpy as np
import pytest

from numaemu_core import cpuset, limits, mbind, mempolicy, migrate_pages, move_pages
from numaemu_core.errors import TopologyError
from numaemu_core.fsck import fsck
from numaemu_core.get_mempolicy import sys_get_mempolicy
from numaemu_core.journal import packed_record, policy_row
from numaemu_core.layout import layout_of
from numaemu_core.mm_types import Task
from numaemu_core.nodemask import mask_of
from numaemu_core.numa_maps import sys_numa_maps
from numaemu_core.profiles import PROFILES
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.topology import from_dict, uniform
from numaemu_core.uapi import (
    MPOL_BIND,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_STRICT,
)

from .conftest import PAGE, Machine, reborn

Make = Callable[..., Machine]

MAXNODE = 1025
#: Seventy nodes in a row, and the last that there can be.
IDS = [*range(70), 1000, 1023]


def words(*nodes: int) -> list[int]:
    mask = mask_of(nodes)
    return [mask >> 64 * i & (1 << 64) - 1 for i in range(16)]


def wide(machine: Make, **options: object) -> Machine:
    nodes = [{"id": nid, "memory": "64K", "cpus": [i]} for i, nid in enumerate(IDS)]
    return machine(node=nodes, profile="linux-6.12", **options)


def bind(m: Machine, task: Task, at: int, pages: int, *nodes: int, mode: int = MPOL_BIND) -> None:
    flags = MPOL_MF_MOVE | MPOL_MF_STRICT
    m.call(mbind.sys_mbind(m.k, task, at, pages * PAGE, mode, words(*nodes), MAXNODE, flags))


def test_pages_go_to_high_nodes(machine: Make) -> None:
    """By mbind, move_pages and migrate_pages, wherever they are; the counters are those of the right nodes."""
    m = wide(machine)
    task = m.attach(0, "CAP_SYS_NICE")
    at = m.mmap(task, 8)
    m.touch(task, at, 8)
    assert m.where(task, at, 8) == [0] * 8
    bind(m, task, at, 4, 1023)
    assert m.where(task, at, 8) == [1023] * 4 + [0] * 4
    addresses = np.arange(at + 4 * PAGE, at + 8 * PAGE, PAGE, dtype=np.uint64)
    targets = np.array([1000, 69, 1001, 1023], np.int32)
    _, status = m.call(move_pages.sys_move_pages(m.k, task, 0, 4, addresses, targets, MPOL_MF_MOVE, writable=True))
    assert m.where(task, at + 4 * PAGE, 2) == [1000, 69]
    assert status is not None
    m.call(migrate_pages.sys_migrate_pages(m.k, task, 0, MAXNODE, words(1023, 69), words(1000, 5)))
    assert set(m.where(task, at, 8)) <= {0, 5, 1000}
    assert m.k.c.numastat[1023].sum() > 0
    assert m.k.c.numastat.shape[0] == 1024


def test_an_interleave_goes_round_all_nodes(machine: Make) -> None:
    """Each page in its turn, and get_mempolicy gives the whole mask."""
    m = wide(machine)
    task = m.attach()
    m.call(mempolicy.sys_set_mempolicy(m.k, task, MPOL_INTERLEAVE, words(*IDS), MAXNODE))
    at = m.mmap(task, len(IDS))
    m.touch(task, at, len(IDS))
    assert sorted(m.where(task, at, len(IDS))) == IDS
    assert m.call(sys_get_mempolicy(m.k, task, MAXNODE, 0, 0)) == (MPOL_INTERLEAVE, mask_of(IDS))
    text = m.call(sys_numa_maps(m.k, task))
    assert "N1000=1" in text
    assert "N1023=1" in text


def test_a_daemon_that_comes_after_knows_wide_masks(machine: Make) -> None:
    """Policies with the masks of the user, cpusets, and the nodes of pages are in the journal and the columns."""
    m = wide(machine)
    task = m.attach()
    at = m.mmap(task, 4)
    m.touch(task, at, 4)
    bind(m, task, at, 2, 1000, 1023)
    bind(m, task, at + 2 * PAGE, 1, 69, 1023, mode=MPOL_INTERLEAVE | MPOL_F_STATIC_NODES)
    bind(m, task, at + 3 * PAGE, 1, *range(0, 1024, 3), mode=MPOL_BIND | MPOL_F_RELATIVE_NODES)
    m.call(cpuset.sys_set_cpuset(m.k, task, words(0, 3, 1000, 1023)))
    m.k.journal.compact()
    m.call(mempolicy.sys_set_mempolicy(m.k, task, MPOL_BIND, words(3, 1023), MAXNODE))
    again = reborn(m.k)
    assert fsck(again) == []
    found = again.tasks[task.pid]
    assert (found.policy, found.mems_allowed) == (task.policy, mask_of([0, 3, 1000, 1023]))
    assert [v.vm_policy for v in found.mm.vmas] == [v.vm_policy for v in task.mm.vmas]
    assert any(v.vm_policy is not None and v.vm_policy.user_nodes.bit_length() == 1024 for v in found.mm.vmas)


def test_a_row_of_the_journal_has_room_for_wide_masks() -> None:
    """The widest policy there can be stays below what the journal reckons with."""
    every = (1 << limits.MAX_NUMNODES) - 1
    row = policy_row(Mempolicy(MPOL_BIND, every, 1023, 1 << 15, every, 1023, every))
    vma = [1 << 47, 1 << 47, 1 << 40, 1 << 47, row, 1 << 31, 1 << 31, 1 << 31, 1 << 31]
    assert len(packed_record(vma)) + 16 <= limits.JOURNAL_WIDE_ROW_BYTES_MAX


def test_tables_are_as_long_as_the_highest_id() -> None:
    """A machine of low ids pays nothing for the ids that there could be."""
    low, high = (
        layout_of(
            from_dict({"node": [{"memory": "1M", "cpus": [0]}, {"id": nid, "memory": "1M"}], "profile": "linux-6.12"})
        )
        for nid in (1, 1000)
    )
    assert (low.pte_mutex, high.pte_mutex) == (2 * 2 + 1, 2 * 1001 + 1)
    assert low.segments["frames"].size <= high.segments["frames"].size


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_so_many_node_ids(profile: str) -> None:
    """The highest is taken, the next one refused with the number and the profile."""
    most = PROFILES[profile].max_numnodes
    node = {"memory": "1M", "cpus": [0]}
    assert from_dict({"profile": profile, "node": [node | {"id": most - 1}]}).nr_node_ids == most
    with pytest.raises(TopologyError) as refusal:
        from_dict({"profile": profile, "node": [node | {"id": most}]})
    assert str(refusal.value) == (f"node 0: id: expected a whole number from 0 to {most - 1} for {profile}, got {most}")


def test_a_machine_has_so_many_nodes() -> None:
    """As many as a kernel of 2005 has ids, and no more than there may be processes."""
    assert len(uniform(64, "64K", 0, "swap-v3", PAGE).nodes) == 64
    with pytest.raises(TopologyError, match="nodes: expected a whole number from 1 to 64 for swap-v3, got 65"):
        uniform(65, "64K", 0, "swap-v3", PAGE)
    assert len(uniform(128, "64K", 0, "linux-6.12", PAGE).nodes) == limits.MAX_NODES
    with pytest.raises(TopologyError, match=r"nodes: expected a whole number from 1 to 128 for linux-6\.12, got 129"):
        uniform(129, "64K", 0, "linux-6.12", PAGE)
    with pytest.raises(TopologyError, match=r"node: expected at most 128 \[\[node\]\] tables, got 129"):
        from_dict({"profile": "linux-6.12", "node": [{"id": i, "memory": "64K", "cpus": [i]} for i in range(129)]})
