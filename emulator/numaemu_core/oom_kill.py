"""Out of memory: who is killed when nothing can be reclaimed, and how its memory comes back.

Mirrors: mm/oom_kill.c (2.6.14 badness; 6.x oom_badness and oom_reap_task). A killed task stays as a zombie, without
memory, until its client lets it go: every call of it answers that it ran out of memory. Left out: the times in badness
(tasks of this machine have none), oom_adj.
"""

import math

import numpy as np

from numaemu_core import limits
from numaemu_core.effects import KernelTask, Nap
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Mm, Task
from numaemu_core.mmap import remove_vma, unmap_for_good
from numaemu_core.nodemask import mask_of
from numaemu_core.page_table import is_present, is_swapped
from numaemu_core.task_locks import down_write
from numaemu_core.uapi import MPOL_BIND


def out_of_memory(k: Kernel, task: Task, nodes: tuple[int, ...]) -> KernelTask[bool]:
    """Kill somebody, unless somebody is dying already, and wait until its memory is free.

    False: the task itself was killed, or nobody is left who could be.
    """
    if not any(mm.oom_victim for mm in k.mms.values()):
        victim = select_bad_process(k, task, nodes)
        if victim is None:
            return False
        oom_kill_process(k, victim)
    while not task.killed and any(mm.oom_victim for mm in k.mms.values()):
        yield Nap()
    return not task.killed


def select_bad_process(k: Kernel, task: Task, nodes: tuple[int, ...]) -> Task | None:
    """The task with the most points; of equals the first."""
    candidates = [
        one for one in k.tasks.values() if not one.killed and not one.exiting and _eligible(k, one, task, nodes)
    ]
    return max(candidates, key=lambda one: badness(k, one), default=None)


def _eligible(k: Kernel, candidate: Task, task: Task, nodes: tuple[int, ...]) -> bool:
    """Could killing this task help the one that is short?"""
    if not candidate.mems_allowed & task.mems_allowed:
        return False
    short = mask_of(nodes)
    constrained = short & task.mems_allowed & k.memory_nodes != task.mems_allowed & k.memory_nodes
    if k.profile.oom_knows_policies and constrained:
        policy = candidate.policy
        return policy is None or policy.mode != MPOL_BIND or bool(policy.nodes & short)
    return True


def badness(k: Kernel, task: Task) -> int:
    """Points of a task: the more, the sooner it is killed."""
    if k.profile.oom_badness_by_rss:
        return _resident_and_swapped(k, task.mm)
    points = _total_vm(k, task.mm)
    points += sum(_total_vm(k, child.mm) for child in _children(k, task))
    for capability in ("CAP_SYS_ADMIN", "CAP_SYS_RAWIO"):
        if capability in task.capabilities:
            points //= 4
    return points


def _children(k: Kernel, task: Task) -> list[Task]:
    return [one for one in k.tasks.values() if one.parent == task.pid and one.mm is not task.mm and not one.killed]


def _total_vm(k: Kernel, mm: Mm) -> int:
    """Pages of the address space, whether they are there or not."""
    return sum((vma.vm_end - vma.vm_start) >> k.page_shift for vma in mm.vmas)


def _resident_and_swapped(k: Kernel, mm: Mm) -> int:
    """Pages that are there, pages in the swap area, and page tables."""
    _, _, entries = k.tables.used_entries(mm.pgd, 0, limits.TASK_SIZE_BYTES >> k.page_shift)
    zero = entries >> np.uint64(k.page_shift) == np.uint64(k.zero_pfn)
    pages = int(np.count_nonzero(is_present(entries) & ~zero | is_swapped(entries)))
    return pages + math.ceil(len(entries) / limits.PTRS_PER_TABLE)


def oom_kill_process(k: Kernel, victim: Task) -> None:
    """Kill a task, or in 2.6.15 one of its children first, and all tasks that share the memory."""
    if not k.profile.oom_badness_by_rss:
        victim = next(iter(_children(k, victim)), victim)
    k.count("oom_kill")
    for one in k.tasks.values():
        if one.mm is victim.mm:
            one.killed = True
            k.journal.task(one)
    victim.mm.oom_victim = True
    k.spawn("oom_reaper", oom_reap_task(k, victim.mm))


def oom_reap_task(k: Kernel, mm: Mm) -> KernelTask[None]:
    """Take everything from an address space whose tasks were killed; it stays, empty, until they exit."""
    try:
        with (yield from down_write(mm)):
            doomed = list(mm.vmas)
            for vma in reversed(doomed):
                remove_vma(k, vma)
            k.journal.vmas(mm, 0, limits.TASK_SIZE_BYTES)
            yield from unmap_for_good(k, mm, doomed)
    finally:
        mm.oom_victim = False
        k.pages_changed = True
