"""The machine as the supervisor uses it: calls of tasks as the protocol has them."""

import contextlib
from collections.abc import Iterator
from typing import Any

from numaemu.machine import Machine
from numaemu.masks import MAXNODE
from numaemu.task import Task
from numaemu_core.profiles import profile_named
from numaemu_core.uapi import MPOL_F_MEMS_ALLOWED


class Kernel:
    """A machine, with the calls that the library does not offer to programs."""

    def __init__(self, machine: Machine) -> None:
        """Of a machine of ours."""
        self.machine = machine

    def call(self, task: Task, name: str, *args: Any) -> Any:  # noqa: ANN401 - whatever the call takes and gives
        """A system call with its raw arguments. OSError: refused."""
        with _of_the_living(task):
            return task._call(name, *args)  # noqa: SLF001 - the calls as the protocol has them

    def fork(self, task: Task) -> Task:
        """Its fork. OSError: refused."""
        with _of_the_living(task):
            return task.fork()

    def numa_maps(self, task: Task) -> str:
        """Its own. OSError: refused."""
        with _of_the_living(task):
            return task.numa_maps()

    def mirror(
        self,
        task: Task,
        unmapped: list[list[int]],
        areas: list[list[Any]],
        gone: list[list[int]],
        held: list[list[int]],
        read: list[list[int]],
    ) -> None:
        """See `numaemu_core.mirror`."""
        self.call(task, "mirror", unmapped, areas, gone, held, read)

    def let_go_shared(self, task: Task, names: list[str]) -> dict[str, str]:
        """See `numaemu_core.mirror`."""
        return dict(self.call(task, "let_go_shared", names))

    def truncate_shared(self, task: Task, name: str, first: int, end: int) -> None:
        """See `numaemu_core.mirror`."""
        self.call(task, "truncate_shared", name, first, end)

    def mems_allowed(self, task: Task) -> int:
        """The nodes that its cpuset leaves a task, as a mask."""
        topology = self.machine.topology
        if not profile_named(topology.profile).mems_allowed_flag:
            return topology.online
        _, mask = self.call(task, "get_mempolicy", MAXNODE, 0, MPOL_F_MEMS_ALLOWED)
        return int.from_bytes(mask, "little")

    def copy_policy(self, source: Task, target: Task) -> None:
        """Give one task the policy of another. OSError: refused."""
        mode, mask = self.call(source, "get_mempolicy", MAXNODE, 0, 0)
        words = [int.from_bytes(mask[at : at + 8], "little") for at in range(0, max(len(mask), 1), 8)]
        if mode or any(words):
            self.call(target, "set_mempolicy", mode, words or None, len(words) * 64 + 1)


@contextlib.contextmanager
def _of_the_living(task: Task) -> Iterator[None]:
    """Whoever was killed may be forgotten while something is done for it.

    Raises:
        ProcessLookupError: it was.
    """
    try:
        yield
    except ValueError:
        if task._open:  # noqa: SLF001 - anything else is no such thing
            raise
        raise ProcessLookupError(f"the thread of task {task.pid} is gone") from None
