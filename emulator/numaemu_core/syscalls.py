"""The table of system calls: name → the kernel task that serves it, and whether it changes what the journal keeps.

Arguments were checked by `wire`; a handler gets the kernel, the task and them, in the order of `wire.CALLS`.
"""

from collections.abc import Callable
from typing import Any, Final

from numaemu_core import (
    access_process_vm,
    cpuset,
    cred,
    files,
    fork,
    get_mempolicy,
    home_node,
    madvise,
    mbind,
    memory,
    mempolicy,
    migrate_pages,
    mirror,
    mlock,
    mmap,
    move_pages,
    mprotect,
    mremap,
    numa_maps,
    proc,
    task_mmu,
)
from numaemu_core.effects import KernelTask
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task

Handler = Callable[..., KernelTask[Any]]


def _fault(k: Kernel, task: Task, addr: int, length: int, write: bool) -> KernelTask[int]:  # noqa: FBT001 - wire order
    return memory.sys_fault(k, task, addr, length, write=write)


def _touch(k: Kernel, task: Task, addr: int, length: int, write: bool) -> KernelTask[int]:  # noqa: FBT001 - wire order
    return access_process_vm.sys_touch(k, task, addr, length, write=write)


def _move_pages(k: Kernel, task: Task, *args: Any) -> KernelTask[tuple[int, bytes | None]]:  # noqa: ANN401 - wire order
    *others, writable = args
    return move_pages.sys_move_pages(k, task, *others, writable=writable)


def _get_mempolicy(k: Kernel, task: Task, maxnode: int | None, addr: int, flags: int) -> KernelTask[list[Any]]:
    value, mask = yield from get_mempolicy.sys_get_mempolicy(k, task, maxnode, addr, flags)
    return [value, None if mask is None else mask.to_bytes((mask.bit_length() + 7) // 8, "little")]


#: Calls of a task.
SYSCALLS: Final[dict[str, Handler]] = {
    "brk": mmap.sys_brk,
    "drop_capabilities": cred.sys_drop_capabilities,
    "exit": fork.sys_exit,
    "fault": _fault,
    "file_read": files.sys_file_read,
    "file_write": files.sys_file_write,
    "fork": fork.sys_fork,
    "get_mempolicy": _get_mempolicy,
    "let_go_shared": mirror.sys_let_go_shared,
    "madvise": madvise.sys_madvise,
    "maps": task_mmu.sys_maps,
    "mbind": mbind.sys_mbind,
    "migrate_pages": migrate_pages.sys_migrate_pages,
    "mirror": mirror.sys_mirror,
    "truncate_shared": mirror.sys_truncate_shared,
    "mlock": mlock.sys_mlock,
    "mlock2": mlock.sys_mlock2,
    "mlockall": mlock.sys_mlockall,
    "mmap": mmap.sys_mmap,
    "move_pages": _move_pages,
    "mprotect": mprotect.sys_mprotect,
    "mremap": mremap.sys_mremap,
    "munlock": mlock.sys_munlock,
    "munlockall": mlock.sys_munlockall,
    "munmap": mmap.sys_munmap,
    "numa_maps": numa_maps.sys_numa_maps,
    "pagemap": task_mmu.sys_pagemap,
    "read": access_process_vm.sys_read,
    "set_cpu": fork.sys_set_cpu,
    "set_cpuset": cpuset.sys_set_cpuset,
    "set_dumpable": cred.sys_set_dumpable,
    "set_mempolicy": mempolicy.sys_set_mempolicy,
    "set_mempolicy_home_node": home_node.sys_set_mempolicy_home_node,
    "setrlimit": cred.sys_setrlimit,
    "setuid": cred.sys_setuid,
    "touch": _touch,
    "where": proc.sys_where,
    "write": access_process_vm.sys_write,
}

#: Calls without intent and answer in the journal: what they change is told by frames and entries, or nothing changes.
NOT_JOURNALLED: Final = frozenset(
    {
        "fault",
        "file_read",
        "get_mempolicy",
        "maps",
        "move_pages",
        "numa_maps",
        "pagemap",
        "read",
        "touch",
        "where",
    }
)
