"""The system calls of a task, under the names and with the arguments that programs know from Linux."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from numaemu.masks import MAXNODE, mask_words, nodes_of_bytes
from numaemu_core import uapi

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What `syscall` lets through: the calls that a program makes, and none of those that keep its handle.
RAW_CALLS: Final = frozenset(
    {
        "brk",
        "get_mempolicy",
        "madvise",
        "mbind",
        "mlock",
        "mlockall",
        "mmap",
        "mprotect",
        "munlock",
        "munlockall",
        "munmap",
        "set_mempolicy",
    }
)


class SystemCalls:
    """What a `Task` asks of the kernel. A refused call raises OSError with the kernel's errno."""

    def _call(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - whatever the call takes and gives
        """The result of a call of this task."""
        raise NotImplementedError

    # -- address space -------------------------------------------------------------------------------------------------

    def munmap(self, addr: int, length: int) -> None:
        """Unmap the pages of a range.

        Mirrors: munmap(2).
        """
        self._call("munmap", addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """Change the rights to a range: `prot` is made of PROT_*.

        Mirrors: mprotect(2).
        """
        self._call("mprotect", addr, length, prot)

    def mlock(self, addr: int, length: int) -> None:
        """Fault the pages of a range in and keep them in memory.

        Mirrors: mlock(2).
        """
        self._call("mlock", addr, length)

    def munlock(self, addr: int, length: int) -> None:
        """Let the pages of a range go again.

        Mirrors: munlock(2).
        """
        self._call("munlock", addr, length)

    def mlockall(self, flags: int) -> None:
        """Lock all mappings: `flags` is made of MCL_CURRENT and MCL_FUTURE.

        Mirrors: mlockall(2).
        """
        self._call("mlockall", flags)

    def munlockall(self) -> None:
        """Let all pages go again.

        Mirrors: munlockall(2).
        """
        self._call("munlockall")

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """Say what a range will be used for: `advice` is one of MADV_*.

        Mirrors: madvise(2).
        """
        self._call("madvise", addr, length, advice)

    def brk(self, addr: int = 0) -> int:
        """Move the end of the heap to `addr` if that can be; gives where it is then.

        Mirrors: the system call brk, not brk(3).
        """
        found: int = self._call("brk", addr)
        return found

    # -- memory policy -------------------------------------------------------------------------------------------------

    def mbind(self, addr: int, length: int, mode: int, nodes: Iterable[int] = (), flags: int = 0) -> int:
        """Set the policy of [addr, addr + length): MPOL_* over node ids, with MPOL_MF_* flags; gives 0.

        Raises:
            OSError: EFAULT: a hole in the range; EINVAL: mode, flags or nodes; EIO: with MPOL_MF_STRICT, a page is
            where the policy does not allow; EPERM: MPOL_MF_MOVE_ALL without the capability. Mirrors: mbind(2).
        """
        words, maxnode = mask_words(nodes)
        found: int = self._call("mbind", addr, length, mode, words, maxnode, flags)
        return found

    def set_mempolicy(self, mode: int, nodes: Iterable[int] = ()) -> None:
        """Set the policy of the task: MPOL_* over node ids.

        Mirrors: set_mempolicy(2).
        """
        words, maxnode = mask_words(nodes)
        self._call("set_mempolicy", mode, words, maxnode)

    def get_mempolicy(self, addr: int | None = None, flags: int = 0) -> tuple[int, set[int]] | int:
        """The policy of the task, or that at `addr`: its mode and nodes. With MPOL_F_NODE a node.

        That is the node of the page at `addr` (which is faulted in), or, without `addr`, the next one of an interleave.
        `addr` implies MPOL_F_ADDR. Mirrors: get_mempolicy(2).
        """
        if addr is not None:
            flags |= uapi.MPOL_F_ADDR
        if flags & uapi.MPOL_F_NODE:
            node: int = self._call("get_mempolicy", None, addr or 0, flags)[0]
            return node
        mode, mask = self._call("get_mempolicy", MAXNODE, addr or 0, flags)
        return mode, nodes_of_bytes(mask or b"")

    def numa_maps(self) -> str:
        """The mappings with their policies and where their pages are, as in /proc/PID/numa_maps."""
        found: str = self._call("numa_maps")
        return found

    def syscall(self, name: str, *raw: Any) -> Any:  # noqa: ANN401 - whatever the call takes and gives
        """A system call with its arguments as the kernel takes them: masks are lists of 64-bit words, beside maxnode.

        Raises:
            OSError: ENOSYS: there is no such call; EINVAL: a number does not fit 64 bits, or the kernel says so.
        """
        if name not in RAW_CALLS:
            raise OSError(errno.ENOSYS, f"no system call {name!r}; there are {', '.join(sorted(RAW_CALLS))}")
        return self._call(name, *raw)
