"""Which files are memory of the host: those of a tmpfs, and memfds.

Source: proc_pid_mountinfo(5).
"""

import functools
import os
from pathlib import Path
from typing import Final

from numaemu_run.procfs import device_name

_MOUNTS: Final = Path("/proc/self/mountinfo")


class Mounts:
    """What is mounted where in a mount namespace."""

    def __init__(self, text: str) -> None:
        """`text`: of mountinfo, whose last mount at a place, or of a device, counts."""
        self._places: dict[str, bool] = {}
        self._devices: dict[str, bool] = {}
        for line in text.splitlines():
            mount, _, file_system = line.partition(" - ")
            _, _, device, _, place, *_ = mount.split()
            is_memory = file_system.split()[0] == "tmpfs"
            self._places[place] = is_memory
            self._devices[device_name(os.makedev(*map(int, device.split(":"))))] = is_memory

    def is_memory_device(self, device: str) -> bool:
        """Of a device as maps has it."""
        return self._devices.get(device, False)

    def is_memory_path(self, path: str) -> bool:
        """By the words of an absolute path: to look at a file may take for ever if it is a program that serves it."""
        if path.startswith("/memfd:"):
            return True
        while path and path not in self._places:
            path = path.rpartition("/")[0]
        return self._places.get(path or "/", False)


@functools.cache
def own_mounts() -> Mounts:
    """Those of our mount namespace when somebody asked first."""
    return Mounts(_MOUNTS.read_text(errors="replace"))
