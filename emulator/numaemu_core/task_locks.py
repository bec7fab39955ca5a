"""How a kernel task takes locks: `with (yield from …)` holds them to the end of the block."""

import errno
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from numaemu_core.effects import DownSem, Effect, KernelTask, SpinBusy
from numaemu_core.errors import MmError
from numaemu_core.locks import Key, Mode, SemGuard, SpinGuard
from numaemu_core.mm_types import Mm

if TYPE_CHECKING:
    from numaemu_core.kernel import Kernel


def spin_lock(k: "Kernel", keys: Sequence[Key]) -> Generator[Effect, Any, SpinGuard]:
    """Take spin locks (ascending) and give the guard that drops them; never held across a yield."""
    while (guard := k.locks.try_spin(keys)) is None:
        yield SpinBusy(tuple(keys))
    return guard


def down_read(mm: Mm) -> KernelTask[SemGuard]:
    """Take an mm's mmap_sem for reading. MmError(ESRCH): its last task ended meanwhile."""
    return (yield from _down(mm, Mode.READ))


def down_write(mm: Mm) -> KernelTask[SemGuard]:
    """Take an mm's mmap_sem for writing. MmError(ESRCH): its last task ended meanwhile."""
    return (yield from _down(mm, Mode.WRITE))


def _down(mm: Mm, mode: Mode) -> KernelTask[SemGuard]:
    guard: SemGuard = yield DownSem(mm.id, mode)
    if mm.dead:
        with guard:
            raise MmError(errno.ESRCH, "the address space is gone")
    return guard
