"""The call mirror: an address space follows that of a process of the host, which maps and touches memory by itself.

Its mappings come and go as told, and pages that the process has get frames as if the task wrote to them first: where
the policies of this moment say. The bytes stay with the process; the frames keep place and are counted.
"""

import errno
from collections.abc import Collection, Sequence

import numpy as np

from numaemu_core import limits
from numaemu_core.distinct import distinct
from numaemu_core.effects import Breathe, KernelTask
from numaemu_core.errors import MmError
from numaemu_core.files import drop_unmapped_objects, shmem_zero_setup, truncate_range
from numaemu_core.fork import check_alive
from numaemu_core.gup import fault_in_pages
from numaemu_core.kernel import Kernel
from numaemu_core.memory import unmap_mapping_range, unmap_vmas
from numaemu_core.mm_types import (
    VM_ACCOUNT,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    AddressSpace,
    Mm,
    Task,
    VmArea,
)
from numaemu_core.mmap import check_map_count, do_munmap, insert_vm_struct
from numaemu_core.task_locks import down_write

#: First byte and end.
Span = tuple[int, int]
#: First byte, end, the name of a shared object or None, the first byte of it, does it grow?, and what the host calls
#: the object if it keeps it while nobody maps it, else None.
Area = tuple[int, int, str | None, int, bool, str | None]

_PRIVATE = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT
_SHARED = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_SHARED | VM_MAYSHARE


def sys_mirror(
    k: Kernel,
    task: Task,
    unmapped: Sequence[Span],
    areas: Sequence[Area],
    gone: Sequence[Span],
    held: Sequence[Span],
    read: Sequence[Span],
) -> KernelTask[int]:
    """Unmap, map, drop pages, and give frames to the pages of `held` that have none; gives how many bytes these are.

    Pages of `read` were only looked at: private ones have the page of zeros.

    What is mapped already in an area stays, the rest is mapped without a policy; but in an area that grows, as heaps
    and stacks do, a mapping grows with its policy. So does private memory without a policy, which is one mapping to the
    kernel, too; mappings of two areas are not merged. Areas with one name share the pages and the policies of one
    object, which lives as long as something maps it, or the host keeps it. All of it may be done twice.

    Raises:
        MmError: EINVAL: a span that is not of whole pages of the address space; ENOMEM: too many mappings; EBUSY: the
            task has used its memory by itself.
        SegmentationFault: held pages that no area maps. OutOfMemory: they find no frame; those before have theirs.
    """
    mm = task.mm
    for start, end in [*unmapped, *((area[0], area[1]) for area in areas), *gone, *held, *read]:
        if (start | end) & (k.page_size - 1) or not start < end <= limits.TASK_SIZE_BYTES:
            raise MmError(errno.EINVAL, f"[{start:#x}, {end:#x}) is no range of whole pages of the address space")
    with (yield from down_write(mm)):
        check_alive(k, task)
        if not mm.mirrored:
            _begin(k, mm)
        yield from _remap(k, mm, unmapped, areas)
        for start, end in gone:
            yield from unmap_vmas(k, mm, start, end, free_tables=False)
    if held:
        yield from _touch(k, task, held, write=True)
    if read:
        yield from _touch(k, task, read, write=False)
    return sum(end - start for start, end in held)


def _begin(k: Kernel, mm: Mm) -> None:
    """From now on its frames are zeros: nobody may have written to them, or be about to."""
    if len(mm.vmas) or (k.c.window_mm == mm.id + 1).any():
        raise MmError(errno.EBUSY, "the memory of the task is its own")
    mm.mirrored = True
    k.journal.mm(mm)


def _remap(k: Kernel, mm: Mm, unmapped: Sequence[Span], areas: Sequence[Area]) -> KernelTask[None]:
    """Unmap, and map; an object that is only mapped elsewhere then lives on."""
    names = {area[2] for area in areas if area[2] is not None}
    wanted = [k.mirrored_objects[name] for name in sorted(names & k.mirrored_objects.keys())]
    for one in wanted:
        one.wanted += 1
    refused: MmError | None = None
    try:
        for start, end in unmapped:
            yield from do_munmap(k, mm, start, end)
        for area in areas:
            _fill(k, mm, area)
    except MmError as error:
        refused = error
    finally:
        for one in wanted:
            one.wanted -= 1
    yield from drop_unmapped_objects(k, wanted)
    if refused is not None:
        raise refused


def sys_let_go_shared(k: Kernel, task: Task, names: Collection[str]) -> KernelTask[list[list[str]]]:
    """The host keeps these objects no more: those that nobody maps go. Gives those that it keeps, and as what.

    Policies and pages stay with an object for as long, as with tmpfs until the inode goes (shmem_evict_inode,
    mm/shmem.c). All of it may be done twice.
    """
    check_alive(k, task)
    gone = [k.kept_objects.pop(name) for name in names if name in k.kept_objects]
    for one in gone:
        one.kept_as = ""
        k.journal.file(one)
    yield from drop_unmapped_objects(k, gone)
    return [[name, one.kept_as] for name, one in k.kept_objects.items()]


def sys_truncate_shared(k: Kernel, task: Task, name: str, first_byte: int, end_byte: int) -> KernelTask[None]:
    """Whole pages of a shared object lose their memory, wherever they are mapped; its policies stay.

    What the host has done by itself, as shmem_truncate_range, mm/shmem.c (6.12). It may be done twice.
    """
    check_alive(k, task)
    first, end = -(-first_byte >> k.page_shift), end_byte >> k.page_shift
    mapping = k.mirrored_objects.get(name)
    if mapping is not None:
        yield from unmap_mapping_range(k, mapping, first, end)
        yield from truncate_range(k, mapping, first, end)


def _touch(k: Kernel, task: Task, spans: Sequence[Span], *, write: bool) -> KernelTask[None]:
    """Fault pages in, as if the task accessed them: many ranges at a time, as most are short."""
    runs = np.array(spans, np.int64).reshape(-1, 2) >> k.page_shift
    before = np.concatenate(([0], np.cumsum(runs[:, 1] - runs[:, 0])))
    total = int(before[-1])
    for first in range(0, total, limits.FAULT_REQUEST_PAGES):
        numbers = np.arange(first, min(first + limits.FAULT_REQUEST_PAGES, total))
        run = np.searchsorted(before, numbers, "right") - 1
        vpns = runs[run, 0] + numbers - before[run]
        yield from fault_in_pages(k, task, vpns if (np.diff(vpns) > 0).all() else distinct(vpns), write=write)
        yield Breathe()


def _fill(k: Kernel, mm: Mm, area: Area) -> None:
    """Map the holes of an area: what is mapped in it grows into them, or they become mappings of their own."""
    start, end, name, offset, grows, kept_as = area
    inside = mm.vmas.overlapping(start, end)
    edges = [start, *(edge for vma in inside for edge in (vma.vm_start, vma.vm_end)), end]
    for at, (low, high) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        if low >= high:
            continue
        before, after = inside[at - 1 : at] if at else [], inside[at : at + 1]
        if before and (grows or _is_plain(before[0])):
            before[0].vm_end = high
            k.journal.vmas(mm, before[0].vm_start, high)
        elif after and ((grows and not at) or _is_plain(after[0])):
            mm.vmas.move_start(after[0], low)
            after[0].vm_pgoff -= (high - low) >> k.page_shift
            k.journal.vmas(mm, low, after[0].vm_end)
        else:
            _map(k, mm, (low, high), name, offset + low - start, kept_as)


def _is_plain(vma: VmArea) -> bool:
    """Is it private memory without a policy?"""
    return vma.vm_file is None and vma.vm_policy is None


def _map(k: Kernel, mm: Mm, span: Span, name: str | None, offset: int, kept_as: str | None) -> None:
    """One mapping, not merged with its neighbours."""
    start, end = span
    check_map_count(k, mm)
    with k.journal.together():
        k.openings += 1
        mapping = None if name is None else _shared_object(k, name, offset + end - start, kept_as)
        flags, pgoff = (_PRIVATE, start) if mapping is None else (_SHARED, offset)
        vma = VmArea(mm, start, end, flags, pgoff >> k.page_shift, vm_file=mapping, opening=k.openings)
        insert_vm_struct(k, vma)
        k.journal.vmas(mm, start, end)


def _shared_object(k: Kernel, name: str, size_bytes: int, kept_as: str | None) -> AddressSpace:
    """The object of that name, made or made longer if need be: up to the length that one may have.

    The first so many objects are kept as long as the host keeps them.
    """
    size_bytes = min(size_bytes, limits.FILE_PAGES_MAX << k.page_shift)
    found = k.mirrored_objects.get(name) or shmem_zero_setup(k, size_bytes, name, mirrored=True)
    missing = -(-size_bytes >> k.page_shift) - len(found.i_pages)
    if missing > 0:
        found.i_pages = np.concatenate((found.i_pages, np.zeros(missing, np.uint64)))
        found.i_size = size_bytes
        k.journal.file(found)
    room = name in k.kept_objects or len(k.kept_objects) < limits.KEPT_OBJECTS_MAX
    if kept_as is not None and kept_as != found.kept_as and room:
        found.kept_as = kept_as
        k.kept_objects[name] = found
        k.journal.file(found)
    return found
