"""The call sysinfo: how much memory there is. libc asks it for sysconf(_SC_PHYS_PAGES), and runtimes size heaps by it.

Source: linux/sysinfo.h, do_sysinfo in kernel/sys.c (6.12).
"""

import ctypes
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from numaemu_host.libc import checked, libc

#: Uptime, three loads, six amounts of memory, processes, two amounts of high memory, the unit of all amounts.
_SYSINFO: Final = struct.Struct("=q3Q6QH6x2QI4x")
_KB: Final = 1024


def sysinfo(nodes: Sequence[Mapping[str, Any]]) -> bytes:
    """The struct of the host with the memory of the machine's nodes, in bytes. OSError."""
    body = ctypes.create_string_buffer(_SYSINFO.size)
    checked(libc.sysinfo(body), "sysinfo")
    *times, _, _, _, _, swap, swap_free, processes, _, _, unit = _SYSINFO.unpack(body.raw)
    total, free, shared = (sum(node.get(name, 0) for node in nodes) * _KB for name in ("MemTotal", "MemFree", "Shmem"))
    return _SYSINFO.pack(*times, total, free, shared, 0, swap * unit, swap_free * unit, processes, 0, 0, 1)
