"""The verbs of the .facts files that look: `a VERB … = what is seen`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from numaemu_core import node_views, numa_maps, proc, views
from numaemu_core.mm_types import VM_LOCKED, Task
from numaemu_core.mmzone import build_zonelists
from numaemu_core.page_flags import (
    LRU_ACTIVE,
    LRU_INACTIVE,
    LRU_ISOLATED,
    LRU_PG_ACTIVE,
    PG_DIRTY,
    PG_REFERENCED,
    PG_SWAPCACHE,
    PG_UPTODATE,
    PG_WRITEBACK,
)
from numaemu_core.page_table import PTE_PRESENT, PTE_SWAPPED, PTE_WRITABLE
from numaemu_core.rmap import page_count

from .words import PAGE, Words, number, pages, shown

if TYPE_CHECKING:
    from .story import Story

View = Callable[["Story", Task, Words], Any]

_FLAGS: Final = {
    PG_SWAPCACHE: ("swapcache", "uncached"),
    PG_DIRTY: ("dirty", "clean"),
    PG_WRITEBACK: ("writeback", "idle"),
    PG_REFERENCED: ("referenced", "unreferenced"),
    PG_UPTODATE: ("uptodate", "stale"),
}
_LISTS: Final = {0: "unlisted", LRU_ACTIVE: "active", LRU_INACTIVE: "inactive"}


def _where(s: Story, task: Task, words: Words) -> list[Any]:
    """`a where 0+4 = 0 1 . x`: node of each page; `.` no page there, `x` not mapped."""
    first, count = pages(words.plain[0])
    answer = memoryview(s.machine.call(proc.sys_where(s.k, task, s.address(first), count * PAGE))).cast("i").tolist()
    return [{-2: ".", -14: "x"}.get(node, node) for node in answer]


def _right(s: Story, task: Task, words: Words) -> int:
    """`a right 0+256 {0,1} = 8`: how many pages are on the node where an interleave over these has them."""
    first, count = pages(words.plain[0])
    over = [int(word) for word in words.plain[1].strip("{}").split(",")]
    there = _where(s, task, words)
    return sum(there[i] == over[(s.base + first + i) % len(over)] for i in range(count))


def _share(s: Story, task: Task, words: Words) -> list[int]:
    """`a share 0+256 = 128 128`: how many pages are on each node."""
    there = _where(s, task, words)
    return [there.count(nid) for nid in s.k.zones]


def _vmas(s: Story, task: Task, _words: Words) -> list[str]:
    """`a vmas = 0+3 3+3:BIND{1} 6+3:locked`: the mappings with their policies."""
    found = []
    for vma in task.mm.vmas:
        text = f"{vma.vm_start // PAGE - s.base}+{(vma.vm_end - vma.vm_start) // PAGE}"
        text += f":{shown(vma.vm_policy)}" if vma.vm_policy is not None else ""
        found.append(text + (":locked" if vma.vm_flags & VM_LOCKED else ""))
    return found


def _policy(_s: Story, task: Task, _words: Words) -> str:
    """`a policy = BIND{1}`: that of the task."""
    return shown(task.policy)


def _il_next(_s: Story, task: Task, _words: Words) -> int:
    return task.il_next


def _fpolicy(s: Story, _task: Task, words: Words) -> list[str]:
    """`fpolicy f = 0+4:BIND{1}`: policies of a file by file page."""
    ranges = s.k.files[words.plain[0]].policy.ranges
    return [f"{start}+{end - start}:{shown(policy)}" for start, end, policy in ranges]


def _fwhere(s: Story, _task: Task, words: Words) -> list[Any]:
    """`fwhere f = 0 . s`: node of each page of a file; `.` none, `s` in the swap area."""
    entries = s.k.files[words.plain[0]].i_pages.tolist()
    return [s.k.nid_of_pfn[e // PAGE] if e & PTE_PRESENT else "s" if e & PTE_SWAPPED else "." for e in entries]


def _slot(s: Story, task: Task, words: Words) -> list[int]:
    """`a slot 0+4 = 3 2 1 0`: the slots of pages, whether the entry names it or the frame has it."""
    first, count = pages(words.plain[0])
    entries = [s.machine.entry(task, s.address(first + i)) for i in range(count)]
    return [int(s.k.c.private[e // PAGE]) if e & PTE_PRESENT else e // PAGE for e in entries]


def _slots(s: Story, _task: Task, _words: Words) -> int:
    """`slots = 4`: slots that are not free."""
    return int(s.k.layout.slot_count - s.k.nr_swap_pages)


def _used(s: Story, _task: Task, words: Words) -> list[int]:
    """`used = 3 0`, `used 1 = 0`: frames of each node, or of one, that are neither free nor the zero page."""
    zones = [s.k.zones[number(word)] for word in words.plain] or s.k.zones.values()
    return [zone.present_pages - zone.nr_free - (zone.first <= s.k.zero_pfn < zone.end) for zone in zones]


def _passes(s: Story, _task: Task, _words: Words) -> int:
    """`passes = 3`: how many the last call has made."""
    return len(s.passes)


def _vmstat(s: Story, _task: Task, words: Words) -> int:
    """`vmstat pswpout = 4`: an event since `count`, or since the machine was switched on."""
    return int(s.k.vmstat[words.plain[0]] - s.events[words.plain[0]])


def _counters(s: Story, _task: Task, words: Words) -> list[int]:
    """`counters 1 = 4 0 0 0 4 0`: hit, miss, foreign, interleave hit, local, other of a node, since `count`."""
    nid = number(words.plain[0])
    row: list[int] = (s.k.c.numastat[nid] - s.counted[nid]).tolist()
    return row


def _sums(s: Story, _task: Task, _words: Words) -> list[int]:
    """`sums = 9 1 1 4 5 5`: the counters of all nodes together, since `count`."""
    total: list[int] = (s.k.c.numastat - s.counted).sum(axis=0).tolist()
    return total


def _frames(s: Story, task: Task, words: Words) -> list[int] | str:
    """`a frames 0+4 = X`: they are those noted by that name; `zero`: all the zero page."""
    found = s.frames(task, words.plain[0])
    if set(found) == {s.k.zero_pfn}:
        return "zero"
    return next((name for name, frames in s.noted.items() if frames == found), "others")


def _state(s: Story, _task: Task, _words: Words) -> set[str]:
    """The state of the watched page, in the words of `page`."""
    assert s.watched is not None
    task, page_number, pfn = s.watched
    return _state_of(s, task, page_number, pfn)


def _page(s: Story, task: Task, words: Words) -> set[str]:
    """`a page 0 = present young swapcache clean count=2 slot=1`: words that are true of a page."""
    page_number = number(words.plain[0])
    entry = s.machine.entry(task, s.address(page_number))
    frame = entry // PAGE if entry & PTE_PRESENT else int(s.k.slot_frame[entry // PAGE]) if entry else -1
    return _state_of(s, task, page_number, frame)


def _fpage(s: Story, _task: Task, words: Words) -> set[str]:
    """`fpage f 0 = inactive referenced`: words that are true of a page of a file."""
    entry = int(s.k.files[words.plain[0]].i_pages[number(words.plain[1])])
    return _words_of_frame(s, entry // PAGE if entry & PTE_PRESENT else -1)


def _state_of(s: Story, task: Task, page_number: int, pfn: int) -> set[str]:
    c = s.k.c
    flat = s.k.tables.pte_offset(task.mm.pgd, s.base + page_number)
    entry = int(c.pte[flat]) if flat >= 0 else 0
    words = {"present" if entry & PTE_PRESENT else "swapped" if entry & PTE_SWAPPED else "none"}
    if entry & PTE_PRESENT:
        words |= {"writable" if entry & PTE_WRITABLE else "readonly", "young" if c.accessed[flat] else "old"}
        words |= {"written" if c.dirty[flat] else "unwritten", "zero" if entry // PAGE == s.k.zero_pfn else "own"}
    if entry & PTE_SWAPPED:
        words.add(f"slot={c.swap_count[entry // PAGE]}")
    return words | _words_of_frame(s, pfn)


def _words_of_frame(s: Story, pfn: int) -> set[str]:
    if pfn < 0:
        return {"nowhere"}
    c = s.k.c
    flags, state = int(c.pg_flags[pfn]), int(c.lru_state[pfn])
    words = {names[0] if flags & bit else names[1] for bit, names in _FLAGS.items()}
    words |= {"locked" if c.page_lock_owner[pfn] else "unlocked", f"node={s.k.nid_of_pfn[pfn]}"}
    words |= {f"count={page_count(s.k, np.array([pfn]))[0]}", f"mapcount={c.mapcount[pfn]}"}
    words.add(_LISTS.get(state, "isolated" if state & LRU_ISOLATED else "?"))
    words.add("PG_active" if state & LRU_PG_ACTIVE else "no-PG_active")
    words.add("free" if c.free_state[pfn] < 2 else "allocated")
    if flags & PG_SWAPCACHE:
        words.add(f"slot={c.swap_count[int(c.private[pfn])]}")
    return words


def _order(s: Story, task: Task, words: Words) -> list[int]:
    """`a order 0+4 = 3 2 1 0`: pages by their place on their list, the head first."""
    first, _ = pages(words.plain[0])
    stamps = s.k.c.lru_stamp[s.frames(task, words.plain[0])].astype(np.int64)
    return [first + int(i) for i in np.argsort(-stamps)]


def _zonelists(s: Story, _task: Task, _words: Words) -> list[str]:
    """`zonelists = 0:0,1 1:1,0`."""
    return [f"{nid}:" + ",".join(map(str, row)) for nid, row in build_zonelists(s.k.topology).items()]


def _numa_maps(s: Story, task: Task, _words: Words) -> str:
    """`a numa_maps = …`: all lines as one."""
    text: str = s.machine.call(numa_maps.sys_numa_maps(s.k, task))
    return text


def _meminfo(s: Story, _task: Task, words: Words) -> str:
    """`meminfo 1 MemFree = Node 1 MemFree: 1024 kB`: a line, blanks as one."""
    text = views.meminfo(node_views.meminfo(s.k)[number(words.plain[0])], of_2005=True)
    return next(line for line in text.splitlines() if f" {words.plain[1]}:" in line)


def _marks(s: Story, _task: Task, words: Words) -> list[int]:
    """`marks 0 = 8 10 12`: pages_min, pages_low and pages_high of a node."""
    zone = s.k.zones[number(words.plain[0])]
    return [zone.pages_min, zone.pages_low, zone.pages_high]


def _killed(_s: Story, task: Task, _words: Words) -> bool:
    return task.killed


VIEWS: Final[dict[str, View]] = {
    "counters": _counters,
    "fpage": _fpage,
    "fpolicy": _fpolicy,
    "frames": _frames,
    "fwhere": _fwhere,
    "il_next": _il_next,
    "killed": _killed,
    "marks": _marks,
    "meminfo": _meminfo,
    "numa_maps": _numa_maps,
    "order": _order,
    "page": _page,
    "passes": _passes,
    "policy": _policy,
    "right": _right,
    "share": _share,
    "slot": _slot,
    "slots": _slots,
    "state": _state,
    "sums": _sums,
    "used": _used,
    "vmas": _vmas,
    "vmstat": _vmstat,
    "where": _where,
    "zonelists": _zonelists,
}
