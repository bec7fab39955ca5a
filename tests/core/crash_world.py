"""A world whose daemon may die at any step: shared columns, a journal, client threads that live through everything."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import msgpack
import numpy as np

from numaemu_core import files, fork
from numaemu_core.columns import Cells, columns_in_memory
from numaemu_core.errors import MmError
from numaemu_core.intents import Caller, begin_call, end_call, on_behalf, unfinished
from numaemu_core.journal import Journal
from numaemu_core.kernel import Kernel
from numaemu_core.layout import layout_of
from numaemu_core.locks import NoHost
from numaemu_core.mm_types import Task
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.performer import JOURNAL_BYTES, Performer, open_windows
from numaemu_core.recovery import recover, resume
from numaemu_core.runs import copy_rows
from numaemu_core.syscalls import NOT_JOURNALLED, SYSCALLS
from numaemu_core.topology import Topology, from_dict
from numaemu_core.uapi import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_STRICT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)

#: A client thread: yields None for a moment, or a call as [name, *args], whose result it is sent; None: refused.
Thread = Generator[list[Any] | None, Any, None]

PAGE = 4096
PAGES = 6
RW = PROT_READ | PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
AREA = 0x100000000
#: Steps of a world before something is stuck.
STEPS_MAX = 400_000


class Died(BaseException):
    """The daemon is gone: no handler of errors may stop it."""


class Fragile(np.ndarray[tuple[int, ...], np.dtype[Any]]):
    """Shared memory as a daemon sees it that may die before, or in the middle of, a store."""

    #: Stores until death; None: immortal.
    left: int | None = None
    dead = False
    stores = 0

    def __setitem__(self, key: Any, value: Any) -> None:  # noqa: ANN401 - as numpy has it
        """One store; of many cells at once some may be done when the daemon dies."""
        if Fragile.dead:
            raise Died
        Fragile.stores += 1
        if Fragile.left is not None:
            Fragile.left -= 1
            if Fragile.left < 0:
                Fragile.dead = True
                self._store_half(key, value)
                raise Died
        super().__setitem__(key, value)

    def _store_half(self, key: Any, value: Any) -> None:  # noqa: ANN401 - as numpy has it
        if isinstance(key, tuple) or not self.ndim:
            return
        rows = np.arange(len(self))[key]
        if rows.ndim and len(rows) > 1:
            values = np.broadcast_to(np.asarray(value), (len(rows), *self.shape[1:]))
            super().__setitem__(rows[: len(rows) // 2], values[: len(rows) // 2])


class FragileCells:
    """A memoryview of the same kind."""

    def __init__(self, cells: "memoryview[int]", array: Fragile) -> None:
        self.cells = cells
        self.array = array

    def __getitem__(self, at: int) -> int:
        return self.cells[at]

    def __setitem__(self, at: int, value: int) -> None:
        self.array[at] = value


def make_fragile(c: Any) -> None:  # noqa: ANN401 - Columns, whose every array is replaced
    for name, value in list(vars(c).items()):
        if isinstance(value, np.ndarray):
            setattr(c, name, value.view(Fragile))
    for name in vars(Cells(c)):
        setattr(c.cells, name, FragileCells(getattr(c.cells, name), getattr(c, name)))


class Client:
    """A client thread with a connection of its own and an access slot."""

    def __init__(self, number: int, body: Thread, pid: int) -> None:
        self.number = number
        self.body = body
        self.pid = pid
        self.request = 0
        #: The call that it waits for.
        self.asked: list[Any] | None = None
        self.answer: Any = None
        #: The daemon of the moment has its call.
        self.served = False
        self.done = False


class World:
    """Everything that outlives a daemon, and the daemon of the moment."""

    def __init__(self, topology: Topology, seed: int, *, fragile: bool = False) -> None:
        self.seed = seed
        layout = layout_of(topology)
        self.columns = columns_in_memory(layout)
        #: What clients see: their stores are not the daemon's.
        self.c = columns_in_memory(layout)
        for name, value in vars(self.columns).items():
            setattr(self.c, name, value)
        self.c.cells = Cells(self.columns)
        self.c.__dict__.update({n: v for n, v in vars(self.columns).items() if isinstance(v, np.ndarray)})
        self.book = np.zeros(JOURNAL_BYTES, np.uint8)
        if fragile:
            make_fragile(self.columns)
            self.book = self.book.view(Fragile)
        k = Kernel(layout, self.columns, Journal(self.book), NoHost())
        k.journal.snapshot_from(k.truth)
        self.p = Performer(topology, seed, kernel=k)
        self.clients: list[Client] = []
        self.steps = 0
        self.lives = 1

    @property
    def k(self) -> Kernel:
        return self.p.k

    def draw(self, below: int) -> int:
        return self.p.draw(below)

    # -- client threads ------------------------------------------------------------------------------------------------

    def thread(self, body: Callable[["Memory"], Thread], pid: int, mm: int, pgd: int) -> Client:
        """Start a client thread that touches the memory of a task."""
        slot = len(self.clients)
        self.c.window_mm[slot] = mm + 1
        client = Client(slot + 1, body(Memory(self, slot, pid, pgd)), pid)
        self.clients.append(client)
        return client

    def run_client(self, client: Client) -> None:
        """One step of a client thread, if it does not wait for an answer."""
        if client.done or client.asked is not None:
            return
        answer, client.answer = client.answer, None
        try:
            asked = client.body.send(answer)
        except StopIteration:
            client.done = True
            return
        if asked is not None:
            client.asked = asked
            client.request += 1

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def serve(self, client: Client) -> None:
        """A request arrives."""
        assert client.asked is not None
        name, *args = client.asked
        caller = Caller(client.number, client.request)
        if name not in NOT_JOURNALLED:
            begin_call(self.k, caller, name, args)
        self.run_call(caller, name, args)

    def run_call(self, caller: Caller, name: str, args: list[Any]) -> None:
        """As in the daemon, calls reach their locks in the order in which they came."""
        self.p._resume(self.p.start(name, self.call_task(caller, name, args)))  # noqa: SLF001 - the harness's own

    def call_task(self, caller: Caller, name: str, args: list[Any]) -> Generator[Any, Any, None]:
        k = self.k
        try:
            task = k.tasks.get(args[0])
            reply: list[Any]
            if task is None:
                reply = [0 if name == "exit" else 3, None]
            else:
                result = yield from on_behalf(k, caller, SYSCALLS[name](k, task, *args[1:]))
                if isinstance(result, Task):
                    result = [result.pid, result.mm.id, result.mm.pgd]
                reply = [0, result]
        except MmError as error:
            reply = [error.errno, error.detail]
        packed = msgpack.packb(reply)
        if name not in NOT_JOURNALLED:
            end_call(k, caller, packed)
        self.deliver(caller, packed)

    def deliver(self, caller: Caller, packed: bytes) -> None:
        client = self.clients[caller.connection - 1]
        if client.asked is not None and client.request == caller.request:
            errno, result = msgpack.unpackb(packed)
            client.asked = None
            client.served = False
            client.answer = result if errno == 0 else None

    def step(self) -> None:
        """A step of a client or of the daemon."""
        self.steps += 1
        assert self.steps < STEPS_MAX, f"seed {self.seed}: stuck"
        if self.clients and self.draw(2):
            client = self.clients[self.draw(len(self.clients))]
            if client.asked is not None and not client.served:
                client.served = True
                self.serve(client)
            else:
                self.run_client(client)
        elif self.p.tasks or self.p._writes:  # noqa: SLF001 - the harness is a performer, too
            self.p._steps = 0  # noqa: SLF001 - as above
            self.p._step()  # noqa: SLF001 - as above
            self.p._steps = self.steps  # noqa: SLF001 - shootdowns are bounded by steps

    @property
    def over(self) -> bool:
        return all(client.done for client in self.clients) and not self.p.tasks and not self.p._writes  # noqa: SLF001 - as above

    # -- death and recovery --------------------------------------------------------------------------------------------

    def die(self, *, straggle: bool = False, deaths_in_recovery: int = 0) -> None:
        """The daemon is gone; copies under way end or never begin; clients go on; the next daemon recovers."""
        state = self.p._state  # noqa: SLF001 - the sequence goes on
        for write in self.p._writes:  # noqa: SLF001 - as above
            if self.p.draw(2):
                copy_rows(*self.c.area(write.slots), self.c.frames, write.pfns)
        for _ in range(self.p.draw(12)):
            self.run_client(self.clients[self.p.draw(len(self.clients))])
        self.lives += 1
        topology = self.k.topology
        for budget in [7 + 13 * self.p.draw(30) for _ in range(deaths_in_recovery)]:
            Fragile.left, Fragile.dead = budget, False
            with contextlib.suppress(Died):
                self._recover(straggle=straggle)
            Fragile.left, Fragile.dead = None, False
        k, truth = self._recover(straggle=straggle)
        state = self.p._state or state  # noqa: SLF001 - as above
        self.p = Performer(topology, self.seed, kernel=k)
        self.p._state = state  # noqa: SLF001 - as above
        self.p._steps = self.steps  # noqa: SLF001 - as above
        resume(k)
        for caller, name, args in list(unfinished(truth)):
            self.run_call(caller, name, args)
        while self.p.tasks:
            self.steps += 1
            assert self.steps < STEPS_MAX, f"seed {self.seed}: stuck"
            if self.draw(2) and self.clients:
                self.run_client(self.clients[self.draw(len(self.clients))])
            else:
                self.p._steps = self.steps  # noqa: SLF001 - as above
                self.p._step()  # noqa: SLF001 - as above
        calls = k.journal.replay().calls
        for client in self.clients:
            client.served = False
            if client.asked is not None:
                request, _, reply = calls.get(client.number, [0, None, None])
                if request == client.request and reply is not None:
                    self.deliver(Caller(client.number, client.request), reply)

    def _recover(self, *, straggle: bool) -> Any:  # noqa: ANN401 - as recover gives it
        return recover(self.k.layout, self.columns, Journal(self.book), NoHost(), lambda: self._windows(straggle))

    def _windows(self, straggle: bool) -> dict[int, int]:  # noqa: FBT001 - the harness's own
        """Client threads go on until their windows have closed; the first of them may take too long."""
        mortal, Fragile.left = Fragile.left, None
        everybody = frozenset(int(mm) - 1 for mm in self.c.window_mm[self.c.window_mm > 0])
        waiting = open_windows(self.k, everybody)
        late = dict(list(waiting.items())[:1]) if straggle else {}
        for slot, counter in waiting.items():
            while slot not in late and int(self.c.window[slot]) == counter:
                self.run_client(self.clients[slot])
        Fragile.left = mortal
        return late


class Memory:
    """What a client thread does with the memory of its task."""

    def __init__(self, world: World, slot: int, pid: int, pgd: int) -> None:
        self.world, self.slot, self.pid, self.pgd = world, slot, pid, pgd
        self.draw = world.draw

    def _pte(self, vpn: int) -> int:
        c, table = self.world.c, self.pgd
        for shift in (27, 18, 9):
            entry = int(c.pte[(table << 9) + (vpn >> shift & 511)])
            if not entry:
                return -1
            table = entry >> 12
        return (table << 9) + (vpn & 511)

    def access(self, addr: int, value: int | None) -> Generator[list[Any] | None, Any, list[int] | None]:
        """Read a page, or write a value all over it; its first and last byte, None if it was refused."""
        c, rights = self.world.c, PTE_PRESENT | PTE_READABLE | (0 if value is None else PTE_WRITABLE)
        while True:
            c.window[self.slot] += 1
            yield None
            flat = self._pte(addr // PAGE)
            entry = int(c.pte[flat]) if flat >= 0 else 0
            yield None
            seen = None
            if entry & rights == rights:
                c.accessed[flat] = 1
                frame = c.frames[entry // PAGE]
                if value is not None:
                    c.dirty[flat] = 1
                    yield None
                    frame[: PAGE // 2] = value
                    yield None
                    frame[PAGE // 2 :] = value
                    seen = [value, value]
                else:
                    yield None
                    seen = [int(frame[0]), int(frame[-1])]
            c.window[self.slot] += 1
            yield None
            if entry & rights == rights:
                return seen
            if (yield ["fault", self.pid, addr, 1, value is not None]) is None:
                return None

    def check(self, addr: int, want: int) -> Generator[list[Any] | None, Any, None]:
        seen = yield from self.access(addr, None)
        assert seen is None or seen == [want, want], f"{addr:#x} read {seen}, was written {want}"

    def leave(self) -> None:
        self.world.c.window_mm[self.slot] = 0


def worker(base: int, steps: int, expected: dict[int, int]) -> Callable[[Memory], Thread]:
    """Writes and reads pages that nobody else writes."""

    def body(m: Memory) -> Thread:
        for _ in range(steps):
            page = m.draw(PAGES)
            if m.draw(2):
                value = 1 + m.draw(250)
                if (yield from m.access(base + page * PAGE, value)) is not None:
                    expected[page] = value
            else:
                yield from m.check(base + page * PAGE, expected.get(page, 0))

    return body


def family(base: int) -> Callable[[Memory], Thread]:
    """Works, forks, goes on; the child has the bytes of the moment of the fork."""

    def body(m: Memory) -> Thread:
        expected: dict[int, int] = {}
        yield from worker(base, 3, expected)(m)
        born = yield ["fork", m.pid]
        if born is not None:
            then = dict(expected)

            def child(twin: Memory) -> Thread:
                yield from worker(base, 4, then)(twin)
                for page in range(PAGES):
                    yield from twin.check(base + page * PAGE, then.get(page, 0))
                twin.leave()
                yield ["exit", twin.pid]

            m.world.thread(child, *born)
        yield from worker(base, 5, expected)(m)
        for page in range(PAGES):
            yield from m.check(base + page * PAGE, expected.get(page, 0))

    return body


def churn(base: int, steps: int) -> Callable[[Memory], Thread]:
    """Moves, evicts and protects pages under everybody's feet."""

    def body(m: Memory) -> Thread:
        for _ in range(steps):
            start, length = base + m.draw(PAGES) * PAGE, (1 + m.draw(PAGES)) * PAGE
            match m.draw(6):
                case 0 | 1:
                    mode = MPOL_BIND if m.draw(2) else MPOL_INTERLEAVE
                    flags = MPOL_MF_MOVE | (MPOL_MF_STRICT if m.draw(2) else 0)
                    yield ["mbind", m.pid, start, length, mode, [1 + m.draw(3)], 65, flags]
                case 2:
                    yield ["madvise", m.pid, start, length, MADV_PAGEOUT]
                case 3:
                    yield ["mprotect", m.pid, start, length, PROT_READ]
                    yield ["mprotect", m.pid, start, length, RW]
                case 4:
                    end = yield ["brk", m.pid, 0]
                    yield ["brk", m.pid, end + 2 * PAGE]
                    yield ["fault", m.pid, end, 2 * PAGE, True]
                    yield ["mlock", m.pid, end, PAGE]
                    assert (yield ["brk", m.pid, end]) == end
                case _:
                    other = yield ["mmap", m.pid, 0, 2 * PAGE, RW, PRIVATE]
                    yield ["fault", m.pid, other, 2 * PAGE, True]
                    yield ["madvise", m.pid, other, PAGE, MADV_DONTNEED]
                    yield ["munmap", m.pid, other, 2 * PAGE]

    return body


def mover(m: Memory) -> Thread:
    """A mapping that goes from place to place with its bytes."""
    at = AREA
    yield ["mmap", m.pid, at, 3 * PAGE, RW, PRIVATE]
    value = 0
    for turn in range(4):
        if (yield from m.access(at + PAGE, turn + 1)) is not None:
            value = turn + 1
        target = AREA + (turn + 1) * 0x400000 * (1 + m.draw(2))
        moved = yield ["mremap", m.pid, at, 3 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target]
        at = at if moved is None else moved
        yield from m.check(at + PAGE, value)
        yield from m.check(at, 0)
    yield ["munmap", m.pid, at, 3 * PAGE]


def filer(name: str, page: int) -> Callable[[Memory], Thread]:
    """A page of a file that is written through mappings that come and go, evicted, and read."""

    def body(m: Memory) -> Thread:
        value = 0
        for turn in range(3):
            at = yield ["mmap", m.pid, 0, PAGE, RW, MAP_SHARED, name, page * PAGE, "r+"]
            if at is None:
                return
            yield from m.check(at, value)
            if (yield from m.access(at, turn + 1)) is not None:
                value = turn + 1
            if m.draw(2):
                yield ["munmap", m.pid, at, PAGE]
                at = yield ["mmap", m.pid, 0, PAGE, RW, MAP_SHARED, name, page * PAGE, "r+"]
                yield from m.check(at, value)
            if m.draw(2):
                yield ["madvise", m.pid, at, PAGE, MADV_PAGEOUT]
            else:
                yield ["mbind", m.pid, at, PAGE, MPOL_BIND, [1 + m.draw(2)], 65, MPOL_MF_MOVE]
            yield from m.check(at, value)
            yield ["munmap", m.pid, at, PAGE]
        seen = yield ["file_read", m.pid, name, page * PAGE, PAGE]
        assert seen is None or set(seen) == {value}

    return body


def small(profile: str) -> Topology:
    nodes = [{"memory": "160K", "cpus": [0]}, {"memory": "160K", "cpus": [1]}]
    return from_dict({"swap": "128K", "disk": "64K", "profile": profile, "min_free_kbytes": 0, "node": nodes})


def a_world(seed: int, *, fragile: bool = False) -> World:
    """Two families under churn, a mapping that moves, two files."""
    world = World(small(("swap-v3", "linux-6.1", "linux-6.12")[seed % 3]), seed, fragile=fragile)
    p = world.p
    for name, kind in (("/t", "tmpfs"), ("/d", "disk")):
        files.create_file(p.k, name, kind, 2 * PAGE)
    for number in range(2):
        task = fork.attach(p.k, number, [], None)
        base = AREA // 2
        p.call(SYSCALLS["mmap"](p.k, task, base, PAGES * PAGE, RW, PRIVATE))
        whose = (task.pid, task.mm.id, task.mm.pgd)
        world.thread(family(base), *whose)
        world.thread(churn(base, 3), *whose)
        world.thread(mover if number else filer("/t", 0), *whose)
        world.thread(filer("/d", number), *whose)
    return world


def a_world_of_movers(seed: int, *, fragile: bool = False) -> World:
    """Only mappings that move."""
    world = World(small("swap-v3"), seed, fragile=fragile)
    for number in range(2):
        task = fork.attach(world.k, number, [], None)
        world.thread(mover, task.pid, task.mm.id, task.mm.pgd)
    return world
