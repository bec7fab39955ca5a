"""The objects of an address space: VMA, mm, task, anon_vma, policy; as Linux names them, and no code about them.

Addresses are bytes; `vm_pgoff` counts pages. All of these live in the kernel daemon alone; what recovery needs of them
is in the journal.
"""

import bisect
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from numaemu_core.columns import U8
from numaemu_core.shared_policy import Mempolicy, SharedPolicy

VM_READ: Final = 0x1
VM_WRITE: Final = 0x2
VM_EXEC: Final = 0x4
VM_SHARED: Final = 0x8
VM_MAYREAD: Final = 0x10
VM_MAYWRITE: Final = 0x20
VM_MAYEXEC: Final = 0x40
VM_MAYSHARE: Final = 0x80
VM_SHM: Final = 0x400
VM_DENYWRITE: Final = 0x800
VM_LOCKED: Final = 0x2000
VM_IO: Final = 0x4000
VM_SEQ_READ: Final = 0x8000
VM_RAND_READ: Final = 0x10000
VM_DONTCOPY: Final = 0x20000
VM_LOCKONFAULT: Final = 0x80000
#: Memory that was promised: a private mapping that may be, or once might be, written to; it keeps VMAs apart.
VM_ACCOUNT: Final = 0x100000
VM_NORESERVE: Final = 0x200000
#: In place of VM_LOCKONFAULT in 2.6.15; nothing of this machine sets it.
VM_RESERVED: Final = 0x1000000
VM_ACCESS_FLAGS: Final = VM_READ | VM_WRITE | VM_EXEC


class FileKind(enum.StrEnum):
    """What backs an object that can be mapped."""

    #: Shared anonymous memory: tmpfs without a name, gone with its last mapping.
    ANON_SHARED = "anon"
    #: Pages leave to swap; has shared policies.
    TMPFS = "tmpfs"
    #: Page cache that never leaves memory; no shared policies.
    RAMFS = "ramfs"
    #: Page cache that is written back to the swap node's disk segment; no shared policies.
    DISK = "disk"


@dataclass(slots=True, eq=False)
class AddressSpace:
    """A file and what its pages belong to (inode and address_space in one). Guarded by its i_mmap_lock."""

    #: In the `mapping` column, with PAGE_MAPPING_FILE set.
    id: int
    kind: FileKind = FileKind.TMPFS
    name: str = ""
    #: Inode number: where interleaving on tmpfs starts.
    i_ino: int = 0
    #: Length in bytes; a touch of a page beyond it is a bus error.
    i_size: int = 0
    #: u64 a page of the file, as a page-table entry: 0 none, PRESENT pfn, SWAPPED slot (tmpfs).
    i_pages: U8 = field(default_factory=lambda: np.zeros(0, np.uint64))
    #: First page on the disk segment (DISK).
    disk_start: int = 0
    #: Every VMA that maps part of the file, an ordered set.
    i_mmap: dict["VmArea", None] = field(default_factory=dict)
    #: VMAs of these that are VM_SHARED: they may write to the file.
    i_mmap_writable: int = 0
    #: Policies by file page (tmpfs and shared anonymous memory); they survive unmapping.
    policy: SharedPolicy = field(default_factory=SharedPolicy)
    #: Whose file it is: `admission.ROOT`, or another user of the machine.
    uid: int = 0
    #: What a host calls shared memory that it keeps while nobody maps it; empty: it keeps none, and the last one to
    #: map the object takes it along.
    kept_as: str = ""
    #: Its bytes are in memory of processes of the host.
    mirrored: bool = False
    #: How many kernel tasks are about to map it.
    wanted: int = 0
    #: The last mapping of shared anonymous memory is gone, and its pages are going: nobody can map it again.
    dead: bool = False

    @property
    def is_shmem(self) -> bool:
        """Do its pages go to swap, and do policies belong to the object?"""
        return self.kind in (FileKind.ANON_SHARED, FileKind.TMPFS)

    @property
    def is_swap_backed_or_on_disk(self) -> bool:
        """Can its pages leave memory when they are dirty? Those of ramfs have nowhere to go."""
        return self.kind is not FileKind.RAMFS


@dataclass(slots=True, eq=False)
class VmArea:
    """One mapping: [vm_start, vm_end) in bytes."""

    vm_mm: "Mm"
    vm_start: int
    vm_end: int
    vm_flags: int
    #: Private anonymous memory: vm_start >> PAGE_SHIFT of when it was mapped; index = pgoff + pages from vm_start.
    vm_pgoff: int
    vm_policy: Mempolicy | None = None
    #: Id of its anon_vma; None while no page of it was ever anonymous.
    anon_vma: int | None = None
    #: What it maps; None for private anonymous memory.
    vm_file: AddressSpace | None = None
    #: Which copy of the anon_vma a fork made for it, 0: none; copies keep VMAs apart that could merge (6.x).
    anon_clone: int = 0
    #: Which opening of the file it maps (struct file, where `vm_file` is the inode): those of two do not merge.
    opening: int = 0


@dataclass(slots=True)
class AnonVma:
    """Which VMAs may map the anonymous pages that were born in one of them. Guarded by the anon_vma lock."""

    id: int
    #: An ordered set: a VMA leaves it at once, however many there are.
    vmas: dict[VmArea, None] = field(default_factory=dict)


class VmaList:
    """The VMAs of an mm, ascending and not overlapping: two parallel lists and a bisection."""

    __slots__ = ("_areas", "_starts")

    def __init__(self) -> None:
        """Empty."""
        self._starts: list[int] = []
        self._areas: list[VmArea] = []

    def __len__(self) -> int:
        """map_count."""
        return len(self._areas)

    def __iter__(self) -> Iterator[VmArea]:
        """Ascending."""
        return iter(self._areas)

    def find_vma(self, address: int) -> VmArea | None:
        """The first VMA that ends above `address`, or None (mm/mmap.c find_vma)."""
        at = bisect.bisect_right(self._starts, address)
        if at and self._areas[at - 1].vm_end > address:
            return self._areas[at - 1]
        return self._areas[at] if at < len(self._areas) else None

    def before(self, address: int) -> VmArea | None:
        """The last VMA that starts below `address`, or None."""
        at = bisect.bisect_left(self._starts, address)
        return self._areas[at - 1] if at else None

    def overlapping(self, start: int, end: int) -> list[VmArea]:
        """The VMAs that share a byte with [start, end), ascending; a copy."""
        low = bisect.bisect_right(self._starts, start)
        if low and self._areas[low - 1].vm_end > start:
            low -= 1
        return self._areas[low : bisect.bisect_left(self._starts, end)]

    def last(self) -> VmArea | None:
        """The highest one."""
        return self._areas[-1] if self._areas else None

    def insert(self, vma: VmArea) -> None:
        """Link a VMA in (insert_vm_struct)."""
        at = bisect.bisect_left(self._starts, vma.vm_start)
        self._starts.insert(at, vma.vm_start)
        self._areas.insert(at, vma)

    def remove(self, vma: VmArea) -> None:
        """Unlink a VMA."""
        at = bisect.bisect_left(self._starts, vma.vm_start)
        assert self._areas[at] is vma
        del self._starts[at]
        del self._areas[at]

    def move_start(self, vma: VmArea, start: int) -> None:
        """Change where a VMA begins without changing its place among the others."""
        at = bisect.bisect_left(self._starts, vma.vm_start)
        assert self._areas[at] is vma
        self._starts[at] = vma.vm_start = start


@dataclass(slots=True, eq=False)
class Mm:
    """An address space. `id` numbers its mmap_sem and its row in the epoch column."""

    id: int
    #: Table number of the pgd in the arena.
    pgd: int
    start_brk: int
    brk: int
    vmas: VmaList = field(default_factory=VmaList)
    #: Flags that every new mapping gets: VM_LOCKED after mlockall(MCL_FUTURE).
    def_flags: int = 0
    #: Its bytes are in memory of a process of the host: nobody copies those of its frames.
    mirrored: bool = False
    #: Tasks that use it (mm_users).
    mm_users: int = 1
    #: The OOM killer chose its tasks, and its memory is not yet free.
    oom_victim: bool = False
    #: Its last task has ended and its tables are gone: who still waits for its mmap_sem comes too late.
    dead: bool = False
    #: The journal knows it no more, nor its last task.
    told_gone: bool = False


@dataclass(slots=True, eq=False)
class Task:
    """A task: one thread of control with a policy, a CPU and capabilities."""

    pid: int
    mm: Mm
    cpu: int
    capabilities: frozenset[str]
    policy: Mempolicy | None = None
    #: Next node of an interleave that has no address to go by (2.6).
    il_next: int = 0
    #: Nodes of its cpuset, as a mask.
    mems_allowed: int = 0
    #: The cpuset that it is attached to: the pid of the task that it was made for, 0: the one at the top.
    cpuset: int = 0
    #: The node that an interleave without an address used last, and how many more pages it may have there (6.x).
    il_prev: int = -1
    il_weight: int = 0
    #: Who it is to migrate_pages and move_pages, and whether others of its kind may look into it (PR_SET_DUMPABLE).
    uid: int = 0
    dumpable: bool = True
    #: RLIMIT_MEMLOCK and RLIMIT_AS in bytes, None: no limit.
    rlimit_memlock: int | None = None
    rlimit_as: int | None = None
    #: The task that it was forked from, 0: none.
    parent: int = 0
    #: The OOM killer chose it: its calls fail, what it had is gone; it waits to be told to exit, as a zombie does.
    killed: bool = False
    exiting: bool = False
    #: The client that it belongs to, by the number that the daemon gave it; 0: none.
    owner: int = 0

    @property
    def dying(self) -> bool:
        """Is it killed, or on its way out? Such a task neither waits for memory nor has others killed for it."""
        return self.killed or self.exiting
