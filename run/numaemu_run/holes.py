"""Calls that take pages out of shared memory: what is touched there again is new memory, and placed anew.

The machine does it just before the host does. Where the host then refuses, its pages are told again.

Source: shmem_fallocate and shmem_setattr of mm/shmem.c, madvise_remove of mm/madvise.c (6.12).
"""

import os
from typing import Final

from numaemu_core import limits
from numaemu_run import target
from numaemu_run.family import Family
from numaemu_run.files import AT_FDCWD, open_arguments
from numaemu_run.kernel import Kernel
from numaemu_run.procfs import PAGE_SIZE, areas_of, maps_of, object_name
from numaemu_run.seccomp import Notification

_EVERYTHING: Final = limits.FILE_PAGES_MAX * PAGE_SIZE
_SIGNED_END: Final = 1 << 31

#: An object, and the bytes that lose their pages, from the first one to the end.
_Hole = tuple[str, int, int]


class Holes:
    """Tells the machine of those that its programs make."""

    def __init__(self, kernel: Kernel, family: Family) -> None:
        """Of the programs of a family."""
        self._kernel = kernel
        self._family = family

    def note(self, name: str, call: Notification) -> None:
        """A call that may make some is about to be let through.

        Raises:
            OSError: it cannot be seen what it is about, or the machine refuses.
        """
        for hole in _holes_of(name, call):
            self._make(call.tid, *hole)

    def _make(self, tid: int, name: str, first: int, end: int) -> None:
        first, end = -(-first // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE
        mapped = [process for process in self._family if process.mirror.maps(name)]
        if first >= end or not (mapped or self._family.objects.may_keep(name)):
            return
        task = self._family.thread(tid).task
        if not (mapped or self._family.objects.keeps(task, name)):
            return
        for process in mapped:  # what was touched before is where it was, and gone
            with self._family.troubles.confined():
                self._family.look(process.leader)
        self._kernel.truncate_shared(task, name, first, end)
        for process in mapped:
            process.mirror.forget(name, first, end)


def _holes_of(name: str, call: Notification) -> list[_Hole]:
    args = call.args
    match name:
        case "madvise":
            return _in_mappings(call.tid, args[0], args[0] + -(-args[1] // PAGE_SIZE) * PAGE_SIZE)
        case "fallocate":
            return _in_file(f"/proc/{call.tid}/fd/{_signed(args[0])}", args[2], args[2] + args[3])
        case "ftruncate":
            return _in_file(f"/proc/{call.tid}/fd/{_signed(args[0])}", args[1])
        case "truncate":
            return _in_file(_path(call.tid, AT_FDCWD, args[0]), args[1])
        case "creat":
            return _in_file(_path(call.tid, AT_FDCWD, args[0]))
    arguments = open_arguments(name, call)
    if arguments is None or not arguments[2] & os.O_TRUNC:
        return []
    return _in_file(_path(call.tid, _signed(arguments[0]), arguments[1]))


def _in_mappings(tid: int, start: int, end: int) -> list[_Hole]:
    """Of a range of addresses."""
    areas = [area for area in areas_of(maps_of(tid)) if area.name and area.start < end and start < area.end]
    return [
        (one.name, one.offset + max(start - one.start, 0), one.offset + min(end, one.end) - one.start) for one in areas
    ]


def _in_file(path: str, first: int = 0, end: int = _EVERYTHING) -> list[_Hole]:
    """Of a file that a path of ours leads to; none if it is not there, or has no pages there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a path of /proc leads anywhere
    except OSError:  # the host says so, too
        return []
    return [(object_name(found), first, end)] if found.st_blocks and first < found.st_size else []


def _path(tid: int, directory: int, address: int) -> str:
    """What a path of a thread is for us. OSError: it cannot be read."""
    path = os.fsdecode(target.read_path(tid, address))
    if path.startswith("/"):
        return f"/proc/{tid}/root{path}"
    return f"/proc/{tid}/{'cwd' if directory == AT_FDCWD else f'fd/{directory}'}/{path}"


def _signed(argument: int) -> int:
    """A descriptor, of which the lower half counts."""
    return (argument + _SIGNED_END) % (2 * _SIGNED_END) - _SIGNED_END
