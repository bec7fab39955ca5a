"""The calls about memory policy, answered by the machine: arguments are read from the program, results written to it.

Source: mm/mempolicy.c and mm/migrate.c (6.12): which pointers are read and written, and when.
"""

import errno
import itertools
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from numaemu_core.uapi import MPOL_F_ADDR, MPOL_F_NODE, MPOL_MF_MOVE_ALL
from numaemu_core.wire import STATUS_UNWRITTEN
from numaemu_run import target
from numaemu_run.family import Family
from numaemu_run.kernel import Kernel
from numaemu_run.masks import WORD_BYTES, read_words
from numaemu_run.processes import Thread
from numaemu_run.seccomp import Notification

_INT: Final = struct.Struct("=i")
_ADDRESS: Final = struct.Struct("=Q")
_ULONG: Final = (1 << 64) - 1
_UINT: Final = (1 << 32) - 1
_WORD_BITS: Final = 64
#: A number that no task has.
_NOBODY: Final = -1
#: Pages that one message about them carries.
_PAGES_PER_CALL: Final = 32768
_COUNT_MAX: Final = 1 << 47
#: So many pages are looked at one by one in less time than all of them.
_PAGES_A_LOOK: Final = 64


class PolicyCalls:
    """Serves them for the threads of a family. Each gives what the call returns; OSError: it fails so."""

    def __init__(self, kernel: Kernel, family: Family, is_waiting: Callable[[Notification], bool]) -> None:
        """`is_waiting`: see `Listener`."""
        self._kernel = kernel
        self._family = family
        self._is_waiting = is_waiting
        self._numbers = itertools.count(1)
        self.handlers: Final[Mapping[str, Callable[[Notification, Thread], int]]] = MappingProxyType(
            {
                "get_mempolicy": self._get_mempolicy,
                "mbind": self._mbind,
                "migrate_pages": self._migrate_pages,
                "move_pages": self._move_pages,
                "set_mempolicy": self._set_mempolicy,
                "set_mempolicy_home_node": self._set_mempolicy_home_node,
            }
        )

    def _get_mempolicy(self, call: Notification, thread: Thread) -> int:
        mode_at, mask_at, maxnode, addr, flags, _ = call.args
        if flags & MPOL_F_ADDR:
            mirror = thread.process.mirror
            known = mirror.knows(thread.tid, [addr]) if flags & MPOL_F_NODE else mirror.knows_mappings(thread.tid)
            if not known:
                self._family.look(thread, addr)
        wanted = maxnode if mask_at else None
        value, mask = self._kernel.call(thread.task, "get_mempolicy", wanted, addr, flags & _ULONG)
        self._check_still_there(call)
        if mode_at:
            target.write(call.tid, mode_at, _INT.pack(value))
        if mask_at:
            length = -(-((maxnode - 1) & _ULONG) // _WORD_BITS) * WORD_BYTES
            target.write(call.tid, mask_at, (mask or b"").ljust(length, b"\0")[:length])
        return 0

    def _set_mempolicy(self, call: Notification, thread: Thread) -> int:
        mode, mask_at, maxnode, *_ = call.args
        words = read_words(call.tid, mask_at, maxnode)
        self._family.settle_before_change(thread)
        self._kernel.call(thread.task, "set_mempolicy", mode, words, maxnode)
        thread.policy = next(self._numbers)
        return 0

    def _mbind(self, call: Notification, thread: Thread) -> int:
        start, length, mode, mask_at, maxnode, flags = call.args
        words = read_words(call.tid, mask_at, maxnode)
        self._family.settle(thread, all_descendants=True)
        if flags & MPOL_MF_MOVE_ALL:
            self._family.renew(thread)
        thread.process.binds = True
        self._kernel.call(thread.task, "mbind", start, length, mode, words, maxnode, flags)
        return 0

    def _set_mempolicy_home_node(self, call: Notification, thread: Thread) -> int:
        start, length, node, flags, *_ = call.args
        self._family.settle(thread, all_descendants=True)
        self._kernel.call(thread.task, "set_mempolicy_home_node", start, length, node, flags)
        return 0

    def _migrate_pages(self, call: Notification, thread: Thread) -> int:
        pid, maxnode, old_at, new_at, *_ = call.args
        old, new = read_words(call.tid, old_at, maxnode), read_words(call.tid, new_at, maxnode)
        self._family.renew(thread)
        whose = self._other(thread, pid)
        found: int = self._kernel.call(thread.task, "migrate_pages", whose, maxnode, old, new)
        return found

    def _move_pages(self, call: Notification, thread: Thread) -> int:
        pid, count, pages_at, nodes_at, status_at, flags = call.args
        flags &= _UINT  # an int
        if self._is_known(call, thread):
            whose = 0
        else:
            self._family.renew(thread)
            whose = self._other(thread, pid)
        failed = done = 0
        while True:
            part = min(count - done, _PAGES_PER_CALL)
            addresses = _whole(target.read_some(call.tid, pages_at + done * 8, part * 8), 8)
            nodes = _whole(target.read_some(call.tid, nodes_at + done * 4, part * 4), 4) if nodes_at else None
            # Bytes that are written back as they are: can the statuses be written?
            self._check_still_there(call)
            room = target.read_some(call.tid, status_at + done * 4, part * 4)
            writable = len(room) == part * 4 and _can_write(call.tid, status_at + done * 4, room)
            result, status = self._kernel.call(
                thread.task, "move_pages", whose, part, addresses, nodes, flags, writable
            )
            if status:
                self._check_still_there(call)
                _write_statuses(call.tid, status_at + done * 4, status)
            if result < 0:
                raise OSError(-result, "move_pages")
            failed += result
            done += part
            if done >= min(count, _COUNT_MAX):
                return failed

    @staticmethod
    def _is_known(call: Notification, thread: Thread) -> bool:
        """Does a move_pages only ask where a few pages of the caller's own are, which the machine knows?"""
        pid, count, pages_at, nodes_at, _, flags = call.args
        own = pid & _UINT in {0, thread.tid, thread.process.pid}
        if nodes_at or flags & MPOL_MF_MOVE_ALL or not own or not 0 < count <= _PAGES_A_LOOK:
            return False
        body = target.read_some(call.tid, pages_at, count * _ADDRESS.size)
        addresses = [address for (address,) in _ADDRESS.iter_unpack(_whole(body, _ADDRESS.size))]
        return len(addresses) == count and thread.process.mirror.knows(thread.tid, addresses)

    def _check_still_there(self, call: Notification) -> None:
        """To be called before something is written when the machine was asked: that may have taken any time.

        Raises:
            ProcessLookupError: the thread is gone. Its number may be that of another one.
        """
        if not self._is_waiting(call):
            raise ProcessLookupError(f"thread {call.tid} waits no more")

    def _other(self, thread: Thread, pid: int) -> int:
        """The task of the process that is meant, settled; 0: the caller's own, _NOBODY: it is none of this run.

        Which error that is, among others, the machine knows.
        """
        whose = thread if pid & _UINT == thread.process.pid else self._family.named(thread, pid)
        if whose is None:
            return _NOBODY
        try:
            self._family.settle(whose)
        except ProcessLookupError:
            if whose is thread:
                raise
            return _NOBODY
        if whose.process is thread.process:
            return 0
        self._family.renew(whose)
        return whose.task.pid


def _whole(body: bytes, width: int) -> bytes:
    return body[: len(body) // width * width]


def _can_write(tid: int, address: int, same: bytes) -> bool:
    try:
        target.write(tid, address, same)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return False
    return True


def _write_statuses(tid: int, address: int, status: bytes) -> None:
    """Write those that the kernel would have written."""
    unwritten = _INT.pack(STATUS_UNWRITTEN)
    at = 0
    while at < len(status):
        end = at
        while end < len(status) and status[end : end + 4] != unwritten:
            end += 4
        target.write(tid, address + at, status[at:end])
        at = max(end, at + 4)
