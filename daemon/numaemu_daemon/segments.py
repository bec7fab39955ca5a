"""The machine's memory: each process creates the segments that it owns, and every process maps all of them.

Beside the segments of the layout, the kernel owns two that hold no columns: `journal`, and `mmap_sem`, a file whose
bytes are locked and never read. Init only keeps duplicates of the descriptors, so that a process that died finds its
memory again.
"""

import os
from collections.abc import Container, Iterable, Mapping
from typing import Final

from numaemu_core import limits
from numaemu_core.columns import Columns
from numaemu_core.layout import SEGMENT_GRANULE_BYTES, Column, Layout, pool_name
from numaemu_host import memfd
from numaemu_host.robust import MutexTable

KERNEL: Final = "kernel"
JOURNAL: Final = "journal"
MMAP_SEM: Final = "mmap_sem"

_HOST_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
#: The journal's two halves stand behind a prefix.
_JOURNAL_PREFIX_BYTES: Final = 64
_WORD_BITS: Final = 64
#: The segments that are not in the layout.
_EXTRA: Final = (JOURNAL, MMAP_SEM)


def owner_name(role: str, nid: int | None) -> str:
    """How the layout names the process that owns a segment."""
    return role if nid is None else f"{role}.{nid}"


def owned_names(layout: Layout, owner: str) -> list[str]:
    """Names of the segments that a process creates."""
    names = [name for name, segment in layout.segments.items() if segment.owner == owner]
    return [*names, *_EXTRA] if owner == KERNEL else names


def all_names(layout: Layout) -> list[str]:
    """Names of all segments of the machine."""
    return [*layout.segments, *_EXTRA]


def segment_bytes(layout: Layout, name: str) -> int:
    """Bytes of a segment. The journal is longer where masks of nodes are."""
    if name == MMAP_SEM:
        return -(-limits.MAX_MMS // _HOST_PAGE_BYTES) * _HOST_PAGE_BYTES
    if name != JOURNAL:
        return layout.segments[name].size
    wide = layout.topology.nr_node_ids > _WORD_BITS
    half_bytes = limits.JOURNAL_HALF_BYTES * (limits.JOURNAL_WIDE_FACTOR if wide else 1)
    return -(-(half_bytes * 2 + _JOURNAL_PREFIX_BYTES) // SEGMENT_GRANULE_BYTES) * SEGMENT_GRANULE_BYTES


def allocated_bytes(layout: Layout) -> int:
    """Memory that the machine takes from the host when it starts; sparse segments grow later."""
    return sum(segment.size for segment in layout.segments.values() if not segment.sparse)


def create_owned(layout: Layout, owner: str) -> dict[str, int]:
    """Create the segments of a process: descriptors by name, the caller's to close. OSError where memory is short."""
    fds: dict[str, int] = {}
    try:
        for name in owned_names(layout, owner):
            sparse = name in _EXTRA or layout.segments[name].sparse
            fds[name] = memfd.create(f"numaemu.{name}", segment_bytes(layout, name), preallocate=not sparse)
        if owner == KERNEL:
            _initialise_mutexes(layout, fds["locks"])
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    return fds


def _initialise_mutexes(layout: Layout, fd: int) -> None:
    """Free mutexes for the LRU, zone and swap locks, before anyone else sees them.

    A pte lock is made when its table is first used: making them all would touch memory for every table there could be.
    """
    segment = memfd.Segment(fd, layout.segments["locks"].size)
    try:
        MutexTable(segment.address + _mutex_column(layout).offset, layout.pte_mutex).initialise_range(
            0, layout.pte_mutex
        )
    finally:
        segment.close()


def _mutex_column(layout: Layout) -> Column:
    return next(column for column in layout.segments["locks"].columns if column.name == "mutex")


class MappedMachine:
    """All columns of a machine over its mapped segments.

    Attributes: `columns`, and `mutexes`, the robust mutexes by the indexes of the layout.
    """

    columns: Columns
    mutexes: MutexTable

    def __init__(
        self, layout: Layout, fds: Mapping[str, int], *, names: Iterable[str] = (), populate: Container[str] = ()
    ) -> None:
        """Map the descriptors (they stay the caller's); `names` are further segments to map, such as the journal.

        Segments in `populate` are mapped whole at once: a process that writes there all day saves the host's faults,
        one a page and process, each of which takes longer than to copy the page.

        ValueError if a segment is too small, OSError where the host refuses.
        """
        self._segments: dict[str, memfd.Segment] = {}
        self._frames: memfd.FlatMapping | None = None
        pools = {pool_name(nid) for nid in layout.node_pfns}
        single = [name for name in layout.segments if name not in pools]
        try:
            for name in [*single, *names]:
                self._segments[name] = memfd.Segment(fds[name], segment_bytes(layout, name), populate=name in populate)
            # Pools lie back to back in the order of their nodes: a pfn is an offset.
            parts = [(fds[pool_name(nid)], (end - first) << layout.page_shift) for nid, (first, end) in _pools(layout)]
            whole = [fds[name] for name in pools if name in populate]
            self._frames = memfd.FlatMapping(parts, populate=whole)
        except BaseException:
            self.close()
            raise
        buffers = {name: segment.view for name, segment in self._segments.items()}
        self.columns = Columns(layout, buffers, self._frames.view)
        address = self._segments["locks"].address + _mutex_column(layout).offset
        self.mutexes = MutexTable(address, layout.mutex_count)

    def view(self, name: str) -> memoryview:
        """All bytes of a segment that is mapped singly (not of a pool)."""
        return self._segments[name].view

    def close(self) -> None:
        """Unmap everything. Drop `columns` and every array made from it before: touching one after is a fault."""
        if self._frames is not None:
            self._frames.close()
        for segment in self._segments.values():
            segment.close()


def _pools(layout: Layout) -> list[tuple[int, tuple[int, int]]]:
    return sorted(layout.node_pfns.items(), key=lambda item: item[1])
