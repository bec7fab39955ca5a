"""The daemon dies at any yield and between any two stores; the next one finds every byte, and does no call twice."""

from collections.abc import Callable

import numpy as np
import pytest

from numaemu_core import fork
from numaemu_core.fsck import fsck
from numaemu_core.intents import Caller
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task
from numaemu_core.page_flags import PG_HARVEST, PG_WRITEBACK
from numaemu_core.page_table import PTE_PRESENT
from numaemu_core.syscalls import SYSCALLS
from numaemu_core.uapi import (
    MADV_DONTNEED,
)

from .crash_world import (
    AREA,
    PAGE,
    PRIVATE,
    RW,
    Client,
    Died,
    Fragile,
    Memory,
    Thread,
    World,
    a_world,
    a_world_of_movers,
    small,
)


def finish(world: World) -> None:
    """Run to the end; the machine is sound, and nothing is left of it when all tasks have gone."""
    while not world.over:
        world.step()
    world.c.window_mm[:] = 0
    assert fsck(world.k) == [], f"seed {world.seed}"
    for task in list(world.k.tasks.values()):
        world.p.call(fork.sys_exit(world.k, task))
    assert fsck(world.k) == [], f"seed {world.seed} after everybody's exit"


def steps_of(seed: int) -> int:
    """How many steps a world takes whose daemon lives."""
    world = a_world(seed)
    finish(world)
    return world.steps


def crash_at(seed: int, steps: list[int], *, straggle: bool = False) -> None:
    """The daemon dies after so many steps, and its successor after so many more."""
    world = a_world(seed)
    try:
        for more in steps:
            for _ in range(more):
                if not world.over:
                    world.step()
            world.die(straggle=straggle)
            assert fsck_now(world) == []
        finish(world)
    except BaseException as error:
        error.add_note(f"replay with crash_at({seed}, {steps}, straggle={straggle})")
        raise


def fsck_now(world: World) -> list[str]:
    """What recovery leaves is sound at once, whatever clients do meanwhile."""
    while world.p.tasks or world.p._writes:  # noqa: SLF001 - as above
        world.p._steps = world.steps  # noqa: SLF001 - as above
        world.p._step()  # noqa: SLF001 - as above
    return fsck(world.k)


def crash_in_a_store(
    seed: int, stores: int, *, deaths_in_recovery: int = 0, straggle: bool = False, make: Callable[..., World] = a_world
) -> bool:
    """The daemon dies in the middle of a store; False if it never made so many."""
    world = make(seed, fragile=True)
    Fragile.left, Fragile.dead = stores, False
    try:
        try:
            while not world.over:
                world.step()
        except Died:
            pass
        died = Fragile.dead
        Fragile.left, Fragile.dead = None, False
        if died:
            world.die(deaths_in_recovery=deaths_in_recovery, straggle=straggle)
            assert fsck_now(world) == []
        finish(world)
    except BaseException as error:
        error.add_note(f"replay with crash_in_a_store({seed}, {stores}, {deaths_in_recovery=}, {straggle=})")
        raise
    finally:
        Fragile.left, Fragile.dead = None, False
    return died


SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_death_at_a_yield_loses_nothing(seed: int) -> None:
    """One death a world, after every so many of its steps: all bytes are there, and fsck finds nothing."""
    for step in range(seed, steps_of(seed), 127):
        crash_at(seed, [step])


@pytest.mark.parametrize("seed", SEEDS)
def test_daemons_that_die_one_after_another_lose_nothing(seed: int) -> None:
    """Three deaths a world."""
    for step in range(seed, 900, 131):
        crash_at(seed, [step, 40, 300])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_death_with_a_window_that_stays_open_loses_nothing(seed: int) -> None:
    """Who is late finds its frames and tables where they were."""
    for step in range(seed, steps_of(seed), 251):
        crash_at(seed, [step], straggle=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_death_in_a_store_loses_nothing(seed: int) -> None:
    """Between any two stores, and with half of a store done."""
    stores = seed
    while crash_in_a_store(seed, stores):
        stores += 113


@pytest.mark.parametrize("seed", SEEDS)
def test_deaths_in_recovery_lose_nothing(seed: int) -> None:
    """Two recoveries are cut short in a store, the third one ends."""
    stores = seed
    while crash_in_a_store(seed, stores, deaths_in_recovery=2, straggle=bool(stores & 1)):
        stores += 251


def without(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def take(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(f"numaemu_core.{name}", lambda *_: None)

    return take


def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that nobody confirmed counts as done."""

    def settle(k: Kernel) -> None:
        k.c.pg_flags[:] &= ~np.uint16(PG_WRITEBACK | PG_HARVEST)
        k.c.page_lock_owner[:] = 0

    monkeypatch.setattr("numaemu_core.recovery.settle_flags", settle)


def notes_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call had chosen is chosen again."""
    for module in ("mmap", "fork", "mremap", "mlock"):
        monkeypatch.setattr(f"numaemu_core.{module}.noted", lambda _k: None)


BROKEN = {
    "no harvest": (without("memory.begin_harvest"), a_world),
    "entries not mended": (without("recovery.mend_entries"), a_world),
    "moves not finished": (without("recovery.finish_move"), a_world_of_movers),
    "writes not repeated": (written_at_once, a_world),
    "notes forgotten": (notes_forgotten, a_world),
}


@pytest.mark.parametrize(("breaking", "make"), BROKEN.values(), ids=BROKEN)
def test_the_deaths_notice_broken_code(
    breaking: Callable[[pytest.MonkeyPatch], None], make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery that is broken on purpose fails: a wrong byte, a line of fsck, or an answer that is none."""
    breaking(monkeypatch)
    with pytest.raises(AssertionError):
        crash_everywhere(make)


def crash_everywhere(make: Callable[..., World]) -> None:
    """A death in a store, again and again, spread over worlds and stores."""
    for number in range(1000):
        crash_in_a_store(number % 40, number * 277 % 1900, make=make)


@pytest.mark.parametrize("again", ["answered", "applied"])
def test_a_repeated_dontneed_does_not_drop_what_was_written_since(again: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DONTNEED had its effect and no answer; a sharer writes; the repeated call is answered, not applied once more."""
    if again == "applied":  # what would happen if recovery did not finish what was begun
        monkeypatch.setattr("tests.core.crash_world.unfinished", lambda _truth: [])
    world = World(small("swap-v3"), 1)
    task = fork.attach(world.k, 0, [], None)
    world.p.call(SYSCALLS["mmap"](world.k, task, AREA, PAGE, RW, PRIVATE))
    whose = (task.pid, task.mm.id, task.mm.pgd)
    seen: list[list[int] | None] = []

    def caller(m: Memory) -> Thread:
        yield from m.access(AREA, 5)
        yield ["madvise", m.pid, AREA, PAGE, MADV_DONTNEED]

    def sharer(m: Memory) -> Thread:
        yield from m.access(AREA, None)
        yield from m.access(AREA, 7)
        while not first.done:
            yield None
        seen.append((yield from m.access(AREA, None)))

    first = world.thread(caller, *whose)
    flat = -1
    while flat < 0 or world.c.pte[flat] or not first.served or first.asked is None or first.asked[0] != "madvise":
        if first.asked is not None and not first.served:
            first.served = True
            world.serve(first)
        elif world.p.tasks:
            world.p._step()  # noqa: SLF001 - as above
        else:
            world.run_client(first)
        flat = world.k.tables.pte_offset(task.mm.pgd, AREA // PAGE)
    assert first.asked is not None
    dropped, world.deliver = world.deliver, lambda *_: None  # type: ignore[method-assign]  # the answer is lost, too
    world.die()
    world.deliver = dropped  # type: ignore[method-assign]  # as above
    second = world.thread(sharer, *whose)
    while not seen:
        if second.asked is not None and not second.served:
            second.served = True
            world.serve(second)
        elif world.p.tasks:
            world.p._step()  # noqa: SLF001 - as above
        else:
            world.run_client(second)
            if second.request and seen_written(world, task) and not first.done:
                repeat(world, first)
    assert (seen == [[7, 7]]) == (again == "answered")
    finish(world)


def seen_written(world: World, task: Task) -> bool:
    """Has the sharer written?"""
    flat = world.k.tables.pte_offset(task.mm.pgd, AREA // PAGE)
    entry = int(world.c.pte[flat])
    return bool(entry & PTE_PRESENT) and set(world.c.frames[entry // PAGE]) == {7}


def repeat(world: World, client: Client) -> None:
    """The client sends its request once more; the daemon answers from the journal, or does the call."""
    if client.asked is not None:
        request, _, reply = world.k.journal.replay().calls[client.number]
        assert request == client.request
        if reply is not None:
            world.deliver(Caller(client.number, client.request), reply)
        else:
            world.run_call(Caller(client.number, client.request), client.asked[0], client.asked[1:])
            world.p.run()
    while not client.done:
        world.run_client(client)
