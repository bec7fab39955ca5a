"""fsck: a sound machine gives no line, and each invariant broken by hand gives exactly its own line."""

import ast
import dataclasses
import errno
import inspect
import re
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from numaemu_core import files, fork, madvise, memory, mmap, mprotect
from numaemu_core import fsck as fsck_module
from numaemu_core.errors import MmError
from numaemu_core.fsck import LISTED_MAX, fsck
from numaemu_core.kernel import Kernel
from numaemu_core.locks import Rank
from numaemu_core.mm_types import VM_MAYEXEC, VM_MAYREAD, VM_MAYWRITE, Task
from numaemu_core.mmzone import LOCAL_NODE, NUMA_HIT, NUMA_MISS
from numaemu_core.page_flags import (
    ALLOCATED,
    FREE_CLEAN,
    LRU_INACTIVE,
    LRU_ISOLATED,
    LRU_NONE,
    PG_HOSTED,
    PG_SWAPCACHE,
    PG_WRITEBACK,
    RESERVED,
)
from numaemu_core.page_table import PTE_SWAPPED
from numaemu_core.performer import Performer
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.topology import from_dict, uniform
from numaemu_core.uapi import MADV_PAGEOUT, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, MPOL_BIND, PROT_READ, PROT_WRITE

PAGE = 4096
#: A node that no machine here has.
OFFLINE = 1 << 40


class Subject:
    """A machine with two tasks and a child of the first: pages mapped, shared, in swap, in the swap cache."""

    def __init__(self) -> None:
        """Sound until somebody breaks it."""
        machine = uniform(2, "256K", "128K", "swap-v3", PAGE).as_dict()
        faults = ["node1: full after 60 pages", "swap: full after 30 pages"]
        self.p = Performer(from_dict({**machine, "faults": faults}))
        self.k: Kernel = self.p.k
        self.parent = fork.attach(self.k, 0, [], None)
        self.shared = self.mapped(self.parent, 4)
        self.child: Task = self.p.call(fork.sys_fork(self.k, self.parent))
        self.other = fork.attach(self.k, 1, [], None)
        #: One page, mapped by one entry.
        self.lone = self.mapped(self.other, 1)
        self.swapped = self.mapped(self.other, 3)
        self.p.call(madvise.sys_madvise(self.k, self.other, self.swapped, 3 * PAGE, MADV_PAGEOUT))
        self.p.call(memory.sys_fault(self.k, self.other, self.swapped, PAGE, write=False))
        self.file = files.create_file(self.k, "/data", "tmpfs", 2 * PAGE)
        shared = MAP_SHARED, "/data"
        self.view = self.p.call(mmap.sys_mmap(self.k, self.other, 0, 2 * PAGE, PROT_READ | PROT_WRITE, *shared))
        self.p.call(memory.sys_fault(self.k, self.other, self.view, PAGE, write=True))

    def mapped(self, task: Task, pages: int) -> int:
        """Memory with a frame for each page; a page of another policy behind it keeps it apart from what follows."""
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        addr: int = self.p.call(mmap.sys_mmap(self.k, task, 0, pages * PAGE, PROT_READ | PROT_WRITE, flags))
        closed = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC  # PROT_NONE
        mmap.do_map(self.k, task.mm, addr + pages * PAGE, PAGE, closed, Mempolicy(MPOL_BIND, nodes=1))
        self.p.call(memory.sys_fault(self.k, task, addr, pages * PAGE, write=True))
        return addr

    def entry(self, task: Task, addr: int) -> int:
        """The page-table entry of an address."""
        return int(self.k.c.pte[self.k.tables.pte_offset(task.mm.pgd, addr // PAGE)])

    def lone_frame(self) -> int:
        """A frame that one entry maps."""
        return self.entry(self.other, self.lone) // PAGE

    def free_frame(self) -> int:
        """A frame that is free and clean."""
        return int(np.flatnonzero(self.k.c.free_state == FREE_CLEAN)[-1])

    def cached_frame(self) -> int:
        """A frame that is in the swap cache."""
        return int(np.flatnonzero(self.k.c.pg_flags & PG_SWAPCACHE)[0])

    def swap_slot(self) -> int:
        """A slot that an entry names."""
        entry = self.entry(self.other, self.swapped + PAGE)
        assert entry & PTE_SWAPPED
        return entry // PAGE


# Each of these breaks one thing, tells the journal where it would know, and gives the line that fsck must give.


def unknown_state(s: Subject) -> str:
    s.k.c.free_state[s.k.zero_pfn] = RESERVED + 1
    return f"frame {s.k.zero_pfn}: unknown state"


def free_in_use(s: Subject) -> str:
    pfn = s.free_frame()
    s.k.c.lru_state[pfn] = LRU_INACTIVE
    return f"frame {pfn}: free, but in use"


def clean_not_zero(s: Subject) -> str:
    pfn = s.free_frame()
    s.k.c.frames[pfn, PAGE - 1] = 1
    return f"frame {pfn}: clean, but not zero"


def allocated_unreferenced(s: Subject) -> str:
    pfn = s.free_frame()
    s.k.c.free_state[pfn] = ALLOCATED
    s.k.c.lru_state[pfn] = LRU_INACTIVE
    s.k.zones[int(s.k.nid_of_pfn[pfn])].nr_free -= 1
    return f"frame {pfn}: allocated, but nobody refers to it"


def zone_count(s: Subject) -> str:
    zone = s.k.zones[1]
    zone.nr_free += 1
    return f"node 1: {zone.nr_free - 1} frames are free, the zone says {zone.nr_free}"


def given_though_set_apart(s: Subject) -> str:
    zone = s.k.zones[1]
    s.k.c.free_state[zone.end - 1] = FREE_CLEAN
    zone.nr_free += 1
    return f"frame {zone.end - 1}: set apart by a fault, but not reserved"


def reserved_for_nobody(s: Subject) -> str:
    pfn = s.free_frame()
    s.k.c.free_state[pfn] = RESERVED
    s.k.zones[int(s.k.nid_of_pfn[pfn])].nr_free -= 1
    return f"frame {pfn}: reserved, but not set apart"


def slot_though_set_apart(s: Subject) -> str:
    slot, apart = s.swap_slot(), s.k.usable_slots
    assert s.k.slot_frame[slot] < 0
    s.k.c.pte[s.k.tables.pte_offset(s.other.mm.pgd, s.swapped // PAGE + 1)] += np.uint64((apart - slot) * PAGE)
    s.k.c.swap_count[slot], s.k.c.swap_count[apart] = 0, 1
    s.k.nr_swap_pages += 1
    return f"slot {apart}: set apart by a fault, but in use"


def isolated(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.c.lru_state[pfn] |= LRU_ISOLATED
    return f"frame {pfn}: isolated, but by no task that lives"


def on_no_list(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.c.lru_state[pfn] = LRU_NONE
    return f"frame {pfn}: allocated, but on no list"


def mapped_not_allocated(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.c.free_state[pfn] = RESERVED
    return f"frame {pfn}: mapped, but not allocated"


def wrong_index(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.c.index[pfn] += 1
    return f"frame {pfn}: mapped as another page than it says it is"


def wrong_mapping(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.c.mapping[pfn] += 1
    return f"frame {pfn}: mapped as another page than it says it is"


def map_count(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.c.mapcount[pfn] += 1
    return f"frame {pfn}: map count is not the number of its entries"


def cache_forgets_frame(s: Subject) -> str:
    pfn = s.cached_frame()
    s.k.slot_frame[s.k.c.private[pfn]] = -1
    return f"frame {pfn}: in the swap cache, which does not know it"


def cache_knows_too_much(s: Subject) -> str:
    slot = s.swap_slot()
    s.k.slot_frame[slot] = s.lone_frame()
    return f"slot {slot}: cached in a frame that is not in the cache"


def slot_count(s: Subject) -> str:
    slot = s.swap_slot()
    s.k.c.swap_count[slot] += 1
    return f"slot {slot}: its count is not the number of its users"


def free_slots(s: Subject) -> str:
    s.k.nr_swap_pages -= 1
    return f"swap: {s.k.nr_swap_pages + 1} slots are free, the machine says {s.k.nr_swap_pages}"


def writeback(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.c.pg_flags[pfn] |= PG_WRITEBACK
    return f"frame {pfn}: under writeback that nobody does"


def part_of_a_page(s: Subject) -> str:
    vma = s.other.mm.vmas.last()
    assert vma is not None
    vma.vm_end += 8
    s.k.journal.vmas(s.other.mm, vma.vm_start, vma.vm_end)
    return f"mm {s.other.mm.id}: VMA {vma.vm_start:#x}-{vma.vm_end:#x} overlaps or is not whole pages"


def overlapping(s: Subject) -> str:
    first, second = list(s.other.mm.vmas)[:2]
    first.vm_end = second.vm_end
    s.k.journal.vmas(s.other.mm, first.vm_start, first.vm_end)
    return f"mm {s.other.mm.id}: VMA {second.vm_start:#x}-{second.vm_end:#x} overlaps or is not whole pages"


def outside_of_anon_vma(s: Subject) -> str:
    vma = s.other.mm.vmas.find_vma(s.lone)
    assert vma is not None
    assert vma.anon_vma is not None
    s.k.anon_vmas[vma.anon_vma].vmas.pop(vma)
    return f"mm {s.other.mm.id}: VMA {s.lone:#x} is not in its anon_vma"


def vma_policy(s: Subject) -> str:
    vma = s.other.mm.vmas.find_vma(s.lone)
    assert vma is not None
    vma.vm_policy = Mempolicy(MPOL_BIND, nodes=OFFLINE)
    s.k.journal.vmas(s.other.mm, vma.vm_start, vma.vm_end)
    return f"mm {s.other.mm.id}: VMA {s.lone:#x} has a policy for nodes that are not online"


def entry_outside(s: Subject) -> str:
    vma = s.other.mm.vmas.find_vma(s.lone)
    assert vma is not None
    mmap.remove_vma(s.k, vma)
    s.k.journal.vmas(s.other.mm, vma.vm_start, vma.vm_end)
    return f"mm {s.other.mm.id}: page {s.lone // PAGE} has an entry outside of every VMA"


def task_policy(s: Subject) -> str:
    s.other.policy = Mempolicy(MPOL_BIND, nodes=OFFLINE)
    s.k.journal.task(s.other)
    return f"task {s.other.pid}: its policy names nodes that are not online"


def task_without_mm(s: Subject) -> str:
    s.other.mm = dataclasses.replace(s.other.mm)
    return f"task {s.other.pid}: its mm is gone"


def free_table_in_use(s: Subject) -> str:
    table = s.k.tables.alloc_table()
    s.k.tables.free_table(table)
    s.k.tables.rows[table, 7] = 1
    return f"table {table}: free, but not empty"


def table_of_two(s: Subject) -> str:
    """The pgd that the second loses stays in use, so that the count is right."""
    one, two = fork.new_mm(s.k), fork.new_mm(s.k)
    two.pgd = one.pgd
    s.k.journal.mm(two)
    return f"table {one.pgd}: used by mm {two.id} and by another"


def lost_table(s: Subject) -> str:
    s.k.tables.alloc_table()
    return f"tables: {s.k.tables.in_use - 1} are reachable, {s.k.tables.in_use} are in use"


def miss_and_foreign(s: Subject) -> str:
    s.k.c.numastat[0, [NUMA_MISS, LOCAL_NODE]] += 1
    return "numa_miss and numa_foreign have different sums"


def hit_and_local(s: Subject) -> str:
    s.k.c.numastat[1, NUMA_HIT] += 1
    return "node 1: hit + miss is not local + other"


def page_lock(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.c.page_lock_owner[pfn] = 99
    return f"frame {pfn}: locked, but no task runs"


def kept(s: Subject) -> str:
    pfn = s.lone_frame()
    s.k.page_refs[pfn] = 1
    return f"frame {pfn}: kept by a task, but no task runs"


def lock_held(s: Subject) -> str:
    s.k.locks.current = 99
    s.k.locks.try_spin([(Rank.SWAP, 0)])
    return f"kernel task 99 holds {{}} {[(Rank.SWAP, 0)]}"


def open_window(s: Subject) -> str:
    s.k.c.window[3] = 1
    return "access slot 3: open, but nobody's"


def unrecovered_mutex(s: Subject) -> str:
    s.k.c.needs_recovery[7] = 1
    return "mutex 7: needs recovery"


def untold_task(s: Subject) -> str:
    s.other.il_next += 1
    row = [s.other.mm.id, 1, [], None, 0, 3, 0, -1, 0, 0, True, None, None, 0, False, 0]
    return f"journal: tasks {s.other.pid}: {row} is told, {[*row[:4], 1, *row[5:]]} is so"


def page_of_the_host_with_bytes(s: Subject) -> str:
    pfn = int(np.flatnonzero(s.k.c.free_state == ALLOCATED)[0])
    s.k.c.pg_flags[pfn] |= PG_HOSTED
    s.k.c.frames[pfn, 7] = 1
    return f"frame {pfn}: clean, but not zero"


def untold_mm(s: Subject) -> str:
    row = [s.other.mm.pgd, s.other.mm.start_brk, s.other.mm.brk, 0, False]
    s.other.mm.def_flags = 1
    return f"journal: mms {s.other.mm.id}: {row} is told, {[*row[:3], 1, False]} is so"


def page_of_a_file(s: Subject) -> str:
    s.file.i_pages[1], s.file.i_pages[0] = s.file.i_pages[0], 0
    return "file /data: page 1 is not what its frame says"


def page_nobody_knows(s: Subject) -> str:
    frame = int(s.file.i_pages[0]) // PAGE
    s.file.i_pages[0] = 0
    return f"frame {frame}: of a file that does not know it"


def vma_off_the_list(s: Subject) -> str:
    s.file.i_mmap.clear()
    return "file /data: 0 VMAs are on its list, 1 map it"


def writable_count(s: Subject) -> str:
    s.file.i_mmap_writable = 3
    return "file /data: 1 VMAs share it, i_mmap_writable is 3"


def untold_file(s: Subject) -> str:
    told = s.k.journal.replay().files[s.file.id]
    s.file.i_size = 1
    return f"journal: files {s.file.id}: {told} is told, {[*told[:3], 1, *told[4:]]} is so"


def untold_vma(s: Subject) -> str:
    told = s.k.journal.replay().vmas[s.child.mm.id]
    vma = s.child.mm.vmas.last()
    assert vma is not None
    vma.vm_flags ^= 4
    so = [*told[:-1], [*told[-1][:2], vma.vm_flags, *told[-1][3:]]]
    return f"journal: vmas {s.child.mm.id}: {told} is told, {so} is so"


BREAKS: tuple[Callable[[Subject], str], ...] = (
    unknown_state,
    free_in_use,
    clean_not_zero,
    allocated_unreferenced,
    zone_count,
    given_though_set_apart,
    reserved_for_nobody,
    slot_though_set_apart,
    isolated,
    on_no_list,
    mapped_not_allocated,
    wrong_index,
    wrong_mapping,
    map_count,
    cache_forgets_frame,
    cache_knows_too_much,
    slot_count,
    free_slots,
    writeback,
    part_of_a_page,
    overlapping,
    outside_of_anon_vma,
    vma_policy,
    entry_outside,
    task_policy,
    task_without_mm,
    free_table_in_use,
    table_of_two,
    lost_table,
    miss_and_foreign,
    hit_and_local,
    page_lock,
    kept,
    lock_held,
    open_window,
    unrecovered_mutex,
    untold_task,
    page_of_the_host_with_bytes,
    untold_mm,
    page_of_a_file,
    page_nobody_knows,
    vma_off_the_list,
    writable_count,
    untold_file,
    untold_vma,
)


@pytest.mark.parametrize("breaks", BREAKS, ids=lambda breaks: breaks.__name__)
def test_a_broken_invariant_is_named(breaks: Callable[[Subject], str]) -> None:
    """One invariant broken by hand gives its one line, and no other check says anything."""
    subject = Subject()
    assert fsck(subject.k) == []
    line = breaks(subject)
    assert fsck(subject.k) == [line]


def line_patterns() -> list[str]:
    """A regular expression for each line that a check of fsck.py can give, from its source."""
    patterns = []
    for check in fsck_module.CHECKS:
        for node in ast.walk(ast.parse(inspect.getsource(check))):
            if isinstance(node, ast.YieldFrom):
                assert isinstance(node.value, ast.Call)
                patterns.append(pattern_of(node.value.args[0]))
            elif isinstance(node, ast.Yield):
                assert node.value is not None
                patterns.append(pattern_of(node.value))
    return patterns


def pattern_of(text: ast.expr) -> str:
    """What a string or an f-string of the source can give; `{}` is a hole of str.format."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    pieces = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts]
    return ".+".join(re.escape(piece) for piece in "".join(pieces).split("{}"))


def test_every_line_of_fsck_is_broken_once() -> None:
    """Each line that stands in fsck.py is the line of one of the cases here."""
    lines = [breaks(Subject()) for breaks in BREAKS]
    patterns = line_patterns()
    assert len(patterns) > 30
    missing = [pattern for pattern in patterns if not any(re.fullmatch(pattern, line) for line in lines)]
    assert missing == []


def fresh() -> Kernel:
    return Performer(uniform(1, "64K", 0, "swap-v3", PAGE)).k


def busy() -> Kernel:
    return Subject().k


def pinned() -> Kernel:
    """A page that is unmapped while its frame is pinned lives on without a mapping."""
    s = Subject()
    s.k.c.pin_count[2] = 1
    s.k.c.pins[2, 0] = s.lone_frame() + 1
    s.p.call(mmap.sys_munmap(s.k, s.other, s.lone, PAGE))
    return s.k


def quarantined() -> Kernel:
    """A window that never closes holds what was unmapped under it."""
    s = Subject()
    s.k.c.window_mm[4], s.k.c.window[4] = s.other.mm.id + 1, 1
    s.p.call(mmap.sys_munmap(s.k, s.other, s.lone, PAGE))
    s.p.call(fork.sys_exit(s.k, s.other))
    assert s.k.quarantine.entries
    return s.k


def refused() -> Kernel:
    """Calls that were refused half-way leave nothing behind."""
    s = Subject()
    with pytest.raises(MmError) as refusal:
        s.p.call(mprotect.sys_mprotect(s.k, s.other, s.lone, 1 << 30, PROT_READ))
    assert refusal.value.errno == errno.ENOMEM
    return s.k


def everybody_gone() -> Kernel:
    s = Subject()
    for task in (s.parent, s.child, s.other):
        s.p.call(fork.sys_exit(s.k, task))
    assert not s.k.mms
    return s.k


@pytest.mark.parametrize(
    "make", [fresh, busy, pinned, quarantined, refused, everybody_gone], ids=lambda make: make.__name__
)
def test_a_sound_machine_gives_nothing(make: Callable[[], Kernel]) -> None:
    """Whatever a machine has been through, there is no line while nothing is wrong."""
    assert fsck(make()) == []


def test_locks_of_the_task_that_checks_are_its_own_business() -> None:
    """The kernel task that runs the check may hold locks, any other may not."""
    s = Subject()
    line = lock_held(s)
    assert fsck(s.k, own_task=99) == []
    assert fsck(s.k, own_task=98) == [line]


def test_many_violations_of_a_kind_are_counted() -> None:
    """The first few are listed one by one, the rest in one line."""
    k = fresh()
    k.c.needs_recovery[: LISTED_MAX + 4] = 1
    assert fsck(k) == [*(f"mutex {i}: needs recovery" for i in range(LISTED_MAX)), "mutex …: needs recovery: 4 more"]


def test_bytes_are_looked_at_a_part_at_a_time() -> None:
    """A machine of many frames costs no copy of them, and the last one is looked at, too."""
    k = Performer(uniform(1, "32M", 0, "swap-v3", PAGE)).k
    last = k.layout.frame_count - 1
    tracemalloc.start()
    try:
        assert fsck(k) == []
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < (32 << 20) // 2
    k.c.frames[last, -1] = 1
    assert fsck(k) == [f"frame {last}: clean, but not zero"]


def test_memory_that_nobody_has_touched_is_not_taken_by_looking() -> None:
    """On a machine that takes the host's memory page by page, clean frames are not looked at."""
    k = Performer(from_dict({**uniform(1, "1M", 0, "swap-v3", PAGE).as_dict(), "preallocate": False})).k
    k.c.frames[-1, 0] = 1
    assert fsck(k) == []
