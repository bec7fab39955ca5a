"""mremap: growing, shrinking and moving mappings. Mirrors: mm/mremap.c (2.6.15, 6.1)."""

import errno
from dataclasses import dataclass, replace

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, U8
from numaemu_core.effects import Breathe, KernelTask, Shootdown
from numaemu_core.errors import MmError
from numaemu_core.gup import make_pages_present
from numaemu_core.intents import note, noted
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import VM_LOCKED, VM_LOCKONFAULT, VM_MAYSHARE, Mm, Task, VmArea
from numaemu_core.mmap import (
    check_map_count,
    do_munmap,
    get_unmapped_area,
    insert_vm_struct,
    leave_anon_vma,
    page_align,
    vma_merge,
)
from numaemu_core.page_flags import PG_DIRTY
from numaemu_core.page_table import PTE_WRITE_RIGHTS, is_present, is_writable, pte_lock_keys
from numaemu_core.rlimit import check_address_space, may_lock
from numaemu_core.task_locks import down_write, spin_lock
from numaemu_core.uapi import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the caller asked for, in whole pages of bytes."""

    addr: int
    old_len: int
    new_len: int
    flags: int
    new_addr: int


def sys_mremap(
    k: Kernel, task: Task, addr: int, old_len: int, new_len: int, flags: int, new_addr: int
) -> KernelTask[int]:
    """Change the length of a mapping, or its place; gives where it is now.

    Raises:
        MmError: EINVAL (flags, unaligned, length 0, places that overlap), EFAULT (nothing is mapped there, or not by
            one VMA), ENOMEM (no room), EAGAIN (RLIMIT_MEMLOCK).
    """
    wish = _Wish(addr, page_align(k, old_len), page_align(k, new_len), flags, new_addr)
    _check(k, wish, old_len, new_len)
    with (yield from down_write(task.mm)):
        match noted(k):
            case ["grown", old_end, new_end]:
                yield from _populate_if_locked(k, task, old_end, new_end)
                return addr
            case ["move", _, start, old_end, target, new_end]:
                return (yield from _finish_move(k, task, wish, (start, old_end), (target, new_end)))
        vma = task.mm.vmas.find_vma(addr)
        if k.profile.mremap_looks_first and (vma is None or vma.vm_start > addr):
            raise MmError(errno.EFAULT, f"nothing is mapped at {addr:#x}")
        if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
            return (yield from _mremap_to(k, task, wish))
        if wish.old_len >= wish.new_len:
            yield from _cut_off(k, task.mm, addr + wish.new_len, addr + wish.old_len)
            return addr
        vma = _vma_to_resize(k, task, wish)
        if addr + wish.old_len == vma.vm_end and not task.mm.vmas.overlapping(vma.vm_end, addr + wish.new_len):
            return (yield from _expand(k, task, vma, wish))
        if not flags & MREMAP_MAYMOVE:
            raise MmError(errno.ENOMEM, "no room to grow, and the mapping may not move")
        target = get_unmapped_area(task.mm, wish.new_len)
        return (yield from _move_vma(k, task, vma, wish, target))


def _check(k: Kernel, wish: _Wish, old_len: int, new_len: int) -> None:
    known = MREMAP_MAYMOVE | MREMAP_FIXED | (MREMAP_DONTUNMAP if k.profile.madvise_of_today else 0)
    bad = wish.flags & ~known or (wish.flags & MREMAP_FIXED and not wish.flags & MREMAP_MAYMOVE)
    if wish.flags & MREMAP_DONTUNMAP:
        bad = bad or not wish.flags & MREMAP_MAYMOVE or old_len != new_len
    if bad or wish.addr & (k.page_size - 1) or not wish.new_len:
        raise MmError(errno.EINVAL, f"flags {wish.flags:#x}, address {wish.addr:#x} or length {new_len} is not valid")


def _cut_off(k: Kernel, mm: Mm, start: int, end: int) -> KernelTask[None]:
    """The end of a mapping that shrinks.

    Raises:
        MmError: EINVAL: it lies beyond the address space.
    """
    if start < end > limits.TASK_SIZE_BYTES:
        raise MmError(errno.EINVAL, f"{end:#x} lies beyond the address space")
    yield from do_munmap(k, mm, start, end)


def _vma_to_resize(k: Kernel, task: Task, wish: _Wish) -> VmArea:
    """The one VMA that has the old range, if it may become so long."""
    vma = task.mm.vmas.find_vma(wish.addr)
    if vma is None or vma.vm_start > wish.addr:
        raise MmError(errno.EFAULT, f"nothing is mapped at {wish.addr:#x}")
    if not wish.old_len and not vma.vm_flags & VM_MAYSHARE:
        raise MmError(errno.EINVAL, "old length 0 is for shared mappings")
    if wish.addr + wish.old_len > vma.vm_end:
        raise MmError(errno.EFAULT, "the old range is not one mapping")
    more = wish.new_len - wish.old_len
    if more and vma.vm_flags & VM_LOCKED and not may_lock(k, task, more):
        raise MmError(errno.EAGAIN, f"RLIMIT_MEMLOCK is {task.rlimit_memlock} bytes")
    check_address_space(task, more)
    return vma


def _expand(k: Kernel, task: Task, vma: VmArea, wish: _Wish) -> KernelTask[int]:
    """Grow in place."""
    old_end, new_end = vma.vm_end, wish.addr + wish.new_len
    if new_end > limits.TASK_SIZE_BYTES:
        raise MmError(errno.ENOMEM, "the address space ends before")
    vma.vm_end = new_end
    vma = vma_merge(k, vma)
    with k.journal.together():
        k.journal.vmas(task.mm, vma.vm_start, vma.vm_end)
        note(k, ["grown", old_end, new_end])
    yield from _populate_if_locked(k, task, old_end, new_end)
    return wish.addr


def _populate_if_locked(k: Kernel, task: Task, start: int, end: int) -> KernelTask[None]:
    """Fault in what a locked mapping has got."""
    vma = task.mm.vmas.find_vma(start)
    if vma is not None and vma.vm_start <= start < end and vma.vm_flags & VM_LOCKED:
        yield from make_pages_present(k, task, start, end)


def _mremap_to(k: Kernel, task: Task, wish: _Wish) -> KernelTask[int]:
    """Move to a place that the caller says, or leave the old mapping there, empty."""
    new_addr, old_len = wish.new_addr, wish.old_len
    if new_addr & (k.page_size - 1) or new_addr + wish.new_len > limits.TASK_SIZE_BYTES:
        raise MmError(errno.EINVAL, f"new address {new_addr:#x} is not page aligned or beyond the address space")
    if wish.addr + old_len > new_addr and new_addr + wish.new_len > wish.addr:
        raise MmError(errno.EINVAL, "old and new place overlap")
    check_map_count(k, task.mm, 2)
    if wish.flags & MREMAP_FIXED:
        yield from do_munmap(k, task.mm, new_addr, new_addr + wish.new_len)
    if old_len > wish.new_len:
        yield from _cut_off(k, task.mm, wish.addr + wish.new_len, wish.addr + old_len)
        wish = replace(wish, old_len=wish.new_len)
    vma = _vma_to_resize(k, task, wish)
    if wish.flags & MREMAP_DONTUNMAP:
        check_address_space(task, wish.old_len)
    if not wish.flags & MREMAP_FIXED and (not new_addr or task.mm.vmas.overlapping(new_addr, new_addr + wish.new_len)):
        new_addr = get_unmapped_area(task.mm, wish.new_len)
    return (yield from _move_vma(k, task, vma, wish, new_addr))


def _move_vma(k: Kernel, task: Task, vma: VmArea, wish: _Wish, target: int) -> KernelTask[int]:
    """Copy the VMA, move its pages, unmap the old place (move_vma).

    Private anonymous memory that was never touched takes the offset of its new address: it has no page that knows the
    old one (copy_vma).
    """
    mm = task.mm
    check_map_count(k, mm, 3)
    untouched = vma.vm_file is None and vma.anon_vma is None
    pgoff = vma.vm_pgoff + ((wish.addr - vma.vm_start) >> k.page_shift)
    new = replace(
        vma,
        vm_start=target,
        vm_end=target + wish.new_len,
        vm_pgoff=target >> k.page_shift if untouched else pgoff,
    )
    insert_vm_struct(k, new)
    old_end, new_end = wish.addr + wish.old_len, target + wish.new_len
    # Told before the first entry moves: no entry is ever outside of the VMAs that the journal knows.
    with k.journal.together():
        k.journal.vmas(mm, target, new_end)
        note(k, ["move", mm.id, wish.addr, old_end, target, new_end])
    yield from _move_page_tables(k, mm, wish.addr, old_end, target)
    return (yield from _finish_move(k, task, wish, (wish.addr, old_end), (target, new_end)))


def _finish_move(k: Kernel, task: Task, wish: _Wish, old: tuple[int, int], new: tuple[int, int]) -> KernelTask[int]:
    """The pages have moved: merge the new mapping with its neighbours, take the old one away."""
    mm = task.mm
    vma = mm.vmas.find_vma(new[0])
    if vma is not None and vma.vm_start <= new[0]:
        vma_merge(k, vma)
        k.journal.vmas(mm, *new)
    locked = vma is not None and vma.vm_flags & VM_LOCKED
    if wish.flags & MREMAP_DONTUNMAP:
        _leave_empty(k, task, *old)
        return new[0]
    yield from do_munmap(k, mm, *old)
    if locked:
        yield from make_pages_present(k, task, new[0] + old[1] - old[0], new[1])
    return new[0]


def _leave_empty(k: Kernel, task: Task, start: int, end: int) -> None:
    """The range stays mapped, without pages (MREMAP_DONTUNMAP). The whole VMA loses its lock; it is not split."""
    vma = task.mm.vmas.find_vma(start)
    if vma is None or vma.vm_start > start:  # another call took it away between two runs of this one
        return
    vma.vm_flags &= ~(VM_LOCKED | VM_LOCKONFAULT)
    if vma.vm_start == start and vma.vm_end == end:
        leave_anon_vma(k, vma)
        vma.anon_vma, vma.anon_clone = None, 0
    k.journal.vmas(task.mm, vma.vm_start, vma.vm_end)


def _move_page_tables(k: Kernel, mm: Mm, start: int, end: int, target: int) -> KernelTask[None]:
    """Entries of [start, end) go to their places from `target` on; who writes through an old one is waited for."""
    shift = (target - start) >> k.page_shift
    flats, vpns, _ = k.tables.used_entries(mm.pgd, start >> k.page_shift, end >> k.page_shift)
    moved: list[tuple[I8, I8]] = []
    for part in range(0, len(flats), limits.BATCH_PAGES):
        batch = slice(part, part + limits.BATCH_PAGES)
        old, new = flats[batch], k.tables.pte_alloc_each(mm.pgd, vpns[batch] + shift)
        with (yield from spin_lock(k, pte_lock_keys(np.concatenate((old, new))))):
            _count_as_dirty(k, k.c.pte[old])
            k.c.accessed[new] = k.c.accessed[old]
            k.c.dirty[new] = k.c.dirty[old]
            k.c.pte[new] = k.c.pte[old]
            k.c.pte[old] = 0
        moved.append((old, new))
        yield Breathe()
    if not moved:
        return
    stragglers: dict[int, int] = yield Shootdown(frozenset([mm.id]))
    for old, new in moved:
        written = (k.c.dirty[old] != 0) | (bool(stragglers) & (k.c.pte[new] & np.uint64(PTE_WRITE_RIGHTS) != 0))
        k.c.dirty[new[written]] = 1
        k.c.accessed[new] |= k.c.accessed[old]


def _count_as_dirty(k: Kernel, entries: U8) -> None:
    """Pages that a late window may write to through their old entry, whose dirty byte an eviction would not look at."""
    may_be = entries[is_present(entries) & is_writable(entries)]
    k.c.pg_flags[(may_be >> np.uint64(k.page_shift)).astype(np.int64)] |= PG_DIRTY
