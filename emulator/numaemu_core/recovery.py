"""Recovery: the kernel of a machine whose daemon died, made anew from its shared columns and its journal.

What is true is in shared memory: the journal (tasks, mms, VMAs, policies, files, calls), the page tables, for each
frame its identity, flags and free state, for each slot the page of an object that is in it. All else is derived from
that. Whatever was on its way is taken for not begun where nothing tells of it: a page between two places is where its
entry says, a write that nobody confirmed is to be done again, what nothing leads to is free.

Rules:

* Until the windows have been waited for, no frame and no table becomes free, and no entry is given a right.
* A recovery that is cut short is begun again: it makes nothing untrue, and the journal is written last.
* Copies of the last daemon have ended, or will never begin: that is the caller's business.
"""

from collections.abc import Callable

import numpy as np

from numaemu_core.columns import NO_INDEXES, Columns
from numaemu_core.fault_points import Reach, unarmed
from numaemu_core.journal import Journal, Truth
from numaemu_core.kernel import Kernel
from numaemu_core.layout import Layout
from numaemu_core.locks import HostLocks
from numaemu_core.oom_kill import oom_reap_task
from numaemu_core.recovery_objects import make_objects
from numaemu_core.recovery_pages import (
    count_entries,
    find_page_cache,
    find_slots_of_objects,
    find_swap_cache,
    finish_move,
    map_again,
    mend_entries,
    settle_counters,
    settle_flags,
    settle_frames,
    settle_slots,
)

#: Waits until every window that is open now has closed, within bounds; gives the stragglers, slot → counter.
WaitForWindows = Callable[[], dict[int, int]]


def recover(
    layout: Layout,
    columns: Columns,
    journal: Journal,
    host: HostLocks,
    wait_for_windows: WaitForWindows,
    prepare_table: Callable[[int], None] = lambda _table: None,
    reach: Reach = unarmed,
) -> tuple[Kernel, Truth]:
    """The kernel, and what the journal told. Calls that were on their way are run again later (`intents`).

    Pins of dead clients have been cleared, and their windows count as closed.
    """
    truth = journal.reopen()
    k = Kernel(layout, columns, journal, host)
    k.reach = reach
    journal.snapshot_from(k.truth)
    make_objects(k, truth)
    reach("recovery.objects_made")
    k.tables.prepare = prepare_table
    k.tables.recover(_tables_in_use(k))  # new ones come from those that were never used, for now
    for note in truth.notes.values():
        if note[0] == "move" and note[1] in k.mms:
            finish_move(k, k.mms[note[1]], *note[2:5])
    mend_entries(k)
    reach("recovery.entries_mended")
    columns.mm_epoch += np.uint64(1)  # no walk that a client remembers is good any more
    stragglers = wait_for_windows()
    reach("recovery.windows_waited")
    if stragglers:
        map_again(k, {int(columns.window_mm[slot]) - 1 for slot in stragglers})
    settle_flags(k)
    users = count_entries(k)
    cached = find_page_cache(k, users)
    find_slots_of_objects(k, users)
    cached |= find_swap_cache(k, users)
    settle_frames(k, users, cached, stragglers)
    reach("recovery.frames_settled")
    settle_slots(k, users)
    settle_counters(k)
    _settle_tables(k, stragglers)
    journal.compact()
    reach("recovery.compacted")
    return k, truth


def resume(k: Kernel) -> None:
    """Once kernel tasks can run: the memory of those that were killed for want of it is taken from them."""
    for mm in {task.mm.id: task.mm for task in k.tasks.values() if task.killed}.values():
        mm.oom_victim = True
        k.spawn("oom_reaper", oom_reap_task(k, mm))


def _tables_in_use(k: Kernel) -> set[int]:
    return {table for mm in k.mms.values() for table in k.tables.all_tables(mm.pgd)}


def _settle_tables(k: Kernel, stragglers: dict[int, int]) -> None:
    """Tables that nothing leads to are free, or kept for stragglers."""
    gone = k.tables.recover(_tables_in_use(k))
    k.tables.clear(gone)
    if stragglers:
        k.quarantine.add(stragglers, NO_INDEXES, gone)
    else:
        for table in gone:
            k.tables.free_table(table)
