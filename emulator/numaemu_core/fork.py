"""Tasks and address spaces come and go: attach, fork with copy-on-write, exit.

Mirrors: kernel/fork.c dup_mmap, mm/memory.c copy_page_range (2.6.15), for many pages at a time.
"""

import errno
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES, U8, Bool
from numaemu_core.cpuset import top_cpuset
from numaemu_core.cred import check_capabilities, check_uid
from numaemu_core.distinct import distinct
from numaemu_core.effects import Breathe, KernelTask, Shootdown
from numaemu_core.errors import MmError, OutOfMemory
from numaemu_core.install_page import make_entries
from numaemu_core.intents import note, noted
from numaemu_core.kernel import Kernel
from numaemu_core.lru import lru_cache_add_active
from numaemu_core.mempolicy import alloc_page_vma
from numaemu_core.mm_types import VM_DONTCOPY, VM_LOCKED, VM_LOCKONFAULT, Mm, Task, VmArea
from numaemu_core.mmap import check_map_count, exit_mmap, insert_vm_struct
from numaemu_core.mmzone import free_pages
from numaemu_core.page_flags import PAGE_MAPPING_FILE, PG_REFERENCED, PG_UPTODATE
from numaemu_core.page_table import (
    PTE_WRITABLE,
    PTE_WRITE_RIGHTS,
    flats_of,
    is_migration,
    is_present,
    is_swapped,
    is_writable,
    pte_lock_keys,
    vm_page_prot,
)
from numaemu_core.rmap import pinned_pages, put_pages, set_anon_identity
from numaemu_core.runs import copy_rows
from numaemu_core.swapfile import SWAP_LOCK, swap_duplicate
from numaemu_core.task_locks import down_write, spin_lock

#: So many pids are named where one is not there.
_PIDS_SHOWN = 10
#: Tables of the parent, and as many of the child, whose locks one step of a fork takes.
_TABLES_PER_STEP = limits.PTE_LOCK_BATCH // 2


def new_mm(k: Kernel) -> Mm:
    """An empty address space (mm_alloc).

    Raises:
        MmError: ENOMEM: too many are alive, or no page-table page is left.
    """
    mm_id = k.free_mm_id()
    if mm_id < 0:
        raise MmError(errno.ENOMEM, f"a machine has at most {limits.MAX_MMS} address spaces")
    mm = Mm(mm_id, k.tables.alloc_table(), limits.START_BRK, limits.START_BRK)
    k.mms[mm_id] = mm
    k.journal.mm(mm)
    return mm


def _check_task_count(k: Kernel) -> None:
    if len(k.tasks) >= limits.MAX_TASKS:
        raise MmError(errno.EAGAIN, f"a machine has at most {limits.MAX_TASKS} tasks")


def _add_task(k: Kernel, task: Task) -> Task:
    k.tasks[task.pid] = task
    k.next_pid = task.pid + 1
    k.journal.task(task)
    return task


def attach(k: Kernel, cpu: int, capabilities: list[str], share_mm: int | None, owner: int = 0, uid: int = 0) -> Task:
    """A new task of a client and of user `uid`, with an mm of its own or with that of the task `share_mm`.

    Raises:
        MmError: EINVAL (no such CPU, capability or user id), ESRCH (no task `share_mm`), EAGAIN (too many), ENOMEM.
    """
    if cpu not in k.cpu_node:
        raise MmError(errno.EINVAL, f"CPU {cpu} is not there; CPUs: {sorted(k.cpu_node)}")
    _check_task_count(k)
    check_capabilities(capabilities)
    check_uid(uid)
    if share_mm is None:
        mm = new_mm(k)
    else:
        mate = task_of(k, share_mm)
        if mate.killed:
            raise MmError(errno.ESRCH, f"task {share_mm} was killed")
        mm = mate.mm
        mm.mm_users += 1
    task = Task(k.next_pid, mm, cpu, frozenset(capabilities), mems_allowed=top_cpuset(k), owner=owner, uid=uid)
    return _add_task(k, task)


def task_of(k: Kernel, pid: int) -> Task:
    """The task of that pid.

    Raises:
        MmError: ESRCH.
    """
    task = k.tasks.get(pid)
    if task is None or task.exiting:
        living = [other for other, task in k.tasks.items() if not task.exiting]
        shown = ", ".join(map(str, sorted(living)[:_PIDS_SHOWN])) + (", ..." if len(living) > _PIDS_SHOWN else "")
        raise MmError(errno.ESRCH, f"no task {pid}; tasks: {shown or 'none'}")
    return task


def check_alive(k: Kernel, task: Task) -> None:
    """Has the task ended while its call waited for its turn?

    Raises:
        MmError: ESRCH.
    """
    if k.tasks.get(task.pid) is not task:
        raise MmError(errno.ESRCH, f"task {task.pid} has ended")


def sys_exit(k: Kernel, task: Task) -> KernelTask[int]:
    """The task ends; its mm goes with its last task (do_exit). Whoever starts this says `exiting` at once."""
    task.exiting = True
    k.reach("exit.begun")
    task.mm.mm_users -= 1
    if task.mm.mm_users == 0:
        yield from exit_mmap(k, task.mm)
    else:
        k.journal.append(["task_gone", task.pid])
    del k.tasks[task.pid]
    k.reach("exit.over")
    return 0


def sys_set_cpu(k: Kernel, task: Task, cpu: int) -> KernelTask[int]:
    """Move the task to another CPU; its node is where local allocations go.

    Raises:
        MmError: EINVAL: no such CPU; ESRCH: the task has ended.
    """
    check_alive(k, task)
    if cpu not in k.cpu_node:
        raise MmError(errno.EINVAL, f"CPU {cpu} is not there; CPUs: {sorted(k.cpu_node)}")
    task.cpu = cpu
    k.journal.task(task)
    yield from ()  # it needs nothing from the world
    return 0


def sys_fork(k: Kernel, task: Task) -> KernelTask[Task]:
    """A child with a copy of the address space: pages are shared until one of the two writes (do_fork).

    Raises:
        MmError: ENOMEM: no page-table page or address space is left; nothing has changed then.
    """
    if (born := noted(k)) is not None:
        return task_of(k, born[1])
    _check_task_count(k)
    child = new_mm(k)
    try:
        with (yield from down_write(task.mm)):
            check_alive(k, task)
            check_map_count(k, child, len(task.mm.vmas))
            yield from dup_mmap(k, task, child)
    except MmError as error:
        yield from exit_mmap(k, child)
        raise MmError(error.errno, error.detail) from None
    twin = Task(k.next_pid, child, task.cpu, task.capabilities, task.policy, task.il_next, task.mems_allowed)
    twin.cpuset, twin.il_prev, twin.il_weight = task.cpuset, task.il_prev, task.il_weight
    twin.uid, twin.dumpable = task.uid, task.dumpable
    twin.rlimit_memlock, twin.rlimit_as = task.rlimit_memlock, task.rlimit_as
    twin.parent, twin.owner = task.pid, task.owner
    k.reach("fork.entries_copied")
    with k.journal.together():
        note(k, ["fork", twin.pid])
        _add_task(k, twin)
    k.reach("fork.born")
    return twin


def dup_mmap(k: Kernel, task: Task, child: Mm) -> KernelTask[None]:
    """Copy VMAs and page tables; mmap_sem of the parent is held for writing.

    Writable pages are write-protected, and every window in which they might still be written has closed, before the
    child maps any of them. While a straggler stays, it may write to any page of the parent, also through an entry that
    lost the right long ago: then all pages are copied for the child at once. So are pinned pages.
    """
    parent = task.mm
    child.start_brk, child.brk, child.mirrored = parent.start_brk, parent.brk, parent.mirrored
    for vma in parent.vmas:
        if vma.vm_flags & VM_DONTCOPY:
            continue
        k.anon_clones += 1
        clone = 0 if vma.anon_vma is None else k.anon_clones
        flags = vma.vm_flags & ~(VM_LOCKED | VM_LOCKONFAULT)
        insert_vm_struct(k, replace(vma, vm_mm=child, vm_flags=flags, anon_clone=clone))
    k.journal.mm(child)
    k.journal.vmas(child, 0, limits.TASK_SIZE_BYTES)
    k.reach("fork.vmas_told")
    yield from _write_protect(k, parent, child)
    k.reach("fork.write_protected")
    stragglers: dict[int, int] = yield Shootdown(frozenset([parent.id]))
    k.reach("fork.windows_closed")
    yield from copy_page_range(k, task, child, eagerly=bool(stragglers))


def _anonymous(mm: Mm) -> list[VmArea]:
    """The VMAs whose pages a fork copies; what has no anonymous pages is faulted in anew (2.6.14, commit d992895b)."""
    return [vma for vma in mm.vmas if vma.anon_vma is not None]


def _entries_to_copy(k: Kernel, parent: Mm, child: Mm, tables_per_step: int) -> Iterator[tuple[I8, I8, I8]]:
    """The parent's entries that are not none in what the child has, some tables at a time.

    Each time flat indexes, virtual pages, and the places of their VMAs in `_anonymous(child)`.
    """
    vmas = _anonymous(child)
    if not vmas:
        return
    starts = np.array([vma.vm_start for vma in vmas]) >> k.page_shift
    ends = np.array([vma.vm_end for vma in vmas]) >> k.page_shift
    first, last = int(starts[0]), int(ends[-1])
    tables, bases = k.tables.pte_tables(parent.pgd, first, last)
    needed = starts[np.searchsorted(ends, bases, "right")] < bases + limits.PTRS_PER_TABLE
    tables, bases = tables[needed], bases[needed]
    for part in range(0, len(tables), tables_per_step):
        batch = slice(part, part + tables_per_step)
        flats, vpns = flats_of(tables[batch], bases[batch], first, last)
        used = k.c.pte[flats] != 0
        flats, vpns = flats[used], vpns[used]
        which = np.searchsorted(ends, vpns, "right")
        inside = starts[which] <= vpns
        if inside.any():
            yield flats[inside], vpns[inside], which[inside]


def _write_protect(k: Kernel, parent: Mm, child: Mm) -> KernelTask[None]:
    """Take the right to write from every entry of the parent that may be copied."""
    for part, (flats, _, _) in enumerate(_entries_to_copy(k, parent, child, limits.PTE_LOCK_BATCH)):
        if part:
            yield Breathe()
        with (yield from spin_lock(k, pte_lock_keys(flats))):
            writable = k.c.pte[flats] & np.uint64(PTE_WRITE_RIGHTS) != 0
            k.c.pte[flats[writable]] &= ~np.uint64(PTE_WRITE_RIGHTS)


def copy_page_range(k: Kernel, task: Task, child: Mm, *, eagerly: bool) -> KernelTask[None]:
    """Give the child the pages that the parent has; `eagerly`: as copies of its own.

    Mirrors: copy_page_range, mm/memory.c (2.6.15), for all VMAs together: young is cleared in the child only; slots get
    a reference more.
    """
    vmas = _anonymous(child)
    pinned = distinct(pinned_pages(k))
    for flats, vpns, which in _entries_to_copy(k, task.mm, child, _TABLES_PER_STEP):
        yield Breathe()
        entries = k.c.pte[flats]
        copied = (eagerly | is_writable(entries) | _names_any(k, entries, pinned)) & _is_anonymous(k, entries)
        ours = k.tables.pte_alloc_each(child.pgd, vpns)
        with (yield from spin_lock(k, [*pte_lock_keys(np.concatenate((flats, ours))), SWAP_LOCK])):
            _share(k, flats[~copied], ours[~copied])
        for number in distinct(which[copied]).tolist():
            chosen = copied & (which == number)
            yield from _copy_pages(k, task, vmas[number], vpns[chosen], flats[chosen], ours[chosen])


def _share(k: Kernel, flats: I8, ours: I8) -> None:
    """The child has in its entries `ours` what the parent has in `flats` (copy_one_pte); the locks are held."""
    c = k.c
    left = c.pte[flats] != 0
    flats, ours = flats[left], ours[left]
    entries = c.pte[flats]
    swap_duplicate(k, _numbers(k, entries[is_swapped(entries)]))
    pfns = _numbers(k, entries[is_present(entries) | is_migration(entries)])
    np.add.at(c.mapcount, pfns[pfns != k.zero_pfn], 1)  # a page of a file may be mapped twice
    c.accessed[ours] = 0
    c.dirty[ours] = c.dirty[flats]
    c.pte[ours] = entries & ~np.uint64(PTE_WRITE_RIGHTS)


def _copy_pages(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, ours: I8) -> KernelTask[None]:
    """Give the child's VMA copies of pages; what has left memory by then is shared.

    Raises:
        OutOfMemory: there is no frame for them.
    """
    c = k.c
    spare = NO_INDEXES
    while len(spare) < len(vpns):
        more = yield from alloc_page_vma(k, task, vma, vpns[len(spare) :], zero=False)
        if not len(more):
            yield from free_pages(k, spare)
            raise OutOfMemory
        spare = np.concatenate((spare, more))
    set_anon_identity(k, vma, spare, vpns)
    c.pg_flags[spare] = PG_UPTODATE | PG_REFERENCED
    c.mapcount[spare] = 1
    yield from lru_cache_add_active(k, spare)
    with (yield from spin_lock(k, [*pte_lock_keys(np.concatenate((flats, ours))), SWAP_LOCK])):
        here = is_present(c.pte[flats])
        _share(k, flats[~here], ours[~here])
        copy_rows(c.frames, spare[here], c.frames, _numbers(k, c.pte[flats[here]]))
        c.accessed[ours[here]] = 0
        c.dirty[ours[here]] = 1
        c.pte[ours[here]] = make_entries(k, spare[here], vm_page_prot(vma) | PTE_WRITABLE)
    unused = spare[~here]
    c.mapcount[unused] = 0
    yield from put_pages(k, unused)


def _numbers(k: Kernel, entries: U8) -> I8:
    """The frames or slots that entries name."""
    return (entries >> np.uint64(k.page_shift)).astype(np.int64)


def _names_any(k: Kernel, entries: U8, pfns: I8) -> Bool:
    """Which entries map one of these frames."""
    return is_present(entries) & np.isin(_numbers(k, entries), pfns)


def _is_anonymous(k: Kernel, entries: U8) -> Bool:
    """Which entries map an anonymous page."""
    pfns = np.where(is_present(entries), _numbers(k, entries), k.zero_pfn)
    return (pfns != k.zero_pfn) & (k.c.mapping[pfns] & PAGE_MAPPING_FILE == 0)
