"""Tasks against one another in seeded order, and machines whose parts die: no seed loses a byte, a frame or a lock.

A number is a seed of everything: three of four run two families of tasks under churn (`run_families`), with copiers
that die and swap areas that are full; the fourth a machine with messages and processes that die (`fault_world`).
`make seeds` runs a hundred thousand; `make seeds ARGS="--seed N"` replays one.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest

from numaemu_core import fork, madvise, mbind, memory, migrate_pages, mmap, move_pages, mprotect
from numaemu_core.columns import I8, NO_INDEXES, U1
from numaemu_core.effects import Breathe
from numaemu_core.errors import BugError, MmError
from numaemu_core.fsck import fsck
from numaemu_core.mm_types import Task
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.performer import Performer, copy_part
from numaemu_core.swap_state import release_unpinned
from numaemu_core.swapfile import SWAP_LOCK, get_swap_pages, swap_free
from numaemu_core.task_locks import spin_lock
from numaemu_core.topology import from_dict, uniform
from numaemu_core.uapi import (
    CAPABILITIES,
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MPOL_BIND,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    PROT_READ,
    PROT_WRITE,
)
from numaemu_core.wire import Request
from numaemu_daemon.calls import Calls, Send
from numaemu_daemon.clients import Connection

from .fault_world import run_faults

#: A task of the performer; a plain None between two effects is a moment of a client.
Steps = Generator[Any, Any, Any]

PAGE = 4096
PAGES = 6
SEEDS = 2000
SEEDS_A_TEST = 100
#: Of those that are run with faults on demand as well.
FAULTY_SEEDS = 400
#: What the first worlds must have met.
WORLDS_THAT_MEET_ALL = 40
FAULTS = (
    "requests lost",
    "requests twice",
    "requests repeated",
    "replies lost",
    "copies cut",
    "swap full",
    "clients died",
    "clients died with the daemon",
    "clients stopped",
    "died with a window open",
    "died holding a pte lock",
    "died reading an address space",
    "mmap_sems passed over",
    "daemons died",
)
PROFILES = ["swap-v3", "linux-6.1", "linux-6.12"]


class SimulatedThread:
    """A client thread as a task: opens windows, reads entries, touches bytes, with a yield at every step.

    `expected` is what each page must hold; only this thread writes to its task's memory.
    """

    def __init__(self, p: Performer, task: Task, slot: int, base: int, expected: dict[int, int]) -> None:
        """The thread's access slot is open for use."""
        self.p = p
        self.k = p.k
        self.task = task
        self.slot = slot
        self.base = base
        self.expected = expected
        self.k.c.window_mm[slot] = task.mm.id + 1

    def access(self, page: int, value: int | None) -> Steps:
        """Read a page, or write a value all over it; gives its first and last byte, None if it was refused."""
        c, rights = self.k.c, PTE_PRESENT | PTE_READABLE | (0 if value is None else PTE_WRITABLE)
        addr = self.base + page * PAGE
        while True:
            c.window[self.slot] += 1
            yield None
            flat = self.k.tables.pte_offset(self.task.mm.pgd, addr // PAGE)
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
            try:
                yield from memory.sys_fault(self.k, self.task, addr, 1, write=value is not None)
            except MmError:
                return None

    def write_pinned(self, page: int, value: int) -> Steps:
        """Pin a page that is there and writable, and write to its frame a while later, whatever is done to it then."""
        c = self.k.c
        flat = self.k.tables.pte_offset(self.task.mm.pgd, (self.base + page * PAGE) // PAGE)
        entry = int(c.pte[flat]) if flat >= 0 else 0
        if not entry & PTE_PRESENT or not entry & PTE_WRITABLE:
            return
        c.dirty[flat] = 1
        c.pins[self.slot, 0] = entry // PAGE + 1
        c.pin_count[self.slot] = 1
        for _ in range(self.p.draw(40)):
            yield None
        c.frames[entry // PAGE] = value
        self.expected[page] = value
        yield None
        c.pin_count[self.slot] = 0
        yield from release_unpinned(self.k)

    def work(self, steps: int) -> Steps:
        """Random reads and writes; every read must give what was last written."""
        for _ in range(steps):
            page = self.p.draw(PAGES)
            if not self.p.draw(6):
                yield from self.write_pinned(page, 1 + self.p.draw(250))
            elif self.p.draw(2):
                value = 1 + self.p.draw(250)
                if (yield from self.access(page, value)) is not None:
                    self.expected[page] = value
            else:
                seen = yield from self.access(page, None)
                want = self.expected.get(page, 0)
                assert seen is None or seen == [want, want], f"page {page} read {seen}, was written {want}"

    def leave(self) -> None:
        """The slot is free again."""
        self.k.c.window_mm[self.slot] = 0


def refusable(body: Steps) -> Steps:
    """A call that may be refused (swap or memory full)."""
    try:
        yield from body
    except MmError:
        return


def churn(p: Performer, task: Task, base: int, steps: int) -> Steps:
    """Move, evict, protect under everybody's feet."""
    k = p.k
    for _ in range(steps):
        start, pages = base + p.draw(PAGES) * PAGE, 1 + p.draw(PAGES)
        match p.draw(8):
            case 0 | 1:
                nodes = [1 + p.draw(3)]
                mode = MPOL_BIND if p.draw(2) else MPOL_INTERLEAVE
                flags = (MPOL_MF_MOVE, MPOL_MF_MOVE_ALL)[p.draw(2)] | (MPOL_MF_STRICT if p.draw(2) else 0)
                yield from refusable(mbind.sys_mbind(k, task, start, pages * PAGE, mode, nodes, 65, flags))
            case 2:
                yield from refusable(madvise.sys_madvise(k, task, start, pages * PAGE, MADV_PAGEOUT))
            case 3:
                yield from refusable(mprotect.sys_mprotect(k, task, start, pages * PAGE, PROT_READ))
                yield from refusable(mprotect.sys_mprotect(k, task, start, pages * PAGE, PROT_READ | PROT_WRITE))
            case 4:  # the pages of everybody, to the other node
                victim = p.draw(len(k.tasks)) + 1
                old, new = [1 + p.draw(3)], [1 + p.draw(3)]
                yield from refusable(migrate_pages.sys_migrate_pages(k, task, victim, 65, old, new))
            case 5:
                addresses = np.arange(start, start + pages * PAGE, PAGE, dtype=np.uint64)
                targets = np.array([p.draw(2) for _ in range(pages)], np.int32)
                flag = MPOL_MF_MOVE_ALL if p.draw(2) else MPOL_MF_MOVE
                yield from refusable(
                    move_pages.sys_move_pages(k, task, 0, pages, addresses, targets, flag, writable=True)
                )
            case _:
                other = yield from mmap.sys_mmap(k, task, 0, 2 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS)
                yield from refusable(memory.sys_fault(k, task, other, 2 * PAGE, write=True))
                yield from refusable(madvise.sys_madvise(k, task, other, PAGE, MADV_DONTNEED))
                yield from mmap.sys_munmap(k, task, other, 2 * PAGE)


def family(p: Performer, thread: SimulatedThread, free_slot: int) -> Steps:
    """Work, fork, and let parent and child go on; the child sees the bytes of the moment of the fork."""
    yield from thread.work(4)
    child = yield from fork.sys_fork(p.k, thread.task)
    twin = SimulatedThread(p, child, free_slot, thread.base, dict(thread.expected))
    p.start("churn the child", churn(p, child, thread.base, 2))
    done: list[bool] = []

    def live() -> Steps:
        yield from twin.work(5)
        for page in range(PAGES):
            seen = yield from twin.access(page, None)
            want = twin.expected.get(page, 0)
            assert seen is None or seen == [want, want]
        done.append(True)

    p.start("child", live())
    yield from thread.work(6)


def hog(p: Performer) -> Steps:
    """The swap area is full for a while."""
    with (yield from spin_lock(p.k, [SWAP_LOCK])):
        slots = get_swap_pages(p.k, p.k.nr_swap_pages)
    for _ in range(p.draw(200)):
        yield Breathe()
    with (yield from spin_lock(p.k, [SWAP_LOCK])):
        swap_free(p.k, slots)


def run_families(seed: int, faults: Sequence[str] = ()) -> list[bytes]:
    """One machine with these faults on demand, one seed; gives a trace of what it ended with."""
    machine = uniform(2, "128K", "96K", PROFILES[seed % 3], PAGE).as_dict()
    p = Performer(from_dict({**machine, "faults": list(faults), "seed": seed}), seed, faults=True)
    k = p.k
    for number in range(2):
        task = fork.attach(k, number, sorted(CAPABILITIES), None)
        base = p.call(mmap.sys_mmap(k, task, 0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS))
        thread = SimulatedThread(p, task, 2 * number, base, {})
        p.start("family", family(p, thread, 2 * number + 1))
        p.start("churn", churn(p, task, base, 3))
    if not p.draw(4):
        p.start("hog", hog(p))
    p.run()
    k.c.window_mm[:] = 0
    assert fsck(k) == []
    trace = [k.c.frames.tobytes(), k.c.pte.tobytes()[:65536], k.c.numastat.tobytes(), k.c.fault_strikes.tobytes()]
    for task in list(k.tasks.values()):
        p.call(fork.sys_exit(k, task))
    assert fsck(k) == [], "after everybody's exit"
    assert not np.count_nonzero(k.c.swap_count)
    return trace


def run_seed(seed: int, faults: Sequence[str] = ()) -> object:
    """Whatever this seed is a seed of, with these faults on demand; gives what came of it."""
    try:
        return run_families(seed, faults) if seed % 4 else run_faults(seed // 4, faults)
    except BaseException as error:
        error.add_note(f'replay with: make seeds ARGS="--seed {seed}{" --on-demand" * bool(faults)}"')
        raise


def run_seeds(count: int) -> None:
    for seed in range(count):
        run_seed(seed)


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_no_seed_loses_anything(first: int) -> None:
    """Two thousand seeds: reads give what was written, nothing is left in the end, and fsck finds nothing."""
    for seed in range(first, first + SEEDS_A_TEST):
        run_seed(seed)


def faults_of_seed(seed: int) -> list[str]:
    """Some faults on demand that a machine of two small nodes can have."""
    today = PROFILES[(seed if seed % 4 else seed // 4) % 3] != "swap-v3"
    told = [
        f"node{seed & 1}: full after {seed % 9} pages" * (seed % 5 != 0),
        f"node{1 - (seed & 1)}: full after {6 + seed % 13} pages" * (seed % 11 == 0),
        f"swap: full after {seed % 12} pages" * (seed % 2),
        f"isolation: refused for {10 + seed % 60}%" * (seed % 3 != 0),
        "isolation: refused on node1" * (seed % 7 == 0),
        f"migration: fails for {10 + seed % 80}%" * (today and seed % 5 < 3),
    ]
    return [text for text in told if text]


@pytest.mark.parametrize("first", range(0, FAULTY_SEEDS, SEEDS_A_TEST))
def test_no_seed_loses_anything_where_faults_were_asked_for(first: int) -> None:
    """The same on machines with nodes and swap that are full for good, and pages that will not be taken or moved."""
    for seed in range(first, first + SEEDS_A_TEST):
        run_seed(seed, faults_of_seed(seed))


@pytest.mark.parametrize("seed", [45, 48])
def test_faults_on_demand_replay_exactly(seed: int) -> None:
    """They strike the same pages in each run."""
    assert run_seed(seed, faults_of_seed(seed)) == run_seed(seed, faults_of_seed(seed))


@pytest.mark.parametrize("seed", [44, 45, 46, 47, 48])
def test_a_seed_replays_exactly(seed: int) -> None:
    """The same seed gives the same machine, byte for byte, and the same faults."""
    assert run_seed(seed) == run_seed(seed)


def test_the_seeds_meet_every_fault() -> None:
    """What can be lost, killed, cut short or late is, in some of the first worlds."""
    met: Counter[str] = Counter()
    for seed in range(WORLDS_THAT_MEET_ALL):
        met += run_faults(seed)
    assert {name for name in FAULTS if not met[name]} == set()


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shootdown that waits for nobody."""
    monkeypatch.setattr("numaemu_core.performer.open_windows", lambda _k, _mms: {})


def without_slot_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unmapped entry that takes no reference of its slot."""
    monkeypatch.setattr("numaemu_core.rmap.swap_duplicate", lambda _k, _slots: None)


def without_putback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolated pages that are never given back."""

    def forget(_k: object, pfns: list[int]) -> Steps:
        yield from ()
        return len(pfns)

    monkeypatch.setattr("numaemu_core.mbind.putback_lru_pages", forget)


def without_restoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that cannot be migrated keep the entries that make everybody wait."""

    def nothing(_k: object, _pfns: list[int]) -> Steps:
        yield from ()

    monkeypatch.setattr("numaemu_core.migrate.remove_migration_ptes", nothing)


def with_copies_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that was cut short counts as done."""

    def copied(p: Performer, target: U1, rows: I8, source: U1, source_rows: I8) -> bool:
        copy_part(target, rows, source, source_rows, p.draw)
        return True

    monkeypatch.setattr(Performer, "_copied", copied)


def with_calls_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that comes twice is served twice."""
    serve = Calls.serve

    def again(calls: Calls, connection: Connection, request: Request, send: Send) -> None:
        connection.last_request = min(connection.last_request, request.request_id - 1)
        serve(calls, connection, request, send)

    monkeypatch.setattr(Calls, "serve", again)


def with_an_intent_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery does not finish what was begun, and nobody asks again."""
    monkeypatch.setattr("numaemu_daemon.calls.unfinished", lambda _truth: [])


def with_tasks_of_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ends the tasks of a client that has died."""
    monkeypatch.setattr(Calls, "end_tasks", lambda _calls, _client: None)


def with_pins_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at what clients have pinned."""
    for module in ("rmap", "fork", "swap_state"):
        monkeypatch.setattr(f"numaemu_core.{module}.pinned_pages", lambda _k: NO_INDEXES)


BREAKAGES = [
    without_waiting,
    without_slot_reference,
    without_putback,
    without_restoring,
    with_copies_believed,
    with_calls_done_twice,
    with_an_intent_forgotten,
    with_tasks_of_the_dead,
    with_pins_overlooked,
]


@pytest.mark.parametrize("breaking", BREAKAGES)
def test_the_seeds_notice_broken_code(
    breaking: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that is broken on purpose fails soon: a wrong byte, a line of fsck, something that is left, or no end."""
    breaking(monkeypatch)
    with pytest.raises((AssertionError, BugError)):
        run_seeds(800)
