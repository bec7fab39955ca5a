"""What tasks took they have given back when they have gone: frames, slots, tables, objects, locks, the journal."""

from typing import Any

import numpy as np

from numaemu_core import fork, madvise, memory, mmap
from numaemu_core.fsck import fsck
from numaemu_core.kernel import Kernel
from numaemu_core.performer import Performer
from numaemu_core.topology import uniform
from numaemu_core.uapi import MADV_PAGEOUT, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE

PAGE = 4096
CYCLES = 60


def given_out(k: Kernel) -> dict[str, Any]:
    """Everything that is counted or kept."""
    # The held locks of tasks that have ended are nobody's.
    return {
        "free": sum(zone.nr_free for zone in k.zones.values()),
        "slots": k.nr_swap_pages,
        "swap map": int(np.count_nonzero(k.c.swap_count)),
        "tables": k.tables.in_use,
        "tasks": len(k.tasks),
        "mms": len(k.mms),
        "anon_vmas": len(k.anon_vmas),
        "objects": len(k.address_spaces),
        "vmas": k.vma_count,
        "callers": len(k.callers),
        "quarantine": len(k.quarantine.entries),
        "left to pins": len(k.left_to_pins),
        "references": int(k.page_refs.sum()),
        "harvests": int(k.harvests.sum()),
        "moving": int(np.count_nonzero(k.c.moving_to)),
        "locks": (len(k.locks._held), len(k.locks._sems)),  # noqa: SLF001 - what the table keeps is the question
    }


def cycle(p: Performer) -> None:
    """A task, its memory of several kinds, a child, and the end of both."""
    k = p.k
    task = fork.attach(k, 0, [], None)
    for flags in (MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS):
        base = p.call(mmap.sys_mmap(k, task, 0, 12 * PAGE, PROT_READ | PROT_WRITE, flags))
        p.call(memory.sys_fault(k, task, base, 12 * PAGE, write=True))
        child = p.call(fork.sys_fork(k, task))
        p.call(memory.sys_fault(k, child, base, 3 * PAGE, write=True))
        p.call(madvise.sys_madvise(k, task, base, 8 * PAGE, MADV_PAGEOUT))
        p.call(memory.sys_fault(k, task, base, 2 * PAGE, write=False))
        p.call(mmap.sys_munmap(k, task, base, 5 * PAGE))
        p.call(fork.sys_exit(k, child))
    p.call(fork.sys_exit(k, task))
    p.run()


def test_cycles_of_tasks_take_nothing_for_good() -> None:
    """After sixty lives everything is as after the first, and a snapshot of the journal is no longer."""
    p = Performer(uniform(2, "512K", "512K", "linux-6.1", PAGE))
    cycle(p)
    before = given_out(p.k)
    p.k.journal.compact()
    length = p.k.journal._at  # noqa: SLF001 - how far the half in use is written
    for _ in range(CYCLES):
        cycle(p)
    assert given_out(p.k) == before
    p.k.journal.compact()
    assert p.k.journal._at <= length + 16  # noqa: SLF001 - marks may need some bytes more
    assert fsck(p.k) == []
