"""What moves pages under the feet of those who use them: policies, migration, reclaim on request, locks."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import numaemu as nm
from numaemu.stress.member import Member
from numaemu.stress.plan import PAGE_BYTES
from numaemu_core.uapi import MPOL_F_RELATIVE_NODES, MPOL_F_STATIC_NODES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numaemu_core.columns import I8

_MBIND_FLAGS: Final = (
    0,
    nm.MPOL_MF_STRICT,
    nm.MPOL_MF_MOVE,
    nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT,
    nm.MPOL_MF_MOVE_ALL,
    nm.MPOL_MF_MOVE_ALL | nm.MPOL_MF_STRICT,
    nm.MPOL_MF_MOVE | nm.MPOL_MF_MOVE_ALL | nm.MPOL_MF_STRICT,
)
#: Modes that go without nodes, with one, and with any.
_WITHOUT: Final = (nm.MPOL_DEFAULT, nm.MPOL_LOCAL)


class Mover(Member):
    """Calls that change where pages are, and never what they hold."""

    def movers(self) -> list[Callable[[], None]]:
        """All of them, as often as each is wanted."""
        choices = [self.move] * 8 + [self.migrate] * 2 + [self.migrate_other, self.page_out, self.policy, self.lock]
        choices += [self.cpuset]
        return choices + [self.move_pages] * (3 if self.profile.move_pages else 0)

    def draw_policy(self) -> tuple[int, set[int]]:
        """A mode, maybe with a mode flag, and its nodes."""
        known = range(self.profile.mode_max + 1)
        mode = self.random.choice([*known, nm.MPOL_BIND])
        if mode in _WITHOUT:
            return mode, set()
        nodes = set(self.random.sample(self.nodes, self.random.randint(1, len(self.nodes))))
        flags = [flag for flag in (MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES) if flag & self.profile.mode_flags]
        return mode | self.random.choice([0, 0, *flags]), nodes

    def policy(self) -> None:
        """Another policy for the task, or another CPU."""
        self.row.count("policies")
        if self.random.random() < 1 / 2:
            cpus = [cpu for node in self.machine.topology.nodes for cpu in node.cpus]
            self.task.set_cpu(self.random.choice(cpus))
        else:
            self.task.set_mempolicy(*self.draw_policy())

    def move(self) -> None:
        """A policy for some pages; those that do not follow it go."""
        area, first, count = self.some()
        flags = self.random.choice(_MBIND_FLAGS)
        mode, nodes = self.draw_policy()
        self.row.count("mbinds")
        address, length = area.address(first), count * PAGE_BYTES
        self._counting(address, length, lambda: self.task.mbind(address, length, mode, nodes, flags))

    def migrate(self) -> None:
        """All pages of the task leave some nodes."""
        self.row.count("migrations")
        area = self.areas[-2]
        self._counting(area.base, len(area) * PAGE_BYTES, lambda: self.task.migrate_pages(0, *self._two_sets()))

    def migrate_other(self) -> None:
        """All pages of somebody else's task leave some nodes."""
        self.row.count("migrations_of_others")
        pids = self.board.task_pids()
        self.task.migrate_pages(self.random.choice(pids) if pids else 0, *self._two_sets())

    def move_pages(self) -> None:
        """Single pages go, each to a node of its own."""
        area, first, count = self.some()
        addresses = [area.address(page) for page in range(first, first + count)]
        nodes = [self.random.choice(self.nodes) for _ in addresses]
        flags = self.random.choice((nm.MPOL_MF_MOVE, nm.MPOL_MF_MOVE_ALL))
        self.row.count("moves_of_pages")
        length = count * PAGE_BYTES
        self._counting(addresses[0], length, lambda: self.task.move_pages(0, addresses, nodes, flags))

    def cpuset(self) -> None:
        """Some nodes only, or all of them again."""
        self.row.count("cpusets")
        few = self.random.sample(self.nodes, self.random.randint(max(1, len(self.nodes) - 1), len(self.nodes)))
        self.task.set_cpuset(few if self.random.random() < 1 / 2 else self.nodes)

    def page_out(self) -> None:
        """Some pages leave memory, or today become the next ones to leave."""
        area, first, count = self.some()
        cold = self.profile.madvise_of_today and self.random.random() < 1 / 4
        self.row.count("pageouts")
        advice = nm.MADV_COLD if cold else nm.MADV_PAGEOUT
        self.task.madvise(area.address(first), count * PAGE_BYTES, advice)

    def lock(self) -> None:
        """Some pages must stay in memory for a moment."""
        area, first, count = self.some()
        address, length = area.address(first), count * PAGE_BYTES
        self.row.count("locks")
        try:
            self.task.mlock(address, length)
        finally:
            try:
                self.task.munlock(address, length)
            except OSError as refused:
                if refused.errno != errno.ENOMEM:
                    raise

    def _two_sets(self) -> tuple[set[int], set[int]]:
        """Nodes to leave, and nodes to go to."""
        old = set(self.random.sample(self.nodes, self.random.randint(1, len(self.nodes) - 1)))
        new = set(self.random.sample(self.nodes, self.random.randint(1, len(self.nodes))))
        return old, new - old or new

    def _counting(self, address: int, length: int, action: Callable[[], Any]) -> None:
        """Count the pages that are not on their node any more after a call; others move some, too."""
        before: I8 = self.task.where(address, length)
        try:
            action()
        finally:
            after: I8 = self.task.where(address, length)
            self.row.count("pages_moved", int(np.count_nonzero((before >= 0) & (before != after))))
