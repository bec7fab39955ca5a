"""Address spaces: mapping, unmapping, splitting and merging VMAs, brk.

Mirrors: mm/mmap.c (2.6.15). Left out: files, shared mappings, growing stacks, mremap, rlimits.
"""

import errno
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.memory import make_pages_present, unmap_vmas
from numaemu_core.mm_types import (
    VM_EXEC,
    VM_LOCKED,
    VM_READ,
    VM_WRITE,
    AnonVma,
    Mm,
    Task,
    VmArea,
)
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.task_locks import down_write
from numaemu_core.uapi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

_PROT_FLAGS: Final = ((PROT_READ, VM_READ), (PROT_WRITE, VM_WRITE), (PROT_EXEC, VM_EXEC))
_MAP_KNOWN: Final = MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE


def calc_vm_prot_bits(prot: int) -> int:
    """VM_READ, VM_WRITE, VM_EXEC of a PROT mask."""
    return sum(flag for bit, flag in _PROT_FLAGS if prot & bit)


def page_align(k: Kernel, length: int) -> int:
    """Rounded up to pages, in the arithmetic of an unsigned long: a huge length wraps to 0."""
    return (length + k.page_size - 1) & -k.page_size & (1 << 64) - 1


# -- one VMA -----------------------------------------------------------------------------------------------------------


def split_vma(k: Kernel, vma: VmArea, addr: int, *, new_below: bool) -> VmArea:
    """Cut a VMA in two at `addr`; the new half (below or above) has a copy of the policy (2.6.15 split_vma).

    Raises:
        MmError: ENOMEM: the mm has max_map_count VMAs.
    """
    mm = vma.vm_mm
    check_map_count(k, mm)
    assert vma.vm_start < addr < vma.vm_end
    pages_below = (addr - vma.vm_start) >> k.page_shift
    if new_below:
        new = VmArea(mm, vma.vm_start, addr, vma.vm_flags, vma.vm_pgoff, vma.vm_policy, vma.anon_vma)
        mm.vmas.move_start(vma, addr)
        vma.vm_pgoff += pages_below
    else:
        pgoff = vma.vm_pgoff + pages_below
        new = VmArea(mm, addr, vma.vm_end, vma.vm_flags, pgoff, vma.vm_policy, vma.anon_vma)
        vma.vm_end = addr
    insert_vm_struct(k, new)
    return new


def check_map_count(k: Kernel, mm: Mm, more: int = 1) -> None:
    """Is there room for `more` VMAs in this mm, and on the machine?

    Raises:
        MmError: ENOMEM.
    """
    if len(mm.vmas) + more > limits.MAX_MAP_COUNT:
        raise MmError(errno.ENOMEM, f"an address space has at most {limits.MAX_MAP_COUNT} VMAs")
    if k.vma_count + more > limits.MAX_VMAS:
        raise MmError(errno.ENOMEM, f"a machine has at most {limits.MAX_VMAS} VMAs")


def insert_vm_struct(k: Kernel, vma: VmArea) -> None:
    """Link a VMA into its mm and its anon_vma."""
    k.vma_count += 1
    vma.vm_mm.vmas.insert(vma)
    if vma.anon_vma is not None:
        k.anon_vmas.setdefault(vma.anon_vma, AnonVma(vma.anon_vma)).vmas[vma] = None


def remove_vma(k: Kernel, vma: VmArea) -> None:
    """Unlink a VMA from its mm and its anon_vma; the anon_vma goes with its last VMA."""
    vma.vm_mm.vmas.remove(vma)
    k.vma_count -= 1
    if vma.anon_vma is not None:
        anon_vma = k.anon_vmas[vma.anon_vma]
        del anon_vma.vmas[vma]
        if not anon_vma.vmas:
            del k.anon_vmas[vma.anon_vma]


def _can_merge(k: Kernel, left: VmArea, right: VmArea) -> bool:
    """Are two neighbours one VMA in all but name (2.6.15 can_vma_merge_before and _after)?"""
    return (
        left.vm_end == right.vm_start
        and left.vm_flags == right.vm_flags
        and left.vm_policy == right.vm_policy
        and left.vm_pgoff + ((left.vm_end - left.vm_start) >> k.page_shift) == right.vm_pgoff
        and (left.anon_vma is None or right.anon_vma is None or left.anon_vma == right.anon_vma)
    )


def vma_merge(k: Kernel, vma: VmArea) -> VmArea:
    """Merge a VMA with its neighbours where nothing tells them apart; gives the VMA that has its pages now.

    Mirrors: vma_merge, mm/mmap.c (2.6.15): after mmap, mprotect, mlock and brk; never after mbind.
    """
    vmas = vma.vm_mm.vmas
    before = vmas.before(vma.vm_start)
    if before is not None and _can_merge(k, before, vma):
        vma = _join(k, before, vma)
    after = vmas.find_vma(vma.vm_end)
    if after is not None and _can_merge(k, vma, after):
        vma = _join(k, vma, after)
    return vma


def _join(k: Kernel, left: VmArea, right: VmArea) -> VmArea:
    end, anon_vma = right.vm_end, right.anon_vma
    remove_vma(k, right)
    if left.anon_vma is None and anon_vma is not None:
        left.anon_vma = anon_vma
        k.anon_vmas.setdefault(anon_vma, AnonVma(anon_vma)).vmas[left] = None
    left.vm_end = end
    return left


# -- mmap and munmap ---------------------------------------------------------------------------------------------------


def get_unmapped_area(mm: Mm, length: int) -> int:
    """The lowest hole of `length` bytes above TASK_UNMAPPED_BASE (2.6.15 arch_get_unmapped_area).

    Raises:
        MmError: ENOMEM: there is none.
    """
    address = limits.TASK_UNMAPPED_BASE
    for vma in mm.vmas.overlapping(address, limits.TASK_SIZE_BYTES):
        if address + length <= vma.vm_start:
            return address
        address = max(address, vma.vm_end)
    if address + length > limits.TASK_SIZE_BYTES:
        raise MmError(errno.ENOMEM, f"no hole of {length} bytes in the address space")
    return address


def sys_mmap(k: Kernel, task: Task, addr: int, length: int, prot: int, flags: int) -> KernelTask[int]:
    """Map private anonymous memory; gives its address (2.6.15 do_mmap_pgoff).

    Raises:
        MmError: EINVAL (length 0, neither or both of SHARED and PRIVATE, unaligned MAP_FIXED address, unknown bits),
            ENOMEM (no room, too many VMAs), ENODEV (a kind of mapping that this machine does not have).
    """
    mm = task.mm
    size = page_align(k, length)
    if not length:
        raise MmError(errno.EINVAL, "length 0")
    if not size or size > limits.TASK_SIZE_BYTES:
        raise MmError(errno.ENOMEM, f"{length} bytes do not fit into an address space")
    if flags & (MAP_SHARED | MAP_PRIVATE) not in (MAP_SHARED, MAP_PRIVATE):
        raise MmError(errno.EINVAL, "exactly one of MAP_SHARED and MAP_PRIVATE")
    if flags & ~_MAP_KNOWN or prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC):
        raise MmError(errno.EINVAL, f"unknown bits in flags {flags:#x} or prot {prot:#x}")
    if flags & MAP_SHARED or not flags & MAP_ANONYMOUS:
        raise MmError(errno.ENODEV, "this machine maps private anonymous memory")
    with (yield from down_write(mm)):
        if flags & MAP_FIXED:
            if addr & (k.page_size - 1):
                raise MmError(errno.EINVAL, f"address {addr:#x} is not page aligned")
            if addr + size > limits.TASK_SIZE_BYTES:
                raise MmError(errno.ENOMEM, f"{addr:#x} + {size} lies beyond the address space")
            yield from do_munmap(k, mm, addr, addr + size)
        else:
            addr = _hinted(k, mm, addr, size)
        vm_flags = calc_vm_prot_bits(prot) | mm.def_flags | (VM_LOCKED if flags & MAP_LOCKED else 0)
        do_map(k, mm, addr, size, vm_flags)
        if flags & MAP_POPULATE or vm_flags & VM_LOCKED:
            yield from make_pages_present(k, task, addr, addr + size)
    return addr


def _hinted(k: Kernel, mm: Mm, addr: int, size_bytes: int) -> int:
    """The address that the caller would like, if it is free; else any."""
    addr = addr & -k.page_size
    if addr and addr + size_bytes <= limits.TASK_SIZE_BYTES and not mm.vmas.overlapping(addr, addr + size_bytes):
        return addr
    return get_unmapped_area(mm, size_bytes)


def do_map(k: Kernel, mm: Mm, addr: int, size_bytes: int, vm_flags: int, policy: Mempolicy | None = None) -> VmArea:
    """Link in a new private anonymous VMA where nothing is mapped, and merge it with its neighbours."""
    check_map_count(k, mm)
    vma = VmArea(mm, addr, addr + size_bytes, vm_flags, addr >> k.page_shift, policy)
    insert_vm_struct(k, vma)
    vma = vma_merge(k, vma)
    k.journal.vmas(mm, addr, addr + size_bytes)
    return vma


def sys_munmap(k: Kernel, task: Task, addr: int, length: int) -> KernelTask[int]:
    """Unmap whatever lies in [addr, addr + length) (2.6.15 sys_munmap).

    Raises:
        MmError: EINVAL (unaligned, beyond the address space, length 0), ENOMEM (a split would make too many VMAs).
    """
    size = page_align(k, length)
    if addr & (k.page_size - 1) or addr > limits.TASK_SIZE_BYTES or size > limits.TASK_SIZE_BYTES - addr or not size:
        raise MmError(errno.EINVAL, f"[{addr:#x}, +{length}) is no range of whole pages in the address space")
    with (yield from down_write(task.mm)):
        yield from do_munmap(k, task.mm, addr, addr + size)
    return 0


def do_munmap(k: Kernel, mm: Mm, start: int, end: int) -> KernelTask[None]:
    """Cut the range out of the VMAs and drop its pages; mmap_sem is held for writing (2.6.15 do_munmap)."""
    isolate_range(k, mm, start, end)
    doomed = mm.vmas.overlapping(start, end)
    if not doomed:
        return
    for vma in doomed:
        remove_vma(k, vma)
    k.journal.vmas(mm, start, end)
    yield from unmap_vmas(k, mm, start, end, free_tables=True)


def isolate_range(k: Kernel, mm: Mm, start: int, end: int) -> None:
    """Split the VMAs at both ends of a range, so that each lies inside or outside of it."""
    for edge, new_below in ((start, False), (end, True)):
        vma = mm.vmas.find_vma(edge)
        if vma is not None and vma.vm_start < edge:
            split_vma(k, vma, edge, new_below=new_below)
            k.journal.vmas(mm, vma.vm_start, vma.vm_end)


# -- brk ---------------------------------------------------------------------------------------------------------------


def sys_brk(k: Kernel, task: Task, brk: int) -> KernelTask[int]:
    """Move the end of the heap; gives where it is now, unchanged when it cannot move (2.6.15 sys_brk)."""
    mm = task.mm
    with (yield from down_write(mm)):
        if brk < mm.start_brk or brk > limits.TASK_UNMAPPED_BASE:
            return mm.brk
        old_end, new_end = page_align(k, mm.brk), page_align(k, brk)
        if new_end < old_end:
            yield from do_munmap(k, mm, new_end, old_end)
        elif new_end > old_end:
            if mm.vmas.overlapping(old_end, new_end):
                return mm.brk
            do_map(k, mm, old_end, new_end - old_end, VM_READ | VM_WRITE | VM_EXEC | mm.def_flags)
            if mm.def_flags & VM_LOCKED:
                yield from make_pages_present(k, task, old_end, new_end)
        mm.brk = brk
        k.journal.mm(mm)
    return mm.brk


def exit_mmap(k: Kernel, mm: Mm) -> KernelTask[None]:
    """Drop everything an mm maps, and its page tables (2.6.15 exit_mmap); its last user is gone."""
    with (yield from down_write(mm)):
        mm.dead = True
        for vma in reversed(list(mm.vmas)):
            remove_vma(k, vma)
        yield from unmap_vmas(k, mm, 0, limits.TASK_SIZE_BYTES, free_tables=True, free_pgd=True)
        k.c.mm_epoch[mm.id] += np.uint64(1)
        del k.mms[mm.id]
        k.journal.append(["mm_gone", mm.id])
