"""Who a task is, and what it may: user, capabilities, dumpable, resource limits.

Mirrors: kernel/sys.c and security/commoncap.c (2.6.15, 6.1).
"""

import errno
from collections.abc import Iterable, Sequence
from typing import Final

from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task
from numaemu_core.uapi import CAPABILITIES, RLIM_INFINITY, RLIMIT_AS, RLIMIT_MEMLOCK

_UID_MAX: Final = (1 << 32) - 2


def ptrace_may_access(task: Task, target: Task) -> bool:
    """May one task look into another, and move its pages (ptrace_may_access with PTRACE_MODE_READ_REALCREDS, 6.1)?

    Itself always; others of its user that are dumpable and have no capability that it lacks; all with CAP_SYS_PTRACE.
    """
    if task is target or "CAP_SYS_PTRACE" in task.capabilities:
        return True
    return task.uid == target.uid and target.dumpable and target.capabilities <= task.capabilities


def check_uid(uid: int) -> None:
    """MmError: EINVAL: it is no user id."""
    if not 0 <= uid <= _UID_MAX:
        raise MmError(errno.EINVAL, f"{uid} is no user id")


def check_capabilities(names: Iterable[str]) -> None:
    """MmError: EINVAL: a name is none."""
    unknown = sorted(set(names) - CAPABILITIES)
    if unknown:
        raise MmError(errno.EINVAL, f"capability {unknown[0]!r} is not known; known: {', '.join(sorted(CAPABILITIES))}")


def sys_setuid(k: Kernel, task: Task, uid: int) -> KernelTask[int]:
    """Become another user: leaving root gives every capability up, and the task is not dumpable any more (setuid(2)).

    Raises:
        MmError: EINVAL (no user id), EPERM (another user's, and the task is not root).
    """
    yield from ()
    check_uid(uid)
    if task.uid not in (0, uid):
        raise MmError(errno.EPERM, f"user {task.uid} cannot become {uid}")
    if task.uid != uid:
        task.capabilities = frozenset()
        task.dumpable = False
    task.uid = uid
    k.journal.task(task)
    return 0


def sys_drop_capabilities(k: Kernel, task: Task, names: Sequence[str]) -> KernelTask[int]:
    """Give capabilities up (capset(2)).

    Raises:
        MmError: EINVAL: a name that is none.
    """
    yield from ()
    check_capabilities(names)
    task.capabilities -= frozenset(names)
    k.journal.task(task)
    return 0


def sys_set_dumpable(k: Kernel, task: Task, value: int) -> KernelTask[int]:
    """May others of its user look into the task? 0 or 1 (prctl(2), PR_SET_DUMPABLE).

    Raises:
        MmError: EINVAL.
    """
    yield from ()
    if value not in (0, 1):
        raise MmError(errno.EINVAL, f"dumpable is 0 or 1, not {value}")
    task.dumpable = bool(value)
    k.journal.task(task)
    return 0


def sys_setrlimit(k: Kernel, task: Task, resource: int, limit: int) -> KernelTask[int]:
    """Limit what the task may lock (RLIMIT_MEMLOCK) or map (RLIMIT_AS), in bytes; RLIM_INFINITY: no limit.

    Soft and hard limit are one here.

    Raises:
        MmError: EINVAL (another resource), EPERM (more than before, without CAP_SYS_RESOURCE).
    """
    yield from ()
    value = None if limit == RLIM_INFINITY else limit
    old = {RLIMIT_MEMLOCK: task.rlimit_memlock, RLIMIT_AS: task.rlimit_as}.get(resource)
    if old is not None and limit > old and "CAP_SYS_RESOURCE" not in task.capabilities:
        raise MmError(errno.EPERM, "raising a limit takes CAP_SYS_RESOURCE")
    if resource == RLIMIT_MEMLOCK:
        task.rlimit_memlock = value
    elif resource == RLIMIT_AS:
        task.rlimit_as = value
    else:
        raise MmError(errno.EINVAL, f"resource {resource} is neither RLIMIT_MEMLOCK nor RLIMIT_AS")
    k.journal.task(task)
    return 0
