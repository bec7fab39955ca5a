"""Nothing can be had any more: who knows it when, who is killed, and who is not.

Sources: mm/page_alloc.c, mm/vmscan.c, mm/oom_kill.c (2.6.14 and 2.6.15; 6.1 and 6.12 where the profiles differ).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from errno import EAGAIN
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.core.conftest import GONE, PAGE, pressed

from numaemu_core import files, fork, limits, madvise, memory, mlock, mmap, reclaim
from numaemu_core.effects import Breathe
from numaemu_core.errors import MmError, OutOfMemory
from numaemu_core.mempolicy import sys_set_mempolicy
from numaemu_core.mmzone import Zonelist, free_pages
from numaemu_core.nodemask import mask_of
from numaemu_core.oom_kill import badness, out_of_memory, select_bad_process
from numaemu_core.page_alloc import alloc_pages
from numaemu_core.page_flags import LRU_ACTIVE, LRU_INACTIVE, LRU_ISOLATED, PG_REFERENCED, PG_WRITEBACK
from numaemu_core.profiles import PROFILES
from numaemu_core.uapi import (
    MADV_PAGEOUT,
    MADV_POPULATE_WRITE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_FUTURE,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    PROT_READ,
    PROT_WRITE,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

    from numaemu_core.effects import KernelTask
    from numaemu_core.mm_types import Task

Make = Callable[..., "Machine"]


# -- who is killed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_who_is_killed_by_size(machine: Make, profile: str) -> None:
    """2.6.14 takes the task with the largest address space, 6.x the one with the most memory."""
    m = pressed(machine, profile=profile)
    wide, full = m.attach(0), m.attach(0)
    m.touch(wide, m.mmap(wide, 1000), 10)
    m.touch(full, m.mmap(full, 100), 100)
    chosen = select_bad_process(m.k, full, (0, 1))
    assert chosen is (full if m.k.profile.oom_badness_by_rss else wide)


#: capabilities → points of a task that has mapped 100 pages, in 2.6.14.
BADNESS = {
    "ordinary": ((), 100),
    "CAP_SYS_ADMIN": (("CAP_SYS_ADMIN",), 25),
    "CAP_SYS_NICE": (("CAP_SYS_NICE",), 100),
}


@pytest.mark.parametrize(("capabilities", "points"), BADNESS.values(), ids=BADNESS)
def test_badness_of_2_6_14(machine: Make, capabilities: tuple[str, ...], points: int) -> None:
    """Pages of the address space, a quarter for an administrator; children count, too."""
    m = pressed(machine)
    task = m.attach(0, *capabilities)
    m.mmap(task, 100)
    assert badness(m.k, task) == points
    m.call(fork.sys_fork(m.k, task))
    assert badness(m.k, task) == {100: 200, 25: 50}[points]


@pytest.mark.parametrize(("profile", "spared"), [("swap-v3", False), ("linux-6.1", True), ("linux-6.12", True)])
def test_a_task_bound_elsewhere_is_spared(machine: Make, profile: str, *, spared: bool) -> None:
    """When a BIND is short, 6.x kills among those who may use its nodes; 2.6.15 takes the largest, to no avail."""
    m = pressed(machine, swap="0", profile=profile)
    elsewhere, hungry = m.attach(0), m.attach(0)
    m.call(sys_set_mempolicy(m.k, elsewhere, MPOL_BIND, [mask_of({1})], 65))
    m.touch(elsewhere, m.mmap(elsewhere, 300), 200)
    area = m.mmap(hungry, 190)
    m.mbind(hungry, area, 190, MPOL_BIND, {0})
    m.touch(hungry, area, 190)
    more = m.mmap(hungry, 60)
    m.mbind(hungry, more, 60, MPOL_BIND, {0})
    with pytest.raises(OutOfMemory):
        m.touch(hungry, more, 60)
    assert (elsewhere.killed, hungry.killed) == (not spared, True)


def test_the_killed_task_is_gone_and_the_other_goes_on(machine: Make) -> None:
    """Its memory is free at once, its calls say out of memory, and it can be told to exit."""
    m = pressed(machine, swap="0")
    victim, survivor = m.attach(0), m.attach(1)
    base = m.mmap(victim, 300)
    m.touch(victim, base, 300)
    other = m.mmap(survivor, 250)
    m.touch(survivor, other, 250)
    assert (victim.killed, survivor.killed, m.k.vmstat["oom_kill"]) == (True, False, 1)
    assert GONE not in m.where(survivor, other, 250)
    assert list(victim.mm.vmas) == []
    with pytest.raises(OutOfMemory):
        m.call(memory.sys_fault(m.k, victim, base, PAGE, write=True))
    m.call(fork.sys_exit(m.k, victim))


# -- when nothing can be had -------------------------------------------------------------------------------------------


def filled(machine: Make, pages: int = 200, **options: object) -> tuple[Machine, Task]:
    """A node of 256 frames and 64 slots, both full but for what the watermarks keep free."""
    m = machine(node=[{"id": 0, "memory": "1M", "cpus": [0]}], **({"swap": "256K", "min_free_kbytes": 64} | options))
    task = m.attach(0)
    m.touch(task, m.mmap(task, pages), pages)
    return m, task


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("swap", ["0", "256K"])
def test_when_no_page_has_anywhere_to_go_one_round_is_enough(machine: Make, profile: str, swap: str) -> None:
    """Only anonymous memory and no free slot: the killer comes after the first round that freed nothing."""
    m, task = filled(machine, 239 if swap == "0" else 303, profile=profile, swap=swap)
    before = m.k.vmstat["allocstall"]
    with pytest.raises(OutOfMemory):
        m.touch(task, m.mmap(task, 40), 40)
    assert m.k.vmstat["oom_kill"] == 1
    assert m.k.vmstat["allocstall"] - before <= 4  # a few pages are had first


def test_pages_that_others_rotate_are_not_waited_for(machine: Make) -> None:
    """Isolated by somebody is not on its way out, as long as there is no slot for it."""
    m, _ = filled(machine, swap="0")
    on_list = np.flatnonzero(m.k.c.lru_state == LRU_ACTIVE)
    m.k.c.lru_state[on_list[:50]] = LRU_ISOLATED
    assert not reclaim.is_on_its_way(m.k, (0,))
    m.k.c.pg_flags[on_list[0]] |= PG_WRITEBACK
    assert reclaim.is_on_its_way(m.k, (0,))
    m.k.c.pg_flags[on_list[0]] &= ~np.uint16(PG_WRITEBACK)
    m.k.c.lru_state[on_list[:50]] = LRU_ACTIVE


def test_isolated_pages_with_somewhere_to_go_are_on_their_way(machine: Make) -> None:
    """While slots are free, what somebody has isolated may be free soon."""
    m, _ = filled(machine, 100)
    on_list = np.flatnonzero(m.k.c.lru_state == LRU_ACTIVE)
    m.k.c.lru_state[on_list[:1]] = LRU_ISOLATED
    assert reclaim.is_on_its_way(m.k, (0,))
    m.k.c.lru_state[on_list[:1]] = LRU_ACTIVE


def test_a_killed_task_reclaims_no_more(machine: Make) -> None:
    """Whoever is killed while it reclaims stops at once: others wait for its memory."""
    m, task = filled(machine, swap="0")
    body = reclaim.try_to_free_pages(m.k, (0,), task)
    next(body)
    task.killed = True
    assert len(list(body)) <= 2
    task.killed = False


def test_a_hopeless_scan_takes_larger_and_larger_steps(machine: Make) -> None:
    """The pages of a batch double while none of them can be freed."""
    m, _ = filled(machine, swap="0")
    m.k.c.lru_state[m.k.c.lru_state == LRU_ACTIVE] = LRU_INACTIVE
    m.k.c.accessed[:] = 1
    zone = m.k.zones[0]
    zone.nr_scan_active = zone.nr_scan_inactive = 0
    steps = list(reclaim.shrink_zones(m.k, [zone], 0, control := reclaim.begin_scan(m.k, "direct")))
    assert control.nr_scanned >= 200
    assert len(steps) <= 4


def test_a_zone_whose_pages_have_nowhere_to_go_is_not_scanned(machine: Make) -> None:
    """Direct reclaim spares itself the way through the lists, and nobody loses the marks of its last accesses."""
    m, task = filled(machine, swap="0")
    assert not m.call(reclaim.try_to_free_pages(m.k, (0,), task))
    assert (m.k.vmstat["pgrefill"], m.k.vmstat["pgscan_direct"]) == (0, 0)
    assert m.k.c.accessed.any()


@pytest.mark.parametrize(("swap", "frees"), [("4M", True), ("0", False)], ids=["with swap", "without"])
def test_the_distress_of_a_zone_is_the_priority_that_reclaim_came_to(machine: Make, swap: str, *, frees: bool) -> None:
    """Pages that had to be written first cost many rounds, and that is remembered although they could be freed."""
    m, task = filled(machine, swap=swap)
    m.clear_young()
    m.k.c.pg_flags[:] &= ~np.uint16(PG_REFERENCED)
    assert bool(m.call(reclaim.try_to_free_pages(m.k, (0,), task))) is frees
    assert m.k.zones[0].prev_priority < 6


def test_memory_of_a_task_that_is_just_ending_is_waited_for(machine: Make) -> None:
    """While a task exits, nobody is killed: what it had is enough."""
    m, survivor = filled(machine, 100, swap="0")
    leaving = m.attach(0)
    m.touch(leaving, m.mmap(leaving, 139), 139)
    more = m.mmap(survivor, 30)
    exiting = fork.sys_exit(m.k, leaving)
    first = next(exiting)  # it has begun

    def rest() -> KernelTask[int]:
        answer = yield first
        while True:
            for _ in range(500):  # and takes its time
                yield Breathe()
            try:
                answer = yield exiting.send(answer)
            except StopIteration as end:
                return int(end.value)

    m.performer.start("exit", rest())
    m.touch(survivor, more, 30)
    assert (survivor.killed, m.k.vmstat["oom_kill"]) == (False, 0)


def test_a_request_that_has_got_some_frames_takes_these(machine: Make) -> None:
    """It reclaims once before it takes any, and does not wait for the rest with frames in hand."""
    m, task = filled(machine, 229, swap="0")
    zonelist = Zonelist((0,), 0)
    got = m.call(alloc_pages(m.k, task, zonelist, 64, cpu_node=0))
    assert (len(got), m.k.vmstat["allocstall"]) == (255 - 229 - m.k.zones[0].pages_min, 1)
    m.call(free_pages(m.k, got))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", [0, 3])
def test_nobody_is_killed_while_everything_fits(machine: Make, profile: str, seed: int) -> None:
    """Six tasks that fill memory and swap nearly to the last page, and read all of it again, live."""
    nodes = [{"id": nid, "memory": "512K", "cpus": [nid]} for nid in range(2)]
    m = machine(node=nodes, swap="2M", profile=profile, seed=seed, page_cluster=0)
    tasks = [m.attach(number % 2) for number in range(6)]
    areas = [m.mmap(task, 120) for task in tasks]

    def use(task: Task, base: int) -> KernelTask[None]:
        for turn in range(4):
            done = 0
            while done < 120 * PAGE:
                done += yield from memory.sys_fault(m.k, task, base + done, 64 * PAGE, write=turn % 2 == 0)

    running = [m.performer.start("use", use(task, base)) for task, base in zip(tasks, areas, strict=True)]
    m.performer.run()
    assert [one.error for one in running] == [None] * 6
    assert m.k.vmstat["oom_kill"] == 0


@pytest.mark.parametrize("of", ["anonymous", "file"])
def test_memory_for_a_copy_does_not_come_from_what_is_copied(machine: Make, of: str) -> None:
    """When the only page that could be evicted is the one that a write wants a copy of, somebody is killed."""
    m = machine(node=[{"id": 0, "memory": "256K", "cpus": [0]}], swap="128K", disk="64K", page_cluster=0)
    task, filler = m.attach(0), m.attach(0)
    if of == "anonymous":  # in the swap cache, clean, and shared with a child
        base = m.mmap(task, 1)
        m.touch(task, base)
        m.call(madvise.sys_madvise(m.k, task, base, PAGE, MADV_PAGEOUT))
        m.touch(task, base, write=False)
        m.call(fork.sys_fork(m.k, task))
    else:
        files.create_file(m.k, "/data", "disk", PAGE)
        base = m.call(mmap.sys_mmap(m.k, task, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, "/data"))
        m.touch(task, base, write=False)
    m.k.c.pins[0, 0], m.k.c.pin_count[0] = m.entry(task, base) // PAGE + 1, 1
    page = m.mmap(filler, 200)
    while m.k.zones[0].nr_free or m.k.nr_swap_pages:
        m.touch(filler, page)
        page += PAGE
    m.k.c.pin_count[0] = 0
    assert m.entry(task, base) & 7 == 3
    for _ in range(2):  # the entry was taken away while memory was looked for: the access faults again
        m.touch(task, base)
    assert m.entry(task, base) & 7 == 7
    assert (filler.killed, m.k.vmstat["oom_kill"]) == (True, 1)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_fork_waits_for_all_the_copies_that_it_needs(machine: Make, profile: str) -> None:
    """The child of a task with many pinned pages gets its own copies, although reclaim frees a few at a time."""
    m, task = filled(machine, 150, swap="2M", profile=profile)
    base = min(vma.vm_start for vma in task.mm.vmas)
    pinned = [m.entry(task, base + i * PAGE) // PAGE + 1 for i in range(90)]
    m.k.c.pins[0, :90], m.k.c.pin_count[0] = pinned, 90
    other = m.attach(0)
    m.touch(other, m.mmap(other, 80), 80)
    child = m.call(fork.sys_fork(m.k, task))
    m.k.c.pin_count[0] = 0
    assert m.k.vmstat["allocstall"] > 0
    assert {m.entry(child, base + i * PAGE) // PAGE + 1 for i in range(90)}.isdisjoint(pinned)


@pytest.mark.parametrize("profile", PROFILES)
def test_mlock_has_others_make_room_page_by_page(machine: Make, profile: str) -> None:
    """A range nearly as large as memory is there and locked in the end, whatever had to leave for it."""
    m, _ = filled(machine, 220, swap="2M", profile=profile)
    task = m.attach(0, "CAP_IPC_LOCK")
    base = m.mmap(task, 180)
    m.call(mlock.sys_mlock(m.k, task, base, 180 * PAGE))
    assert GONE not in m.where(task, base, 180)


def counted(body: KernelTask[int], seen: Counter[str]) -> KernelTask[int]:
    """The same task; `seen` gets what it yields, by name."""
    answer = None
    while True:
        try:
            effect = body.send(answer)
        except StopIteration as end:
            return int(end.value)
        seen[type(effect).__name__] += 1
        answer = yield effect


@pytest.mark.parametrize("how", ["MAP_POPULATE", "MADV_POPULATE_WRITE"])
@pytest.mark.parametrize("mode", [MPOL_DEFAULT, MPOL_INTERLEAVE])
@pytest.mark.parametrize("min_free_kbytes", [0, None])
def test_more_than_memory_is_populated_into_swap(
    machine: Make, how: str, mode: int, min_free_kbytes: int | None
) -> None:
    """Under any policy: the first pages go while the last ones come, and nobody is killed."""
    m = pressed(machine, "4M", swap="64M", profile="linux-6.12", min_free_kbytes=min_free_kbytes)
    task = m.attach()
    m.call(sys_set_mempolicy(m.k, task, mode, [0b11] if mode else None, 65))
    at = m.mmap(task, 5000, flags=MAP_POPULATE if how == "MAP_POPULATE" else 0)
    if how == "MADV_POPULATE_WRITE":
        m.call(madvise.sys_madvise(m.k, task, at, 5000 * PAGE, MADV_POPULATE_WRITE))
    assert not task.killed
    assert all(m.entry(task, at + page * PAGE) for page in range(5000))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_heap_larger_than_memory_naps_for_nobody(machine: Make, profile: str) -> None:
    """A brk with MCL_FUTURE, beside locked memory and ramfs, naps only for the end of those killed for it."""
    m = pressed(machine, profile=profile)
    task = m.attach(0, "CAP_IPC_LOCK")
    files.create_file(m.k, "/ram", "ramfs", 60 * PAGE)
    ram = m.call(mmap.sys_mmap(m.k, task, 0, 60 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, "/ram"))
    m.touch(task, ram, 60)
    for _ in range(5):
        child = m.call(fork.sys_fork(m.k, task))
        m.call(mlock.sys_mlockall(m.k, child, MCL_FUTURE))
        m.mmap(child, 40)
    m.call(mlock.sys_mlockall(m.k, task, MCL_FUTURE))
    seen: Counter[str] = Counter()
    wanted = task.mm.brk + (1 << 31)
    assert m.call(counted(mmap.sys_brk(m.k, task, wanted), seen)) == wanted
    assert task.killed
    assert seen["Nap"] <= m.k.vmstat["oom_kill"]


@pytest.mark.parametrize("profile", ["linux-6.1", "linux-6.12"])
@pytest.mark.parametrize("how", ["populate", "fault"])
def test_who_finds_nobody_to_kill_gives_up(machine: Make, profile: str, how: str) -> None:
    """When nobody may be killed and nobody has got a frame meanwhile, a range that cannot be had is not tried again."""
    m = pressed(machine, profile=profile)
    task = m.attach(0, "CAP_IPC_LOCK")
    m.call(sys_set_mempolicy(m.k, task, MPOL_BIND, [mask_of({1})], 65))
    base = m.mmap(task, 256)
    m.mbind(task, base, 256, MPOL_BIND, {0})
    with pytest.raises(MmError) as refused:
        m.call(mlock.sys_mlock(m.k, task, base, 256 * PAGE))
    assert refused.value.errno == EAGAIN
    before = m.k.vmstat["allocstall"]
    missing = base + m.where(task, base, 256).index(GONE) * PAGE
    populate = mlock.sys_mlock(m.k, task, missing, PAGE)
    fault = memory.sys_fault(m.k, task, missing, PAGE, write=True)
    with pytest.raises(MmError):
        m.call(populate if how == "populate" else fault)
    assert m.k.vmstat["allocstall"] - before <= 2 * (limits.MAX_RECLAIM_RETRIES + 1)
    assert not task.killed


@pytest.mark.parametrize("waits", ["for a victim", "for one that ends"])
def test_a_task_that_is_ending_waits_for_nobody(machine: Make, waits: str) -> None:
    """Two tasks that end while each wants memory would wait for each other: an ending task gets none."""
    m, task = filled(machine, swap="0")
    other = m.attach(0)
    if waits == "for a victim":
        other.mm.oom_victim = True
    else:
        other.exiting, other.mm.mm_users = True, 0
    task.exiting = True
    assert m.call(out_of_memory(m.k, task, (0,))) is False
    task.exiting = other.exiting = other.mm.oom_victim = False
    other.mm.mm_users = 1
