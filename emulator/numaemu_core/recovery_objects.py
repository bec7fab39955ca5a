"""Tasks, mms, VMAs, files and policies made anew from what the journal tells: the first half of recovery.

Where the daemon died in the middle of something, the rows decide: an address space without a task was never forked or
has exited, a task without an address space has ended, shared anonymous memory that no VMA maps is gone if nobody keeps
it.
"""

import numpy as np

from numaemu_core.journal import Row, Truth, policy_of_row
from numaemu_core.kernel import ANON_INO_STEP, Kernel
from numaemu_core.mm_types import AddressSpace, FileKind, Mm, Task, VmArea
from numaemu_core.mmap import insert_vm_struct
from numaemu_core.page_flags import PAGE_MAPPING_FILE


def make_objects(k: Kernel, truth: Truth) -> None:
    """Fill a kernel that has no objects yet."""
    for number, row in truth.files.items():
        _make_file(k, number, row, truth)
    users = [row[0] for row in truth.tasks.values()]
    for mm_id, row in truth.mms.items():
        if mm_id in users:
            pgd, start_brk, brk, def_flags, mirrored = row
            mm_users = users.count(mm_id)
            k.mms[mm_id] = Mm(mm_id, pgd, start_brk, brk, def_flags=def_flags, mirrored=mirrored, mm_users=mm_users)
    for mm in k.mms.values():
        for row in truth.vmas.get(mm.id, []):
            _make_vma(k, mm, row)
    for pid, row in sorted(truth.tasks.items()):
        if row[0] in k.mms:
            k.tasks[pid] = _task_of_row(k, pid, row)
    for mapping in list(k.address_spaces.values()):
        if mapping.kind is FileKind.ANON_SHARED and not mapping.i_mmap and not mapping.kept_as:
            del k.address_spaces[mapping.id]
            k.mirrored_objects.pop(mapping.name, None)
    k.il_weights = dict(truth.weights)
    _set_marks(k, truth)


def _make_file(k: Kernel, number: int, row: Row, truth: Truth) -> None:
    kind, name, i_ino, i_size, disk_start, uid, kept_as, mirrored = row
    pages = np.zeros(-(-i_size >> k.page_shift), np.uint64)
    mapping = AddressSpace(number, FileKind(kind), name, i_ino, i_size, pages, disk_start, uid=uid)
    mapping.kept_as, mapping.mirrored = kept_as, mirrored
    for start, end, policy in truth.policies.get(number, []):
        mapping.policy.set(start, end, policy_of_row(policy))
    k.address_spaces[number] = mapping
    if mirrored:
        k.mirrored_objects[name] = mapping
    if kept_as:
        k.kept_objects[name] = mapping
    if mapping.kind is not FileKind.ANON_SHARED:
        k.files[name] = mapping
    if mapping.kind is FileKind.DISK:
        k.disk_cursor = max(k.disk_cursor, disk_start + len(pages))


def _make_vma(k: Kernel, mm: Mm, row: Row) -> None:
    start, end, flags, pgoff, policy, anon_vma, file, clone, opening = row
    file_mapped = None if file is None else k.address_spaces[file]
    vma = VmArea(mm, start, end, flags, pgoff, policy_of_row(policy), anon_vma, file_mapped, clone, opening=opening)
    insert_vm_struct(k, vma)


def _task_of_row(k: Kernel, pid: int, row: Row) -> Task:
    mm, cpu, capabilities, policy, il_next, mems_allowed, cpuset, il_prev, il_weight, *rest = row
    uid, dumpable, memlock, address_space, parent, killed, owner = rest
    task = Task(pid, k.mms[mm], cpu, frozenset(capabilities), policy_of_row(policy), il_next, mems_allowed, cpuset)
    task.il_prev, task.il_weight = il_prev, il_weight
    task.uid, task.dumpable, task.rlimit_memlock, task.rlimit_as = uid, dumpable, memlock, address_space
    task.parent, task.killed, task.owner = parent, killed, owner
    return task


def _set_marks(k: Kernel, truth: Truth) -> None:
    """Numbers go on where they were, so that what somebody still remembers becomes nobody else's."""
    vmas = [vma for mm in k.mms.values() for vma in mm.vmas]
    k.next_pid = max([truth.marks.get("pid", 1), *(pid + 1 for pid in k.tasks)])
    k.next_object = max([truth.marks.get("object", 1), *((n & ~PAGE_MAPPING_FILE) + 1 for n in k.address_spaces)])
    k.next_anon_vma = max([truth.marks.get("anon_vma", 1), *(vma.anon_vma + 1 for vma in vmas if vma.anon_vma)])
    k.anon_clones = max([truth.marks.get("clone", 0), *(vma.anon_clone for vma in vmas)])
    k.openings = max([truth.marks.get("opening", 0), *(vma.opening for vma in vmas)])
    k.anon_objects = truth.marks.get("anon_ino", 0) // ANON_INO_STEP
    k.next_mm = max([*truth.mms, -1]) + 1
