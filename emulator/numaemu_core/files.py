"""Files that can be mapped: making them, reading and writing without a mapping, cutting pages out of them.

Kinds: tmpfs (pages go to swap), ramfs (pages never leave), disk (pages are written back to the disk segment of the swap
node). A file lives as long as the machine; shared anonymous memory as long as somebody maps it, or a host that is
mirrored keeps it. Mirrors: generic_file_write and do_generic_mapping_read, mm/filemap.c, truncate_inode_pages,
mm/truncate.c (2.6.15).
"""

import errno
from collections.abc import Iterable
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, U1
from numaemu_core.effects import Breathe, KernelTask, WaitWriteback
from numaemu_core.errors import MmError, OutOfMemory
from numaemu_core.filemap import page_cache_read, remove_from_page_cache, resident_pfns, still_in_cache
from numaemu_core.kernel import ANON_INO_STEP, Kernel
from numaemu_core.lru import mark_page_accessed
from numaemu_core.mm_types import AddressSpace, FileKind, Task
from numaemu_core.page_flags import PAGE_MAPPING_FILE, PG_DIRTY, PG_WRITEBACK
from numaemu_core.page_lock import lock_some_pages, unlock_pages
from numaemu_core.page_table import is_present, is_swapped
from numaemu_core.rmap import put_pages
from numaemu_core.swap_state import free_swap_and_cache

#: The name that shared anonymous memory has in numa_maps.
ANON_SHARED_NAME: Final = "/dev/zero"
#: First inode number of a file: 1 is the root directory.
_FIRST_INO: Final = 2


def create_file(k: Kernel, name: str, kind: str, length: int, uid: int = 0) -> AddressSpace:
    """A file of `length` bytes that are zeros, of user `uid`; no page of it is in memory.

    Raises:
        MmError: EINVAL (kind, empty name), EEXIST, EFBIG (more pages than the machine has room for), ENOSPC (the disk
            segment is full), ENFILE (too many files).
    """
    if kind not in (FileKind.TMPFS, FileKind.RAMFS, FileKind.DISK):
        raise MmError(errno.EINVAL, f"kind {kind!r} is none of tmpfs, ramfs, disk")
    if not name or len(name) > limits.FILE_NAME_MAX or not name.isprintable():
        raise MmError(errno.EINVAL, f"a file has a printable name of 1 to {limits.FILE_NAME_MAX} characters")
    if name in k.files:
        raise MmError(errno.EEXIST, f"there is a file {name!r}")
    mapping = _new_object(k, FileKind(kind), name, _FIRST_INO + len(k.files), length)
    if mapping.kind is FileKind.DISK:
        if k.disk_cursor + len(mapping.i_pages) > k.layout.disk_count:
            del k.address_spaces[mapping.id]
            raise MmError(errno.ENOSPC, f"the disk has {k.layout.disk_count - k.disk_cursor} pages left")
        mapping.disk_start = k.disk_cursor
        k.disk_cursor += len(mapping.i_pages)
    mapping.uid = uid
    k.files[name] = mapping
    k.journal.file(mapping)
    return mapping


def shmem_zero_setup(k: Kernel, length: int, name: str = ANON_SHARED_NAME, *, mirrored: bool = False) -> AddressSpace:
    """The object behind a new shared anonymous mapping (mm/shmem.c shmem_zero_setup).

    Raises:
        MmError: ENFILE: too many.
    """
    k.anon_objects += 1
    mapping = _new_object(k, FileKind.ANON_SHARED, name, ANON_INO_STEP * k.anon_objects, length)
    mapping.mirrored = mirrored
    if mirrored:
        k.mirrored_objects[name] = mapping
    k.journal.file(mapping)
    return mapping


def _new_object(k: Kernel, kind: FileKind, name: str, ino: int, length: int) -> AddressSpace:
    if len(k.address_spaces) >= limits.MAX_FILES:
        raise MmError(errno.ENFILE, f"a machine has at most {limits.MAX_FILES} files and shared mappings")
    pages = -(-length >> k.page_shift)
    if pages > limits.FILE_PAGES_MAX:
        raise MmError(errno.EFBIG, f"a file has at most {limits.FILE_PAGES_MAX} pages")
    number = k.next_object
    k.next_object += 1
    mapping = AddressSpace(number | PAGE_MAPPING_FILE, kind, name, ino, length, np.zeros(pages, np.uint64))
    k.address_spaces[mapping.id] = mapping
    return mapping


def find_file(k: Kernel, name: str) -> AddressSpace:
    """The file of that name.

    Raises:
        MmError: ENOENT.
    """
    mapping = k.files.get(name)
    if mapping is None:
        raise MmError(errno.ENOENT, f"no file {name!r}")
    return mapping


# -- reading and writing -----------------------------------------------------------------------------------------------


def sys_file_write(k: Kernel, task: Task, name: str, offset: int, data: bytes) -> KernelTask[int]:
    """Write into a file, not beyond its end; gives how many bytes. Its pages are placed as by a fault of the task.

    A task that is killed or ends writes no further page (generic_perform_write looks for a fatal signal).

    Raises:
        MmError: ENOENT; OutOfMemory: nothing could be written.
    """
    mapping = find_file(k, name)
    data = data[: max(mapping.i_size - offset, 0)]
    payload = np.frombuffer(data, np.uint8)
    done = 0
    while done < len(data):
        at = offset + done
        first, start = at >> k.page_shift, at & (k.page_size - 1)
        count = min(limits.BATCH_PAGES, -(-(len(data) - done + start) >> k.page_shift))
        part = payload[done : done + count * k.page_size - start]
        written = yield from _copy_in(k, task, mapping, first, start, part)
        if not written:
            break
        done += written
        yield Breathe()
    if data and not done:
        raise OutOfMemory
    return done


def _copy_in(k: Kernel, task: Task, mapping: AddressSpace, first: int, start: int, part: U1) -> KernelTask[int]:
    """Write some bytes from `start` in page `first` on; gives how many of them are in."""
    end = start + len(part)
    indexes = np.arange(first, first + -(-end >> k.page_shift))
    left = indexes
    while len(left) and not task.dying:
        enough = yield from page_cache_read(k, task, mapping, left)
        pfns = resident_pfns(k, mapping, left)
        here = np.flatnonzero(pfns >= 0)
        if not len(here):
            if enough:
                continue
            break
        got = yield from lock_some_pages(k, pfns[here])
        at = here[got]
        whole = still_in_cache(k, mapping, left[at], pfns[at]) & (not task.dying)
        _put_bytes(k, pfns[at[whole]], left[at[whole]] - first, start, part)
        k.c.pg_flags[pfns[at][whole]] |= PG_DIRTY
        if k.profile.uses_activate:
            yield from mark_page_accessed(k, pfns[at][whole])
        yield from unlock_pages(k, pfns[at])
        yield from put_pages(k, pfns[at][~whole])
        left = np.delete(left, at[whole])
    missing = int(left[0]) if len(left) else int(indexes[-1]) + 1
    return max(0, min(end, (missing - first) * k.page_size) - start)


def _put_bytes(k: Kernel, pfns: I8, rows: I8, start: int, part: U1) -> None:
    """Write those bytes of `part` that belong to these pages; row 0 is the page in which it begins, at `start`."""
    end = start + len(part)
    partial = (rows * k.page_size < start) | ((rows + 1) * k.page_size > end)
    whole = np.flatnonzero(~partial)
    if len(whole):
        lowest, highest = int(rows[whole].min()), int(rows[whole].max()) + 1
        image = part[lowest * k.page_size - start : highest * k.page_size - start].reshape(-1, k.page_size)
        k.c.frames[pfns[whole]] = image[rows[whole] - lowest]
    for position in np.flatnonzero(partial).tolist():  # the first and the last, at most
        low = int(rows[position]) * k.page_size
        begin, stop = max(low, start), min(low + k.page_size, end)
        k.c.frames[pfns[position], begin - low : stop - low] = part[begin - start : stop - start]


def sys_file_read(k: Kernel, task: Task, name: str, offset: int, length: int) -> KernelTask[bytes]:
    """Read a file, at most to its end; holes of tmpfs read as zeros and get no frame.

    Raises:
        MmError: ENOENT; OutOfMemory: a page that is not in memory can get no frame.
    """
    mapping = find_file(k, name)
    length = max(0, min(length, mapping.i_size - offset, limits.MESSAGE_BYTES_MAX // 2))
    end = -(-(offset + length) >> k.page_shift)
    first = offset >> k.page_shift
    pages = np.zeros((max(end - first, 0), k.page_size), np.uint8)
    left = np.arange(first, end)
    while length and len(left):
        if mapping.is_shmem:
            left = left[mapping.i_pages[left] != 0]
        enough = yield from page_cache_read(k, task, mapping, left)
        pfns = resident_pfns(k, mapping, left)
        here = np.flatnonzero(pfns >= 0)
        if not len(here):
            if enough:
                continue
            raise OutOfMemory
        got = yield from lock_some_pages(k, pfns[here])
        at = here[got]
        at = at[still_in_cache(k, mapping, left[at], pfns[at])]
        pages[left[at] - first] = k.c.frames[pfns[at]]
        if k.profile.uses_activate:
            yield from mark_page_accessed(k, pfns[at])
        yield from unlock_pages(k, pfns[here][got])
        left = np.delete(left, at)
    begin = offset - first * k.page_size
    return pages.reshape(-1)[begin : begin + length].tobytes()


# -- cutting pages out -------------------------------------------------------------------------------------------------


def truncate_range(k: Kernel, mapping: AddressSpace, first: int, end: int) -> KernelTask[None]:
    """Drop the pages [first, end) of an object, wherever they are; no entry maps them any more."""
    indexes = np.arange(first, min(end, len(mapping.i_pages)))
    while len(indexes):
        entries = mapping.i_pages[indexes]
        swapped = is_swapped(entries)
        if swapped.any():
            slots = (entries[swapped] >> np.uint64(k.page_shift)).astype(np.int64)
            mapping.i_pages[indexes[swapped]] = 0
            k.c.slot_mapping[slots] = 0
            yield from free_swap_and_cache(k, slots)
        indexes = indexes[is_present(mapping.i_pages[indexes])]
        if not len(indexes):
            return
        pfns = resident_pfns(k, mapping, indexes)
        got = yield from lock_some_pages(k, pfns)
        locked, positions = pfns[got], indexes[got]
        if (k.c.pg_flags[locked] & PG_WRITEBACK).any():
            yield WaitWriteback(locked)
        same = (k.c.mapping[locked] == mapping.id) & (k.c.index[locked] == positions.astype(np.uint64))
        remove_from_page_cache(k, mapping, locked[same])
        yield from unlock_pages(k, locked)
        yield from put_pages(k, locked)


def drop_unmapped_objects(k: Kernel, objects: Iterable[AddressSpace | None]) -> KernelTask[None]:
    """Shared anonymous memory that nobody maps any more, nor keeps, is gone (shmem_delete_inode).

    Whoever has a page of it locked still finds the object: it leaves the table behind its last page.
    """
    for mapping in objects:
        if mapping is None or mapping.kind is not FileKind.ANON_SHARED or mapping.dead:
            continue
        if mapping.i_mmap or mapping.kept_as or mapping.wanted:
            continue
        mapping.dead = True
        if mapping.mirrored:
            del k.mirrored_objects[mapping.name]
        k.journal.append(["file_gone", mapping.id])
        yield from truncate_range(k, mapping, 0, len(mapping.i_pages))
        del k.address_spaces[mapping.id]
