"""Random calls against a model that keeps plain dicts: bytes, errno, policies, mappings and places agree.

`naive_model` says what may come; what came is compared, and taken over. A failure prints the shortest program that
still fails, and how to replay it. `MODEL_EXAMPLES=2000,80 pytest tests/core/test_model.py` makes more examples, and
longer ones.
"""

import contextlib
import errno
import os
import time
import traceback
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.core.conftest import Machine

from numaemu_core import files, fork, numa_maps, proc, syscalls
from numaemu_core.errors import BusError, MmError, SegmentationFault
from numaemu_core.limits import FAULT_RETRIES, START_BRK, TASK_UNMAPPED_BASE
from numaemu_core.mm_types import VM_LOCKED, VM_MAYWRITE, VM_SHARED, AddressSpace, Mm, Task, VmArea
from numaemu_core.mpol_str import mpol_to_str
from numaemu_core.nodemask import mask_of, nodes_of
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_SWAPPED, PTE_WRITABLE
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.topology import from_dict
from numaemu_core.uapi import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_ADDR,
    MPOL_F_NODE,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_PREFERRED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

from .naive_model import Answer, Cell, Page, Policy, Space, Thing, Who, World

PAGE = 4096
RW = PROT_READ | PROT_WRITE
HEAP = START_BRK // PAGE
LOW = TASK_UNMAPPED_BASE // PAGE
#: Programs use eight pages on each side of a border of page-table pages, and the same in another table.
HERE = (LOW // 512 + 2) * 512 - 8
THERE = HERE + 1024
NODES = 3
#: The bytes of a page that are looked at.
MARKS = (0, 2048, -1)
SPACES_MAX = 3
WHOS_MAX = 4
PAGES_MAX = 48
#: Pages that one call may need frames for: the longest of SPANS.
SPAN_MAX = 9
FILE_PAGES = {"t": ("tmpfs", 12), "r": ("ramfs", 9), "d": ("disk", 10)}

WHO = st.integers(0, WHOS_MAX - 1)
SPANS = st.one_of(
    st.tuples(st.integers(HERE, HERE + 10), st.integers(1, 9)),
    st.tuples(st.integers(HERE, HERE + 13), st.integers(1, 7)),
    st.tuples(st.integers(HERE + 4, HERE + 10), st.integers(1, 3)),
    st.tuples(st.integers(THERE, THERE + 7), st.integers(1, 8)),
    st.tuples(st.integers(HEAP, HEAP + 2), st.integers(1, 3)),
)
PROTS = st.sampled_from([RW, RW, RW, PROT_READ, 0, PROT_WRITE, RW | PROT_EXEC])
MODES = st.sampled_from(
    [MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_BIND, MPOL_INTERLEAVE, MPOL_INTERLEAVE, MPOL_LOCAL]
)
#: Node 5 is never online.
MASKS = st.sampled_from([set(), {0}, {1}, {2}, {1}, {2}, {0, 1}, {1, 2}, {0, 1, 2}, {5}, {1, 5}])
MOVE, ALL, STRICT = MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT
FLAGS = st.sampled_from([0, STRICT, MOVE, MOVE, MOVE | STRICT, MOVE | STRICT, ALL, ALL | STRICT])
NAMES = st.sampled_from(sorted(FILE_PAGES))
EXTRAS = st.sampled_from([0, 0, 0, MAP_POPULATE, MAP_LOCKED])
PLACES = st.integers(THERE, THERE + 7)
BOOLS = st.booleans()
CPUS = st.integers(0, NODES - 1)
Step = tuple[str, dict[str, Any]]
#: name → how often it is drawn, its arguments.
CALLS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "attach": (1, {"choice": WHO, "cpu": CPUS, "mate": BOOLS}),
    "brk": (1, {"choice": WHO, "pages": st.integers(-1, 6), "odd": st.integers(0, PAGE - 1)}),
    "everybody_reads": (1, {"span": SPANS}),
    "everybody_writes": (2, {"span": SPANS}),
    "exit": (1, {"choice": WHO}),
    "file_io": (
        2,
        {"choice": WHO, "name": NAMES, "first": st.integers(0, 11), "count": st.integers(1, 4), "write": BOOLS},
    ),
    "fork": (2, {"choice": WHO}),
    "get_mempolicy": (1, {"choice": WHO, "span": SPANS}),
    "get_mempolicy_of_task": (1, {"choice": WHO}),
    "madvise": (3, {"choice": WHO, "span": SPANS, "pageout": BOOLS}),
    "mbind": (6, {"choice": WHO, "span": SPANS, "mode": MODES, "nodes": MASKS, "flags": FLAGS}),
    "migrate_pages": (3, {"choice": WHO, "other": WHO, "old": MASKS, "new": MASKS}),
    "mlock": (2, {"choice": WHO, "span": SPANS, "lock": BOOLS}),
    "mmap_anonymous": (
        3,
        {"choice": WHO, "span": SPANS, "prot": PROTS, "extra": EXTRAS, "shared": st.sampled_from([False, False, True])},
    ),
    "mmap_anywhere": (1, {"choice": WHO, "count": st.integers(1, 5), "prot": PROTS, "hint": SPANS}),
    "mmap_file": (
        4,
        {
            "choice": WHO,
            "span": SPANS,
            "name": NAMES,
            "offset": st.integers(0, 6),
            "prot": PROTS,
            "how": st.sampled_from(["private", "shared", "shared", "read"]),
            "extra": EXTRAS,
        },
    ),
    "mprotect": (2, {"choice": WHO, "span": SPANS, "prot": PROTS}),
    "mremap": (2, {"choice": WHO, "span": SPANS, "place": PLACES, "wanted": st.integers(1, 5)}),
    "munmap": (1, {"choice": WHO, "span": SPANS}),
    "read": (3, {"choice": WHO, "span": SPANS}),
    "set_cpu": (1, {"choice": WHO, "cpu": CPUS}),
    "set_mempolicy": (2, {"choice": WHO, "mode": MODES, "nodes": MASKS}),
    "write": (4, {"choice": WHO, "span": SPANS}),
}
ANY_CALL = st.one_of(
    [
        st.tuples(st.just(name), st.fixed_dictionaries(arguments))
        for name, (times, arguments) in CALLS.items()
        for _ in range(times)
    ]
)


class TaskKilledError(Exception):
    """The caller was killed for the memory that its call wanted."""


def outcome_of(call: Callable[[], Any]) -> tuple[int, Any]:
    """(errno, what was given)."""
    try:
        return 0, call()
    except MmError as error:
        return error.errno, error


def policy_of(policy: Mempolicy | None) -> Policy | None:
    """A policy as the model keeps it."""
    if policy is None:
        return None
    if policy.mode == MPOL_PREFERRED and policy.preferred >= 0:
        return Policy(policy.mode, frozenset({policy.preferred}))
    return Policy(policy.mode, frozenset(nodes_of(policy.nodes)))


class Machines(RuleBasedStateMachine):
    """The core and the model get the same calls."""

    profile: ClassVar[str] = "swap-v3"
    #: Pages of each node, and slots.
    memory: ClassVar[int] = 256
    swap: ClassVar[int] = 512
    loose: ClassVar[bool] = False
    #: How the latest machine began, and what was called.
    story: ClassVar[tuple[int, list[Step]]] = (0, [])

    @initialize(begin=st.sampled_from([4, 3, 2, 1, 0]), seed=st.none())
    def switch_on(self, begin: int, seed: int | None) -> None:
        """A machine, on which some of these have happened: pages written, files mapped, a fork, another fork."""
        type(self).story = begin, []
        nodes = [{"id": nid, "memory": self.memory * PAGE, "cpus": [nid]} for nid in range(NODES)]
        topology = from_dict(
            {"node": nodes, "swap": self.swap * PAGE, "disk": 64 * PAGE, "profile": self.profile, "min_free_kbytes": 0}
        )
        self.m = Machine(topology, seed)
        self.k = self.m.k
        today = self.k.profile.direct_migration
        self.world = World(today, dict(self.k.zonelists), loose=self.loose)
        self.tasks: dict[int, Task] = {}
        self.things: dict[int, Thing] = {}
        self.stamp = 0
        self.steps = 0
        self.add_space(0, privileged=True)
        for name, (kind, length) in FILE_PAGES.items():
            made = files.create_file(self.k, name, kind, length * PAGE)
            self.world.files[name] = self.add_thing(made, length)
        if begin:
            self.mmap_anonymous(0, (HERE, 12), RW, 0, shared=False)
            self.touch(0, (HERE, 9), write=True)
            self.settle()
        if begin > 1:
            self.mmap_file(0, (THERE, 4), "t", 0, RW, "shared", MAP_POPULATE)
            self.mmap_file(0, (THERE + 4, 4), "d", 3, RW, "private", MAP_POPULATE)
            self.settle()
        for _ in range(begin - 2):
            self.fork(0)
            self.settle()

    def add_space(self, cpu: int, *, privileged: bool) -> None:
        capability = [self.k.profile.move_all_capability] if privileged else []
        space = Space(START_BRK)
        self.world.spaces.append(space)
        self.add_who(Who(space, cpu, privileged=privileged), fork.attach(self.k, cpu, capability, None))

    def add_who(self, who: Who, task: Task) -> None:
        if who not in self.world.whos:
            self.world.whos.append(who)
        self.tasks[id(who)] = task

    def add_thing(self, made: AddressSpace, length: int) -> Thing:
        thing = Thing(str(made.kind), made.name, length)
        if made.is_shmem:
            thing.shift = made.i_ino if self.k.profile.shmem_interleave_adds_inode else 0
            thing.private_shift = made.i_ino if self.k.profile.vma_interleave_adds_inode else 0
        self.things[made.id] = thing
        return thing

    @rule(call=ANY_CALL)
    def step(self, call: Step) -> None:
        """One call: all are one rule, so that none is left out of an example."""
        name, arguments = call
        self.story[1].append(call)
        with contextlib.suppress(TaskKilledError):  # whatever the call did to its address space: it is gone
            getattr(self, name)(**arguments)

    def who(self, choice: int) -> tuple[Who, Task]:
        who = self.world.whos[choice % len(self.world.whos)]
        return who, self.tasks[id(who)]

    def call(self, name: str, task: Task, *args: object) -> tuple[int, Any]:
        """A system call by name. Somebody is killed for it only if what must stay may fill a node, or all.

        Raises:
            TaskKilledError: the caller was.
        """
        kills, staying = self.k.vmstat["oom_kill"], self.world.staying()
        outcome = outcome_of(lambda: self.m.call(syscalls.SYSCALLS[name](self.k, task, *args)))
        if self.k.vmstat["oom_kill"] != kills:
            frames = (1 if self.world.is_bound() else NODES) * self.memory - 1  # one has the page of zeros
            assert staying + SPAN_MAX > frames, f"killed although only {staying} pages cannot leave"
        if task.killed:
            raise TaskKilledError
        return outcome

    def check(self, answer: Answer, got: int) -> None:
        """Is this outcome one of those that may come? Then it is so."""
        allowed, done = answer
        assert got in allowed, f"{errno.errorcode.get(got, got)} and not {sorted(allowed)}"
        done(got)

    # -- mappings ------------------------------------------------------------------------------------------------------

    def map(
        self, choice: int, first: int, pages: list[Page], flags: int, *file: object, addr: int | None = None
    ) -> None:
        """Map new pages, at `first` in the end, which may be asked for or not."""
        who, task = self.who(choice)
        if len(who.space.pages) + len(pages) > PAGES_MAX:
            return
        flags |= MAP_SHARED if pages[0].shared else MAP_PRIVATE
        fixed = MAP_FIXED if addr is None else 0
        known = set(self.k.address_spaces)
        error, got = self.call(
            "mmap",
            task,
            first * PAGE if addr is None else addr,
            len(pages) * PAGE - 5,
            pages[0].prot,
            flags | fixed,
            *file,
        )
        assert (error, got) == (0, first * PAGE)
        if pages[0].shared and not file:
            (new,) = set(self.k.address_spaces) - known
            thing = self.add_thing(self.k.address_spaces[new], len(pages))
            for index, page in enumerate(pages):
                page.thing, page.index = thing, index
        for page in pages:
            page.locked = bool(flags & MAP_LOCKED)
        self.world.map(who, first, pages, populate=bool(flags & (MAP_LOCKED | MAP_POPULATE)))

    def mmap_anonymous(self, choice: int, span: tuple[int, int], prot: int, extra: int, shared: bool) -> None:  # noqa: FBT001 - drawn
        """Private or shared anonymous memory at an address."""
        first, count = span
        pages = [Page(prot, None if shared else first + i, shared=shared) for i in range(count)]
        self.map(choice, first, pages, MAP_ANONYMOUS | extra)

    def mmap_anywhere(self, choice: int, count: int, prot: int, hint: tuple[int, int]) -> None:
        """Private anonymous memory where it is asked for, if nothing is there, or where the kernel likes."""
        who, _ = self.who(choice)
        first = hint[0]
        if any(vpn in who.space.pages for vpn in range(first, first + count)):
            first = self.world.lowest_hole(who.space, LOW, count)
        self.map(choice, first, [Page(prot, first + i) for i in range(count)], MAP_ANONYMOUS, addr=hint[0] * PAGE + 7)

    def mmap_file(
        self, choice: int, span: tuple[int, int], name: str, offset: int, prot: int, how: str, extra: int
    ) -> None:
        """A file, privately, shared, or shared but opened for reading."""
        (first, count), shared = span, how != "private"
        if how == "read":
            prot &= ~PROT_WRITE
        thing = self.world.files[name]
        pages = [Page(prot, offset + i, thing, shared, how != "read") for i in range(count)]
        self.map(choice, first, pages, extra, name, offset * PAGE, "r" if how == "read" else "r+")

    def munmap(self, choice: int, span: tuple[int, int]) -> None:
        (who, task), (first, count) = self.who(choice), span
        answer = self.world.munmap(who, first, first + count)
        self.check(answer, self.call("munmap", task, first * PAGE, count * PAGE - 9)[0])

    def mprotect(self, choice: int, span: tuple[int, int], prot: int) -> None:
        (who, task), (first, count) = self.who(choice), span
        answer = self.world.mprotect(who, first, first + count, prot)
        self.check(answer, self.call("mprotect", task, first * PAGE, count * PAGE, prot)[0])

    def mlock(self, choice: int, span: tuple[int, int], lock: bool) -> None:  # noqa: FBT001 - drawn
        (who, task), (first, count) = self.who(choice), span
        answer = self.world.mlock(who, first, first + count, lock=lock)
        name = "mlock" if lock else "munlock"
        self.check(answer, self.call(name, task, first * PAGE + 5, count * PAGE - 5)[0])

    def madvise(self, choice: int, span: tuple[int, int], pageout: bool) -> None:  # noqa: FBT001 - drawn
        (who, task), (first, count) = self.who(choice), span
        answer = self.world.madvise(who, first, first + count, pageout=pageout)
        advice = MADV_PAGEOUT if pageout else MADV_DONTNEED
        self.check(answer, self.call("madvise", task, first * PAGE, count * PAGE, advice)[0])

    def mremap(self, choice: int, span: tuple[int, int], place: int, wanted: int) -> None:
        (who, task), (first, count) = self.who(choice), span
        if len(who.space.pages) + wanted > PAGES_MAX:
            return
        answer = self.world.mremap(who, first, count, place, wanted)
        self.check(answer, self.call("mremap", task, first * PAGE, count * PAGE, wanted * PAGE, 3, place * PAGE)[0])

    def brk(self, choice: int, pages: int, odd: int) -> None:
        """The heap grows up to the next mapping, and shrinks."""
        who, task = self.who(choice)
        space = who.space
        new = START_BRK + pages * PAGE + odd
        old_end, new_end = -(-space.brk // PAGE), -(-new // PAGE)
        if pages < 0 or any(vpn in space.pages for vpn in range(old_end, new_end)):
            new, new_end = space.brk, old_end
        assert self.call("brk", task, START_BRK + pages * PAGE + odd) == (0, new)
        space.brk = new
        grown = range(old_end, new_end)
        self.world.map(who, old_end, [Page(RW | PROT_EXEC, vpn) for vpn in grown], populate=False)
        self.world.munmap(who, new_end, old_end)[1](0)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def fork(self, choice: int) -> None:
        """Copy an address space, if there are not too many."""
        if len(self.world.spaces) == SPACES_MAX or len(self.world.whos) == WHOS_MAX:
            return
        who, task = self.who(choice)
        error, child = self.call("fork", task)
        assert error == 0
        self.add_who(self.world.fork(who), child)

    def attach(self, choice: int, cpu: int, mate: bool) -> None:  # noqa: FBT001 - drawn
        """A thread, or a task of its own."""
        if len(self.world.whos) == WHOS_MAX:
            return
        if mate:
            who, task = self.who(choice)
            self.add_who(Who(who.space, cpu), fork.attach(self.k, cpu, [], task.pid))
        elif len(self.world.spaces) < SPACES_MAX:
            self.add_space(cpu, privileged=False)

    def exit(self, choice: int) -> None:
        """A task ends, but not the last one."""
        if len(self.world.whos) == 1:
            return
        who, task = self.who(choice)
        assert self.call("exit", task)[0] == 0
        self.world.exit(who)

    def set_cpu(self, choice: int, cpu: int) -> None:
        who, task = self.who(choice)
        assert self.call("set_cpu", task, cpu)[0] == 0
        who.cpu = cpu

    # -- policies ------------------------------------------------------------------------------------------------------

    def mbind(self, choice: int, span: tuple[int, int], mode: int, nodes: set[int], flags: int) -> None:
        (who, task), (first, count) = self.who(choice), span
        answer = self.world.mbind(who, first, first + count, mode, frozenset(nodes), flags)
        self.check(answer, self.call("mbind", task, first * PAGE, count * PAGE, mode, [mask_of(nodes)], 65, flags)[0])

    def set_mempolicy(self, choice: int, mode: int, nodes: set[int]) -> None:
        who, task = self.who(choice)
        answer = self.world.set_mempolicy(who, mode, frozenset(nodes))
        self.check(answer, self.call("set_mempolicy", task, mode, [mask_of(nodes)], 65)[0])

    def migrate_pages(self, choice: int, other: int, old: set[int], new: set[int]) -> None:
        (who, task), (target, its) = self.who(choice), self.who(other)
        answer = self.world.migrate_pages(who, target, frozenset(old), frozenset(new))
        error, stayed = self.call("migrate_pages", task, its.pid, 65, [mask_of(old)], [mask_of(new)])
        self.check(answer, error or -1 - stayed)

    def get_mempolicy(self, choice: int, span: tuple[int, int]) -> None:
        """That of an address, and the node of its page, which is read for it."""
        (who, task), (vpn, _) = self.who(choice), span
        page = who.space.pages.get(vpn)
        error, got = self.call("get_mempolicy", task, 64, vpn * PAGE, MPOL_F_ADDR)
        if page is None:
            assert error == errno.EFAULT
            return
        policy = self.ruling(page)
        assert (error, got[0]) == (0, policy.mode if policy else MPOL_DEFAULT)
        assert set(nodes_of(int.from_bytes(got[1], "little"))) == self.told(policy)
        error, got = self.call("get_mempolicy", task, None, vpn * PAGE, MPOL_F_ADDR | MPOL_F_NODE)
        if page.allows(write=False):
            self.world.touch(who, [] if page.beyond_end else [page], write=False)
            self.world.around(who.space, [page])
        if page.allows(write=False) and not page.beyond_end:
            assert error == 0
            assert self.loose or page.cell is None or got[0] in page.may
        else:
            assert error == errno.EFAULT

    @staticmethod
    def ruling(page: Page) -> Policy | None:
        """What get_mempolicy tells of an address."""
        if page.thing is not None and page.thing.has_policies and page.index is not None:
            return page.thing.policies.get(page.index)
        return page.policy

    def told(self, policy: Policy | None) -> set[int]:
        """The mask that get_mempolicy gives: 2005 says all nodes of a preference for the local one."""
        if policy is not None and policy.mode == MPOL_PREFERRED and not policy.nodes:
            return set(self.world.online)
        return set(policy.nodes) if policy is not None else set()

    def get_mempolicy_of_task(self, choice: int) -> None:
        """That of the task, and the node that its interleave takes next."""
        who, task = self.who(choice)
        error, got = self.call("get_mempolicy", task, 64, 0, 0)
        assert (error, got[0]) == (0, who.policy.mode if who.policy else MPOL_DEFAULT)
        assert set(nodes_of(int.from_bytes(got[1], "little"))) == self.told(who.policy)
        interleaves = who.policy is not None and who.policy.mode == MPOL_INTERLEAVE
        expected = (0, [who.il_next, None]) if interleaves else (errno.EINVAL, None)
        error, got = self.call("get_mempolicy", task, None, 0, MPOL_F_NODE)
        assert (error, None if error else got) == expected

    # -- accesses ------------------------------------------------------------------------------------------------------

    def read(self, choice: int, span: tuple[int, int]) -> None:
        """A client reads a range."""
        self.touch(choice, span, write=False)

    def write(self, choice: int, span: tuple[int, int]) -> None:
        """A client writes a range."""
        self.touch(choice, span, write=True)

    def everybody_reads(self, span: tuple[int, int]) -> None:
        """All do, one after the other."""
        for choice in range(len(self.world.whos)):
            self.touch(choice, span, write=False)
            self.settle()

    def everybody_writes(self, span: tuple[int, int]) -> None:
        """All do, one after the other."""
        for choice in range(len(self.world.whos)):
            self.touch(choice, span, write=True)
            self.settle()

    def touch(self, choice: int, span: tuple[int, int], *, write: bool) -> None:
        """As much of a range as may be accessed; the bytes are right, and written anew."""
        (who, task), (first, count) = self.who(choice), span
        pages = []
        for vpn in range(first, first + count):
            page = who.space.pages.get(vpn)
            if page is None or not page.allows(write=write) or page.beyond_end:
                break
            pages.append(page)
        trouble = who.space.pages.get(first + len(pages)) if len(pages) < count else None
        error, got = self.fault(task, first, count, write=write)
        if trouble is not None and trouble.allows(write=write) and not write:
            self.world.around(who.space, [trouble])
        if not pages:
            page = who.space.pages.get(first)
            wanted = BusError if page is not None and page.allows(write=write) else SegmentationFault
            assert type(got) is wanted
            assert (error, got.address) == (errno.EFAULT, first * PAGE)
            return
        assert (error, got) == (0, len(pages) * PAGE)
        self.world.touch(who, pages, write=write)
        if not write:
            self.world.around(who.space, pages)
        for vpn, page in zip(range(first, first + len(pages)), pages, strict=True):
            row, flat = self.reach(task, vpn, write=write)
            self.k.c.accessed[flat] = 1
            if write and page.cell is not None:
                self.stamp = self.stamp % 250 + 1
                page.cell.byte = self.stamp
                self.k.c.dirty[flat] = 1
                row[list(MARKS)] = self.stamp
            assert set(row[list(MARKS)].tolist()) == {page.cell.byte if page.cell else 0}

    def fault(self, task: Task, first: int, count: int, *, write: bool) -> tuple[int, Any]:
        """As much of a range as may be accessed; where memory is short it takes several requests."""
        done = 0
        while done < count * PAGE:
            error, got = self.call("fault", task, first * PAGE + done, count * PAGE - done, write)
            if error:
                return (error, got) if not done else (0, done)
            done += got
        return 0, done

    def reach(self, task: Task, vpn: int, *, write: bool) -> tuple[Any, int]:
        """The bytes of a page, as a client reaches them, and the place of its entry."""
        rights = PTE_PRESENT | PTE_READABLE | (PTE_WRITABLE if write else 0)
        for _ in range(FAULT_RETRIES):
            flat = self.k.tables.pte_offset(task.mm.pgd, vpn)
            entry = int(self.k.c.pte[flat]) if flat >= 0 else 0
            if entry & rights == rights:
                return self.k.c.frames[entry // PAGE], flat
            assert self.loose, f"page {vpn:#x} is not there"
            assert self.call("fault", task, vpn * PAGE, PAGE, write)[0] == 0
        raise AssertionError(f"page {vpn:#x} does not stay")

    def file_io(self, choice: int, name: str, first: int, count: int, write: bool) -> None:  # noqa: FBT001 - drawn
        """Pages of a file, without a mapping."""
        (who, task), thing = self.who(choice), self.world.files[name]
        if write:
            self.stamp = self.stamp % 250 + 1
            body = bytes([self.stamp]) * (count * PAGE)
            try:
                error, got = self.call("file_write", task, name, first * PAGE, body)
            except TaskKilledError:
                self.settle_bytes(name, range(first, min(first + count, thing.length)), self.stamp)
                raise
            assert (error, got) == (0, max(0, min(first + count, thing.length) - first) * PAGE)
            self.world.pwrite(who, thing, first, first + count, self.stamp)
        else:
            error, got = self.call("file_read", task, name, first * PAGE, count * PAGE)
            found = self.world.pread(who, thing, first, first + count)
            assert (error, len(got)) == (0, len(found) * PAGE)
            assert [got[i * PAGE] for i in range(len(found))] == found

    def settle_bytes(self, name: str, indexes: range, byte: int) -> None:
        """Whoever wrote `byte` to these pages was killed: it has, or has not."""
        thing = self.world.files[name]
        for index in indexes:
            got = self.read_by_survivor(name, index)
            cell = thing.cells[index]
            assert got in {cell.byte, byte}
            if got == byte:
                cell.byte, cell.written = byte, True

    def read_by_survivor(self, name: str, index: int) -> int:
        """The first byte of a page of a file, read by whoever is not killed for it."""
        while True:
            self.bury()
            with contextlib.suppress(TaskKilledError):
                error, got = self.call("file_read", self.who(0)[1], name, index * PAGE, PAGE)
                assert error == 0
                return int(got[0])

    # -- what must hold after each -------------------------------------------------------------------------------------

    @invariant()
    def everything_agrees(self) -> None:
        """Mappings, policies, places and bytes, also as numa_maps tells them."""
        if hasattr(self, "m"):
            self.settle()
            self.compare_numa_maps()

    def settle(self) -> None:
        """What came was right, and is so from now on."""
        self.bury()
        self.steps += 1
        for thing in self.things.values():
            for index, other in thing.doubts.items():
                self.settle_policy(thing, index, other)
            thing.doubts.clear()
        for space, mm in self.spaces():
            self.compare_mappings(space, mm)
        for space, mm in self.spaces():
            self.compare_places(space, mm)
        for space, mm in self.spaces():
            self.compare_bytes(space, mm)
        self.world.spread_anon()
        if self.steps % 8 == 0:
            assert self.m.fsck() == []

    def bury(self) -> None:
        """Who was killed has nothing mapped any more, and ends; of files it may have brought in any page."""
        self.m.performer.run()
        killed = [who for who in self.world.whos if self.tasks[id(who)].killed]
        for who in killed:
            task = self.tasks[id(who)]
            assert list(task.mm.vmas) == []
            assert self.m.call(fork.sys_exit(self.k, task)) == 0
            self.world.exit(who)
        for thing in self.things.values() if killed else ():
            for index in range(thing.length):
                thing.cells.setdefault(index, Cell())
        if not self.world.whos:
            self.add_space(0, privileged=True)

    def spaces(self) -> list[tuple[Space, Mm]]:
        """Each space with what it is in the core."""
        pairs = {id(who.space): self.tasks[id(who)].mm for who in self.world.whos}
        return [(space, pairs[id(space)]) for space in self.world.spaces]

    def settle_policy(self, thing: Thing, index: int, other: Policy | None) -> None:
        """The policy of a page of an object, where it may be one of two."""
        (made,) = [k for k, known in self.things.items() if known is thing]
        if made not in self.k.address_spaces:
            return
        real = policy_of(self.k.address_spaces[made].policy.lookup(index))
        assert real in {thing.policies.get(index), other}
        thing.policies.pop(index, None)
        if real is not None:
            thing.policies[index] = real

    def compare_mappings(self, space: Space, mm: Mm) -> None:
        """VMAs cover exactly the pages of the model, with borders where pages differ, or where a call has cut."""
        seen = set()
        for vma in mm.vmas:
            first, end = vma.vm_start // PAGE, vma.vm_end // PAGE
            for vpn in range(first, end):
                page = space.pages[vpn]
                self.compare_page(page, vma, vma.vm_pgoff + vpn - first)
                seen.add(vpn)
            assert not any(self.world.differ(space, vpn) for vpn in range(first + 1, end))
            for border in (first, end):
                assert self.world.differ(space, border) or border in space.cuts, f"{border:#x} is no border"
        assert seen == set(space.pages)
        assert mm.brk == space.brk

    def compare_page(self, page: Page, vma: VmArea, index: int) -> None:
        if page.index is None:
            page.index = index
        thing = self.things[vma.vm_file.id] if vma.vm_file is not None else None
        assert (page.thing, page.index) == (thing, index)
        assert (page.prot, page.locked) == (vma.vm_flags & 7, bool(vma.vm_flags & VM_LOCKED))
        assert page.policy == policy_of(vma.vm_policy)
        if page.shared:
            assert page.may_write == bool(vma.vm_flags & VM_SHARED) == bool(vma.vm_flags & VM_MAYWRITE)

    def compare_places(self, space: Space, mm: Mm) -> None:
        """`where` tells a node that is right, or that no page is there; what it tells is so from now on."""
        task = next(self.tasks[id(who)] for who in self.world.whos if who.space is space)
        for first, count in ((HERE - 1, 24), (THERE - 1, 18), (HEAP - 1, 12), (LOW - 1, 32)):
            answer = self.m.call(proc.sys_where(self.k, task, first * PAGE, count * PAGE))
            for vpn, node in enumerate(memoryview(answer).cast("i").tolist(), first):
                page = space.pages.get(vpn)
                assert (node == -errno.EFAULT) == (page is None)
                if page is not None:
                    self.settle_place(page, vpn, None if node < 0 else node)
        del mm

    def settle_place(self, page: Page, vpn: int, node: int | None) -> None:
        cell = page.cell
        assert self.loose or node in page.may, f"page {vpn:#x}: node {node} and not {page.may}"
        page.may = frozenset({node})
        if cell is None:
            assert node is None
        elif node is not None:
            assert self.loose or node in cell.where
            cell.where = page.may

    def compare_bytes(self, space: Space, mm: Mm) -> None:
        """Every page shows what was last written to it, wherever it lies; entries allow no more than their pages."""
        for vpn, page in space.pages.items():
            flat = self.k.tables.pte_offset(mm.pgd, vpn)
            entry = int(self.k.c.pte[flat]) if flat >= 0 else 0
            if entry & PTE_PRESENT:
                assert not entry & PTE_WRITABLE or page.prot & PROT_WRITE
                assert not entry & PTE_READABLE or page.prot
            row = self.row_of(page, entry)
            if row is not None:
                assert set(row[list(MARKS)].tolist()) == {page.cell.byte if page.cell else 0}, f"page {vpn:#x}"

    def row_of(self, page: Page, entry: int) -> Any:  # noqa: ANN401 - an array, or None
        """Where the bytes of a page are; None where nobody has it."""
        number = entry // PAGE
        if entry & PTE_PRESENT:
            return self.k.c.frames[number]
        if entry & PTE_SWAPPED:
            pfn = int(self.k.slot_frame[number])
            return self.k.c.frames[pfn] if pfn >= 0 else self.k.c.swap[number]
        assert page.own is None
        return None

    def compare_numa_maps(self) -> None:
        """Each line has the policy in force and the pages that are there."""
        for who in self.world.whos:
            task = self.tasks[id(who)]
            text: str = self.m.call(numa_maps.sys_numa_maps(self.k, task))
            lines = [line.split() for line in text.splitlines()]
            starts = [int(words[0], 16) // PAGE for words in lines]
            for words, first, end in zip(lines, starts, [*starts[1:], 1 << 52], strict=False):
                self.compare_line(who, words, first, end)

    def compare_line(self, who: Who, words: list[str], first: int, end: int) -> None:
        pages = [page for vpn, page in who.space.pages.items() if first <= vpn < end]
        head = who.space.pages[first]
        policy = self.ruling(head)
        hides = head.thing is not None and head.thing.has_policies and not self.world.today
        policy = policy if policy is not None or hides else who.policy
        assert " ".join(words[1:]).startswith(self.policy_words(policy))
        counts = {name: int(value) for name, _, value in (word.partition("=") for word in words) if value.isdecimal()}
        there = [page for page in pages if page.node is not None]
        anon = "anon" if self.world.today else "Anon"
        assert counts.get(anon, 0) == sum(page.own is not None for page in there)
        for nid in self.world.online - (set() if self.world.today else {0}):
            assert counts.get(f"N{nid}", 0) == sum(page.node == nid for page in there)
        if not self.world.today:  # the zero page lies on node 0
            assert counts["Pages"] == counts["Mapped"] == sum(counts.get(f"N{nid}", 0) for nid in self.world.online)
            assert sum(page.node == 0 for page in there) <= counts.get("N0", 0)

    def policy_words(self, policy: Policy | None) -> str:
        if policy is None:
            return "default"
        preferred = min(policy.nodes, default=-1) if policy.mode == MPOL_PREFERRED else -1
        nodes = 0 if policy.mode == MPOL_PREFERRED else mask_of(policy.nodes)
        return mpol_to_str(self.k, Mempolicy(policy.mode, nodes=nodes, preferred=preferred))

    def teardown(self) -> None:
        """The machine is sound, also when all have gone."""
        if not hasattr(self, "m"):
            return
        assert self.m.fsck() == []
        for task in self.tasks.values():
            if self.k.tasks.get(task.pid) is task:
                self.m.call(fork.sys_exit(self.k, task))
        assert self.m.fsck() == []
        assert not self.k.mms


class Today(Machines):
    """6.12."""

    profile = "linux-6.12"


class FewSlots(Machines):
    """2005, with swap for a part of the pages."""

    swap = 12
    loose = True


class LittleMemory(Machines):
    """2005, with less memory than the programs use: they are killed if they lock it all."""

    memory = 14
    loose = True


class LittleMemoryToday(LittleMemory):
    """6.12, the same."""

    profile = "linux-6.12"


VARIANTS: tuple[type[Machines], ...] = (Machines, Today, FewSlots, LittleMemory, LittleMemoryToday)
EXAMPLES, _, STEPS = os.environ.get("MODEL_EXAMPLES", "40,40").partition(",")
#: A failure is cut down by `shortest`, which knows that a program without one of its calls is a program.
SETTINGS = settings(
    max_examples=int(EXAMPLES),
    derandomize="MODEL_EXAMPLES" not in os.environ,  # the same examples each time, unless more are asked for
    stateful_step_count=int(STEPS or 40),
    deadline=None,
    phases=[Phase.generate] if "MODEL_EXAMPLES" not in os.environ else [Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def replay(machines: type[Machines], begin: int, program: list[Step]) -> int:
    """Run a program as the failure of a test has printed it; gives how often somebody was killed for memory."""
    state = machines()
    state.switch_on(begin, None)
    state.everything_agrees()
    for step in program:
        state.step(step)
        state.everything_agrees()
    state.teardown()
    return state.k.vmstat["oom_kill"]


def story_of(machines: type[Machines], begin: int, program: list[Step]) -> tuple[str, int] | None:
    """Where a program fails, None if it does not."""
    try:
        replay(machines, begin, program)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a finding
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return type(error).__name__, frame.lineno or 0
    return None


def shortest(machines: type[Machines], begin: int, program: list[Step], seconds: float) -> tuple[int, list[Step]]:
    """The program without what it does not need to fail in the same way; no longer than `seconds` are spent on it."""
    wanted, end = story_of(machines, begin, program), time.monotonic() + seconds
    size = len(program)
    while size and wanted is not None:
        at = 0
        while at < len(program) and time.monotonic() < end:
            shorter = program[:at] + program[at + size :]
            if story_of(machines, begin, shorter) == wanted:
                program = shorter
            else:
                at += size
        size //= 2
    found = [less for less in range(begin) if story_of(machines, less, program) == wanted]
    return min([*found, begin]), program


@pytest.mark.timeout(0)  # as long as MODEL_EXAMPLES asks for
@pytest.mark.parametrize("machines", VARIANTS, ids=lambda machines: machines.__name__)
def test_the_core_agrees_with_the_model(machines: type[Machines]) -> None:
    """Whatever up to four tasks do, the machine does what the model says."""
    try:
        run_state_machine_as_test(machines, settings=SETTINGS)
    except Exception as error:
        begin, program = shortest(machines, *machines.story, seconds=60)
        lines = "".join(f"    {step!r},\n" for step in program)
        error.add_note(
            "To replay it: PYTHONPATH=emulator:. python -c 'import sys; exec(sys.stdin.read())' <<END\n"
            f"from tests.core.test_model import {machines.__name__}, replay\n"
            f"replay({machines.__name__}, {begin}, [\n{lines}])\nEND"
        )
        raise


def test_a_failure_is_cut_down_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long program that fails those calls are left without which it would not."""
    written: Step = ("write", {"choice": 0, "span": (HERE, 3)})
    moved: Step = ("mbind", {"choice": 0, "span": (HERE, 3), "mode": MPOL_BIND, "nodes": {1}, "flags": MOVE})
    noise: Step = ("read", {"choice": 0, "span": (THERE, 3)})
    program = [noise, written, noise, noise, moved, noise, written, noise]
    assert story_of(Machines, 1, program) is None
    monkeypatch.setattr(World, "choose", lambda *_: frozenset({0}))
    assert shortest(Machines, 1, program, seconds=60) == (1, [moved, written])


def locked(choice: int, first: int, count: int = SPAN_MAX, prot: int = RW) -> Step:
    """A step of a program: private memory that is locked from the start."""
    arguments = {"choice": choice, "span": (first, count), "prot": prot, "extra": MAP_LOCKED, "shared": False}
    return "mmap_anonymous", arguments


#: 34 pages that stay, of the 41 that the nodes have.
NEARLY_ALL = [locked(0, HERE), locked(0, HERE + 9), locked(0, THERE), locked(0, THERE + 9, 7)]
SECOND: Step = ("attach", {"choice": 0, "cpu": 1, "mate": False})
THREAD: Step = ("attach", {"choice": 0, "cpu": 1, "mate": True})
#: what happens → the machine, its program, how many are killed.
FOUND: dict[str, tuple[type[Machines], list[Step], int]] = {
    "who locks too much is killed": (LittleMemory, [*NEARLY_ALL, locked(0, LOW)], 1),
    "with its threads": (LittleMemory, [THREAD, *NEARLY_ALL, locked(1, LOW)], 1),
    "today, too": (LittleMemoryToday, [*NEARLY_ALL, locked(0, LOW)], 1),
    "somebody larger is killed for it": (LittleMemory, [SECOND, *NEARLY_ALL, locked(1, HERE)], 1),
    "while it writes a file": (
        LittleMemory,
        [
            SECOND,
            *NEARLY_ALL,
            locked(0, LOW, 5),
            ("file_io", {"choice": 0, "name": "r", "first": 2, "count": 4, "write": True}),
            ("file_io", {"choice": 0, "name": "r", "first": 2, "count": 4, "write": False}),
        ],
        1,
    ),
    "a locked page that is not there moves, and is not brought": (
        Machines,
        [
            locked(0, HERE, 2, 0),
            ("mprotect", {"choice": 0, "span": (HERE, 2), "prot": RW}),
            ("mremap", {"choice": 0, "span": (HERE, 2), "place": THERE, "wanted": 4}),
        ],
        0,
    ),
}


@pytest.mark.parametrize(("machines", "program", "killed"), FOUND.values(), ids=FOUND)
def test_programs_that_random_calls_have_found(machines: type[Machines], program: list[Step], killed: int) -> None:
    """The core agrees with the model where it once did not; as many are killed as it takes."""
    assert replay(machines, 0, program) == killed
