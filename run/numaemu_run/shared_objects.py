"""Shared memory that the host keeps while nobody maps it: SysV segments and files of tmpfs.

Its policies and the nodes of its pages stay meanwhile, until it is removed. The host does not tell when that is: it is
asked now and then, and before pages are placed.

Source: proc(5); shm_rmid of ipc/shm.c, shmem_evict_inode of mm/shmem.c (6.12).
"""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from numaemu.task import Task
from numaemu_core import limits
from numaemu_run.kernel import Kernel
from numaemu_run.procfs import Area, device_name, segment_name

#: File systems whose files are shared memory.
_IN_MEMORY: Final = frozenset({"tmpfs", "devtmpfs"})
_MOUNTS: Final = Path("/proc/self/mountinfo")
_SEGMENTS: Final = Path("/proc/sysvipc/shm")


class SharedObjects:
    """Those of a machine that the host keeps for some run, and nobody maps. Any call may fail: OSError."""

    def __init__(self, kernel: Kernel) -> None:
        """Of the machine; what other runs have left is not known yet."""
        self._kernel = kernel
        #: What the host calls those that the machine keeps, by name.
        self._kept: dict[str, str] = {}

    def keep(self, task: Task, areas: Iterable[Area]) -> None:
        """Mappings of a process are about to end: what the host keeps of them the machine keeps, too."""
        paths = {area.name: area.path for area in areas if area.name and _can_be_told(area.path)}
        if there := _there(paths):
            kept = {name: paths[name] for name in there}
            self._kernel.keep_shared(task, kept, [])
            self._kept |= kept

    def let_go(self, task: Task) -> None:
        """What the host keeps no more goes: nobody is to run out of memory for its sake."""
        gone = self._kept.keys() - _there(self._kept) if self._kept else ()
        if gone:
            self._kept = self._kernel.keep_shared(task, {}, sorted(gone))

    def look(self, task: Task) -> None:
        """The same, also of what other runs have left or taken away."""
        self._kept = self._kernel.keep_shared(task, {}, [])
        self.let_go(task)


def _there(paths: Mapping[str, str]) -> set[str]:
    """Names of those that the host has, mapped or not, of objects with the paths that maps tells."""
    segments = {name for name in paths if _is_segment(name)}
    files = {name for name in paths.keys() - segments if _is_file_in_memory(name, paths[name])}
    return files | (segments & _segments() if segments else segments)


def _is_file_in_memory(name: str, path: str) -> bool:
    """Removed files that somebody has open, and memfds, are not looked for: anybody may have them."""
    if not _is_in_memory(_device_of(name)):
        return False
    try:
        found = os.stat(path)  # noqa: PTH116 - as for any other path of maps
    except OSError:
        return False
    return f"{device_name(found.st_dev)} {found.st_ino}" == name


def _device_of(name: str) -> str:
    return name.partition(" ")[0]


@functools.cache
def _is_in_memory(device: str) -> bool:
    """Of a device as maps has it, in our mount namespace."""
    for line in _MOUNTS.read_text(errors="replace").splitlines():
        mount, _, file_system = line.partition(" - ")
        major, minor = map(int, mount.split()[2].split(":"))
        if device_name(os.makedev(major, minor)) == device:
            return file_system.split()[0] in _IN_MEMORY
    return False


def _is_segment(name: str) -> bool:
    return name.startswith(segment_name(""))


def _segments() -> set[str]:
    """Names of the SysV segments of our IPC namespace."""
    try:
        _, *lines = _SEGMENTS.read_text().splitlines()
    except OSError:  # a host without them
        return set()
    return {segment_name(line.split()[1]) for line in lines}


def _can_be_told(path: str) -> bool:
    return len(path) <= limits.FILE_NAME_MAX and path.isprintable()
