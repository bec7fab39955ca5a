"""The verbs of the .facts files that do something: system calls, accesses, and what a test may do by hand.

`a VERB …` is done by task a. Pages are written `3+4`: four pages from page 3 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from numaemu_core import files, fork, limits, mm_types, mmap, reclaim, syscalls, vmscan
from numaemu_core.effects import KernelTask, Nap, WritePages
from numaemu_core.lru import isolate_lru_page, lru_lock_keys
from numaemu_core.mm_types import Task
from numaemu_core.nodemask import mask_of
from numaemu_core.page_flags import LRU_INACTIVE, PG_WRITEBACK
from numaemu_core.page_lock import trylock_pages, unlock_pages
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.task_locks import spin_lock
from numaemu_core.uapi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_F_ADDR,
    MPOL_F_NODE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

from .words import PAGE, Words, bits, braces, mask_words, mode_name, nodes, number, pages, policy

if TYPE_CHECKING:
    from .story import Story

Call = Callable[["Story", Task, Words], KernelTask[Any]]
Act = Callable[["Story", Task, Words], None]

_PROTS: Final = {"r": PROT_READ, "w": PROT_WRITE, "x": PROT_EXEC}


def _prot(text: str) -> int:
    """`rw`; `none`."""
    return 0 if text == "none" else sum(_PROTS[letter] for letter in text)


def _span(s: Story, words: Words) -> tuple[int, int]:
    """Start and length in bytes; `off=` moves the start, `len=` is the length as it is given."""
    first, count = pages(words.plain[0])
    return s.address(first) + words.number("off"), words.number("len", count * PAGE)


def _mask(words: Words, text: str) -> tuple[int, list[int] | None, int]:
    """Mode, mask and maxnode of `BIND{1}`; `words=` and `maxnode=` say what is given instead."""
    mode, mask = policy(text)
    if "words" in words.named:
        mask = mask_words(words.take("words"))
    return mode, mask, words.number("maxnode", 0 if mask is None else 65)


# -- memory policy -----------------------------------------------------------------------------------------------------


def _mbind(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a mbind 0+4 BIND{1} STRICT|MOVE [off= len= words= maxnode=]`."""
    start, length = _span(s, words)
    mode, mask, maxnode = _mask(words, words.plain[1])
    flags = bits(words.plain[2], "MPOL_MF_") if words.plain[2:] else 0
    yield from syscalls.SYSCALLS["mbind"](s.k, task, start, length, mode, mask, maxnode, flags)


def _set_mempolicy(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a set_mempolicy BIND{1} [words= maxnode=]`."""
    yield from syscalls.SYSCALLS["set_mempolicy"](s.k, task, *_mask(words, words.plain[0]))


def _get_mempolicy(s: Story, task: Task, words: Words) -> KernelTask[str]:
    """`a get_mempolicy [NODE|ADDR] [page=3 off=9] [maxnode=] -> BIND{0,1}`; nodes are numbers; `nomask`: none asked."""
    flags = sum(bits(word, "MPOL_F_") for word in words.plain if word != "nomask")
    address = s.address(words.number("page")) if "page" in words.named else 0
    maxnode = None if "nomask" in words.plain else words.number("maxnode", 64)
    address += words.number("off")
    value, mask = yield from syscalls.SYSCALLS["get_mempolicy"](s.k, task, maxnode, address, flags)
    is_node = flags & MPOL_F_NODE and (flags & MPOL_F_ADDR or not flags & ~MPOL_F_NODE)
    text = str(value) if is_node else mode_name(value)
    return text + ("" if mask is None else braces(int.from_bytes(mask, "little")))


def _migrate_pages(s: Story, task: Task, words: Words) -> KernelTask[int]:
    """`a migrate_pages b {0} {1} [old= new= maxnode= pid=]`; `-> 0`: pages that stayed."""
    pid = words.number("pid", 0) if "pid" in words.named else s.tasks[words.plain.pop(0)].pid
    maxnode = words.number("maxnode", 65)
    masks: list[list[int] | None] = [[mask_of(nodes(word))] for word in words.plain]
    for at, name in enumerate(("old", "new")):
        if name in words.named:
            masks[at] = mask_words(words.take(name))
    return (yield from syscalls.SYSCALLS["migrate_pages"](s.k, task, pid, maxnode, *masks))


def _set_cpuset(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a cpuset {1,2}`."""
    yield from syscalls.SYSCALLS["set_cpuset"](s.k, task, [mask_of(nodes(words.plain[0]))])


# -- mappings ----------------------------------------------------------------------------------------------------------


def _map(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a map 0+4 [shared] [locked] [populate] [prot=rw] [file=f page=2 open=r+]`."""
    first, count = pages(words.plain[0])
    file = words.take("file") or None
    flags = MAP_FIXED | (MAP_SHARED if "shared" in words.plain else MAP_PRIVATE) | (0 if file else MAP_ANONYMOUS)
    flags |= MAP_LOCKED if "locked" in words.plain else 0
    flags |= MAP_POPULATE if "populate" in words.plain else 0
    prot, offset = _prot(words.take("prot", "rw")), words.number("page") * PAGE
    how = words.take("open", "r+")
    yield from mmap.sys_mmap(s.k, task, s.address(first), count * PAGE, prot, flags, file, offset, how)


def _unmap(s: Story, task: Task, words: Words) -> KernelTask[None]:
    yield from mmap.sys_munmap(s.k, task, *_span(s, words))


def _protect(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a protect 0+4 r`."""
    yield from syscalls.SYSCALLS["mprotect"](s.k, task, *_span(s, words), _prot(words.plain[1]))


def _advise(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a advise 0+4 PAGEOUT`."""
    yield from syscalls.SYSCALLS["madvise"](s.k, task, *_span(s, words), bits(words.plain[1], "MADV_"))


def _lock(s: Story, task: Task, words: Words) -> KernelTask[None]:
    yield from syscalls.SYSCALLS["mlock"](s.k, task, *_span(s, words))


def _unlock(s: Story, task: Task, words: Words) -> KernelTask[None]:
    yield from syscalls.SYSCALLS["munlock"](s.k, task, *_span(s, words))


def _remap(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a remap 0+4 10+6`: the mapping moves, and has another length."""
    (first, count), (target, wanted) = pages(words.plain[0]), pages(words.plain[1])
    start, new = s.address(first), s.address(target)
    yield from syscalls.SYSCALLS["mremap"](s.k, task, start, count * PAGE, wanted * PAGE, 3, new)


def _brk(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a brk 4`: a heap of four pages; `base HEAP` makes page 0 its first."""
    yield from syscalls.SYSCALLS["brk"](s.k, task, limits.START_BRK + number(words.plain[0]) * PAGE)


# -- tasks -------------------------------------------------------------------------------------------------------------


def _fork(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a fork bcd`: children by these letters, one after the other."""
    for letter in words.plain[0]:
        yield from s.fork(task, letter)


def _exit(s: Story, task: Task, _words: Words) -> KernelTask[None]:
    yield from syscalls.SYSCALLS["exit"](s.k, task)


def _cpu(s: Story, task: Task, words: Words) -> KernelTask[None]:
    yield from syscalls.SYSCALLS["set_cpu"](s.k, task, number(words.plain[0]))


def _setuid(s: Story, task: Task, words: Words) -> KernelTask[None]:
    yield from syscalls.SYSCALLS["setuid"](s.k, task, number(words.plain[0]))


# -- accesses ----------------------------------------------------------------------------------------------------------


def _fault_in(s: Story, task: Task, words: Words, *, write: bool) -> KernelTask[None]:
    """What a client asks for before it touches pages: all at once, or with `each` one after the other."""
    first, count = pages(words.plain[0])
    step = 1 if "each" in words.plain else count
    for at in range(first, first + count, step):
        done = 0
        while done < step * PAGE:
            start = s.address(at) + done
            done += yield from syscalls.SYSCALLS["fault"](s.k, task, start, step * PAGE - done, write)


def _reach(s: Story, task: Task, page_number: int, *, write: bool) -> KernelTask[np.ndarray]:
    """The bytes of a page as a client reaches them: its entry is looked at until it allows the access."""
    rights = PTE_PRESENT | PTE_READABLE | (PTE_WRITABLE if write else 0)
    while True:
        flat = s.k.tables.pte_offset(task.mm.pgd, s.base + page_number)
        if flat >= 0 and int(s.k.c.pte[flat]) & rights == rights:
            s.k.c.accessed[flat] = 1
            if write:
                s.k.c.dirty[flat] = 1
            row: np.ndarray = s.k.c.frames[int(s.k.c.pte[flat]) // PAGE]
            return row
        yield from syscalls.SYSCALLS["fault"](s.k, task, s.address(page_number), PAGE, write)


def _access(s: Story, task: Task, words: Words, *, write: bool) -> KernelTask[None]:
    first, count = pages(words.plain[0])
    yield from _fault_in(s, task, words, write=write)
    for number_ in range(first, first + count):
        yield from _reach(s, task, number_, write=write)


def _touch(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a touch 0+4 [each]`: for writing."""
    yield from _access(s, task, words, write=True)


def _read(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a read 0+4 [each]`."""
    yield from _access(s, task, words, write=False)


def _bytes_of(page_number: int) -> tuple[int, int]:
    """What `fill` writes to the ends of a page."""
    return 1 + page_number % 250, 250 - page_number % 250


def _fill(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a fill 0+4`: write every page, with bytes of its own at both ends."""
    first, count = pages(words.plain[0])
    yield from _fault_in(s, task, words, write=True)
    for page_number in range(first, first + count):
        row = yield from _reach(s, task, page_number, write=True)
        row[[0, -1]] = _bytes_of(page_number)


def _intact(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a intact 0+4`: read every page, and find what `fill` wrote."""
    first, count = pages(words.plain[0])
    yield from _fault_in(s, task, words, write=False)
    for page_number in range(first, first + count):
        row = yield from _reach(s, task, page_number, write=False)
        s.expect(s.case.place, f"bytes of page {page_number}", _bytes_of(page_number), tuple(row[[0, -1]].tolist()))


def _store(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a store 3 17`: write a byte of a page."""
    row = yield from _reach(s, task, number(words.plain[0]), write=True)
    row[0] = number(words.plain[1])


def _load(s: Story, task: Task, words: Words) -> KernelTask[int]:
    """`a load 3 -> 17`: read it."""
    row = yield from _reach(s, task, number(words.plain[0]), write=False)
    return int(row[0])


def _pwrite(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a pwrite f 0+4`: write pages of a file without a mapping."""
    first, count = pages(words.plain[1])
    yield from syscalls.SYSCALLS["file_write"](s.k, task, words.plain[0], first * PAGE, b"\x07" * count * PAGE)


def _pread(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a pread f 0+4`."""
    first, count = pages(words.plain[1])
    yield from syscalls.SYSCALLS["file_read"](s.k, task, words.plain[0], first * PAGE, count * PAGE)


# -- pieces of calls ---------------------------------------------------------------------------------------------------


def _isolate(s: Story, task: Task, words: Words) -> KernelTask[int]:
    """`a isolate 0+2 as X -> 2`: take pages off their lists, under that name; how many were there."""
    pfns = np.array(s.frames(task, words.plain[0]), np.int64)
    with (yield from spin_lock(s.k, lru_lock_keys(s.k, pfns))):
        mine = pfns[isolate_lru_page(s.k, pfns)]
    s.noted[words.plain[2]] = mine.tolist()
    return len(mine)


def _swapout(s: Story, _task: Task, words: Words) -> KernelTask[int]:
    """`swapout X -> 0`: evict what is isolated under that name; how many stayed."""
    left = yield from vmscan.swapout_pages(s.k, np.array(s.noted[words.plain[0]], np.int64))
    s.noted[words.plain[0]] = left.tolist()
    return len(left)


def _putback(s: Story, _task: Task, words: Words) -> KernelTask[int]:
    """`putback X -> 2`: give them back to their lists; how many."""
    return (yield from vmscan.putback_lru_pages(s.k, np.array(s.noted.pop(words.plain[0]), np.int64)))


def _hold(s: Story, task: Task, words: Words) -> KernelTask[None]:
    """`a hold 0 [until pass 3]`: keep the lock of a page until an eviction has begun that pass, or until `release`."""
    pfns = np.array(s.frames(task, words.plain[0]), np.int64)
    until = number(words.plain[3]) if words.plain[1:] else -1
    got = yield from trylock_pages(s.k, pfns)
    s.expect(s.case.place, "pages that are not locked", 0, int(np.count_nonzero(~got)))
    s.settled = True
    while until not in s.passes and not s.released:
        yield Nap()
    yield from unlock_pages(s.k, pfns)


def _reclaim(s: Story, _task: Task, words: Words) -> KernelTask[int]:
    """`reclaim {0} -> 3`: what direct reclaim frees of these nodes."""
    return (yield from reclaim.try_to_free_pages(s.k, sorted(nodes(words.plain[0]))))


CALLS: Final[dict[str, Call]] = {
    "advise": _advise,
    "brk": _brk,
    "cpu": _cpu,
    "cpuset": _set_cpuset,
    "exit": _exit,
    "fill": _fill,
    "fork": _fork,
    "get_mempolicy": _get_mempolicy,
    "hold": _hold,
    "intact": _intact,
    "isolate": _isolate,
    "load": _load,
    "lock": _lock,
    "map": _map,
    "mbind": _mbind,
    "migrate_pages": _migrate_pages,
    "pread": _pread,
    "protect": _protect,
    "putback": _putback,
    "pwrite": _pwrite,
    "read": _read,
    "reclaim": _reclaim,
    "remap": _remap,
    "set_mempolicy": _set_mempolicy,
    "setuid": _setuid,
    "store": _store,
    "swapout": _swapout,
    "touch": _touch,
    "unlock": _unlock,
    "unmap": _unmap,
}


# -- by hand -----------------------------------------------------------------------------------------------------------


def _task(s: Story, _task: Task, words: Words) -> None:
    """`task b cpu=1 caps=CAP_SYS_NICE of=a`: a task, with a memory of its own or with that of another task."""
    mate = words.take("of")
    names = [name for name in words.take("caps").split(",") if name]
    cpu = words.number("cpu", min(s.k.cpu_node))
    s.tasks[words.plain[0]] = fork.attach(s.k, cpu, names, s.tasks[mate].pid if mate else None)


def _file(s: Story, _task: Task, words: Words) -> None:
    """`file f tmpfs 8`: a file of eight pages."""
    name, kind, count = words.plain
    files.create_file(s.k, name, kind, number(count) * PAGE)


def _crowd(s: Story, _task: Task, words: Words) -> None:
    """`crowd 1 leave=2`: somebody takes all frames of a node but two."""
    crowd = s.machine.attach(min(s.k.cpu_node))
    nid, left = number(words.plain[0]), words.number("leave")
    count = s.k.zones[nid].nr_free - left
    start = s.machine.mmap(crowd, count)
    s.machine.mbind(crowd, start, count, 2, {nid})
    s.machine.touch(crowd, start, count)


def _old(s: Story, _task: Task, _words: Words) -> None:
    """`old`: no entry is young any more, as after a scan."""
    s.machine.clear_young()


def _young(s: Story, task: Task, words: Words) -> None:
    """`a young 0+2`: what a client does before it reads."""
    first, count = pages(words.plain[0])
    for page_number in range(first, first + count):
        s.k.c.accessed[s.k.tables.pte_offset(task.mm.pgd, s.base + page_number)] = 1


def _inactive(s: Story, task: Task, words: Words) -> None:
    """`a inactive 0+2`: these pages are on the inactive list, as after a scan."""
    s.k.c.lru_state[s.frames(task, words.plain[0])] = LRU_INACTIVE


def _pin(s: Story, task: Task, words: Words) -> None:
    """`a pin 0+2`, `pin X`: somebody holds a reference to these pages, or to the frames noted by that name."""
    pfns = s.noted.get(words.plain[0]) or s.frames(task, words.plain[0])
    s.k.c.pins[5, : len(pfns)] = np.array(pfns) + 1
    s.k.c.pin_count[5] = len(pfns)


def _unpin(s: Story, _task: Task, _words: Words) -> None:
    """`unpin`: nobody any more."""
    s.k.c.pin_count[5] = 0


def _flag(s: Story, task: Task, words: Words) -> None:
    """`a flag 0+4 VM_IO`: the mappings there have flags that no call of this machine gives."""
    first, count = pages(words.plain[0])
    flags = sum(vars(mm_types)[word] for word in words.plain[1].split("|"))
    for vma in task.mm.vmas.overlapping(s.address(first), s.address(first + count)):
        vma.vm_flags |= flags
    s.flagged.append((task, flags))


def _limit(s: Story, _task: Task, words: Words) -> None:
    """`limit MAX_MAP_COUNT 2`: a bound of the machine is another one."""
    s.patch.setattr(limits, words.plain[0], number(words.plain[1]))


def _release(s: Story, _task: Task, _words: Words) -> None:
    """`release`: what is held is let go."""
    s.released = True
    s.machine.performer.run()


def _tables(s: Story, _task: Task, words: Words) -> None:
    """`tables 0`: so many page-table pages are left."""
    arena = s.k.tables
    arena.table_count = arena.in_use + len(arena.free_tables()) + 1 + number(words.plain[0])


def _writing(s: Story, task: Task, words: Words) -> None:
    """`a writing 0+2`: clean pages of the swap cache that are being written."""
    pfns = np.array(s.frames(task, words.plain[0]), np.int64)
    s.k.c.pg_flags[pfns] |= PG_WRITEBACK
    s.machine.performer.start("writer", _write(pfns, s.k.c.private[pfns].astype(np.int64)))


def _write(pfns: np.ndarray, slots: np.ndarray) -> KernelTask[None]:
    yield WritePages(pfns, slots)


def _note(s: Story, task: Task, words: Words) -> None:
    """`a note 0+4 as X`: the frames of pages get a name."""
    s.noted[words.plain[2]] = s.frames(task, words.plain[0])


def _count(s: Story, _task: Task, _words: Words) -> None:
    """`count`: NUMA counters and vmstat begin here."""
    s.counted = s.k.c.numastat.copy()
    s.events = Counter(s.k.vmstat)


def _watch(s: Story, task: Task, words: Words) -> None:
    """`a watch 0`: look at a page behind each step of a pass, for `seen`."""
    page_number = number(words.plain[0])
    s.watched = task, page_number, s.frames(task, words.plain[0])[0]


ACTS: Final[dict[str, Act]] = {
    "count": _count,
    "crowd": _crowd,
    "file": _file,
    "flag": _flag,
    "inactive": _inactive,
    "limit": _limit,
    "note": _note,
    "old": _old,
    "pin": _pin,
    "release": _release,
    "tables": _tables,
    "task": _task,
    "unpin": _unpin,
    "watch": _watch,
    "writing": _writing,
    "young": _young,
}
