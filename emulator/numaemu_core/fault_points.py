"""Named steps at which a process can be made to die or to stop: for tests of what happens then, and for nothing else.

The code says `reach(name)` where a step is; what comes of it is decided at the edge. Unless a machine was started for
such tests (`numaemu_host.fault_board`) nobody listens, and it is a call that does nothing, once a batch and never once
a page. The hit path has no such call at all: a client that is to be made to die gets another one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

#: Told the name of the step that is reached.
Reach = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FaultPoint:
    """Which process gets there, in the course of what, and where exactly that is."""

    role: str
    what: str
    where: str


def unarmed(_name: str) -> None:
    """Nobody listens."""


def _points(role: str, what: str, **steps: str) -> dict[str, FaultPoint]:
    return {f"{what}.{step}".replace(" ", "_"): FaultPoint(role, what, where) for step, where in steps.items()}


#: Every point by its name, in the order in which a newcomer would want to read them.
FAULT_POINTS: Final[Mapping[str, FaultPoint]] = MappingProxyType(
    _points(
        "kernel",
        "fault",
        sem_held="mmap_sem is held for reading, nothing is done",
        frame_taken="frames are allocated, nothing says whose they are",
        identity_set="the frames say whose they are, no entry names them",
        mapped="the entries name the frames",
        single_identity_set="the same for a page alone; pte lock, lru_lock and zone lock are held",
        single_mapped="the entry names the frame of a page alone, no lock but mmap_sem is held",
    )
    | _points(
        "kernel",
        "copy on write",
        copied="the bytes are in the new frame, the entry names the old one",
        replaced="the entry names the new frame, the old one still has its map count",
    )
    | _points(
        "kernel",
        "isolation",
        isolated="pages are off their lists, lru_lock and pte locks are held",
        collected="all pages of the range are collected, no lock but mmap_sem is held",
        put_back="pages that stayed are back on their lists",
    )
    | _points(
        "kernel",
        "swap-out",
        slot_given="pages are in the swap cache with a slot, and mapped",
        entries_cleared="the entries name slots, windows may be open",
        unmapped="no window is open, the dirty bytes are read",
        writeback_set="the pages say that they are being written, nobody was asked to",
        write_asked="the swap node was asked",
        write_confirmed="the swap node has answered, the pages still say that they are being written",
        out_of_cache="the pages have left the swap cache, their frames are not free",
        freed="the frames are free",
    )
    | _points(
        "kernel",
        "swap-in",
        frame_taken="frames are allocated for slots",
        in_cache="slot and frame know each other, the bytes are still to come",
        read="the bytes are there, the frame does not say so",
        mapped="the entries name the frames",
    )
    | _points(
        "kernel",
        "migration",
        entries_marked="the entries say migration, windows may be open",
        windows_closed="no window is open",
        copied="the bytes are in both frames",
        identity_copied="both frames are the page, the entries still say migration",
        moved="the entries name the new frames, the old ones are not free",
    )
    | _points(
        "kernel",
        "fork",
        vmas_told="the journal knows the child's mappings, nothing is copied",
        write_protected="the parent has lost its rights to write, windows may be open",
        windows_closed="no window is open",
        entries_copied="the child's entries are there, no task has them",
        born="the journal knows the child",
    )
    | _points(
        "kernel",
        "exit",
        begun="the task is nobody's, nothing is undone",
        told="the journal knows that the address space is gone, its frames are not free",
        over="everything is free",
    )
    | _points(
        "kernel",
        "unmapping",
        vmas_told="the journal knows that the mapping is gone, its entries are there",
        entries_cleared="the entries are gone, windows may be open",
        windows_closed="no window is open, the frames are not free",
    )
    | _points(
        "kernel",
        "call",
        intent_written="the call is in the journal, nothing is done",
        effects_done="the call is done, its answer is not in the journal",
        answer_written="the answer is in the journal and not sent",
        answer_sent="the answer is on its way",
    )
    | _points(
        "kernel",
        "fsck",
        begun="nothing is on its way, nothing is looked at",
    )
    | _points(
        "kernel",
        "recovery",
        objects_made="tasks, mappings and files are there again",
        entries_mended="entries that a dead daemon left half done are mended",
        windows_waited="no window of before is open",
        frames_settled="frames know their users again",
        compacted="the journal begins anew",
        calls_begun="calls that were on their way have begun again",
    )
    | _points(
        "kernel",
        "lock",
        mmap_sem_read="the daemon has just got an mmap_sem for reading",
        mmap_sem_write="the daemon has just got an mmap_sem for writing",
        page="a task has just got page locks",
        i_mmap="a task has just got the lock of a file's mappings",
        anon_vma="a task has just got the lock of an anon_vma",
        pte="the daemon has just got pte locks",
        lru="the daemon has just got lru_locks",
        swap="the daemon has just got the swap_lock",
        zone="the daemon has just got zone locks",
    )
    | _points(
        "node",
        "cleaning",
        zone_locked="the zone lock is held, nothing is zeroed",
        zeroed="the bytes are zero, the frames still count as unclean; the zone lock is held",
        cleaned="the frames count as clean; the zone lock is held",
        over="the zone lock is free again",
    )
    | _points(
        "node",
        "copying",
        asked="the daemon has asked for a copy",
        half="half of the pages are copied",
        copied="all pages are copied, the daemon does not know",
    )
    | _points(
        "node",
        "kswapd",
        awake="the node watches its watermarks, the daemon waits for its word",
    )
    | _points(
        "swap",
        "writing",
        asked="the daemon has asked to write pages",
        half="half of the pages are written",
        copied="all pages are written, the daemon does not know",
    )
    | _points(
        "swap",
        "reading",
        asked="the daemon has asked to read pages",
        half="half of the pages are read",
        copied="all pages are read, the daemon does not know",
    )
    | _points(
        "client",
        "window",
        read_opened="the counter is odd, nothing was looked at",
        read_accessed="the accessed byte is set, no byte is read",
        read_copied="the bytes are read, the window is open",
        write_opened="the counter is odd, nothing was looked at",
        write_dirtied="the dirty byte is set, no byte is written",
        write_torn="half of the bytes are written",
        write_copied="all bytes are written, the window is open",
        range_opened="the counter is odd, for many pages",
        range_copied="many pages are read or written, the window is open",
    )
    | _points(
        "client",
        "pin",
        sem_held="mmap_sem is held for reading",
        pte_locked="a pte lock is held, the entries are read, nothing is recorded",
        recorded="the records are written, their count is not",
        counted="the records count, the pte lock is held",
        pinned="all pages are pinned, no lock is held",
    )
    | _points(
        "client",
        "asking",
        sent="a call was sent, its answer has not come",
    )
)
