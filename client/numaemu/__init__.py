"""numaemu: a NUMA machine made of real processes on one Linux host, and its memory policy, in Python.

    import numaemu as nm

    with nm.boot(nodes=2, memory="64M", swap="128M") as machine:
        with machine.attach(cpu=0) as task:
            buf = task.mmap(1 << 20)
            buf[0:5] = b"hello"
            task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT)
            print(task.where(buf.start, buf.length), task.numa_maps())

`boot` makes a private machine, `connect` uses one that `numaemu up` started. Constants have their kernel names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from numaemu.errors import MachineGone
from numaemu_core.errors import BusError, NumaemuFailure, OutOfMemory, PeerError, SegmentationFault, TopologyError
from numaemu_core.uapi import (
    MADV_COLD,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_ADDR,
    MPOL_F_MEMS_ALLOWED,
    MPOL_F_NODE,
    MPOL_F_NUMA_BALANCING,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_MF_LAZY,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    RLIM_INFINITY,
    RLIMIT_AS,
    RLIMIT_MEMLOCK,
)

if TYPE_CHECKING:
    from numaemu.machine import Machine, connect
    from numaemu.mapping import Mapping
    from numaemu.private import boot
    from numaemu.task import Task

__version__ = "0.1.0"

#: What takes numpy and ZeroMQ with it, and so is imported when it is first asked for: the command line must not wait.
_LAZY = {
    "Machine": "numaemu.machine",
    "Mapping": "numaemu.mapping",
    "Task": "numaemu.task",
    "boot": "numaemu.private",
    "connect": "numaemu.machine",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "MADV_COLD",
    "MADV_DOFORK",
    "MADV_DONTFORK",
    "MADV_DONTNEED",
    "MADV_DONTNEED_LOCKED",
    "MADV_FREE",
    "MADV_NORMAL",
    "MADV_PAGEOUT",
    "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE",
    "MADV_RANDOM",
    "MADV_REMOVE",
    "MADV_SEQUENTIAL",
    "MADV_WILLNEED",
    "MAP_ANONYMOUS",
    "MAP_FIXED",
    "MAP_FIXED_NOREPLACE",
    "MAP_LOCKED",
    "MAP_NORESERVE",
    "MAP_POPULATE",
    "MAP_PRIVATE",
    "MAP_SHARED",
    "MCL_CURRENT",
    "MCL_FUTURE",
    "MCL_ONFAULT",
    "MLOCK_ONFAULT",
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_F_ADDR",
    "MPOL_F_MEMS_ALLOWED",
    "MPOL_F_NODE",
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_MF_LAZY",
    "MPOL_MF_MOVE",
    "MPOL_MF_MOVE_ALL",
    "MPOL_MF_STRICT",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MREMAP_DONTUNMAP",
    "MREMAP_FIXED",
    "MREMAP_MAYMOVE",
    "PROT_EXEC",
    "PROT_NONE",
    "PROT_READ",
    "PROT_WRITE",
    "RLIMIT_AS",
    "RLIMIT_MEMLOCK",
    "RLIM_INFINITY",
    "BusError",
    "Machine",
    "MachineGone",
    "Mapping",
    "NumaemuFailure",
    "OutOfMemory",
    "PeerError",
    "SegmentationFault",
    "Task",
    "TopologyError",
    "boot",
    "connect",
]
