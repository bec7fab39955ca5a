"""The system calls of a task, under the names and with the arguments that programs know from Linux."""

from __future__ import annotations

import errno
import operator
import os
from typing import TYPE_CHECKING, Any, Final

from numaemu.masks import MAXNODE, mask_words, masks_alike, nodes_of_bytes, status_array
from numaemu_core import uapi

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numaemu_core.columns import I8

#: What `syscall` lets through: the calls that a program makes, and none of those that keep its handle.
RAW_CALLS: Final = frozenset(
    {
        "brk",
        "get_mempolicy",
        "madvise",
        "mbind",
        "migrate_pages",
        "mlock",
        "mlock2",
        "mlockall",
        "mmap",
        "move_pages",
        "mprotect",
        "mremap",
        "munlock",
        "munlockall",
        "munmap",
        "set_mempolicy",
        "set_mempolicy_home_node",
    }
)


def _numbers(values: Iterable[int], what: str) -> list[int]:
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise TypeError(f"{what}: expected a list of whole numbers, got {values!r}") from None


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

    def mlock2(self, addr: int, length: int, flags: int = uapi.MLOCK_ONFAULT) -> None:
        """As `mlock`; with MLOCK_ONFAULT pages are kept from when they are touched.

        Mirrors: mlock2(2).
        """
        self._call("mlock2", addr, length, flags)

    def munlock(self, addr: int, length: int) -> None:
        """Let the pages of a range go again.

        Mirrors: munlock(2).
        """
        self._call("munlock", addr, length)

    def mlockall(self, flags: int) -> None:
        """Lock all mappings: `flags` is made of MCL_CURRENT, MCL_FUTURE and MCL_ONFAULT.

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

    def set_mempolicy_home_node(self, addr: int, length: int, home_node: int, flags: int = 0) -> None:
        """Say which node the BIND and PREFERRED_MANY policies of [addr, addr + length) try first.

        Raises:
            OSError: ENOENT: no such policy there; EOPNOTSUPP: another policy; EINVAL: no such node, flags; ENOSYS: the
            kernel of the profile is older. Mirrors: set_mempolicy_home_node(2).
        """
        self._call("set_mempolicy_home_node", addr, length, home_node, flags)

    # -- moving pages --------------------------------------------------------------------------------------------------

    def migrate_pages(self, pid: int, old_nodes: Iterable[int], new_nodes: Iterable[int]) -> int:
        """Move the pages of a task (`pid` 0: this one) from nodes to nodes; gives how many could not be moved.

        Raises:
            OSError: ESRCH: no such task; EPERM: it is another user's, or the new nodes lie outside of its cpuset;
            EINVAL: no new node has memory. Mirrors: migrate_pages(2).
        """
        maxnode, old, new = masks_alike(old_nodes, new_nodes)
        found: int = self._call("migrate_pages", pid, maxnode, old, new)
        return found

    def move_pages(
        self,
        pid: int,
        addresses: Iterable[int],
        nodes: Iterable[int] | None = None,
        flags: int = uapi.MPOL_MF_MOVE,
    ) -> I8:
        """Move single pages of a task (`pid` 0: this one), each to the node beside it; gives a status for each.

        Shapes: as many `nodes` as `addresses`; gives int64[n]: the node where the page is, or -errno. Without `nodes`
        nothing moves. Where the kernel leaves a status unwritten, as it does for a batch with pages that could not be
        moved, there is -EAGAIN.

        Raises:
            OSError: ESRCH: no such task; EPERM; ENODEV: no such node; EINVAL: flags. Mirrors: move_pages(2).
        """
        pages = _numbers(addresses, "addresses")
        targets = None if nodes is None else _numbers(nodes, "nodes")
        if targets is not None and len(targets) != len(pages):
            raise ValueError(f"expected a node for each of {len(pages)} pages, got {len(targets)}")
        result, status = self._call("move_pages", pid, len(pages), pages, targets, flags)
        if result < 0:
            raise OSError(-result, f"move_pages: {os.strerror(-result)}")
        return status_array(status, len(pages))

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
