"""Many pages at a time while nodes fill up. Where single pages go is among the facts.

Sources: mm/mempolicy.c and mm/page_alloc.c (2.6.15).
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numaemu_core import memory
from numaemu_core.uapi import MPOL_BIND, MPOL_INTERLEAVE

if TYPE_CHECKING:
    from tests.core.conftest import Machine

Make = Callable[..., "Machine"]
#: numa_hit, numa_miss, numa_foreign, interleave_hit, local_node, other_node of each node.
Counters = list[list[int]]

PAGE = 4096


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


def test_a_range_fault_gives_what_it_could_do(machine: Make) -> None:
    """A fault of a range says how far it came: where memory is short, what is free at a time, or a node's eighth."""
    m = machine(nodes=2, memory="64K")
    fill_node(m, 1, leave=3)
    task = m.attach(0)
    base = m.mmap(task, 8)
    m.mbind(task, base, 8, MPOL_BIND, {1})
    fault = functools.partial(memory.sys_fault, m.k, task)
    assert m.call(fault(base, 8 * PAGE, write=True)) == 3 * PAGE
    assert m.where(task, base, 4) == [1, 1, 1, -errno.ENOENT]
    assert m.call(fault(base + 3 * PAGE, 5 * PAGE, write=True)) == 2 * PAGE


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
