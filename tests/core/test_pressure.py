"""Memory gets short: other nodes first, then reclaim with a second chance, then somebody is killed.

Sources: mm/page_alloc.c, mm/vmscan.c, mm/oom_kill.c (2.6.14 and 2.6.15; 6.1 and 6.12 where the profiles differ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.core.conftest import PAGE, Machine, pressed

from numaemu_core import mlock, mmap, reclaim
from numaemu_core.errors import OutOfMemory
from numaemu_core.fsck import fsck
from numaemu_core.layout import layout_of
from numaemu_core.page_flags import LRU_ACTIVE, LRU_INACTIVE, PG_REFERENCED
from numaemu_core.profiles import PROFILES
from numaemu_core.topology import from_dict, uniform
from numaemu_core.uapi import MPOL_BIND
from numaemu_core.watermarks import zone_watermarks

if TYPE_CHECKING:
    from numaemu_core.mm_types import Task

Make = Callable[..., Machine]

# -- watermarks --------------------------------------------------------------------------------------------------------

#: profile, memory of each of two nodes, min_free_kbytes of the topology → min, low, high of a node in pages.
WATERMARKS = {
    "swap-v3 64M": ("swap-v3", "64M", None, (181, 226, 271)),
    "swap-v3 16M": ("swap-v3", "16M", None, (90, 112, 135)),
    "swap-v3 is bounded": ("swap-v3", "512G", None, (8192, 10240, 12288)),
    "linux-6.1 64M": ("linux-6.1", "64M", None, (181, 226, 271)),
    "linux-6.12 1G": ("linux-6.12", "1G", None, (724, 986, 1248)),
    "linux-6.1 is bounded higher": ("linux-6.1", "512G", None, (16384, 150601, 284818)),
    "so small that a part is the bound": ("swap-v3", "1M", None, (8, 10, 12)),
    "none at all": ("swap-v3", "64K", None, (0, 0, 0)),
    "as told": ("swap-v3", "1M", 256, (32, 40, 48)),
    "told none": ("linux-6.1", "64M", 0, (0, 0, 0)),
}


@pytest.mark.parametrize(("profile", "size", "told", "marks"), WATERMARKS.values(), ids=WATERMARKS)
def test_watermarks(profile: str, size: str, told: int | None, marks: tuple[int, int, int]) -> None:
    """What a node keeps free grows as the root of the machine's memory, within the bounds of its kernel."""
    topology = replace(uniform(2, size, "0", profile, PAGE), min_free_kbytes=told)
    assert set(zone_watermarks(layout_of(topology)).values()) == {marks}


# -- before reclaim ----------------------------------------------------------------------------------------------------


def test_other_nodes_are_used_before_anything_is_reclaimed(machine: Make) -> None:
    """An allocation takes a node down to pages_low, then the next one, then both down to pages_min."""
    m = pressed(machine)
    task = m.attach(0)
    marks = [m.k.zones[nid] for nid in range(2)]
    woken: list[int] = []
    m.k.wake_kswapd = woken.append
    first = marks[0].nr_free - marks[0].pages_low
    base = m.mmap(task, 512)
    m.touch(task, base, first)
    assert (marks[0].nr_free, woken) == (marks[0].pages_low, [])
    second = marks[1].nr_free - marks[1].pages_low
    m.touch(task, base + first * PAGE, second)
    assert (marks[1].nr_free, woken) == (marks[1].pages_low, [])
    m.touch(task, base + (first + second) * PAGE)
    assert marks[0].nr_free == marks[0].pages_low - 1
    assert set(woken) == {0, 1}
    assert m.k.vmstat["allocstall"] == 0


def test_kswapd_stops_at_pages_high(machine: Make) -> None:
    """It is woken below pages_low, and frees until the node is above pages_high, with one batch more at the most."""
    m = pressed(machine)
    task = m.attach(0)
    zone = m.k.zones[0]
    base = m.mmap(task, 300)
    m.mbind(task, base, 300, MPOL_BIND, {0})
    m.touch(task, base, zone.nr_free - zone.pages_low)
    assert m.k.vmstat["pageoutrun"] == 0
    m.touch(task, base + 299 * PAGE)
    m.performer.run()
    assert zone.pages_high <= zone.nr_free <= zone.pages_high + 2 * 32
    assert m.k.vmstat["pgsteal_kswapd"] > 0
    assert m.k.vmstat["pgsteal_direct"] == m.k.vmstat["allocstall"] == 0


@pytest.mark.parametrize("profile", PROFILES)
def test_direct_reclaim_makes_room_and_keeps_every_byte(machine: Make, profile: str) -> None:
    """A task that writes twice what its node has finds every byte again, and nobody is killed."""
    m = machine(node=[{"id": 0, "memory": "512K", "cpus": [0]}], swap="4M", profile=profile)
    task = m.attach(0)
    base = m.mmap(task, 256)
    for page in range(256):
        m.touch(task, base + page * PAGE)
        m.poke(task, base + page * PAGE, page % 251)
    for page in range(256):
        m.touch(task, base + page * PAGE, write=False)
        assert m.peek(task, base + page * PAGE) == page % 251
    assert m.k.vmstat["pgsteal_direct"] > 0
    assert m.k.vmstat["oom_kill"] == 0


# -- second chance -----------------------------------------------------------------------------------------------------


def _lists(m: Machine, task: Task, base: int, pages: int) -> list[int]:
    """The list of each page."""
    return [int(m.k.c.lru_state[m.entry(task, base + i * PAGE) // PAGE]) for i in range(pages)]


#: profile, accessed since, PG_REFERENCED → the list of a page once refill_inactive_zone has seen it.
REFILL = {
    "2.6.15 untouched": ("swap-v3", False, False, LRU_INACTIVE),
    "2.6.15 accessed": ("swap-v3", True, False, LRU_ACTIVE),
    "2.6.15 marked": ("swap-v3", False, True, LRU_ACTIVE),
    "6.1 untouched": ("linux-6.1", False, False, LRU_INACTIVE),
    "6.1 accessed": ("linux-6.1", True, False, LRU_INACTIVE),
}


@pytest.mark.parametrize(("profile", "accessed", "marked", "where"), REFILL.values(), ids=REFILL)
def test_what_leaves_the_active_list(machine: Make, profile: str, *, accessed: bool, marked: bool, where: int) -> None:
    """2.6.15 keeps referenced pages active, 6.x none of the anonymous ones; the marks are gone in any case."""
    m = pressed(machine, profile=profile)
    task = m.attach(0)
    base = m.mmap(task, 200)
    m.touch(task, base, 200)
    m.k.c.accessed[:] = accessed
    pfns = np.flatnonzero(m.k.c.lru_state == LRU_ACTIVE)
    m.k.c.pg_flags[pfns] = m.k.c.pg_flags[pfns] & ~np.uint16(PG_REFERENCED) | np.uint16(PG_REFERENCED * marked)
    m.k.zones[0].prev_priority = 0
    m.call(
        reclaim.refill_inactive_zone(m.k, [reclaim.Share(m.k.zones[0], 200)], 200, reclaim.begin_scan(m.k, "direct"))
    )
    assert set(_lists(m, task, base, 200)) == {where}
    assert not m.k.c.accessed[m.k.tables.walk(task.mm.pgd, np.arange(base // PAGE, base // PAGE + 200))].any()


@pytest.mark.parametrize(("profile", "rounds"), [("swap-v3", 1), ("linux-6.1", 2)])
def test_how_often_an_inactive_page_must_be_touched(machine: Make, profile: str, rounds: int) -> None:
    """One reference activates an inactive page in 2.6.15, the second one does in 6.x."""
    m = pressed(machine, profile=profile)
    task = m.attach(0)
    base = m.mmap(task, 1)
    m.touch(task, base)
    pfn = m.entry(task, base) // PAGE
    m.k.c.lru_state[pfn] = LRU_INACTIVE
    m.k.c.pg_flags[pfn] &= ~np.uint16(PG_REFERENCED)
    seen = []
    for _ in range(rounds):
        m.k.c.accessed[:] = 1
        m.call(reclaim.shrink_cache(m.k, [reclaim.Share(m.k.zones[0], 0, 1)], 1, reclaim.begin_scan(m.k, "direct")))
        seen.append(int(m.k.c.lru_state[pfn]))
    assert seen == [LRU_INACTIVE] * (rounds - 1) + [LRU_ACTIVE]


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
def test_locked_pages_stay(machine: Make, profile: str) -> None:
    """Pages of a locked VMA are where they were after any amount of pressure."""
    m = machine(node=[{"id": 0, "memory": "512K", "cpus": [0]}], swap="4M", profile=profile)
    task = m.attach(0)
    locked = m.mmap(task, 16)
    m.touch(task, locked, 16)
    frames = [m.entry(task, locked + i * PAGE) for i in range(16)]
    m.call(mlock.sys_mlock(m.k, task, locked, 16 * PAGE))
    base = m.mmap(task, 256)
    m.touch(task, base, 256)
    assert [m.entry(task, locked + i * PAGE) for i in range(16)] == frames
    assert m.k.vmstat["pswpout"] > 0


def test_pinned_pages_stay(machine: Make) -> None:
    """A pinned page keeps its frame."""
    m = machine(node=[{"id": 0, "memory": "512K", "cpus": [0]}], swap="4M")
    task = m.attach(0)
    pinned = m.mmap(task, 4)
    m.touch(task, pinned, 4)
    frames = [m.entry(task, pinned + i * PAGE) for i in range(4)]
    m.k.c.pins[0, :4] = [entry // PAGE + 1 for entry in frames]
    m.k.c.pin_count[0] = 4
    m.touch(task, m.mmap(task, 256), 256)
    assert [m.entry(task, pinned + i * PAGE) for i in range(4)] == frames
    m.k.c.pin_count[0] = 0


def test_without_swap_pages_of_disk_files_leave_and_anonymous_ones_stay(machine: Make) -> None:
    """Without a swap area anonymous pages stay on the active list."""
    m = pressed(machine, swap="0")
    task = m.attach(0)
    base = m.mmap(task, 100)
    m.touch(task, base, 100)
    m.clear_young()
    m.k.c.pg_flags[:] &= ~np.uint16(PG_REFERENCED)
    m.call(
        reclaim.refill_inactive_zone(m.k, [reclaim.Share(m.k.zones[0], 100)], 100, reclaim.begin_scan(m.k, "direct"))
    )
    assert set(_lists(m, task, base, 100)) == {LRU_ACTIVE}


# -- all together ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    swap=st.sampled_from(["0", "256K", "4M"]),
    profile=st.sampled_from(sorted(PROFILES)),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90), st.booleans()), min_size=3, max_size=12),
)
def test_whatever_is_allocated_and_freed_the_machine_is_sound(
    machine: Make, seed: int, swap: str, profile: str, steps: list[tuple[int, int, bool]]
) -> None:
    """Tasks that map, touch and unmap at random on a small machine leave counters that agree, and fsck clean."""
    del machine
    nodes = [{"id": nid, "memory": "512K", "cpus": [nid]} for nid in range(2)]
    topology = from_dict({"node": nodes, "swap": swap, "profile": profile, "min_free_kbytes": 128})
    m = Machine(topology, seed)
    tasks = [m.attach(number % 2) for number in range(3)]
    areas: list[list[int]] = [[], [], []]
    for who, pages, unmap in steps:
        task = tasks[who]
        if task.killed:
            continue
        try:
            if unmap and areas[who]:
                m.call(mmap.sys_munmap(m.k, task, areas[who].pop(), 90 * PAGE))
            else:
                areas[who].append(m.mmap(task, 90))
                m.touch(task, areas[who][-1], pages)
        except OutOfMemory:
            assert task.killed
    m.performer.run()
    assert fsck(m.k) == []
    for zone in m.k.zones.values():
        assert zone.nr_free == int(np.count_nonzero(m.k.c.free_state[zone.first : zone.end] <= 1))
    stolen = m.k.vmstat["pgsteal_kswapd"] + m.k.vmstat["pgsteal_direct"]
    assert stolen <= m.k.vmstat["pgscan_kswapd"] + m.k.vmstat["pgscan_direct"]
