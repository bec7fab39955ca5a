"""Where new pages go under each policy, what the NUMA counters say of it, and the order of the zonelists.

Sources: mm/mempolicy.c and mm/page_alloc.c (2.6.15).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numaemu_core import fork, get_mempolicy, interleave, memory, mempolicy, mmap
from numaemu_core.mm_types import Task
from numaemu_core.mmzone import build_zonelists
from numaemu_core.nodemask import mask_of
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.topology import from_dict
from numaemu_core.uapi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    MPOL_PREFERRED,
    PROT_READ,
    PROT_WRITE,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

Make = Callable[..., "Machine"]
#: numa_hit, numa_miss, numa_foreign, interleave_hit, local_node, other_node of each node.
Counters = list[list[int]]

PAGE = 4096
#: The first page of the address space whose number takes more than 32 bits.
BEYOND_32_BITS = 1 << 44


def set_policy(m: Machine, task: Task, mode: int, nodes: set[int]) -> None:
    """set_mempolicy."""
    m.call(mempolicy.sys_set_mempolicy(m.k, task, mode, [mask_of(nodes)], 65))


def interleaved(base: int, pages: int, nodes: Sequence[int]) -> list[int]:
    """The formula: page numbers cut to 32 bits, modulo the nodes, counted up from the lowest."""
    return [nodes[(base // PAGE + i & 0xFFFFFFFF) % len(nodes)] for i in range(pages)]


def fill_node(m: Machine, nid: int, *, leave: int = 0) -> None:
    """Somebody takes all frames of a node but `leave` of them."""
    task = m.attach()
    pages = m.k.zones[nid].nr_free - leave
    base = m.mmap(task, pages)
    m.mbind(task, base, pages, MPOL_BIND, {nid})
    m.touch(task, base, pages)
    assert m.k.zones[nid].nr_free == leave


# -- placement ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", [0, 1, 2])
def test_without_a_policy_pages_are_local(machine: Make, cpu: int) -> None:
    """First touch: on the node of the CPU that touches."""
    m = machine(nodes=3)
    task = m.attach(cpu)
    base = m.mmap(task, 5)
    m.touch(task, base, 5)
    assert m.where(task, base, 5) == [cpu] * 5


def test_a_task_that_moves_takes_its_local_node_along(machine: Make) -> None:
    """After set_cpu new pages are local to the new CPU, and old ones stay."""
    m = machine(nodes=3)
    task = m.attach(0)
    base = m.mmap(task, 6)
    for cpu in range(3):
        m.call(fork.sys_set_cpu(m.k, task, cpu))
        m.touch(task, base + 2 * cpu * PAGE, 2)
    assert m.where(task, base, 6) == [0, 0, 1, 1, 2, 2]


#: name → policy of the VMA, of the task (None: none), CPU; nodes of four pages at 2^44.
PLACEMENT_ROWS: dict[str, tuple[tuple[int, set[int]] | None, tuple[int, set[int]] | None, int, list[int]]] = {
    "BIND": ((MPOL_BIND, {2}), None, 0, [2] * 4),
    "BIND, lowest node and not the local one": ((MPOL_BIND, {1, 2, 3}), None, 3, [1] * 4),
    "PREFERRED": ((MPOL_PREFERRED, {2}), None, 0, [2] * 4),
    "PREFERRED, lowest of several": ((MPOL_PREFERRED, {2, 3}), None, 3, [2] * 4),
    "PREFERRED local": ((MPOL_PREFERRED, set()), None, 3, [3] * 4),
    "INTERLEAVE": ((MPOL_INTERLEAVE, {1, 3}), None, 0, [1, 3, 1, 3]),
    "INTERLEAVE over three": ((MPOL_INTERLEAVE, {0, 1, 3}), None, 0, [0, 1, 3, 0]),
    "task BIND": (None, (MPOL_BIND, {3}), 0, [3] * 4),
    "task PREFERRED": (None, (MPOL_PREFERRED, {1}), 0, [1] * 4),
    "task INTERLEAVE goes by address, too": (None, (MPOL_INTERLEAVE, {1, 2, 3}), 0, [1, 2, 3, 1]),
    "VMA before task": ((MPOL_BIND, {1}), (MPOL_BIND, {2}), 0, [1] * 4),
    "VMA local before task": ((MPOL_PREFERRED, set()), (MPOL_BIND, {2}), 0, [0] * 4),
    "DEFAULT falls back to the task": ((MPOL_DEFAULT, set()), (MPOL_BIND, {2}), 0, [2] * 4),
}


@pytest.mark.parametrize(("of_vma", "of_task", "cpu", "expected"), PLACEMENT_ROWS.values(), ids=PLACEMENT_ROWS)
def test_placement(
    machine: Make,
    of_vma: tuple[int, set[int]] | None,
    of_task: tuple[int, set[int]] | None,
    cpu: int,
    expected: list[int],
) -> None:
    """The VMA's policy decides, without one the task's, without one the CPU."""
    m = machine(nodes=4)
    task = m.attach(cpu)
    base = m.mmap(task, 4, BEYOND_32_BITS, flags=MAP_FIXED)
    if of_task is not None:
        set_policy(m, task, *of_task)
    if of_vma is not None:
        m.mbind(task, base, 4, *of_vma)
    m.touch(task, base, 4)
    assert m.where(task, base, 4) == expected


def test_pages_without_move_stay_where_they_are(machine: Make) -> None:
    """A new policy alone is for pages to come."""
    m = machine(nodes=2)
    task = m.attach()
    base = m.mmap(task, 6)
    m.touch(task, base, 3)
    assert m.mbind(task, base, 6, MPOL_BIND, {1}) == 0
    m.touch(task, base, 6)
    assert m.where(task, base, 6) == [0, 0, 0, 1, 1, 1]


def test_preferred_goes_elsewhere_when_full(machine: Make) -> None:
    """PREFERRED: the node's own zonelist when it is full, nearest first."""
    m = machine(nodes=3, memory="64K")
    fill_node(m, 1, leave=2)
    task = m.attach(0)
    base = m.mmap(task, 4)
    m.mbind(task, base, 4, MPOL_PREFERRED, {1})
    m.touch(task, base, 4)
    assert m.where(task, base, 4) == [1, 1, 2, 2]


def test_bind_fills_its_nodes_in_order_and_no_other(machine: Make) -> None:
    """BIND: lowest id first, then the next; when they are full others' pages leave, whatever other nodes have."""
    m = machine(nodes=3, memory="64K")
    fill_node(m, 1, leave=3)
    fill_node(m, 2, leave=2)
    task = m.attach(2)
    base = m.mmap(task, 8)
    m.mbind(task, base, 8, MPOL_BIND, {1, 2})
    m.touch(task, base, 4)
    m.touch(task, base + 4 * PAGE)
    assert m.where(task, base, 5) == [1, 1, 1, 2, 2]
    m.touch(task, base + 5 * PAGE)
    assert m.where(task, base + 5 * PAGE, 1)[0] in {1, 2}
    assert m.k.zones[0].nr_free == 15
    assert m.k.vmstat["pswpout"] > 0


def test_a_range_fault_gives_what_it_could_do(machine: Make) -> None:
    """A fault of a range says how far it came: where memory is short, a part of the range at a time."""
    m = machine(nodes=2, memory="64K")
    fill_node(m, 1, leave=3)
    task = m.attach(0)
    base = m.mmap(task, 8)
    m.mbind(task, base, 8, MPOL_BIND, {1})
    done = m.call(memory.sys_fault(m.k, task, base, 8 * PAGE, write=True))
    assert done == 2 * PAGE
    assert m.where(task, base, 3) == [1, 1, -errno.ENOENT]


def test_bind_to_nodes_without_memory_is_no_bind(machine: Make) -> None:
    """A BIND none of whose nodes has memory acts like the default; one that has some uses those."""
    m = machine(node=[{"id": 0, "memory": "64K", "cpus": [0]}, {"id": 1, "cpus": [1]}, {"id": 2, "memory": "64K"}])
    task = m.attach(0)
    base = m.mmap(task, 2)
    m.mbind(task, base, 1, MPOL_BIND, {1})
    m.mbind(task, base + PAGE, 1, MPOL_BIND, {1, 2})
    m.touch(task, base, 2)
    assert m.where(task, base, 2) == [0, 2]
    mode, mask = m.call(get_mempolicy.sys_get_mempolicy(m.k, task, 64, base + PAGE, 2))
    assert (mode, mask) == (MPOL_BIND, 4)


# -- interleave --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [(0, 1), (0, 1, 2), (1, 3), (0, 1, 2, 3), (2,)], ids=str)
@pytest.mark.parametrize(
    "addr", [0, 0x700000, BEYOND_32_BITS - 4 * PAGE, BEYOND_32_BITS], ids=["mmap", "low", "across 2^32", "2^32"]
)
def test_interleave_goes_by_address(machine: Make, nodes: tuple[int, ...], addr: int) -> None:
    """The page number, cut to 32 bits before the modulo, chooses the node: for VMA and task policies alike."""
    m = machine(nodes=4)
    by_vma, by_task = m.attach(), m.attach(2)
    flags = MAP_FIXED if addr else 0
    base = m.mmap(by_vma, 12, addr, flags=flags)
    m.mbind(by_vma, base, 12, MPOL_INTERLEAVE, set(nodes))
    set_policy(m, by_task, MPOL_INTERLEAVE, set(nodes))
    assert m.mmap(by_task, 12, base, flags=MAP_FIXED) == base
    for task in (by_vma, by_task):
        m.touch(task, base, 12)
        assert m.where(task, base, 12) == interleaved(base, 12, nodes)


def test_interleave_does_not_depend_on_the_order_of_touches(machine: Make) -> None:
    """Each page has its node, whenever it is touched and wherever its VMA was cut."""
    m = machine(nodes=3)
    task = m.attach()
    base = m.mmap(task, 9)
    m.mbind(task, base, 9, MPOL_INTERLEAVE, {0, 1, 2})
    m.mbind(task, base + 4 * PAGE, 2, MPOL_INTERLEAVE, {0, 1, 2})
    assert len(task.mm.vmas) == 3
    for page_number in (8, 3, 4, 0, 7, 1, 5, 2, 6):
        m.touch(task, base + page_number * PAGE)
    assert m.where(task, base, 9) == interleaved(base, 9, (0, 1, 2))


def test_faults_do_not_advance_the_next_node(machine: Make) -> None:
    """il_next is for allocations without an address: an anonymous fault leaves it alone."""
    m = machine(nodes=3)
    task = m.attach()
    set_policy(m, task, MPOL_INTERLEAVE, {1, 2})
    base = m.mmap(task, 3)
    m.touch(task, base, 3)
    assert task.il_next == 1


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(3, 14), min_size=2, max_size=4),
    chosen=st.sets(st.integers(0, 3), min_size=1),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    cpu=st.integers(0, 3),
)
def test_interleave_over_full_nodes_is_page_by_page(
    machine: Make, sizes: list[int], chosen: set[int], batches: list[int], cpu: int
) -> None:
    """Many pages at a time end up where pages taken one by one would, with the same counters."""
    count = len(sizes)
    nodes = sorted(nid for nid in chosen if nid < count) or [0]
    m = machine(node=[{"id": i, "memory": pages * PAGE, "cpus": [i]} for i, pages in enumerate(sizes)])
    task = m.attach(cpu % count)
    free = [zone.nr_free for zone in m.k.zones.values()]
    counters: Counters = [[0] * 6 for _ in range(count)]
    model: list[int] = []
    total = sum(batches)
    base = m.mmap(task, total)
    m.mbind(task, base, total, MPOL_INTERLEAVE, set(nodes))
    for wanted in interleaved(base, total, nodes):
        order = [wanted, *((wanted + i) % count for i in range(1, count))]
        got = next((nid for nid in order if free[nid]), None)
        if got is None:
            break
        model.append(got)
        free[got] -= 1
        counters[got][0 if got == wanted else 1] += 1
        counters[wanted][2] += got != wanted
        counters[got][3] += got == wanted
        counters[got][4 if got == cpu % count else 5] += 1
    done = 0
    for batch in batches:
        count = min(batch, len(model) - done)  # one more would have somebody killed
        m.touch(task, base + done * PAGE, count)
        done += count
    assert m.where(task, base, total)[: len(model)] == model
    assert m.k.c.numastat[: len(sizes)].tolist() == counters


# -- counters ----------------------------------------------------------------------------------------------------------

#: name → mode and nodes of the task's policy, its CPU, full nodes; counters after four pages at 2^44 on 3 equal nodes.
COUNTER_ROWS: dict[str, tuple[int, set[int], int, set[int], Counters]] = {
    "local": (MPOL_DEFAULT, set(), 1, set(), [[0] * 6, [4, 0, 0, 0, 4, 0], [0] * 6]),
    "local, full": (MPOL_DEFAULT, set(), 1, {1}, [[0] * 6, [0, 0, 4, 0, 0, 0], [0, 4, 0, 0, 0, 4]]),
    "preferred": (MPOL_PREFERRED, {2}, 1, set(), [[0] * 6, [0] * 6, [4, 0, 0, 0, 0, 4]]),
    "preferred, full, falls on the CPU's node": (
        MPOL_PREFERRED,
        {2},
        0,
        {2},
        [[0, 4, 0, 0, 4, 0], [0] * 6, [0, 0, 4, 0, 0, 0]],
    ),
    "bind is a hit on the lowest node": (MPOL_BIND, {1, 2}, 2, set(), [[0] * 6, [4, 0, 0, 0, 0, 4], [0] * 6]),
    "bind, lowest full": (MPOL_BIND, {1, 2}, 2, {1}, [[0] * 6, [0, 0, 4, 0, 0, 0], [0, 4, 0, 0, 4, 0]]),
    "interleave": (MPOL_INTERLEAVE, {0, 1}, 1, set(), [[2, 0, 0, 2, 0, 2], [2, 0, 0, 2, 2, 0], [0] * 6]),
    "interleave, one full": (
        MPOL_INTERLEAVE,
        {0, 1},
        0,
        {1},
        [[2, 0, 0, 2, 2, 0], [0, 0, 2, 0, 0, 0], [0, 2, 0, 0, 0, 2]],
    ),
    "interleave falls on one of its own": (
        MPOL_INTERLEAVE,
        {0, 2},
        0,
        {2},
        [[2, 2, 0, 2, 4, 0], [0] * 6, [0, 0, 2, 0, 0, 0]],
    ),
}


@pytest.mark.parametrize(("mode", "nodes", "cpu", "full", "expected"), COUNTER_ROWS.values(), ids=COUNTER_ROWS)
def test_numa_counters(machine: Make, mode: int, nodes: set[int], cpu: int, full: set[int], expected: Counters) -> None:
    """Hit, miss, foreign, interleave hit, local and other, exactly, for each policy."""
    m = machine(nodes=3, memory="64K")
    for nid in full:
        fill_node(m, nid)
    task = m.attach(cpu)
    set_policy(m, task, mode, nodes)
    base = m.mmap(task, 4, BEYOND_32_BITS, flags=MAP_FIXED)
    before = m.k.c.numastat[:3].copy()
    m.touch(task, base, 4)
    assert (m.k.c.numastat[:3] - before).tolist() == expected


def test_a_first_read_counts_as_no_allocation(machine: Make) -> None:
    """The zero page is there already; the copy at the first write counts."""
    m = machine(nodes=2)
    task = m.attach(1)
    base = m.mmap(task, 3)
    m.touch(task, base, 3, write=False)
    assert not np.count_nonzero(m.k.c.numastat)
    m.touch(task, base, 3)
    assert m.k.c.numastat[:2].tolist() == [[0] * 6, [3, 0, 0, 0, 3, 0]]
    assert m.where(task, base, 3) == [1] * 3


# -- fork --------------------------------------------------------------------------------------------------------------


def test_a_child_inherits_policies(machine: Make) -> None:
    """A fork copies the policy of the task with its next node, and those of the VMAs; then they are separate."""
    m = machine(nodes=3)
    task = m.attach(0)
    base = m.mmap(task, 4)
    m.mbind(task, base, 2, MPOL_BIND, {2})
    set_policy(m, task, MPOL_INTERLEAVE, {1, 2})
    assert interleave.interleave_nodes(m.k, task, 1).tolist() == [1]
    m.k.journal.task(task)
    child: Task = m.call(fork.sys_fork(m.k, task))
    assert (child.policy, child.il_next, child.cpu) == (Mempolicy(MPOL_INTERLEAVE, nodes=6), 2, 0)
    set_policy(m, task, MPOL_DEFAULT, set())
    m.mbind(task, base, 2, MPOL_DEFAULT, set())
    m.touch(child, base, 4)
    m.touch(task, base, 4)
    assert m.where(child, base, 4) == [2, 2, *interleaved(base + 2 * PAGE, 2, (1, 2))]
    assert m.where(task, base, 4) == [0] * 4


def test_a_new_mapping_has_no_policy(machine: Make) -> None:
    """What is mapped anew over a range with a policy has none, and does not merge with a neighbour that has one."""
    m = machine(nodes=2)
    task = m.attach(0)
    base = m.mmap(task, 4)
    m.mbind(task, base, 4, MPOL_BIND, {1})
    flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
    m.call(mmap.sys_mmap(m.k, task, base + PAGE, PAGE, PROT_READ | PROT_WRITE, flags))
    m.touch(task, base, 4)
    assert m.where(task, base, 4) == [1, 0, 1, 1]
    assert len(task.mm.vmas) == 3


# -- zonelists ---------------------------------------------------------------------------------------------------------


def line(distances: Sequence[int]) -> list[list[int]]:
    """Distances by how many steps two nodes of a ring are apart."""
    count = len(distances)
    return [[distances[(j - i) % count] for j in range(count)] for i in range(count)]


EQUAL_4 = line([10, 20, 20, 20])
RING_4 = line([10, 20, 30, 20])
PAIRS = [[10, 16, 22, 22], [16, 10, 22, 22], [22, 22, 10, 16], [22, 22, 16, 10]]
#: Equal distances to node 3, whose list the loads of all lists before it decide.
LOADED = [[10, 20, 30, 20], [20, 10, 30, 20], [30, 30, 10, 20], [20, 20, 20, 10]]

#: name → distances, nodes without CPUs, nodes without memory, ids (None: 0, 1, …); the zonelist of each node.
ZONELIST_ROWS: dict[
    str, tuple[list[list[int]], set[int], set[int], Sequence[int] | None, dict[int, tuple[int, ...]]]
] = {
    "one node": ([[10]], set(), set(), None, {0: (0,)}),
    "two nodes": (line([10, 20]), set(), set(), None, {0: (0, 1), 1: (1, 0)}),
    "equal distances rotate": (
        EQUAL_4,
        set(),
        set(),
        None,
        {0: (0, 1, 2, 3), 1: (1, 2, 3, 0), 2: (2, 3, 0, 1), 3: (3, 0, 1, 2)},
    ),
    "ring of four": (
        RING_4,
        set(),
        set(),
        None,
        {0: (0, 1, 3, 2), 1: (1, 0, 2, 3), 2: (2, 3, 1, 0), 3: (3, 2, 0, 1)},
    ),
    "pairs": (
        PAIRS,
        set(),
        set(),
        None,
        {0: (0, 1, 2, 3), 1: (1, 0, 3, 2), 2: (2, 3, 0, 1), 3: (3, 2, 1, 0)},
    ),
    "a node without CPUs is nearer": (
        EQUAL_4,
        {3},
        set(),
        None,
        {0: (0, 3, 1, 2), 1: (1, 3, 2, 0), 2: (2, 3, 0, 1), 3: (3, 0, 1, 2)},
    ),
    "a node without memory is in no list, and has one": (
        EQUAL_4,
        set(),
        {1},
        None,
        {0: (0, 2, 3), 1: (2, 3, 0), 2: (2, 3, 0), 3: (3, 0, 2)},
    ),
    "neither CPUs nor memory": (EQUAL_4, {2}, {2}, None, {0: (0, 1, 3), 1: (1, 3, 0), 2: (3, 0, 1), 3: (3, 0, 1)}),
    "sparse ids rotate by place": (
        line([10, 20, 20]),
        set(),
        set(),
        (1, 4, 60),
        {1: (1, 4, 60), 4: (4, 60, 1), 60: (60, 1, 4)},
    ),
    "the local node takes the first step of the load": (
        LOADED,
        set(),
        set(),
        None,
        {0: (0, 1, 3, 2), 1: (1, 3, 0, 2), 2: (2, 3, 0, 1), 3: (3, 0, 2, 1)},
    ),
}


@pytest.mark.parametrize(
    ("distances", "no_cpus", "no_memory", "ids", "expected"), ZONELIST_ROWS.values(), ids=ZONELIST_ROWS
)
def test_zonelists(
    distances: list[list[int]],
    no_cpus: set[int],
    no_memory: set[int],
    ids: Sequence[int] | None,
    expected: dict[int, tuple[int, ...]],
) -> None:
    """Nearest first, those without CPUs before others, ties by load and then in rotation from the local node."""
    nodes = [
        {"id": nid, "memory": 0 if nid in no_memory else "64K", "cpus": [] if nid in no_cpus else [nid]}
        for nid in ids or range(len(distances))
    ]
    assert build_zonelists(from_dict({"node": nodes, "distances": distances})) == expected
