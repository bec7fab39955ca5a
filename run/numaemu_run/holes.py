"""Calls that take pages out of shared memory: what is touched there again is new memory, and placed anew.

The machine does it just before the host does. Where the host then refuses, its pages are told again.

Source: shmem_fallocate and shmem_setattr of mm/shmem.c, madvise_remove of mm/madvise.c (6.12).
"""

import os
import posixpath
from typing import Final

from numaemu_core import limits
from numaemu_run import target
from numaemu_run.family import Family
from numaemu_run.files import AT_FDCWD, open_arguments
from numaemu_run.kernel import Kernel
from numaemu_run.mounts import own_mounts
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
            OSError: the machine refuses.
        """
        try:
            holes = _holes_of(name, call)
        except OSError:  # the host says so, too, or does not let us look
            return
        for hole in holes:
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
            return _in_open_file(call.tid, args[0], args[2], args[2] + args[3])
        case "ftruncate":
            return _in_open_file(call.tid, args[0], args[1])
        case "truncate":
            return _in_named_file(call.tid, AT_FDCWD, args[0], args[1])
        case "creat":
            return _in_named_file(call.tid, AT_FDCWD, args[0])
    arguments = open_arguments(name, call)
    if arguments is None or not arguments[2] & os.O_TRUNC:
        return []
    return _in_named_file(call.tid, _signed(arguments[0]), arguments[1])


def _in_mappings(tid: int, start: int, end: int) -> list[_Hole]:
    """Of a range of addresses."""
    areas = [area for area in areas_of(maps_of(tid)) if area.name and area.start < end and start < area.end]
    return [
        (one.name, one.offset + max(start - one.start, 0), one.offset + min(end, one.end) - one.start) for one in areas
    ]


def _in_open_file(tid: int, fd: int, first: int, end: int = _EVERYTHING) -> list[_Hole]:
    """Of a descriptor. OSError: there is none."""
    link = f"/proc/{tid}/fd/{_signed(fd)}"
    return _in_memory(_leads_to(link), link, first, end)


def _in_named_file(tid: int, directory: int, address: int, first: int = 0) -> list[_Hole]:
    """Of a path of a thread. OSError: it cannot be read."""
    path = os.fsdecode(target.read_path(tid, address))
    if not path.startswith("/"):
        path = _leads_to(f"/proc/{tid}/cwd" if directory == AT_FDCWD else f"/proc/{tid}/fd/{directory}") + "/" + path
    path = posixpath.normpath(path)
    return _in_memory(path, f"/proc/{tid}/root{path}", first, _EVERYTHING)


def _leads_to(link: str) -> str:
    return os.readlink(link)  # noqa: PTH115 - half the time


def _in_memory(path: str, link: str, first: int, end: int) -> list[_Hole]:
    """Of a file, if it is memory and has pages there; `link` is what leads us to it."""
    if not own_mounts().is_memory_path(path):
        return []
    found = os.stat(link)  # noqa: PTH116 - half the time, too
    return [(object_name(found), first, min(end, _EVERYTHING))] if found.st_blocks and first < found.st_size else []


def _signed(argument: int) -> int:
    """A descriptor, of which the lower half counts."""
    return (argument + _SIGNED_END) % (2 * _SIGNED_END) - _SIGNED_END
