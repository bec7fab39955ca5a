"""Tasks against one another in seeded order: no interleaving loses a byte, a frame, a slot or a lock."""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest

from numaemu_core import fork, madvise, mbind, memory, migrate_pages, mmap, move_pages, mprotect
from numaemu_core.errors import BugError, MmError
from numaemu_core.fsck import fsck
from numaemu_core.mm_types import Task
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.performer import Performer
from numaemu_core.swap_state import release_unpinned
from numaemu_core.topology import uniform
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

#: A task of the performer; a plain None between two effects is a moment of a client.
Steps = Generator[Any, Any, Any]

PAGE = 4096
PAGES = 6
SEEDS = 1000
SEEDS_A_TEST = 100
PROFILES = ["swap-v3", "linux-6.12"]


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


def run_seed(seed: int, profile: str = "swap-v3") -> list[bytes]:
    """One machine, one seed; gives a trace of what it ended with."""
    p = Performer(uniform(2, "128K", "96K", profile, PAGE), seed)
    k = p.k
    for number in range(2):
        task = fork.attach(k, number, sorted(CAPABILITIES), None)
        base = p.call(mmap.sys_mmap(k, task, 0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS))
        thread = SimulatedThread(p, task, 2 * number, base, {})
        p.start("family", family(p, thread, 2 * number + 1))
        p.start("churn", churn(p, task, base, 3))
    p.run()
    k.c.window_mm[:] = 0
    assert fsck(k) == [], f"seed {seed}"
    trace = [k.c.frames.tobytes(), k.c.pte.tobytes()[:65536], k.c.numastat.tobytes()]
    for task in list(k.tasks.values()):
        p.call(fork.sys_exit(k, task))
    assert fsck(k) == [], f"seed {seed} after everybody's exit"
    assert not np.count_nonzero(k.c.swap_count)
    return trace


def run_seeds(count: int, profile: str) -> None:
    for seed in range(count):
        run_seed(seed, profile)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_no_interleaving_loses_anything(first: int, profile: str) -> None:
    """Two families of tasks under churn, 2,000 seeds: reads give what was written, and fsck finds nothing."""
    for seed in range(first, first + SEEDS_A_TEST):
        try:
            run_seed(seed, profile)
        except BaseException as error:
            error.add_note(f"replay with run_seed({seed}, {profile!r})")
            raise


def test_a_seed_replays_exactly() -> None:
    """The same seed gives the same machine, byte for byte."""
    for profile in PROFILES:
        assert run_seed(77, profile) == run_seed(77, profile)


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


BREAKAGES = [
    (without_waiting, "swap-v3"),
    (without_slot_reference, "swap-v3"),
    (without_putback, "swap-v3"),
    (without_waiting, "linux-6.1"),
    (without_putback, "linux-6.12"),
    (without_restoring, "linux-6.12"),
]


@pytest.mark.parametrize(("breaking", "profile"), BREAKAGES)
def test_the_interleavings_notice_broken_code(
    breaking: Callable[[pytest.MonkeyPatch], None], profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that is broken on purpose fails within two hundred seeds: a wrong byte, or a line of fsck."""
    breaking(monkeypatch)
    with pytest.raises((AssertionError, BugError)):
        run_seeds(200, profile)
