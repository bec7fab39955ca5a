"""Reads and writes for remote clients: bits, bounds, and daemons that die in the middle."""

from collections.abc import Callable

import pytest
from tests.core import crash_world
from tests.core.conftest import Machine
from tests.core.crash_world import AREA, PAGE, PRIVATE, RW, Memory, Thread, World, small
from tests.core.test_recovery_crashes import crash_in_a_store, finish

from numaemu_core import access_process_vm, fork, limits, mprotect
from numaemu_core.errors import MmError, SegmentationFault
from numaemu_core.syscalls import SYSCALLS

MakeMachine = Callable[..., Machine]


def test_accesses_set_the_bits_of_the_processor(machine: MakeMachine) -> None:
    """A read makes pages accessed, a write dirty as well, and neither any other page."""
    one = machine()
    task = one.attach()
    addr = one.mmap(task, 4)
    one.touch(task, addr, 4)
    flats = [one.k.tables.pte_offset(task.mm.pgd, addr // PAGE + page) for page in range(4)]
    one.k.c.accessed[:] = 0
    one.k.c.dirty[:] = 0
    assert one.call(access_process_vm.sys_read(one.k, task, addr + PAGE - 1, 2)) == b"\0\0"
    assert one.k.c.accessed[flats].tolist() == [1, 1, 0, 0]
    assert one.call(access_process_vm.sys_write(one.k, task, addr + 2 * PAGE + 7, b"xyz")) == 3
    assert (one.k.c.accessed[flats].tolist(), one.k.c.dirty[flats].tolist()) == ([1, 1, 1, 0], [0, 0, 1, 0])
    assert one.call(access_process_vm.sys_touch(one.k, task, addr, 4 * PAGE, write=True)) == 4 * PAGE
    assert (one.k.c.accessed[flats].tolist(), one.k.c.dirty[flats].tolist()) == ([1] * 4, [1] * 4)
    assert one.call(access_process_vm.sys_read(one.k, task, addr + 2 * PAGE, 12)) == bytes(7) + b"xyz\0\0"


def test_an_access_ends_where_it_must(machine: MakeMachine) -> None:
    """What lies before a page that may not be accessed is done; the rest is told when it is asked for."""
    one = machine()
    task = one.attach()
    addr = one.mmap(task, 3)
    one.call(mprotect.sys_mprotect(one.k, task, addr + PAGE, PAGE, 1))
    assert one.call(access_process_vm.sys_write(one.k, task, addr + PAGE - 3, b"abcdef")) == 3
    with pytest.raises(SegmentationFault) as caught:
        one.call(access_process_vm.sys_write(one.k, task, addr + PAGE, b"def"))
    assert caught.value.address == addr + PAGE
    assert one.call(access_process_vm.sys_read(one.k, task, addr + PAGE - 3, 5 * PAGE)) == b"abc" + bytes(2 * PAGE)
    assert len(one.call(access_process_vm.sys_read(one.k, task, addr, 1 << 40))) == 3 * PAGE


@pytest.mark.parametrize("addr", [limits.TASK_SIZE_BYTES - 1, limits.TASK_SIZE_BYTES, (1 << 64) - 1])
def test_the_end_of_the_address_space(addr: int, machine: MakeMachine) -> None:
    """No number that a message can carry reaches beyond the page table."""
    one = machine()
    task = one.attach()
    for length in (1, PAGE, (1 << 64) - 1):
        with pytest.raises(SegmentationFault):
            one.call(access_process_vm.sys_read(one.k, task, addr, length))
        with pytest.raises(SegmentationFault):
            one.call(access_process_vm.sys_touch(one.k, task, addr, length, write=True))


def test_a_task_that_has_ended_is_not_read(machine: MakeMachine) -> None:
    """A read that comes when its task is gone finds no table that is another's by now."""
    one = machine()
    task = one.attach()
    addr = one.mmap(task, 1)
    one.touch(task, addr)
    reading = access_process_vm.sys_read(one.k, task, addr, 1)
    one.call(fork.sys_exit(one.k, task))
    with pytest.raises(MmError, match="has ended"):
        one.call(reading)


# -- daemons that die --------------------------------------------------------------------------------------------------


def remote(base: int, steps: int) -> Callable[[Memory], Thread]:
    """Writes and reads ranges by calls; every byte is the one that was written last."""

    def body(m: Memory) -> Thread:
        expected: list[int | None] = [0 for _ in range(crash_world.PAGES * PAGE)]
        for turn in range(steps):
            start = m.draw(crash_world.PAGES * PAGE - 1)
            length = 1 + m.draw(min(3 * PAGE, crash_world.PAGES * PAGE - start))
            if m.draw(2):
                done = yield ["write", m.pid, base + start, bytes([turn + 1]) * length]
                # Where it is refused, part of it may be in.
                what: list[int | None] = [None] * length if done is None else [turn + 1] * done
                expected[start : start + len(what)] = what
            else:
                seen = yield ["read", m.pid, base + start, length]
                for at, byte in enumerate(seen or b""):
                    assert expected[start + at] in (None, byte), f"{start + at:#x} read {byte}"

    return body


def a_remote_world(seed: int, *, fragile: bool = False) -> World:
    """Two remote clients whose pages others move and evict."""
    world = World(small(("swap-v3", "linux-6.1", "linux-6.12")[seed % 3]), seed, fragile=fragile)
    for number in range(2):
        task = fork.attach(world.k, number, [], None)
        base = AREA // 2
        world.p.call(SYSCALLS["mmap"](world.k, task, base, crash_world.PAGES * PAGE, RW, PRIVATE))
        world.thread(remote(base, 12), task.pid, task.mm.id, task.mm.pgd)
        world.thread(crash_world.churn(base, 4), task.pid, task.mm.id, task.mm.pgd)
    return world


@pytest.mark.parametrize("seed", range(3))
def test_a_death_loses_no_remote_write(seed: int) -> None:
    """The daemon dies in the middle of some store: what was answered holds, what was not is done once more."""
    stores = seed
    while crash_in_a_store(seed, stores, make=a_remote_world):
        stores += 97


@pytest.mark.parametrize("notes", ["kept", "forgotten"])
def test_what_a_remote_write_has_done_is_not_done_again(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a write is in; the daemon dies; a sharer writes there; the rest of the write is done, and only that."""
    if notes == "forgotten":
        monkeypatch.setattr("numaemu_core.access_process_vm.noted", lambda _k: None)
    world = World(small("swap-v3"), 1)
    task = fork.attach(world.k, 0, [], None)
    whose = (task.pid, task.mm.id, task.mm.pgd)
    world.p.call(SYSCALLS["mmap"](world.k, task, AREA, 2 * PAGE, RW, PRIVATE))
    world.p.call(SYSCALLS["write"](world.k, task, AREA, b"\1"))
    answers: list[int | None] = []

    def writer(m: Memory) -> Thread:
        answers.append((yield ["write", m.pid, AREA, b"\5" * 2 * PAGE]))

    def sharer(m: Memory) -> Thread:
        yield from m.access(AREA, 7)

    first, second = world.thread(writer, *whose), world.thread(sharer, *whose)
    world.run_client(first)
    first.served = True
    world.serve(first)
    frame = world.c.frames[int(world.c.pte[world.k.tables.pte_offset(task.mm.pgd, AREA // PAGE)]) // PAGE]
    assert frame[0] == 5
    assert first.asked is not None
    while not second.done:
        world.run_client(second)
    world.die()
    while not first.done:
        world.run_client(first)
    assert answers == [2 * PAGE]
    task = world.k.tasks[task.pid]
    found = world.p.call(SYSCALLS["read"](world.k, task, AREA, 2 * PAGE))
    assert (found == b"\7" * PAGE + b"\5" * PAGE) == (notes == "kept")
    finish(world)
