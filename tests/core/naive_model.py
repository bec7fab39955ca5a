"""A machine as plain dicts: what calls give, what is read, which policies rule, and where pages may be.

The model knows nothing of frames, entries, slots and lists. A page of an address space says what it shows: a `Cell` of
its own, or that of a file. Where the kernel is free, or this model does not care, a set says which nodes are right;
whoever compares (test_model) takes over what it saw, so that a doubt lives for one step. Addresses are page numbers,
nodes sets of numbers, None the node of a page that is not in memory.

A call is a method that gives `(errnos, done)`: which of them may come, and what is so once one of them has come.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final

from numaemu_core.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
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

Nodes = frozenset[int | None]
Answer = tuple[set[int], Callable[[int], None]]

NOWHERE: Final[Nodes] = frozenset({None})
#: Accessed entries of a page from which on the passes of an eviction may run out.
MANY_MAPPERS: Final = 9


@dataclass(frozen=True)
class Policy:
    """A mode and its nodes as the kernel keeps them."""

    mode: int
    nodes: frozenset[int] = frozenset()


@dataclass(eq=False)
class Cell:
    """The bytes of one page, all the same, and where they may be. Forks share cells, and so do mappings of a file."""

    byte: int = 0
    where: Nodes = NOWHERE
    #: Somebody could write to it through a shared mapping, or has: it cannot be dropped.
    written: bool = False


@dataclass(eq=False)
class Thing:
    """A file or shared anonymous memory: pages and policies by file page."""

    kind: str
    name: str
    length: int
    #: Where an interleave over its pages begins, in mappings that share it and in private ones.
    shift: int = 0
    private_shift: int = 0
    cells: dict[int, Cell] = field(default_factory=dict)
    policies: dict[int, Policy] = field(default_factory=dict)
    #: Pages whose policy a merge of mappings may have changed, with what it may be now.
    doubts: dict[int, Policy | None] = field(default_factory=dict)

    @property
    def has_policies(self) -> bool:
        """Do policies belong to it and not to its mappings?"""
        return self.kind in ("tmpfs", "anon")


@dataclass(eq=False)
class Page:
    """One mapped page of one address space."""

    prot: int
    #: Its page number in `thing`, or for private anonymous memory what an interleave goes by; None: not known.
    index: int | None
    thing: Thing | None = None
    shared: bool = False
    #: A shared mapping of a file that was opened for writing: it may become writable, and counts as writable.
    may_write: bool = True
    locked: bool = False
    policy: Policy | None = None
    #: What was written privately.
    own: Cell | None = None
    #: What `where` may say: the node, or None where no page is mapped.
    may: Nodes = NOWHERE
    #: The mapping has had private pages, or may have: its pages keep their index when they move.
    has_anon: bool = False
    may_have_anon: bool = False

    @property
    def cell(self) -> Cell | None:
        """What it shows; None: zeros that nobody has allocated."""
        if self.own is not None or self.thing is None or self.index is None:
            return self.own
        return self.thing.cells.get(self.index)

    @property
    def node(self) -> int | None:
        """The node of what is mapped there, once that is certain."""
        (node,) = self.may
        return node

    @property
    def beyond_end(self) -> bool:
        """Does the file end before it?"""
        return self.thing is not None and self.index is not None and self.index >= self.thing.length

    def allows(self, *, write: bool) -> bool:
        """May it be accessed so?"""
        return bool(self.prot & (PROT_WRITE if write else PROT_READ | PROT_EXEC))


@dataclass(eq=False)
class Space:
    """One address space."""

    brk: int
    pages: dict[int, Page] = field(default_factory=dict)
    #: Where mappings may begin or end although the pages on both sides are alike.
    cuts: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Who:
    """A task."""

    space: Space
    cpu: int = 0
    policy: Policy | None = None
    #: The node that an interleave without an offset takes next.
    il_next: int = 0
    privileged: bool = False


@dataclass(eq=False)
class World:
    """Everything. `today`: 6.12, else the kernel of 2005. `orders`: the nodes that each node tries, in order."""

    today: bool
    orders: dict[int, tuple[int, ...]]
    spaces: list[Space] = field(default_factory=list)
    whos: list[Who] = field(default_factory=list)
    files: dict[str, Thing] = field(default_factory=dict)
    #: Nothing is certain about places: memory or swap is so short that pages come and go.
    loose: bool = False

    @property
    def online(self) -> frozenset[int]:
        """All nodes; each has memory."""
        return frozenset(self.orders)

    # -- looking around ------------------------------------------------------------------------------------------------

    def mappers(self, cell: Cell) -> list[Page]:
        """Every page that shows this cell."""
        return [page for space in self.spaces for page in space.pages.values() if page.cell is cell]

    def present(self, cell: Cell) -> list[Page]:
        """Those of them that map its frame now."""
        return [page for page in self.mappers(cell) if page.node is not None]

    def is_shared(self, cell: Cell) -> bool:
        """Do several pages own it, mapped or in swap?"""
        return sum(page.own is cell for space in self.spaces for page in space.pages.values()) > 1

    def staying(self) -> int:
        """How many pages at most cannot leave memory: those that somebody has locked, and written ones of ramfs."""
        locked = [page for space in self.spaces for page in space.pages.values() if page.locked]
        empty = sum(page.cell is None for page in locked)
        ram = {
            id(c) for thing in self.files.values() if thing.kind == "ramfs" for c in thing.cells.values() if c.written
        }
        return empty + len({id(page.cell) for page in locked if page.cell is not None} | ram)

    def is_bound(self) -> bool:
        """May somebody want memory of some nodes only?"""
        things = {page.thing for space in self.spaces for page in space.pages.values() if page.thing is not None}
        policies = [who.policy for who in self.whos]
        policies += [page.policy for space in self.spaces for page in space.pages.values()]
        policies += [policy for thing in things | set(self.files.values()) for policy in thing.policies.values()]
        return any(policy is not None and policy.mode == MPOL_BIND for policy in policies)

    # -- which node ----------------------------------------------------------------------------------------------------

    def choose(self, who: Who, policy: Policy | None, index: int | None) -> Nodes:
        """Where a new page may go; nodes are never full."""
        order = self.orders[who.cpu]
        if policy is None or policy.mode == MPOL_LOCAL or not policy.nodes:
            return frozenset(order[:1])
        if policy.mode == MPOL_INTERLEAVE:
            ring = sorted(policy.nodes)
            return frozenset(ring) if index is None else frozenset({ring[self._cut(index) % len(ring)]})
        if policy.mode == MPOL_BIND and self.today:
            return frozenset({next(node for node in order if node in policy.nodes)})
        return frozenset({min(policy.nodes)})

    def _cut(self, index: int) -> int:
        return index if self.today else index & 0xFFFFFFFF

    def place_private(self, who: Who, page: Page) -> Nodes:
        """Where a page that is written privately goes."""
        thing, index = page.thing, page.index
        if thing is None or not thing.has_policies or index is None:
            return self.choose(who, page.policy or who.policy, index)
        policy = thing.policies.get(index) or (who.policy if self.today else None)
        return self.choose(who, policy, index + thing.private_shift)

    def place_of_thing(self, who: Who, thing: Thing, index: int) -> Nodes:
        """Where a page of an object goes; page cache of an interleaving task goes round and round."""
        if thing.has_policies:
            return self.choose(who, thing.policies.get(index) or who.policy, index + thing.shift)
        if who.policy is not None and who.policy.mode == MPOL_INTERLEAVE:
            node, ring = who.il_next, sorted(who.policy.nodes)
            who.il_next = next((after for after in ring if after > node), ring[0])
            return frozenset({node})
        return self.choose(who, who.policy, None)

    # -- touching ------------------------------------------------------------------------------------------------------

    def bring(self, cell: Cell, place: Callable[[], Nodes]) -> None:
        """Have a cell in memory: where it is, or where it is placed now."""
        if None in cell.where:
            cell.where = (cell.where - NOWHERE) | place()

    def cell_of_thing(self, who: Who, thing: Thing, index: int) -> Cell:
        """A page of an object, in memory."""
        cell = thing.cells.setdefault(index, Cell())
        self.bring(cell, lambda: self.place_of_thing(who, thing, index))
        return cell

    def touch(self, who: Who, pages: Iterable[Page], *, write: bool) -> None:
        """Pages are accessed, all of which allow it."""
        pages = list(pages)
        for page in pages:  # files first: a fault on many pages reads them in before it copies any
            if page.thing is not None and page.own is None and page.index is not None and None in page.may:
                self.cell_of_thing(who, page.thing, page.index)
        for page in pages:
            self._touch(who, page, write=write)

    def _touch(self, who: Who, page: Page, *, write: bool) -> None:
        cell = page.cell
        if page.shared:
            assert cell is not None
            cell.written |= write
            page.may = cell.where
            return
        if page.own is not None:
            self.bring(page.own, lambda: self.place_private(who, page))
        if write and (page.own is None or self.is_shared(page.own)):
            page.own = Cell(cell.byte if cell is not None else 0, self.place_private(who, page))
            page.has_anon = True
            cell = page.own
        page.may = cell.where if cell is not None else NOWHERE

    def around(self, space: Space, pages: Iterable[Page]) -> None:
        """A read fault may map pages of the same file that are in memory near by (6.x)."""
        read = {id(page.thing) for page in pages if page.own is None and page.thing is not None}
        for page in space.pages.values() if self.today else ():
            if id(page.thing) in read and page.own is None and page.cell is not None and page.may == NOWHERE:
                page.may = page.cell.where | NOWHERE

    # -- memory mapping ------------------------------------------------------------------------------------------------

    def until_hole(self, space: Space, first: int, end: int) -> list[Page]:
        """The pages of a range in front of its first hole."""
        found = []
        for vpn in range(first, end):
            if vpn not in space.pages:
                break
            found.append(space.pages[vpn])
        return found

    def drop(self, space: Space, vpns: Iterable[int]) -> None:
        """Pages are mapped no more."""
        things = set()
        for vpn in list(vpns):
            page = space.pages.pop(vpn, None)
            if page is not None and page.thing is not None:
                things.add(page.thing)
        for thing in things:
            if thing.kind == "anon" and not any(p.thing is thing for s in self.spaces for p in s.pages.values()):
                thing.cells.clear()

    def map(self, who: Who, first: int, pages: list[Page], *, populate: bool) -> None:
        """New pages take the place of what was there."""
        space = who.space
        self.drop(space, range(first, first + len(pages)))
        space.pages.update(zip(range(first, first + len(pages)), pages, strict=True))
        space.cuts |= {first, first + len(pages)}
        if populate:
            self.populate(who, pages)

    def populate(self, who: Who, pages: Iterable[Page]) -> None:
        """Pages come in for what they are used for, up to the first that cannot."""
        wanted = []
        trouble = []
        for page in pages:
            if page.beyond_end:
                trouble = [page] if page.prot and not self._populates_for_writing(page) else []
                break
            if page.prot:
                wanted.append(page)
        for write, group in groupby(wanted, self._populates_for_writing):
            run = list(group)
            self.touch(who, run, write=write)
            if not write:
                self.around(who.space, run)
        self.around(who.space, trouble)

    def _populates_for_writing(self, page: Page) -> bool:
        return bool(page.prot & PROT_WRITE) and not (self.today and page.shared and page.may_write)

    def lowest_hole(self, space: Space, start: int, count: int) -> int:
        """Where a mapping goes that says nothing of its place."""
        first = start
        while any(vpn in space.pages for vpn in range(first, first + count)):
            first += 1
        return first

    def munmap(self, who: Who, first: int, end: int) -> Answer:
        """Always possible."""

        def done(_errno: int) -> None:
            self.drop(who.space, range(first, end))
            who.space.cuts |= {first, end}

        return {0}, done

    def mprotect(self, who: Who, first: int, end: int, prot: int) -> Answer:
        """Up to the first hole, or to the first page that may never be written."""
        changed = []
        expected = 0
        for vpn in range(first, end):
            page = who.space.pages.get(vpn)
            if page is None or (prot & PROT_WRITE and not page.may_write):
                expected = errno.ENOMEM if page is None else errno.EACCES
                break
            changed.append(page)

        def done(_errno: int) -> None:
            filled = [page for page in changed if self.today and page.locked and not page.shared]
            filled = [page for page in filled if prot & PROT_WRITE and not page.prot & PROT_WRITE]
            for page in changed:
                page.prot = prot
            who.space.cuts |= {first, end}
            self.populate(who, filled)

        return {expected}, done

    def mlock(self, who: Who, first: int, end: int, *, lock: bool) -> Answer:
        """Up to the first hole; what is locked comes in."""
        changed = self.until_hole(who.space, first, end)
        whole = len(changed) == end - first
        expected = 0 if whole else errno.ENOMEM
        wanted = (
            [page for page in changed if self.today or not page.locked] if lock and (whole or not self.today) else []
        )
        if self.today and whole and lock and any(page.beyond_end or not page.prot for page in changed):
            expected = errno.ENOMEM

        def done(_errno: int) -> None:
            for page in changed:
                page.locked = lock
            who.space.cuts |= {first, end}
            if self.today:
                self.populate(who, self._up_to_trouble(wanted))
            else:
                self.populate(who, [page for page in wanted if not page.beyond_end])

        return {expected}, done

    @staticmethod
    def _up_to_trouble(pages: list[Page]) -> Iterator[Page]:
        for page in pages:
            if not page.prot:
                return
            yield page
            if page.beyond_end:
                return

    def madvise(self, who: Who, first: int, end: int, *, pageout: bool) -> Answer:
        """DONTNEED or PAGEOUT: up to the first locked mapping; a hole is told at the end."""
        inside = [who.space.pages[vpn] for vpn in range(first, end) if vpn in who.space.pages]
        expected = 0 if len(inside) == end - first else errno.ENOMEM
        changed = []
        for page in inside:
            if page.locked:
                expected = errno.EINVAL
                break
            changed.append(page)

        def done(_errno: int) -> None:
            for page in changed:
                if pageout:
                    self._page_out(page)
                else:
                    page.own, page.may = None, NOWHERE

        return {expected}, done

    def _page_out(self, page: Page) -> None:
        """A page that one entry maps leaves, unless it is one of ramfs that was written."""
        cell = page.cell
        if cell is None or page.node is None or len(self.present(cell)) > 1:
            return
        page.may = NOWHERE
        if not self.stays(page):
            cell.where = NOWHERE

    @staticmethod
    def stays(page: Page) -> bool:
        """Written pages of ramfs have nowhere to go."""
        cell = page.cell
        return (
            page.own is None and page.thing is not None and page.thing.kind == "ramfs" and bool(cell and cell.written)
        )

    def mremap(self, who: Who, first: int, count: int, target: int, wanted: int) -> Answer:
        """MREMAP_FIXED: the pages move to another place, and there may be more or fewer of them then."""
        space = who.space
        if self.today and first not in space.pages:
            return {errno.EFAULT}, lambda _errno: None
        if first + count > target and target + wanted > first:
            return {errno.EINVAL}, lambda _errno: None

        def done(result: int) -> None:
            space.cuts |= {first, first + count, first + wanted, target, target + wanted}
            self.drop(space, range(target, target + wanted))
            self.drop(space, range(first + wanted, first + count))
            if not result:
                self._move(who, first, min(count, wanted), target, wanted)

        old = range(first, first + min(count, wanted))
        if any(vpn not in space.pages or target <= vpn < target + wanted for vpn in old):
            return {errno.EFAULT}, done
        split = any(self.differ(space, vpn) for vpn in old[1:])
        doubt = any(vpn in space.cuts for vpn in old[1:])
        return ({errno.EFAULT} if split else {0, errno.EFAULT} if doubt else {0}), done

    def _move(self, who: Who, first: int, count: int, target: int, wanted: int) -> None:
        space = who.space
        old = [space.pages.pop(first + i) for i in range(count)]
        known = any(page.has_anon for page in old)
        fresh = not any(page.may_have_anon for page in old)
        moved = []
        for i in range(wanted):
            source = old[min(i, count - 1)]
            page = source if i < count else replace(source, own=None, may=NOWHERE, has_anon=False)
            if page.index is not None and i >= count:
                page.index += i - count + 1
            if page.thing is None and not known:
                page.index = target + i if fresh else None
            moved.append(page)
        space.pages.update(zip(range(target, target + wanted), moved, strict=True))
        if any(page.locked for page in moved):  # its old pages may be out, and stay so
            self.populate(who, moved[count:])

    def spread_anon(self) -> None:
        """Whatever touches a mapping that has had private pages may be one with it."""
        for space in self.spaces:
            run: list[Page] = []
            for vpn in [*sorted(space.pages), -1]:
                if run and (vpn - 1) not in space.pages:
                    if any(page.has_anon or page.may_have_anon for page in run):
                        for page in run:
                            page.may_have_anon = True
                    run = []
                if vpn >= 0:
                    run.append(space.pages[vpn])

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def fork(self, who: Who) -> Who:
        """A child; pages of files it faults in anew, unless its mapping has private pages, too."""
        child = Space(who.space.brk, cuts=set(who.space.cuts))
        for vpn, page in who.space.pages.items():
            may = page.may if page.own is not None else page.may | NOWHERE if not page.shared else NOWHERE
            child.pages[vpn] = replace(page, locked=False, may=may)
        self.spaces.append(child)
        twin = replace(who, space=child)
        self.whos.append(twin)
        return twin

    def exit(self, who: Who) -> None:
        """A task ends, and with the last one its space."""
        self.whos.remove(who)
        if all(other.space is not who.space for other in self.whos):
            self.drop(who.space, list(who.space.pages))
            self.spaces.remove(who.space)

    # -- policies ------------------------------------------------------------------------------------------------------

    def make_policy(self, mode: int, nodes: frozenset[int], *, of_task: bool) -> Policy | int | None:
        """A policy, None for the default one, or an errno."""
        there = nodes & self.online
        if of_task and not self.today:
            nodes = there
        if (mode > MPOL_INTERLEAVE and not self.today) or (mode == MPOL_DEFAULT and nodes):
            return errno.EINVAL
        if mode == MPOL_DEFAULT:
            return None
        if mode in (MPOL_PREFERRED, MPOL_LOCAL) and not nodes:
            return Policy(MPOL_LOCAL if self.today else mode)
        if mode == MPOL_LOCAL or not nodes or (nodes != there and not self.today) or not there:
            return errno.EINVAL
        return Policy(mode, frozenset({min(there)}) if mode == MPOL_PREFERRED else there)

    def set_mempolicy(self, who: Who, mode: int, nodes: frozenset[int]) -> Answer:
        """Of one task."""
        new = self.make_policy(mode, nodes, of_task=True)
        if isinstance(new, int):
            return {new}, lambda _errno: None

        def done(_errno: int) -> None:
            who.policy = new
            if new is not None and new.mode == MPOL_INTERLEAVE:
                who.il_next = min(new.nodes)

        return {0}, done

    def mbind(self, who: Who, first: int, end: int, mode: int, nodes: frozenset[int], flags: int) -> Answer:
        """Policy, and with MOVE the move."""
        nothing: Callable[[int], None] = lambda _errno: None  # noqa: E731 - a call that changes nothing
        if mode > MPOL_INTERLEAVE and not self.today:
            return {errno.EINVAL}, nothing
        if flags & MPOL_MF_MOVE_ALL and not who.privileged:
            return {errno.EPERM}, nothing
        new = self.make_policy(mode, nodes, of_task=False)
        if isinstance(new, int):
            return {new}, nothing
        if mode == MPOL_DEFAULT:
            flags &= ~MPOL_MF_STRICT
        space = who.space
        inside = [vpn for vpn in range(first, end) if vpn in space.pages]
        hole = self._hole(space, first, end, inside, anywhere_is_fine=new is None)
        wrong = [vpn for vpn in inside if space.pages[vpn].node not in nodes | NOWHERE]
        if hole is not None:
            early = flags & (MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) == MPOL_MF_STRICT
            return self._torn(space, hole, wrong if early else []), nothing
        move = flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL)
        if flags & MPOL_MF_STRICT and not move and wrong:
            return {errno.EIO}, nothing
        queued = [space.pages[vpn] for vpn in wrong] if move else []
        queued = [page for page in queued if self._is_queued(space, page, flags)]
        errnos = self._errnos_of_move(queued, flags) if flags & MPOL_MF_STRICT and move else {0}

        def done(_errno: int) -> None:
            space.cuts |= {first, end}
            self._set_policy(space, inside, new)
            for page in queued:
                if self.today:
                    self._migrate(page, self._target(who, new))
                else:
                    self._evict(page)

        return errnos, done

    def _hole(
        self, space: Space, first: int, end: int, inside: list[int], *, anywhere_is_fine: bool
    ) -> tuple[int, int] | None:
        """The pages that are looked at before the range is found torn, or None: it is whole enough."""
        highest = max(space.pages, default=-1)
        if highest < first or (self.today and not inside):
            return first, first
        if anywhere_is_fine or not inside:
            return None
        if self.today and inside[0] > first:
            return first, first
        gaps = [vpn for vpn in inside[1:] if vpn - 1 not in space.pages]
        if self.today:
            gap = next((vpn for vpn in range(first, end) if vpn not in space.pages), None)
            return None if gap is None else (first, gap)
        if gaps:
            return first, gaps[0]
        return (first, end) if inside[-1] < end - 1 and highest == inside[-1] else None

    def _torn(self, space: Space, hole: tuple[int, int], wrong: list[int]) -> set[int]:
        """EFAULT, unless a page on a wrong node was met before: mappings are looked at one after the other."""
        before = [vpn for vpn in wrong if hole[0] <= vpn < hole[1]]
        if not before:
            return {errno.EFAULT}
        if not self.today and hole[1] in space.pages:  # a gap between two mappings: what lies before was scanned
            return {errno.EIO}
        last = hole[1] - 1
        while last not in space.pages:
            last -= 1
        borders = [vpn for vpn in range(before[0] + 1, last + 1) if vpn - 1 not in space.pages]
        certain = any(self.differ(space, vpn) for vpn in range(before[0] + 1, last + 1)) or borders
        doubt = any(vpn in space.cuts for vpn in range(before[0] + 1, last + 1))
        return {errno.EIO} if certain else {errno.EIO, errno.EFAULT} if doubt else {errno.EFAULT}

    def differ(self, space: Space, vpn: int) -> bool:
        """Is there a border of mappings in front of this page for certain?"""
        if vpn not in space.pages or vpn - 1 not in space.pages:
            return vpn in space.pages or vpn - 1 in space.pages
        return self.look(space.pages[vpn - 1], vpn - 1) != self.look(space.pages[vpn], vpn)

    @staticmethod
    def look(page: Page, vpn: int) -> tuple[object, ...]:
        """What is the same in all pages of a mapping."""
        offset = None if page.index is None else page.index - vpn
        return page.prot, page.locked, page.shared, page.may_write, page.policy, page.thing, offset

    def _set_policy(self, space: Space, inside: list[int], new: Policy | None) -> None:
        for vpn in inside:
            page = space.pages[vpn]
            same = self.today and page.policy == new
            page.policy = new
            thing, index = page.thing, page.index
            if thing is None or not thing.has_policies or index is None:
                continue
            old = thing.policies.pop(index, None)
            if new is not None:
                thing.policies[index] = new
            if same:
                thing.doubts[index] = old
        if self.today:
            self._doubt_neighbours(space, inside, new)

    def _doubt_neighbours(self, space: Space, inside: list[int], new: Policy | None) -> None:
        """Today mbind sets the policy of the object for whatever the mapping is merged with, too."""
        for start, step in ((inside[0] - 1, -1), (inside[-1] + 1, 1)) if inside else ():
            vpn = start
            while vpn in space.pages and space.pages[vpn].policy == new:
                page = space.pages[vpn]
                if page.thing is not None and page.thing.has_policies and page.index is not None:
                    page.thing.doubts[page.index] = new
                vpn += step

    # -- moving --------------------------------------------------------------------------------------------------------

    def _is_queued(self, space: Space, page: Page, flags: int) -> bool:
        """Does MOVE take this misplaced page?"""
        cell = page.cell
        assert cell is not None
        if self.today:
            return bool(flags & MPOL_MF_MOVE_ALL) or len(self.present(cell)) == 1
        if page.locked and not flags & MPOL_MF_STRICT:
            return False
        if page.own is not None or flags & MPOL_MF_MOVE_ALL:
            return True
        mapped = [(s, p) for s in self.spaces for p in s.pages.values() if p.thing is page.thing]
        return any(p.shared and p.may_write for _, p in mapped) or all(s is space for s, _ in mapped)

    def _errnos_of_move(self, queued: list[Page], flags: int) -> set[int]:
        """0 or EIO: does every queued page leave?"""
        cells = [page.cell for page in queued]
        if any(self.cannot_leave(page) for page in queued):
            return {errno.EIO}
        doubt = self.loose or any(len(self.present(cell)) >= MANY_MAPPERS for cell in cells if cell is not None)
        if self.today and flags & MPOL_MF_MOVE_ALL:
            doubt = doubt or len(set(map(id, cells))) < len(cells)
        return {0, errno.EIO} if doubt else {0}

    def cannot_leave(self, page: Page) -> bool:
        """Is a page one of ramfs that was written, or, in 2005, locked by anybody who maps it?"""
        cell = page.cell
        assert cell is not None
        return self.stays(page) or (not self.today and any(other.locked for other in self.present(cell)))

    def _evict(self, page: Page) -> None:
        """A page goes to swap or is dropped, for all who map it; what cannot leave may be unmapped all the same."""
        cell = page.cell
        assert cell is not None
        there = self.present(cell) if all(len(p.may) == 1 for p in self.mappers(cell)) else []
        stays = self.stays(page)
        locked = any(other.locked for other in there)
        many = self.loose or len(there) >= MANY_MAPPERS
        for other in there:
            other.may = NOWHERE if not locked and not many else other.may if other.locked else other.may | NOWHERE
        if not stays and not locked:
            cell.where = cell.where | NOWHERE if many else NOWHERE

    def _migrate(self, page: Page, nodes: Nodes) -> None:
        """A page is copied to one of these nodes, for all who map it."""
        cell = page.cell
        assert cell is not None
        if self.stays(page):
            return
        cell.where = nodes
        for other in self.mappers(cell):
            if other.may != NOWHERE:
                other.may = nodes

    def _target(self, who: Who, new: Policy | None) -> Nodes:
        """Where today's mbind sends a page; an interleave may begin anywhere."""
        policy = new or who.policy
        return self.choose(who, policy, None)

    def migrate_pages(self, who: Who, target: Who, old: frozenset[int], new: frozenset[int]) -> Answer:
        """All pages of another's space leave the old nodes; a result is given as -1 - result, an errno as itself."""
        nothing: Callable[[int], None] = lambda _errno: None  # noqa: E731 - as above
        if self.today and target is not who and target.privileged and not who.privileged:
            return {errno.EPERM}, nothing
        if new - self.online and not (self.today and who.privileged):
            return {errno.EPERM}, nothing
        new &= self.online
        if self.today and not new:
            return {errno.EINVAL}, nothing
        flags = MPOL_MF_MOVE_ALL if self.today and who.privileged else MPOL_MF_MOVE
        space = target.space
        goals: dict[int | None, int | None] = {node: self._goal(node, old, new) for node in old & self.online}
        wrong = [page for page in space.pages.values() if goals.get(page.node, page.node) != page.node]
        queued = {id(page.cell): page for page in wrong if self._is_queued(space, page, flags)}
        stay = sum(self.cannot_leave(page) for page in queued.values())
        results = {-1 - stay}
        met_twice = self.today and flags & MPOL_MF_MOVE_ALL and len(queued) < len(wrong)
        if self.loose or met_twice or any(len(self.present(p.cell)) >= MANY_MAPPERS for p in wrong if p.cell):
            results = {-1 - count for count in range(len(wrong) + 1)}
        if self.loose and self.today:  # the new node may be full
            results.add(errno.ENOMEM)

        def done(_result: int) -> None:
            for page in queued.values():
                if self.today:
                    self._migrate(page, frozenset({goals[page.node]} if page.node is not None else ()))
                else:
                    self._evict(page)

        return results, done

    def _goal(self, node: int, old: frozenset[int], new: frozenset[int]) -> int | None:
        """Where the pages of an old node go; None: to swap."""
        if not self.today:
            return node if node in new else None
        if len(old) != len(new) and node in new:
            return node
        return sorted(new)[sorted(old).index(node) % len(new)]

    # -- files ---------------------------------------------------------------------------------------------------------

    def pread(self, who: Who, thing: Thing, first: int, end: int) -> list[int]:
        """The byte of each page; holes of tmpfs get no page."""
        found = []
        for index in range(first, min(end, thing.length)):
            cell = thing.cells.get(index)
            if thing.kind != "tmpfs" or (cell is not None and self._is_allocated(cell)):
                cell = self.cell_of_thing(who, thing, index)
            found.append(cell.byte if cell is not None else 0)
        return found

    @staticmethod
    def _is_allocated(cell: Cell) -> bool:
        """Has a page of tmpfs a frame or a slot? One that was only read is dropped when it leaves."""
        return cell.where != NOWHERE or cell.written

    def pwrite(self, who: Who, thing: Thing, first: int, end: int, byte: int) -> None:
        """Pages of a file are written without a mapping."""
        for index in range(first, min(end, thing.length)):
            cell = self.cell_of_thing(who, thing, index)
            cell.byte, cell.written = byte, True
