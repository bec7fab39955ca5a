"""A machine, as a program holds it: where tasks come from, and what can be asked of the whole."""

from __future__ import annotations

import errno
import functools
import operator
import os
import weakref
from typing import TYPE_CHECKING, Any, Self

from numaemu import control, places
from numaemu.attachment import attach_process
from numaemu.connection import Calls, Init, keep_out_of_reach
from numaemu.ended import closed, forked
from numaemu.task import Task
from numaemu_core import views as text
from numaemu_core.profiles import profile_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from _typeshed import ReadableBuffer

    from numaemu.attachment import Attachment
    from numaemu_core.topology import Topology

_machines: weakref.WeakSet[Machine] = weakref.WeakSet()


def connect(
    name: str = "default", *, remote: bool = False, key: str | None = None, server_key: str | None = None
) -> Machine:
    """The running machine of that name; `numaemu up` starts one.

    `name`: NAME, or OWNER/NAME or a path for a machine of another user that admits this one. With `remote`, and of
    another user always, this process gets none of the memory, and all its tasks are remote.

    tcp://HOST:PORT: a machine that listens there. `key` is a file of `numaemu key` (or $NUMAEMU_KEY), whose public key
    the machine's owner has authorized; `server_key` is the machine's public key (or $NUMAEMU_SERVER_KEY), as text or in
    a file. A client that says nothing for 10 s (it was stopped, or the network was down) has lost its tasks.

    Raises:
        ConnectionRefusedError: there is none. ValueError: that is no name. PeerError: it speaks another version, or
        does not admit this user. PermissionError: a key is wrong. TimeoutError: nothing answers on TCP.
    """
    if name.startswith("tcp://"):
        from numaemu.tcp import attach_over_tcp  # noqa: PLC0415 - few need it

        return Machine(attach_over_tcp(name, key, server_key))
    return Machine(attach_process(places.find(name), remote=remote))


class Machine:
    """An emulated machine that this process uses; a context manager.

    `name` and `topology` say which. After `close` every use raises ValueError, in a forked child RuntimeError, once the
    machine has ended `MachineGone`. Several handles of one machine may be open in one process, each by itself.
    """

    def __init__(self, attachment: Attachment, end: Callable[[], object] | None = None) -> None:
        """Take over an attachment; `end` is called after closing it: how a private machine is ended."""
        self.name: str = attachment.peer.init.name
        self.topology: Topology = attachment.layout.topology
        self._attachment: Any = attachment
        self._calls: Any = Calls(attachment.peer)
        self._tasks: weakref.WeakSet[Task] = weakref.WeakSet()
        self._open = True
        # Also when the handle is dropped without `close`, and at the end of the interpreter.
        self._let_go = weakref.finalize(self, _let_go, attachment, end)
        _machines.add(self)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def attach(
        self,
        cpu: int = 0,
        capabilities: Iterable[str] = (),
        share_mm: int | None = None,
        remote: bool = False,  # noqa: FBT001, FBT002 - as programs call it
        uid: int | None = None,
    ) -> Task:
        """A new task on a CPU, with an mm of its own, or with that of the task whose pid is `share_mm`.

        `capabilities` are names such as CAP_SYS_RESOURCE. A `remote` task, and its forks, read and write through the
        kernel daemon and not in memory that this process maps: slower, with the same results, and nothing can be
        pinned. `uid`: whose task it is: by default root's for the owner of the machine, and the user's own for others.
        Mirrors: a process that has just been executed.

        Raises:
            OSError: EINVAL: no such CPU, capability or user id; ESRCH: no such task; EAGAIN: too many; EPERM: another
            user's task, or a capability that the owner of the machine has not granted to this user.
        """
        if isinstance(capabilities, str):
            raise TypeError(f"capabilities: expected a set of names, got {capabilities!r}")
        user = () if uid is None else (operator.index(uid),)
        return self._new_task(self._calls.call("attach", cpu, sorted(capabilities), share_mm, *user), remote=remote)

    def adopt(self, pid: int) -> Task:
        """Take over a task that another process of the same user forked; that one's handle is void then.

        Raises:
            OSError: ESRCH: no such task; EPERM: it is another user's.
        """
        return self._new_task(self._calls.call("adopt", pid))

    def _new_task(self, identity: list[int], *, remote: bool = False) -> Task:
        """A handle for a task of the daemon: pid, mm, top table."""
        pid, mm_id, pgd = identity
        remote = remote or self._attachment.views is None
        new_task = functools.partial(self._new_task, remote=remote)
        task = Task(new_task, self._attachment, self._calls, pid, mm_id, pgd, remote=remote)
        self._tasks.add(task)
        return task

    def create_file(self, name: str, data: ReadableBuffer | int, kind: str = "tmpfs") -> None:
        """A file that any task can map, with these bytes, or of that many bytes that are zeros and take no memory.

        `kind`: "tmpfs" (its pages go to swap, and policies belong to the file), "ramfs" (its pages never leave memory),
        "disk" (its pages are written back). The bytes are written by a task on the machine's first CPU: its node gets
        the pages. The file lives as long as the machine; numa_maps shows it in the root directory.

        Raises:
            OSError: EEXIST: there is such a file; EINVAL: no such kind, no such name; EFBIG, ENOSPC: it is too long.
        """
        if isinstance(data, int):
            self._calls.call("create_file", name, kind, data)
            return
        length = memoryview(data).nbytes
        self._calls.call("create_file", name, kind, length)
        if length:
            with self.attach(min(cpu for node in self.topology.nodes for cpu in node.cpus)) as task:
                task.file_write(name, 0, data)

    def set_interleave_weight(self, node: int, weight: int) -> None:
        """How many pages in a row a node gets under MPOL_WEIGHTED_INTERLEAVE: 1 to 255; 0 is the default, 1, again.

        It counts for pages that are allocated from now on, of every task.
        Mirrors: /sys/kernel/mm/mempolicy/weighted_interleave/nodeN (mm/mempolicy.c of 6.12).

        Raises:
            FileNotFoundError: no such node, or the kernel of this machine knows no weights. OSError: EINVAL.
        """
        path = f"/sys/kernel/mm/mempolicy/weighted_interleave/node{operator.index(node)}"
        self._calls.call("sysctl", path, str(operator.index(weight)))

    # -- the whole machine ---------------------------------------------------------------------------------------------

    def figures(self, name: str, node: int | None = None) -> Any:  # noqa: ANN401 - each has its own shape
        """What the text of `hardware`, `numastat`, `meminfo` or `vmstat` is made of, as lists and dicts.

        `node`: meminfo of that node alone, an empty list if there is no such node.
        """
        if name not in {"hardware", "numastat", "meminfo", "vmstat"}:
            raise ValueError(f"expected hardware, numastat, meminfo or vmstat, got {name!r}")
        return self._calls.call(name, *(() if node is None else (node,)))

    def hardware(self) -> str:
        """Nodes, CPUs, memory and distances, as `numactl --hardware` prints them."""
        return text.hardware(self.figures("hardware"))

    def numastat(self, node: int | None = None) -> str:
        """The counters of each node, as `numastat` prints them; unit: pages.

        Of one node, as in /sys/devices/system/node/nodeN/numastat. FileNotFoundError: the machine has no such node.
        """
        found = self.figures("numastat")
        if node is None:
            return text.numastat(found)
        for nid, counters in found:
            if nid == node:
                return text.node_numastat(counters)
        raise FileNotFoundError(errno.ENOENT, f"the machine {self.name!r} has no node {node}")

    def meminfo(self, node: int | None = None) -> str:
        """The memory of a node, as in /sys/devices/system/node/nodeN/meminfo; of all, one after the other, if None.

        In the format of the kernel that the machine's profile stands for.

        Raises:
            FileNotFoundError: the machine has no such node.
        """
        found = self.figures("meminfo", node)
        if not found:
            raise FileNotFoundError(errno.ENOENT, f"the machine {self.name!r} has no node {node}")
        of_2005 = profile_named(self.topology.profile).views_of_2005
        return "".join(text.meminfo(figures, of_2005=of_2005) for figures in found)

    def vmstat(self) -> str:
        """Pages by kind and events since boot, as in /proc/vmstat: a name and a number a line."""
        return text.vmstat(self.figures("vmstat"))

    def numa_maps(self, pid: int) -> str:
        """The mappings of any task of the machine, as in /proc/PID/numa_maps. OSError: ESRCH: no such task."""
        found: str = self._calls.call("numa_maps", pid)
        return found

    def status(self) -> dict[str, Any]:
        """How each process is, as `numaemu status --json` says; beside it what the kernel daemon counts, by name.

        Other users are told of no process.
        """
        counted: dict[str, Any] = self._calls.call("status")
        place = self._attachment.place
        if place is None:  # init does not talk to other users
            peer = self._attachment.peer
            return {"machine": self.name, "boot_id": peer.boot_id, "processes": [], **counted}
        return {**control.status(place), **counted}

    def fsck(self) -> list[str]:
        """Every invariant that does not hold just now, a sentence each; none if all is well."""
        found: list[str] = self._calls.call("fsck")
        return found

    def give_up_when(self, too_long: Callable[[float], bool]) -> None:
        """Let somebody decide how long calls wait while the machine is stopped; without that they wait for ever.

        `too_long` is asked a few times a second by the thread that waits, with the seconds that it has waited. Once it
        says so the machine counts as ended for this handle, and a private one is killed when that is closed. On TCP
        nobody is asked: there the machine has ended when nothing was heard of it for 10 s.
        """
        init = self._attachment.peer.init
        if isinstance(init, Init):
            init.too_long = too_long

    def while_waiting(self, act: Callable[[], None]) -> None:
        """Let something be done a few times a second while a call waits, by the thread that waits; not on TCP."""
        init = self._attachment.peer.init
        if isinstance(init, Init):
            init.meanwhile = act

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all tasks of this handle and let the machine go; a private machine ends. A second call does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            for task in list(self._tasks):
                task.close()
        finally:
            self._calls = self._attachment = closed("machine")
            self._let_go()

    def _abandon(self) -> None:
        """In a forked child: nothing of the parent's machine may be used, nor taken apart."""
        for task in list(self._tasks):
            task.abandon()
        if self._open:
            self._open = False
            self._calls.abandon()
            self._attachment.close()
            self._calls = self._attachment = forked()
        keep_out_of_reach(self._let_go.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Machine {self.name!r}{'' if self._open else ', closed'}>"


def _let_go(attachment: Attachment, end: Callable[[], object] | None) -> None:
    attachment.close()
    if end is not None:
        end()


def _abandon_all() -> None:
    for machine in list(_machines):
        machine._abandon()  # noqa: SLF001 - the same module


os.register_at_fork(after_in_child=_abandon_all)
