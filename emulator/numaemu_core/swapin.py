"""Pages come back from the swap area: readahead, the swap cache, mapping.

Mirrors: do_swap_page and swapin_readahead, mm/memory.c, read_swap_cache_async, mm/swap_state.c (2.6.15); do_swap_page
of 6.1 where the profile says so.
"""

from typing import NamedTuple

import numpy as np

from numaemu_core.columns import I8, NO_INDEXES, U8
from numaemu_core.distinct import distinct
from numaemu_core.effects import KernelTask, ReadPages, WaitCopies
from numaemu_core.errors import OutOfMemory
from numaemu_core.install_page import make_entries, set_ptes
from numaemu_core.kernel import Kernel
from numaemu_core.lru import lru_cache_add_active, mark_page_accessed
from numaemu_core.mempolicy import alloc_page_cache, alloc_page_vma
from numaemu_core.mm_types import VM_LOCKED, Task, VmArea
from numaemu_core.mmzone import free_pages
from numaemu_core.page_flags import PG_HOSTED, PG_SWAPCACHE, PG_UPTODATE
from numaemu_core.page_lock import leave_pages_locked, lock_new_pages, lock_some_pages, take_over_pages, unlock_pages
from numaemu_core.page_table import PTE_WRITABLE, is_swapped, pte_lock_keys, vm_page_prot
from numaemu_core.rmap import set_anon_identity
from numaemu_core.runs import clear_rows
from numaemu_core.swap_state import (
    can_share_swap_page,
    delete_from_swap_cache,
    free_page_and_swap_cache,
    remove_exclusive_swap_page,
)
from numaemu_core.swapfile import SWAP_LOCK, slots_over_half, swap_duplicate, swap_free
from numaemu_core.task_locks import spin_lock


def do_swap_page(k: Kernel, task: Task, vma: VmArea, vpns: I8, flats: I8, *, write: bool) -> KernelTask[None]:
    """Bring pages back: from the swap cache the frame they still have, else a new one where the policy now says.

    Raises:
        OutOfMemory: what is still missing can get no frame.
    """
    lone = NO_INDEXES
    while True:
        entries = k.c.pte[flats]
        swapped = is_swapped(entries)
        if not swapped.any():
            return
        vpns, flats, entries = vpns[swapped], flats[swapped], entries[swapped]
        slots = _numbers(k, entries)
        assert (k.c.swap_count[slots] > 0).all(), "an entry names a free slot"
        missing = k.slot_frame[slots] < 0
        enough = True
        if missing.any():
            only = k.profile.swap_synchronous & (k.c.swap_count[slots[missing]] == 1)
            lone = np.concatenate((lone, slots[missing][only]))
            read = yield from _read_missing(k, task, vma, vpns[missing], slots[missing])
            yield from end_swap_bio_read(k, read.pages)
            enough = read.enough
        pfns = k.slot_frame[slots]
        cached = (pfns >= 0) & (k.c.pte[flats] == entries)
        if cached.any():
            pfns, at = pfns[cached], np.flatnonzero(cached)
            got = yield from lock_some_pages(k, pfns)
            at = at[got]
            yield from _map_locked(k, vma, vpns[at], flats[at], entries[at], pfns[got], lone, write=write)
        elif not enough:
            raise OutOfMemory


def _numbers(k: Kernel, entries: U8) -> I8:
    """The slots that entries name."""
    return (entries >> np.uint64(k.page_shift)).astype(np.int64)


# -- reading -----------------------------------------------------------------------------------------------------------


def readahead_slots(k: Kernel, slots: I8) -> tuple[I8, I8, I8]:
    """What faults on these slots read: (slots, the fault that each is read for, its distance from the block's start).

    A fault reads the aligned block of 2^page_cluster slots around its own, up to the first free one; faults on the
    same block read it once. A slot behind the end of its block's run is read alone. The area begins at slot 1 of the
    kernel's count. Mirrors: valid_swaphandles, mm/swapfile.c, swapin_readahead, mm/memory.c (2.6.15).
    """
    cluster = k.profile.page_cluster
    faults = np.arange(len(slots))
    if not cluster:
        return slots, faults, np.zeros(len(slots), np.int64)
    blocks, first = np.unique((slots + 1) >> cluster, return_index=True)
    order = np.argsort(first)
    steps = np.arange(1 << cluster)
    grid = (blocks[order] << cluster)[:, None] + steps - 1
    known = np.clip(grid, 0, k.layout.slot_count - 1)
    used = (grid < 0) | (grid == known) & (k.c.swap_count[known] > 0)
    run = np.logical_and.accumulate(used, axis=1)
    wanted = run & (grid >= 0) & (k.slot_frame[known] < 0)
    row, column = np.nonzero(wanted)
    step = column - (grid[row, 0] < 0)  # the first block has no slot 0
    alone = np.flatnonzero(~np.isin(slots, grid[run]))
    return (
        np.concatenate((grid[row, column], slots[alone])),
        np.concatenate((first[order][row], alone)),
        np.concatenate((step, np.zeros(len(alone), np.int64))),
    )


class _Read(NamedTuple):
    """What was begun to be read."""

    pages: ReadPages | None
    #: False: memory ran out on the way.
    enough: bool


def _read_missing(k: Kernel, task: Task, vma: VmArea, vpns: I8, slots: I8) -> KernelTask[_Read]:
    """Major faults on slots that are not cached."""
    wanted, faults, steps = readahead_slots(k, slots)
    places = vpns[faults] + steps * k.profile.readahead_addresses_advance
    zero = any_is_hosted(k, wanted)
    pfns = yield from _alloc_by_address(k, task, vma, places, zero=zero)
    k.reach("swap-in.frame_taken")
    pages = yield from read_swap_cache_async(k, wanted[: len(pfns)], pfns, zeroed=zero)
    k.count("pgmajfault", len(slots))
    return _Read(pages, len(pfns) == len(wanted))


def _alloc_by_address(k: Kernel, task: Task, vma: VmArea, vpns: I8, *, zero: bool) -> KernelTask[I8]:
    """A frame for each address: by the policy of the VMA there, which readahead may have left; of the task in a gap."""
    end = vma.vm_end >> k.page_shift
    if not len(vpns) or int(vpns.max()) < end:
        return (yield from alloc_page_vma(k, task, vma, vpns, zero=zero))
    areas: list[VmArea | None] = [vma]
    labels = np.zeros(len(vpns), np.int64)
    for vpn in distinct(vpns[vpns >= end]).tolist():  # fewer than a block has slots
        area = task.mm.vmas.find_vma(vpn << k.page_shift)
        areas.append(area if area is not None and area.vm_start <= vpn << k.page_shift else None)
        labels[vpns == vpn] = len(areas) - 1
    pfns: list[I8] = []
    for run in np.split(np.arange(len(vpns)), np.flatnonzero(np.diff(labels)) + 1):
        area = areas[int(labels[run[0]])]
        if area is not None:
            got = yield from alloc_page_vma(k, task, area, vpns[run], zero=zero)
        else:
            got = yield from alloc_page_cache(k, task, len(run), zero=zero)
        pfns.append(got)
        if len(got) < len(run):
            break
    return np.concatenate([NO_INDEXES, *pfns])


def any_is_hosted(k: Kernel, slots: I8) -> bool:
    """Has a page in one of these slots no bytes? Its frame is to be one of zeros."""
    return bool(k.c.slot_hosted[slots].any())


def read_swap_cache_async(k: Kernel, slots: I8, pfns: I8, *, zeroed: bool) -> KernelTask[ReadPages | None]:
    """Begin to read slots into new frames, which enter the swap cache; a slot that is free or cached gives its back.

    So does one whose frame cannot be locked: the caller looks again at what is cached. The frames are locked until
    `end_swap_bio_read`. `zeroed`: the frames are.

    Shapes: one frame a slot. Mirrors: read_swap_cache_async, mm/swap_state.c (2.6.15).
    """
    c = k.c
    if not len(pfns):
        return None
    locked = yield from lock_new_pages(k, pfns)
    slots, pfns = slots[locked], pfns[locked]
    with (yield from spin_lock(k, [SWAP_LOCK])):
        fresh = (c.swap_count[slots] > 0) & (k.slot_frame[slots] < 0)
        mine, my_slots = pfns[fresh], slots[fresh]
        c.private[mine] = my_slots
        hosted = c.slot_hosted[my_slots] != 0
        if not zeroed:  # a slot may have got such a page while the frames were sought
            clear_rows(c.frames, mine[hosted])
        c.pg_flags[mine] = np.where(hosted, PG_SWAPCACHE | PG_HOSTED, PG_SWAPCACHE)
        swap_duplicate(k, my_slots)
        k.slot_frame[my_slots] = mine
    yield from unlock_pages(k, pfns[~fresh])
    yield from free_pages(k, pfns[~fresh])
    if not len(mine):
        return None
    yield from lru_cache_add_active(k, mine)
    k.reach("swap-in.in_cache")
    read = ReadPages(my_slots, mine)
    yield read
    return read


def end_swap_bio_read(k: Kernel, read: ReadPages | None) -> KernelTask[None]:
    """Wait for a read: its pages have their bytes and are unlocked (end_swap_bio_read, mm/page_io.c of 2.6.15)."""
    if read is None:
        return
    yield WaitCopies((read,))
    k.reach("swap-in.read")
    k.c.pg_flags[read.pfns] |= PG_UPTODATE
    k.count("pswpin", len(read.pfns))
    yield from unlock_pages(k, read.pfns)
    yield from free_page_and_swap_cache(k, read.pfns)


def read_ahead(k: Kernel, task: Task, vma: VmArea, first_vpn: int, end_vpn: int) -> KernelTask[int]:
    """Begin to read pages of a range that a fault has still to come to; gives where the next ones begin.

    The fault finds them in the swap cache, locked. Who waits for the device is a task of its own, so that whoever
    sleeps for these pages sleeps for nobody who sleeps. Where the swap cache is only passed through, nothing is read.
    """
    if k.profile.swap_synchronous:
        return end_vpn
    start = first_vpn
    while start < end_vpn:
        vpns = np.arange(start, min(start + k.batch_pages, end_vpn))
        start += len(vpns)
        flats = k.tables.walk(vma.vm_mm.pgd, vpns)
        entries = np.where(flats >= 0, k.c.pte[flats], np.uint64(0))
        swapped = is_swapped(entries)
        vpns, slots = vpns[swapped], _numbers(k, entries[swapped])
        missing = k.slot_frame[slots] < 0
        if missing.any():
            read = (yield from _read_missing(k, task, vma, vpns[missing], slots[missing])).pages
            if read is not None:
                leave_pages_locked(k, read.pfns)
                k.spawn("end_swap_bio_read", _end_for_others(k, read))
    return max(end_vpn, first_vpn)


def _end_for_others(k: Kernel, read: ReadPages) -> KernelTask[None]:
    """The task that waits for what another has begun to read."""
    yield from take_over_pages(k, read.pfns)
    yield from end_swap_bio_read(k, read)


# -- mapping -----------------------------------------------------------------------------------------------------------


def _map_locked(
    k: Kernel, vma: VmArea, vpns: I8, flats: I8, entries: U8, pfns: I8, lone: I8, *, write: bool
) -> KernelTask[None]:
    """Map locked swap-cache pages whose entries still name their slots, and unlock them.

    Pages of `lone` slots had a single user and came from a device that is as fast as memory: the swap cache was only
    passed through, the slot is free again.
    """
    c = k.c
    slots = _numbers(k, entries)
    with (yield from spin_lock(k, [*pte_lock_keys(flats), SWAP_LOCK])):
        same = (c.pte[flats] == entries) & (k.slot_frame[slots] == pfns) & (c.pg_flags[pfns] & PG_UPTODATE != 0)
        mapped, at = pfns[same], flats[same]
        set_anon_identity(k, vma, mapped, vpns[same])
        c.mapcount[mapped] += 1
        swap_free(k, slots[same])
        fresh = make_entries(k, mapped, vm_page_prot(vma))
        if write:
            exclusive = can_share_swap_page(k, mapped)
            fresh[exclusive] |= np.uint64(PTE_WRITABLE)
            set_ptes(k, at[exclusive], fresh[exclusive], dirty=1)
            set_ptes(k, at[~exclusive], fresh[~exclusive], dirty=0)
        else:
            set_ptes(k, at, fresh, dirty=0)
        passed = mapped[np.isin(slots[same], lone) & (c.swap_count[slots[same]] == 1)]
        delete_from_swap_cache(k, passed)
    k.reach("swap-in.mapped")
    yield from mark_page_accessed(k, mapped)
    k.count("pgfault", len(mapped))
    if k.profile.write_gives_slot_up and (write or vma.vm_flags & VM_LOCKED):
        yield from remove_exclusive_swap_page(k, mapped, references=2)
    elif surplus := slots_over_half(k):
        yield from remove_exclusive_swap_page(k, mapped, references=2, at_most=surplus)
    yield from unlock_pages(k, pfns)
    yield from free_page_and_swap_cache(k, pfns[~same])
