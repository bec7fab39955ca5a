"""Address spaces: random calls against a model that keeps single pages, merging of VMAs, and the host's own kernel."""

import contextlib
import ctypes
import errno
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from numaemu_core import fork, madvise, mbind, memory, mlock, mmap, mprotect, proc
from numaemu_core.errors import MmError, SegmentationFault
from numaemu_core.fsck import fsck
from numaemu_core.limits import START_BRK, TASK_UNMAPPED_BASE
from numaemu_core.mm_types import VM_LOCKED, Task, VmArea
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.performer import Performer
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.topology import uniform
from numaemu_core.uapi import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    MPOL_PREFERRED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

if TYPE_CHECKING:
    from tests.core.conftest import Machine

PAGE = 4096
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
RW = PROT_READ | PROT_WRITE

HEAP = START_BRK // PAGE
LOW = TASK_UNMAPPED_BASE // PAGE
#: The first page of the second page-table page above LOW.
EDGE = (LOW // 512 + 1) * 512
#: Pages of one address space at most, so that no node is ever full.
PAGES_MAX = 60
TASKS_MAX = 3

RANGES = st.one_of(
    st.tuples(st.integers(LOW, LOW + 7), st.integers(1, 6)),
    st.tuples(st.integers(EDGE - 3, EDGE + 2), st.integers(1, 5)),
    st.tuples(st.integers(HEAP, HEAP + 2), st.integers(1, 3)),
)
PROTS = st.sampled_from([RW, RW, 0, PROT_READ, PROT_WRITE, PROT_EXEC, RW | PROT_EXEC])
#: Mode and nodes; the machine has nodes 0 and 1.
POLICIES = st.sampled_from(
    [
        (MPOL_DEFAULT, 0),
        (MPOL_PREFERRED, 0),
        (MPOL_PREFERRED, 2),
        (MPOL_BIND, 1),
        (MPOL_BIND, 2),
        (MPOL_INTERLEAVE, 2),
        (MPOL_INTERLEAVE, 3),
    ]
)


# -- the model ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Content:
    """What was written to a page, and the node of its frame; None once it may be in the swap area. Forks share it."""

    byte: int
    node: int | None


@dataclass
class Page:
    """One mapped page."""

    prot: int
    locked: bool = False
    policy: tuple[int, int] = (MPOL_DEFAULT, 0)
    content: Content | None = None


@dataclass
class Space:
    """One address space, page by page."""

    task: Task
    brk: int = START_BRK
    pages: dict[int, Page] = field(default_factory=dict)


def may(page: Page | None, *, write: bool) -> bool:
    """Is this access allowed?"""
    return page is not None and bool(page.prot & (PROT_WRITE if write else PROT_READ | PROT_EXEC))


def node_for(vpn: int, policy: tuple[int, int]) -> int:
    """Where a page is born; every task runs on node 0, and no node is ever full."""
    mode, mask = policy
    nodes = [node for node in (0, 1) if mask >> node & 1] or [0]
    return nodes[(vpn & 0xFFFFFFFF) % len(nodes)] if mode == MPOL_INTERLEAVE else nodes[0]


def errno_of(call: Callable[[], Any]) -> int:
    """0, or the errno of the refusal."""
    try:
        call()
    except MmError as error:
        return error.errno
    return 0


def grouped(pages: dict[int, tuple[int, bool, tuple[int, int]]]) -> list[list[Any]]:
    """[first page, end, what] of neighbours that are alike."""
    groups: list[list[Any]] = []
    for vpn in sorted(pages):
        if groups and groups[-1][1] == vpn and groups[-1][2] == pages[vpn]:
            groups[-1][1] += 1
        else:
            groups.append([vpn, vpn + 1, pages[vpn]])
    return groups


def policy_pair(policy: Mempolicy | None) -> tuple[int, int]:
    if policy is None:
        return (MPOL_DEFAULT, 0)
    if policy.mode == MPOL_PREFERRED:
        return (policy.mode, 0 if policy.preferred < 0 else 1 << policy.preferred)
    return (policy.mode, policy.nodes)


class AddressSpaces(RuleBasedStateMachine):
    """The core and the model get the same calls."""

    @initialize()
    def switch_on(self) -> None:
        self.p = Performer(uniform(2, "1M", "1M", "swap-v3", PAGE))
        self.k = self.p.k
        self.spaces = [Space(fork.attach(self.k, 0, [], None))]
        self.writes = 0
        for first, count in ((LOW, 8), (EDGE - 3, 6)):
            self.map(self.spaces[0], first, count, RW, 0, addr=first * PAGE, flags=MAP_FIXED)

    def one(self, choice: int) -> Space:
        return self.spaces[choice % len(self.spaces)]

    # -- what the model does -------------------------------------------------------------------------------------------

    def fill(self, space: Space, first: int, end: int, *, only_locked: bool = False) -> None:
        """Pages come in as make_pages_present brings them: for writing where that is allowed."""
        for vpn in range(first, end):
            page = space.pages.get(vpn)
            if page is not None and page.prot & PROT_WRITE and (page.locked or not only_locked):
                self.own(space, vpn)

    def own(self, space: Space, vpn: int) -> Content:
        """The content of a page that is about to be written: shared with nobody."""
        page = space.pages[vpn]
        old = page.content
        others = (other.pages.get(vpn) for other in self.spaces if other is not space)
        if old is None or any(other is not None and other.content is old for other in others):
            page.content = Content(old.byte if old else 0, node_for(vpn, page.policy))
        assert page.content is not None
        return page.content

    def until_hole(self, space: Space, first: int, end: int) -> list[Page]:
        """The pages of a range in front of its first hole."""
        found = []
        for vpn in range(first, end):
            if vpn not in space.pages:
                break
            found.append(space.pages[vpn])
        return found

    # -- calls ---------------------------------------------------------------------------------------------------------

    @rule(choice=st.integers(0, 2), span=RANGES, prot=PROTS, extra=st.sampled_from([0, 0, MAP_LOCKED, MAP_POPULATE]))
    def mmap_fixed(self, choice: int, span: tuple[int, int], prot: int, extra: int) -> None:
        space, (first, count) = self.one(choice), span
        if len(space.pages) + count > PAGES_MAX:
            return
        self.map(space, first, count, prot, extra, addr=first * PAGE, flags=MAP_FIXED)

    @rule(choice=st.integers(0, 2), count=st.integers(1, 6), prot=PROTS, extra=st.sampled_from([0, MAP_LOCKED]))
    def mmap_anywhere(self, choice: int, count: int, prot: int, extra: int) -> None:
        space = self.one(choice)
        if len(space.pages) + count > PAGES_MAX:
            return
        self.map(space, self.lowest_hole(space, count), count, prot, extra, addr=0, flags=0)

    @rule(choice=st.integers(0, 2), span=RANGES, prot=PROTS)
    def mmap_hinted(self, choice: int, span: tuple[int, int], prot: int) -> None:
        space, (hint, count) = self.one(choice), span
        if len(space.pages) + count > PAGES_MAX:
            return
        taken = any(vpn in space.pages for vpn in range(hint, hint + count))
        first = self.lowest_hole(space, count) if taken else hint
        self.map(space, first, count, prot, 0, addr=hint * PAGE + 7, flags=0)

    def lowest_hole(self, space: Space, count: int) -> int:
        first = LOW
        while any(vpn in space.pages for vpn in range(first, first + count)):
            first += 1
        return first

    def map(self, space: Space, first: int, count: int, prot: int, extra: int, *, addr: int, flags: int) -> None:
        got = self.p.call(mmap.sys_mmap(self.k, space.task, addr, count * PAGE - 5, prot, PRIVATE | flags | extra))
        assert got == first * PAGE
        for vpn in range(first, first + count):
            space.pages[vpn] = Page(prot, bool(extra & MAP_LOCKED))
        if extra:
            self.fill(space, first, first + count)

    @rule(choice=st.integers(0, 2), span=RANGES)
    def munmap(self, choice: int, span: tuple[int, int]) -> None:
        space, (first, count) = self.one(choice), span
        assert self.p.call(mmap.sys_munmap(self.k, space.task, first * PAGE, count * PAGE - 9)) == 0
        for vpn in range(first, first + count):
            space.pages.pop(vpn, None)

    @rule(choice=st.integers(0, 2), span=RANGES, prot=PROTS)
    def mprotect(self, choice: int, span: tuple[int, int], prot: int) -> None:
        space, (first, count) = self.one(choice), span
        changed = self.until_hole(space, first, first + count)
        call = mprotect.sys_mprotect(self.k, space.task, first * PAGE, count * PAGE, prot)
        assert errno_of(lambda: self.p.call(call)) == (0 if len(changed) == count else errno.ENOMEM)
        for page in changed:
            page.prot = prot

    @rule(choice=st.integers(0, 2), span=RANGES, lock=st.booleans())
    def mlock_or_munlock(self, choice: int, span: tuple[int, int], lock: bool) -> None:  # noqa: FBT001 - drawn
        space, (first, count) = self.one(choice), span
        changed = self.until_hole(space, first, first + count)
        call = (mlock.sys_mlock if lock else mlock.sys_munlock)(self.k, space.task, first * PAGE + 5, count * PAGE - 5)
        assert errno_of(lambda: self.p.call(call)) == (0 if len(changed) == count else errno.ENOMEM)
        for page in changed:
            page.locked = lock
        if lock:
            self.fill(space, first, first + count, only_locked=True)

    @rule(choice=st.integers(0, 2), span=RANGES, policy=POLICIES)
    def mbind(self, choice: int, span: tuple[int, int], policy: tuple[int, int]) -> None:
        space, (first, count) = self.one(choice), span
        end = first + count
        inside = sorted(vpn for vpn in space.pages if first <= vpn < end)
        highest = max(space.pages, default=-1)
        expected = errno.EFAULT if highest < first else 0
        if policy[0] != MPOL_DEFAULT and inside:
            torn = inside[-1] - inside[0] + 1 != len(inside)
            expected = errno.EFAULT if torn or (inside[-1] < end - 1 and highest == inside[-1]) else expected
        call = mbind.sys_mbind(self.k, space.task, first * PAGE, count * PAGE, policy[0], [policy[1]], 65, 0)
        assert errno_of(lambda: self.p.call(call)) == expected
        for vpn in inside if not expected else []:
            space.pages[vpn].policy = policy

    @rule(choice=st.integers(0, 2), pages=st.integers(-1, 10), odd=st.integers(0, PAGE - 1))
    def brk(self, choice: int, pages: int, odd: int) -> None:
        space = self.one(choice)
        new = START_BRK + pages * PAGE + odd
        old_end, new_end = -(-space.brk // PAGE), -(-new // PAGE)
        if pages < 0 or any(vpn in space.pages for vpn in range(old_end, new_end)):
            new, new_end = space.brk, old_end
        assert self.p.call(mmap.sys_brk(self.k, space.task, START_BRK + pages * PAGE + odd)) == new
        space.brk = new
        for vpn in range(old_end, new_end):
            space.pages[vpn] = Page(RW | PROT_EXEC)
        for vpn in range(new_end, old_end):
            space.pages.pop(vpn, None)

    @rule(choice=st.integers(0, 2), span=RANGES, advice=st.sampled_from([MADV_DONTNEED, MADV_PAGEOUT, 1]))
    def madvise(self, choice: int, span: tuple[int, int], advice: int) -> None:
        space, (first, count) = self.one(choice), span
        inside = [space.pages[vpn] for vpn in range(first, first + count) if vpn in space.pages]
        expected = 0 if len(inside) == count else errno.ENOMEM
        call = madvise.sys_madvise(self.k, space.task, first * PAGE, count * PAGE, advice)
        done = []
        for page in inside if advice in (MADV_DONTNEED, MADV_PAGEOUT) else []:
            if page.locked:
                expected = errno.EINVAL
                break
            done.append(page)
        assert errno_of(lambda: self.p.call(call)) == expected
        for page in done:
            if advice == MADV_DONTNEED:
                page.content = None
            elif page.content is not None:
                page.content.node = None

    # -- accesses ------------------------------------------------------------------------------------------------------

    @rule(choice=st.integers(0, 2), span=RANGES)
    def read(self, choice: int, span: tuple[int, int]) -> None:
        self.touch(choice, span, write=False)

    @rule(choice=st.integers(0, 2), span=RANGES)
    def write(self, choice: int, span: tuple[int, int]) -> None:
        self.touch(choice, span, write=True)

    @rule(span=RANGES)
    def everybody_writes(self, span: tuple[int, int]) -> None:
        for choice in range(len(self.spaces)):
            self.touch(choice, span, write=True)

    def touch(self, choice: int, span: tuple[int, int], *, write: bool) -> None:
        space, (first, count) = self.one(choice), span
        allowed = 0
        while allowed < count and may(space.pages.get(first + allowed), write=write):
            allowed += 1
        call = memory.sys_fault(self.k, space.task, first * PAGE + 3, count * PAGE - 3, write=write)
        if not allowed:
            with pytest.raises(SegmentationFault) as refusal:
                self.p.call(call)
            assert refusal.value.address == first * PAGE
            return
        assert self.p.call(call) == allowed * PAGE - 3
        for vpn in range(first, first + allowed):
            entry, flat = self.entry(space, vpn)
            needed = PTE_PRESENT | PTE_READABLE | (PTE_WRITABLE if write else 0)
            assert entry & needed == needed
            self.k.c.accessed[flat] = 1
            if write:
                self.writes = self.writes % 250 + 1
                self.own(space, vpn).byte = self.writes
                self.k.c.dirty[flat] = 1
                self.k.c.frames[entry // PAGE, [0, vpn % PAGE, -1]] = self.writes

    # -- tasks ---------------------------------------------------------------------------------------------------------

    @rule(choice=st.integers(0, 2))
    def fork(self, choice: int) -> None:
        space = self.one(choice)
        if len(self.spaces) == TASKS_MAX:
            return
        pages = {vpn: Page(page.prot, False, page.policy, page.content) for vpn, page in space.pages.items()}  # noqa: FBT003 - a child locks nothing
        self.spaces.append(Space(self.p.call(fork.sys_fork(self.k, space.task)), space.brk, pages))

    @rule(choice=st.integers(0, 2))
    def exit(self, choice: int) -> None:
        if len(self.spaces) > 1:
            space = self.one(choice)
            self.p.call(fork.sys_exit(self.k, space.task))
            self.spaces.remove(space)

    # -- what must hold after each -------------------------------------------------------------------------------------

    def entry(self, space: Space, vpn: int) -> tuple[int, int]:
        """The page-table entry of a page, and its place."""
        flat = self.k.tables.pte_offset(space.task.mm.pgd, vpn)
        return (int(self.k.c.pte[flat]) if flat >= 0 else 0), flat

    def peek(self, space: Space, vpn: int) -> set[int]:
        """The bytes of a page that are written, wherever it lies, without touching it."""
        entry, _ = self.entry(space, vpn)
        number = entry // PAGE
        if not entry:
            return {0}
        if entry & PTE_PRESENT:
            row = self.k.c.frames[number]
        else:
            pfn = int(self.k.slot_frame[number])
            row = self.k.c.frames[pfn] if pfn >= 0 else self.k.c.swap[number]
        return set(row[[0, vpn % PAGE, -1]].tolist())

    @invariant()
    def vmas_are_the_pages(self) -> None:
        """VMAs cover exactly the pages of the model; neighbours that are alike count as one."""
        for space in self.spaces:
            seen = {}
            for vma in space.task.mm.vmas:
                assert vma.vm_pgoff == vma.vm_start // PAGE
                what = (vma.vm_flags & 7, bool(vma.vm_flags & VM_LOCKED), policy_pair(vma.vm_policy))
                for vpn in range(vma.vm_start // PAGE, vma.vm_end // PAGE):
                    assert vpn not in seen
                    seen[vpn] = what
            wanted = {vpn: (page.prot, page.locked, page.policy) for vpn, page in space.pages.items()}
            assert grouped(seen) == grouped(wanted)
            assert space.task.mm.brk == space.brk

    @invariant()
    def bytes_are_those_written(self) -> None:
        """Every page holds what was last written to it, in every address space."""
        for space in self.spaces:
            for vpn, page in space.pages.items():
                assert self.peek(space, vpn) == {page.content.byte if page.content else 0}

    @invariant()
    def entries_allow_no_more_than_their_pages(self) -> None:
        """No entry lets an access through that its page forbids, and none lies outside of the pages."""
        for space in self.spaces:
            for vpn, page in space.pages.items():
                entry, _ = self.entry(space, vpn)
                if entry & PTE_PRESENT:
                    assert not entry & PTE_READABLE or page.prot
                    assert not entry & PTE_WRITABLE or page.prot & PROT_WRITE

    @invariant()
    def where_agrees(self) -> None:
        """`where` says the node of each page that was written, no page of others, and a fault outside of mappings."""
        for space in self.spaces:
            for first, count in ((HEAP - 1, 14), (LOW - 1, 32), (EDGE - 8, 18)):
                answer = self.p.call(proc.sys_where(self.k, space.task, first * PAGE, count * PAGE))
                for vpn, node in enumerate(memoryview(answer).cast("i").tolist(), first):
                    page = space.pages.get(vpn)
                    if page is None:
                        assert node == -errno.EFAULT
                    elif page.content is None:
                        assert node == -errno.ENOENT
                    elif page.content.node is None:
                        assert node in (-errno.ENOENT, 0, 1)
                    else:
                        assert node == page.content.node

    @invariant()
    def fsck_is_silent(self) -> None:
        """The machine is sound."""
        self.p.run()
        assert fsck(self.k) == []


def test_address_spaces_agree_with_a_model_of_single_pages() -> None:
    """Random calls of up to three tasks leave the mappings, bytes, nodes and refusals that the model says."""
    run_state_machine_as_test(AddressSpaces, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))


# -- merging and splitting ---------------------------------------------------------------------------------------------

A = TASK_UNMAPPED_BASE
Steps = Callable[["Machine", Task], object]


def at(first: int, pages: int) -> tuple[int, int]:
    return A + first * PAGE, pages


def mapped(m: "Machine", task: Task, first: int, pages: int, prot: int = RW, flags: int = 0) -> None:
    assert m.mmap(task, pages, A + first * PAGE, prot, MAP_FIXED | flags) == A + first * PAGE


def two_maps(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 2, 3)


def map_below(m: "Machine", task: Task) -> None:
    mapped(m, task, 2, 3)
    mapped(m, task, 0, 2)


def map_between(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 4, 2)
    mapped(m, task, 2, 2)


def map_with_gap(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 3, 2)


def map_other_prot(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 2, 2, PROT_READ)


def map_locked(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 2, 2, RW, MAP_LOCKED)


def map_both_touched(m: "Machine", task: Task) -> None:
    """Two anon_vmas cannot be one, even where the hole between them is filled."""
    mapped(m, task, 0, 2)
    mapped(m, task, 3, 2)
    m.touch(task, A, 2)
    m.touch(task, A + 3 * PAGE, 2)
    mapped(m, task, 2, 1)


def map_one_touched(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    m.touch(task, A, 2)
    mapped(m, task, 2, 2)


def map_over_the_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    mapped(m, task, 2, 2)


def protect_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.call(mprotect.sys_mprotect(m.k, task, A + 2 * PAGE, 2 * PAGE, PROT_READ))


def protect_and_back(m: "Machine", task: Task) -> None:
    protect_middle(m, task)
    m.call(mprotect.sys_mprotect(m.k, task, A + 2 * PAGE, 2 * PAGE, RW))


def protect_touched_and_back(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.touch(task, A, 6)
    m.call(mprotect.sys_mprotect(m.k, task, A + 2 * PAGE, 2 * PAGE, PROT_READ))
    m.call(mprotect.sys_mprotect(m.k, task, A + 2 * PAGE, 2 * PAGE, RW))


def protect_piecewise(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 3)
    for first in (2, 0, 1):
        m.call(mprotect.sys_mprotect(m.k, task, A + first * PAGE, PAGE, PROT_READ))


def protect_across(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 2)
    mapped(m, task, 2, 2, PROT_READ)
    m.call(mprotect.sys_mprotect(m.k, task, A + PAGE, 2 * PAGE, 0))


def lock_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.call(mlock.sys_mlock(m.k, task, A + 2 * PAGE, 2 * PAGE))


def lock_and_back(m: "Machine", task: Task) -> None:
    lock_middle(m, task)
    m.call(mlock.sys_munlock(m.k, task, A + 2 * PAGE, 2 * PAGE))


def lock_two_halves(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 4)
    m.call(mlock.sys_mlock(m.k, task, A, 2 * PAGE))
    m.call(mlock.sys_mlock(m.k, task, A + 2 * PAGE, 2 * PAGE))


def bind_half(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 4)
    m.mbind(task, *at(0, 2), MPOL_BIND, {1})


def bind_and_back(m: "Machine", task: Task) -> None:
    bind_half(m, task)
    m.mbind(task, *at(0, 2), MPOL_DEFAULT, set())


def bind_two_halves(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 4)
    m.mbind(task, *at(0, 2), MPOL_BIND, {1})
    m.mbind(task, *at(2, 2), MPOL_BIND, {1})


def bind_then_protect(m: "Machine", task: Task) -> None:
    """What mbind left apart, the next mprotect joins."""
    bind_two_halves(m, task)
    m.call(mprotect.sys_mprotect(m.k, task, A, 4 * PAGE, PROT_READ))


def bind_then_map(m: "Machine", task: Task) -> None:
    """A new mapping has no policy."""
    mapped(m, task, 0, 2)
    m.mbind(task, *at(0, 2), MPOL_BIND, {1})
    mapped(m, task, 2, 2)


def bind_in_the_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.mbind(task, *at(2, 2), MPOL_INTERLEAVE, {0, 1})


def unmap_middle(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.call(mmap.sys_munmap(m.k, task, A + 2 * PAGE, 2 * PAGE))


def unmap_and_map(m: "Machine", task: Task) -> None:
    unmap_middle(m, task)
    mapped(m, task, 2, 2)


def unmap_touched_and_map(m: "Machine", task: Task) -> None:
    mapped(m, task, 0, 6)
    m.touch(task, A, 6)
    m.call(mmap.sys_munmap(m.k, task, A + 2 * PAGE, 2 * PAGE))
    mapped(m, task, 2, 2)


#: Name: the VMAs that are left, as pages from the base.
VMAS: dict[Steps, list[tuple[int, int]]] = {
    two_maps: [(0, 5)],
    map_below: [(0, 5)],
    map_between: [(0, 6)],
    map_with_gap: [(0, 2), (3, 5)],
    map_other_prot: [(0, 2), (2, 4)],
    map_locked: [(0, 2), (2, 4)],
    map_both_touched: [(0, 3), (3, 5)],
    map_one_touched: [(0, 4)],
    map_over_the_middle: [(0, 6)],
    protect_middle: [(0, 2), (2, 4), (4, 6)],
    protect_and_back: [(0, 6)],
    protect_touched_and_back: [(0, 6)],
    protect_piecewise: [(0, 3)],
    protect_across: [(0, 1), (1, 2), (2, 3), (3, 4)],  # one of the two could be written to: it stays accounted for
    lock_middle: [(0, 2), (2, 4), (4, 6)],
    lock_and_back: [(0, 6)],
    lock_two_halves: [(0, 4)],
    bind_half: [(0, 2), (2, 4)],
    bind_and_back: [(0, 2), (2, 4)],
    bind_two_halves: [(0, 2), (2, 4)],
    bind_then_protect: [(0, 4)],
    bind_then_map: [(0, 2), (2, 4)],
    bind_in_the_middle: [(0, 2), (2, 4), (4, 6)],
    unmap_middle: [(0, 2), (4, 6)],
    unmap_and_map: [(0, 6)],
    unmap_touched_and_map: [(0, 6)],
}


@pytest.mark.parametrize(("steps", "vmas"), VMAS.items(), ids=[steps.__name__ for steps in VMAS])
def test_vmas_are_merged_and_split(
    machine: "Callable[..., Machine]", steps: Steps, vmas: list[tuple[int, int]]
) -> None:
    """mmap, mprotect, mlock merge what is alike, mbind never does; a split keeps the offset of every page."""
    m = machine()
    task = m.attach()
    steps(m, task)
    left: list[VmArea] = list(task.mm.vmas)
    assert [((vma.vm_start - A) // PAGE, (vma.vm_end - A) // PAGE) for vma in left] == vmas
    assert [vma.vm_pgoff for vma in left] == [A // PAGE + first for first, _ in vmas]


def test_an_interleave_goes_on_across_a_split(machine: "Callable[..., Machine]") -> None:
    """Pages keep their node when their VMA is cut: the offset counts from where it was mapped."""
    m = machine()
    task = m.attach()
    addr = m.mmap(task, 8)
    m.mbind(task, addr, 8, MPOL_INTERLEAVE, {0, 1})
    m.call(mprotect.sys_mprotect(m.k, task, addr + 3 * PAGE, PAGE, PROT_READ))
    m.call(mmap.sys_munmap(m.k, task, addr, PAGE))
    m.call(mprotect.sys_mprotect(m.k, task, addr + 3 * PAGE, PAGE, RW))
    m.touch(task, addr + PAGE, 7)
    first = (addr // PAGE) % 2
    assert m.where(task, addr + PAGE, 7) == [(first + i) % 2 for i in range(1, 8)]


# -- the host's own kernel ---------------------------------------------------------------------------------------------

HOST_PAGES = 24
MARGIN = 2
MAP_NORESERVE = 0x4000
PERMISSIONS = ((PROT_READ, "r"), (PROT_WRITE, "w"), (PROT_EXEC, "x"))
Areas = list[tuple[int, int, str]]


class HostRange:
    """A range of this very process: what the host's kernel makes of the same calls."""

    def __init__(self) -> None:
        """Reserved without any right; mappings of other parts of the process stay out of it while it is whole."""
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.base = 0
        self.base = self.mmap(-MARGIN, HOST_PAGES + 2 * MARGIN, 0, 0) + MARGIN * PAGE

    def mmap(self, first: int, pages: int, prot: int, flags: int = MAP_FIXED) -> int:
        wanted = self.base + first * PAGE if flags else None
        got = self.libc.mmap(wanted, pages * PAGE, prot, PRIVATE | MAP_NORESERVE | flags, -1, 0)
        assert got not in (None, (1 << 64) - 1), errno.errorcode[ctypes.get_errno()]
        return int(got)

    def munmap(self, first: int, pages: int) -> int:
        failed = self.libc.munmap(self.base + first * PAGE, pages * PAGE)
        return ctypes.get_errno() if failed else 0

    def mprotect(self, first: int, pages: int, prot: int) -> int:
        failed = self.libc.mprotect(self.base + first * PAGE, pages * PAGE, prot)
        return ctypes.get_errno() if failed else 0

    def areas(self) -> Areas:
        """The mappings inside of the range, in pages from its base."""
        found = []
        for line in Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines():
            span, permissions = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            first = max((start - self.base) // PAGE, 0)
            last = min((end - self.base) // PAGE, HOST_PAGES)
            if first < last:
                found.append((first, last, permissions[:3]))
        return found

    def close(self) -> None:
        self.munmap(-MARGIN, HOST_PAGES + 2 * MARGIN)


@contextlib.contextmanager
def host_range() -> Iterator[HostRange]:
    host = HostRange()
    try:
        yield host
    finally:
        host.close()


def core_areas(task: Task, base: int) -> Areas:
    found = []
    for vma in task.mm.vmas:
        first, last = max((vma.vm_start - base) // PAGE, 0), min((vma.vm_end - base) // PAGE, HOST_PAGES)
        if first < last:
            found.append((first, last, "".join(c if vma.vm_flags & bit else "-" for bit, c in PERMISSIONS)))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_mappings_are_those_of_the_host_kernel(machine: "Callable[..., Machine]", seed: int) -> None:
    """The same calls give the same mappings, merged and split alike, and the same errors as on the host."""
    m = machine()
    task = m.attach()
    base = A + MARGIN * PAGE
    m.mmap(task, HOST_PAGES + 2 * MARGIN, A, 0, MAP_FIXED | MAP_NORESERVE)
    rng = random.Random(seed)
    with host_range() as host:
        for _ in range(60):
            first = rng.randrange(HOST_PAGES)
            pages = rng.randint(1, min(8, HOST_PAGES - first))
            prot = rng.choice([0, PROT_READ, RW, RW, PROT_READ | PROT_EXEC])
            addr, length = base + first * PAGE, pages * PAGE
            call = rng.choice(["mmap", "mmap", "mprotect", "mprotect", "munmap"])
            if call == "mmap":
                host.mmap(first, pages, prot)
                m.mmap(task, pages, addr, prot, MAP_FIXED | MAP_NORESERVE)
            elif call == "munmap":
                assert host.munmap(first, pages) == errno_of(
                    lambda: m.call(mmap.sys_munmap(m.k, task, addr, length))  # noqa: B023 - called at once
                )
            else:
                assert host.mprotect(first, pages, prot) == errno_of(
                    lambda: m.call(mprotect.sys_mprotect(m.k, task, addr, length, prot))  # noqa: B023 - called at once
                )
            assert core_areas(task, base) == host.areas()
