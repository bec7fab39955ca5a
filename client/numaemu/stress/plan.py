"""What a run is made of: who takes part, how much memory they use, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAGE_BYTES: Final = 4096
NODES: Final = 4
#: What can be killed.
KILLABLE: Final = ("client", "node", "swap", "daemon")

#: Private pages of all workers together at least: so many, that the nodes of a small run are not too small to work.
_PAGES_LEAST: Final = 1536
_PRIVATE_PAGES_LEAST: Final = 96
#: Pages that one operation covers at most, as a rule; and now and then, so that windows stay open for long.
SPAN_PAGES: Final = 24
LONG_SPAN_PAGES: Final = 256
#: Pages that a worker, its companion and its children map shared.
COMMON_PAGES: Final = 16

#: Parts of what is used that are there as memory and, beside it, as swap.
_MEMORY_PART: Final = 0.6
_SWAP_PART: Final = 1.0
_NODE_BYTES_LEAST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file that all workers map: each of them writes its own pages, and reads everybody's."""

    name: str
    kind: str
    pages_each: int


FILES: Final = (
    SharedFile("stress.tmpfs", "tmpfs", 12),
    SharedFile("stress.disk", "disk", 8),
    SharedFile("stress.ramfs", "ramfs", 2),  # never leaves memory
)
#: Numbers of areas, as pages carry them: files from 0, then what lies beside them.
PRIVATE: Final = len(FILES)
COMMON: Final = PRIVATE + 1


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, as asked for; sizes in bytes, None: so that more is used than there is memory, and swap takes the rest.

    Of `clients` processes about a half are workers, each with memory of its own; a quarter are companions that share
    the memory of a worker; a quarter are children that took over a fork of a worker.
    """

    clients: int
    seconds: float
    seed: int
    profile: str = "swap-v3"
    kill: tuple[str, ...] = ()
    memory_bytes: int | None = None
    swap_bytes: int | None = None

    @property
    def companions(self) -> int:
        """Workers that have a companion."""
        return self.clients // 4 or int(self.clients > 2)  # noqa: PLR2004 - three is one of each

    @property
    def children(self) -> int:
        """Adopted children at one time."""
        return self.companions

    @property
    def workers(self) -> int:
        """Workers at one time."""
        return self.clients - self.companions - self.children

    @property
    def private_pages(self) -> int:
        """Pages that each worker has for itself."""
        return max(_PRIVATE_PAGES_LEAST, -(-_PAGES_LEAST // self.workers))

    @property
    def used_pages(self) -> int:
        """What all of them hold together, children at half of their pages: they share the rest."""
        each = self.private_pages + COMMON_PAGES + sum(file.pages_each for file in FILES)
        return self.workers * each + self.children * self.private_pages // 2

    @property
    def node_bytes(self) -> int:
        """Memory of each node."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        return max(_NODE_BYTES_LEAST, int(self.used_pages * _MEMORY_PART) // NODES * PAGE_BYTES)

    @property
    def all_swap_bytes(self) -> int:
        """The swap area."""
        return int(self.used_pages * _SWAP_PART) * PAGE_BYTES if self.swap_bytes is None else self.swap_bytes
