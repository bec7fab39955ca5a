"""Shared memory that the host keeps while nobody maps it: SysV segments and files of tmpfs.

Its policies and the nodes of its pages stay meanwhile, until it is removed. The host does not tell when that is: it is
asked now and then, and before many pages are placed.

Source: proc(5); shm_rmid of ipc/shm.c, shmem_evict_inode of mm/shmem.c (6.12).
"""

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from numaemu.task import Task
from numaemu_core import limits
from numaemu_run.kernel import Kernel
from numaemu_run.mounts import own_mounts
from numaemu_run.procfs import Area, maps_of, object_name, segment_name

_SEGMENTS: Final = Path("/proc/sysvipc/shm")


class SharedObjects:
    """Those of a machine that the host keeps for some run, mapped or not."""

    def __init__(self, kernel: Kernel, pids: Collection[int]) -> None:
        """`pids`: the processes that may map them; it may change. What earlier runs have left is not known yet."""
        self._kernel = kernel
        self._pids = pids
        self._is_asked = False
        #: What the host calls those that the machine keeps, by name.
        self._kept: dict[str, str] = {}

    def kept_as(self, area: Area) -> str | None:
        """What the host calls what a new mapping maps, if it keeps it while nobody does."""
        if not _can_be_told(area) or not _is_there(area.name, area.path):
            return None
        self._kept[area.name] = area.path
        return area.path

    def may_keep(self, name: str) -> bool:
        """Is it of a kind that the host keeps?"""
        return _is_segment(name) or own_mounts().is_memory_device(_device_of(name))

    def keeps(self, task: Task, name: str) -> bool:
        """Has the machine an object of that name, mapped or not? OSError: refused."""
        if not self._is_asked:
            self.look(task)
        return name in self._kept

    def let_go(self, task: Task) -> None:
        """What the host keeps no more goes: nobody is to run out of memory for its sake. OSError: refused."""
        if not self._is_asked:
            self.look(task)
            return
        gone = _gone(self._kept)
        if gone and (gone := gone - self._mapped(gone)):
            self._kept = self._kernel.let_go_shared(task, sorted(gone))

    def look(self, task: Task) -> None:
        """The same, also of what other runs have left. OSError: as above."""
        self._is_asked = True
        self._kept = self._kernel.let_go_shared(task, [])
        self.let_go(task)

    def _mapped(self, names: Collection[str]) -> set[str]:
        """Files that have been removed, and are mapped: also if the machine was not told of that yet.

        The host lists a segment for as long as it is mapped.
        """
        found: set[str] = set()
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                text = maps_of(pid)
                found |= {name for name in names if f" {name} ".encode() in text}
        return found


def _gone(paths: Mapping[str, str]) -> set[str]:
    """Those that the host has no more, of objects with the paths that maps tells."""
    segments = {name for name in paths if _is_segment(name)}
    files = {name for name in paths.keys() - segments if _is_there(name, paths[name]) is False}
    return files | (segments - _segments() if segments else segments)


def _is_there(name: str, path: str) -> bool | None:
    """Is an object where its path says? None: nobody knows.

    Files that somebody has open under no name, or another one, are not looked for: anybody may have them.
    """
    if _is_segment(name):
        return name in _segments()
    try:
        found = os.stat(path)  # noqa: PTH116 - as for any other path of maps
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return object_name(found) == name


def _device_of(name: str) -> str:
    return name.partition(" ")[0]


def _is_segment(name: str) -> bool:
    return name.startswith(segment_name(""))


def _segments() -> set[str]:
    """Names of the SysV segments of our IPC namespace."""
    try:
        _, *lines = _SEGMENTS.read_text().splitlines()
    except FileNotFoundError:  # a host without them
        return set()
    return {segment_name(line.split()[1]) for line in lines}


def _can_be_told(area: Area) -> bool:
    """Is it memory that the host may keep, under a name that the machine takes?"""
    is_short = len(area.path.encode()) <= limits.FILE_NAME_MAX and area.path.isprintable()
    return is_short and (_is_segment(area.name) or own_mounts().is_memory_device(_device_of(area.name)))
