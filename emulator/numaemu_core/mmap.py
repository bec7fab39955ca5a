"""Address spaces: mapping, unmapping, splitting and merging VMAs, brk.

Mirrors: mm/mmap.c (2.6.15). Left out: growing stacks.
"""

import errno
from dataclasses import replace
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.files import drop_unmapped_objects, find_file, shmem_zero_setup
from numaemu_core.gup import make_pages_present
from numaemu_core.intents import note, noted
from numaemu_core.kernel import Kernel
from numaemu_core.memory import unmap_vmas
from numaemu_core.mm_types import (
    VM_ACCOUNT,
    VM_EXEC,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    AddressSpace,
    AnonVma,
    Mm,
    Task,
    VmArea,
)
from numaemu_core.rlimit import check_address_space, check_locking, mapped_bytes
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.task_locks import down_write
from numaemu_core.uapi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
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
_MAP_KNOWN: Final = (
    MAP_SHARED
    | MAP_PRIVATE
    | MAP_FIXED
    | MAP_FIXED_NOREPLACE
    | MAP_ANONYMOUS
    | MAP_LOCKED
    | MAP_NORESERVE
    | MAP_POPULATE
)
_MAY_ALL: Final = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
_BRK_FLAGS: Final = VM_READ | VM_WRITE | VM_EXEC | _MAY_ALL | VM_ACCOUNT


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
        new = replace(vma, vm_end=addr)
        mm.vmas.move_start(vma, addr)
        vma.vm_pgoff += pages_below
    else:
        new = replace(vma, vm_start=addr, vm_pgoff=vma.vm_pgoff + pages_below)
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
    """Link a VMA into its mm, its anon_vma and the list of its file."""
    k.vma_count += 1
    vma.vm_mm.vmas.insert(vma)
    if vma.anon_vma is not None:
        k.anon_vmas.setdefault(vma.anon_vma, AnonVma(vma.anon_vma)).vmas[vma] = None
    if vma.vm_file is not None:
        vma.vm_file.i_mmap[vma] = None
        vma.vm_file.i_mmap_writable += vma.vm_flags & VM_SHARED != 0


def remove_vma(k: Kernel, vma: VmArea) -> None:
    """Unlink a VMA from its mm, its anon_vma and its file; the anon_vma goes with its last VMA."""
    vma.vm_mm.vmas.remove(vma)
    k.vma_count -= 1
    if vma.vm_file is not None:
        del vma.vm_file.i_mmap[vma]
        vma.vm_file.i_mmap_writable -= vma.vm_flags & VM_SHARED != 0
    leave_anon_vma(k, vma)


def leave_anon_vma(k: Kernel, vma: VmArea) -> None:
    """A VMA has no anonymous pages any more; the anon_vma goes with its last VMA (unlink_anon_vmas)."""
    if vma.anon_vma is None:
        return
    anon_vma = k.anon_vmas[vma.anon_vma]
    del anon_vma.vmas[vma]
    if not anon_vma.vmas:
        del k.anon_vmas[vma.anon_vma]


def _can_merge(k: Kernel, left: VmArea, right: VmArea, neighbour: VmArea) -> bool:
    """Are two VMAs one in all but name? `neighbour` is the one that is not new (can_vma_merge_before and _after)."""
    return (
        left.vm_end == right.vm_start
        and left.vm_flags == right.vm_flags
        and left.vm_file is right.vm_file
        and left.opening == right.opening
        and left.vm_policy == right.vm_policy
        and left.vm_pgoff + ((left.vm_end - left.vm_start) >> k.page_shift) == right.vm_pgoff
        and (
            _anon_identity(k, left) == _anon_identity(k, right)
            or ((left.anon_vma is None or right.anon_vma is None) and has_single_chain(k, neighbour))
        )
    )


def _anon_identity(k: Kernel, vma: VmArea) -> tuple[int | None, int]:
    """What must be the same in two VMAs whose anonymous pages may be under one."""
    return vma.anon_vma, vma.anon_clone if k.profile.merge_needs_single_chain else 0


def has_single_chain(k: Kernel, vma: VmArea) -> bool:
    """May a VMA that has no anonymous pages share the anon_vma of this one?

    Since 3.0 that takes an anon_vma, and one that was not inherited in a fork (list_is_singular of its chain).
    """
    return not k.profile.merge_needs_single_chain or (vma.anon_vma is not None and not vma.anon_clone)


def vma_merge(k: Kernel, vma: VmArea) -> VmArea:
    """Merge a VMA with its neighbours where nothing tells them apart; gives the VMA that has its pages now.

    Mirrors: vma_merge, mm/mmap.c (2.6.15 and 6.1): after mmap, mprotect, mlock and brk; after mbind since 2.6.34.
    """
    vmas = vma.vm_mm.vmas
    before, after = vmas.before(vma.vm_start), vmas.find_vma(vma.vm_end)
    with_before = before is not None and _can_merge(k, before, vma, before)
    with_after = after is not None and _can_merge(k, vma, after, after)
    if before is not None and with_before:
        outer = {_anon_identity(k, v) for v in (before, after) if v is not None and v.anon_vma is not None}
        with_after = with_after and len(outer) <= 1
        vma = _join(k, before, vma)
    if after is not None and with_after:
        vma = _join(k, vma, after)
    return vma


def _join(k: Kernel, left: VmArea, right: VmArea) -> VmArea:
    end, anon_vma = right.vm_end, right.anon_vma
    remove_vma(k, right)
    if left.anon_vma is None and anon_vma is not None:
        left.anon_vma, left.anon_clone = anon_vma, right.anon_clone
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


def sys_mmap(  # noqa: PLR0913, PLR0917 - mmap(2) has six arguments, a file by name adds one
    k: Kernel,
    task: Task,
    addr: int,
    length: int,
    prot: int,
    flags: int,
    file: str | None = None,
    offset: int = 0,
    mode: str = "r+",
) -> KernelTask[int]:
    """Map anonymous memory, or a file opened in `mode` ("r" or "r+") from byte `offset` on; gives the address.

    Mirrors: do_mmap_pgoff, mm/mmap.c (2.6.15).

    Raises:
        MmError: EINVAL (length 0, neither or both of SHARED and PRIVATE, unaligned MAP_FIXED address or offset, unknown
            bits or mode), ENOMEM (no room, too many VMAs), EBADF (neither MAP_ANONYMOUS nor a file), ENOENT (no such
            file), EACCES (shared and writable, of a file opened for reading; the memory is that of a process of the
            host), EOVERFLOW (offset too large).
    """
    mm = task.mm
    if mm.mirrored:  # frames that count as zeros would be written to
        raise MmError(errno.EACCES, f"the memory of task {task.pid} is that of a process of the host")
    size = page_align(k, length)
    if not length:
        raise MmError(errno.EINVAL, "length 0")
    if not size or size > limits.TASK_SIZE_BYTES:
        raise MmError(errno.ENOMEM, f"{length} bytes do not fit into an address space")
    if flags & ~_MAP_KNOWN or prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC):
        raise MmError(errno.EINVAL, f"unknown bits in flags {flags:#x} or prot {prot:#x}")
    if flags & (MAP_SHARED | MAP_PRIVATE) not in (MAP_SHARED, MAP_PRIVATE):
        raise MmError(errno.EINVAL, "exactly one of MAP_SHARED and MAP_PRIVATE")
    mapping = _opened(k, flags, file, offset, mode)
    with (yield from down_write(mm)):
        if (mapped := noted(k)) is not None:
            addr, vm_flags = mapped[1], _new_vm_flags(prot, flags, writable=mapping is None or mode == "r+")
        else:
            addr = _find_room(k, mm, addr, size, flags)
            locked = VM_LOCKED if flags & MAP_LOCKED else mm.def_flags & VM_LOCKED
            check_locking(k, task, size, locked, asked=bool(flags & MAP_LOCKED))
            vm_flags = _new_vm_flags(prot, flags, writable=mapping is None or mode == "r+")
            check_address_space(task, size - mapped_bytes(mm, addr, addr + size))
            yield from do_munmap(k, mm, addr, addr + size)
            with k.journal.together():
                if mapping is None and flags & MAP_SHARED:
                    mapping = shmem_zero_setup(k, size)
                vm_pgoff = addr >> k.page_shift if mapping is None else offset >> k.page_shift
                do_map(k, mm, addr, size, vm_flags | mm.def_flags, file=mapping, pgoff=vm_pgoff)
                note(k, ["mmap", addr])
        if flags & MAP_POPULATE or (vm_flags | mm.def_flags) & VM_LOCKED:
            yield from make_pages_present(k, task, addr, addr + size)
    return addr


def _opened(k: Kernel, flags: int, file: str | None, offset: int, mode: str) -> AddressSpace | None:
    """The file that is to be mapped; None for anonymous memory."""
    if offset & (k.page_size - 1) or mode not in ("r", "r+"):
        raise MmError(errno.EINVAL, f"offset {offset:#x} is not page aligned, or mode {mode!r} is neither r nor r+")
    if offset >> k.page_shift >= 1 << 52:
        raise MmError(errno.EOVERFLOW, f"offset {offset:#x}")
    if flags & MAP_ANONYMOUS:
        return None
    if file is None:
        raise MmError(errno.EBADF, "neither MAP_ANONYMOUS nor a file")
    return find_file(k, file)


def _new_vm_flags(prot: int, flags: int, *, writable: bool) -> int:
    """The flags of a new VMA; `writable`: of a file that was opened for writing, or of anonymous memory.

    A shared mapping of a file opened for reading can never write: it is shared (VM_MAYSHARE), but VM_SHARED is what
    counts for i_mmap_writable.

    Raises:
        MmError: EACCES.
    """
    vm_flags = calc_vm_prot_bits(prot) | _MAY_ALL
    if flags & MAP_LOCKED:
        vm_flags |= VM_LOCKED
    if flags & MAP_NORESERVE:
        vm_flags |= VM_NORESERVE
    elif flags & MAP_PRIVATE and prot & PROT_WRITE:
        vm_flags |= VM_ACCOUNT
    if flags & MAP_SHARED:
        vm_flags |= VM_SHARED | VM_MAYSHARE
        if not writable:
            if prot & PROT_WRITE:
                raise MmError(errno.EACCES, "shared and writable, but the file is open for reading")
            vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
    return vm_flags


def _find_room(k: Kernel, mm: Mm, addr: int, size_bytes: int, flags: int) -> int:
    """Where the mapping goes; a fixed one may cover others (get_unmapped_area, do_mmap_pgoff)."""
    if not flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        return _hinted(k, mm, addr, size_bytes)
    if addr + size_bytes > limits.TASK_SIZE_BYTES:
        raise MmError(errno.ENOMEM, f"{addr:#x} + {size_bytes} lies beyond the address space")
    if addr & (k.page_size - 1):
        raise MmError(errno.EINVAL, f"address {addr:#x} is not page aligned")
    if flags & MAP_FIXED_NOREPLACE and mm.vmas.overlapping(addr, addr + size_bytes):
        raise MmError(errno.EEXIST, f"something is mapped at {addr:#x} + {size_bytes}")
    return addr


def _hinted(k: Kernel, mm: Mm, addr: int, size_bytes: int) -> int:
    """The address that the caller would like, if it is free; else any."""
    addr = addr & -k.page_size
    if addr and addr + size_bytes <= limits.TASK_SIZE_BYTES and not mm.vmas.overlapping(addr, addr + size_bytes):
        return addr
    return get_unmapped_area(mm, size_bytes)


def do_map(
    k: Kernel,
    mm: Mm,
    addr: int,
    size_bytes: int,
    vm_flags: int,
    policy: Mempolicy | None = None,
    *,
    file: AddressSpace | None = None,
    pgoff: int | None = None,
) -> VmArea:
    """Link in a new VMA where nothing is mapped, and merge it with its neighbours.

    `pgoff`: of private anonymous memory it is the page number of its address. A file is opened for it.
    """
    check_map_count(k, mm)
    pgoff = addr >> k.page_shift if pgoff is None else pgoff
    vma = VmArea(mm, addr, addr + size_bytes, vm_flags, pgoff, policy, vm_file=file)
    if file is not None:
        vma.opening = k.openings = k.openings + 1
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
    if start == end:  # not even its edges are cut
        return
    isolate_range(k, mm, start, end)
    doomed = mm.vmas.overlapping(start, end)
    if not doomed:
        return
    for vma in doomed:
        remove_vma(k, vma)
    k.journal.vmas(mm, start, end)
    k.reach("unmapping.vmas_told")
    yield from unmap_vmas(k, mm, start, end, free_tables=True)
    yield from drop_unmapped_objects(k, [vma.vm_file for vma in doomed])


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
        if (moved := noted(k)) is not None:
            old_end = moved[1]
        elif new_end > old_end and mm.vmas.overlapping(old_end, new_end):
            return mm.brk
        elif new_end < old_end:
            yield from do_munmap(k, mm, new_end, old_end)
        with k.journal.together():
            if moved is None and new_end > old_end:
                do_map(k, mm, old_end, new_end - old_end, _BRK_FLAGS | mm.def_flags)
            mm.brk = brk
            k.journal.mm(mm)
            note(k, ["brk", old_end])
        if new_end > old_end and mm.def_flags & VM_LOCKED:
            yield from make_pages_present(k, task, old_end, new_end)
    return mm.brk


def exit_mmap(k: Kernel, mm: Mm) -> KernelTask[None]:
    """Drop everything an mm maps, and its page tables (2.6.15 exit_mmap); its last user is gone.

    The journal is told of the end of the mm and of that user on the way, before the first table is free.
    """
    with (yield from down_write(mm)):
        mm.dead = True
        doomed = list(mm.vmas)
        for vma in reversed(doomed):
            remove_vma(k, vma)
        yield from unmap_for_good(k, mm, doomed, free_pgd=True)
        k.c.mm_epoch[mm.id] += np.uint64(1)
        del k.mms[mm.id]


def unmap_for_good(k: Kernel, mm: Mm, doomed: list[VmArea], *, free_pgd: bool = False) -> KernelTask[None]:
    """Drop all pages and tables of an mm whose VMAs are unlinked; mmap_sem is held for writing."""
    yield from unmap_vmas(k, mm, 0, limits.TASK_SIZE_BYTES, free_tables=True, free_pgd=free_pgd)
    yield from drop_unmapped_objects(k, [vma.vm_file for vma in doomed])
