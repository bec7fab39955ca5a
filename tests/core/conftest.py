"""Machines in memory for tests of the core; each is checked by fsck when its test is over."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from numaemu_core import fork, mbind, memory, mmap, proc
from numaemu_core.effects import KernelTask
from numaemu_core.fsck import fsck
from numaemu_core.journal import Journal
from numaemu_core.kernel import Kernel
from numaemu_core.locks import NoHost
from numaemu_core.mm_types import Task
from numaemu_core.nodemask import mask_of
from numaemu_core.performer import Performer
from numaemu_core.recovery import recover
from numaemu_core.topology import Topology, from_dict, uniform
from numaemu_core.uapi import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE

PAGE = 4096
#: What `where` says of a page that is not in memory.
GONE = -2


def reborn(k: Kernel) -> Kernel:
    """The kernel of the next daemon."""
    journal = Journal(k.journal._bytes)  # noqa: SLF001 - the same memory, as another process maps it
    return recover(k.layout, k.c, journal, NoHost(), dict)[0]


class Machine:
    """A machine in memory with the calls that tests make most, in pages."""

    def __init__(self, topology: Topology, seed: int | None = None) -> None:
        """Just switched on."""
        if topology.min_free_kbytes is None:  # these machines are so small that tests fill them to the last frame
            topology = replace(topology, min_free_kbytes=0)
        self.performer = Performer(topology, seed)
        self.k = self.performer.k

    def attach(self, cpu: int = 0, *capabilities: str) -> Task:
        """A task with an mm of its own."""
        return fork.attach(self.k, cpu, list(capabilities), None)

    def call(self, body: KernelTask[Any]) -> Any:  # noqa: ANN401 - any call's result
        """Run one kernel task to its end."""
        return self.performer.call(body)

    def mmap(self, task: Task, pages: int, addr: int = 0, prot: int = PROT_READ | PROT_WRITE, flags: int = 0) -> int:
        """Private anonymous memory."""
        flags |= MAP_PRIVATE | MAP_ANONYMOUS
        return int(self.call(mmap.sys_mmap(self.k, task, addr, pages * PAGE, prot, flags)))

    def touch(self, task: Task, addr: int, pages: int = 1, *, write: bool = True) -> None:
        """Fault pages in, all of them."""
        done = 0
        while done < pages * PAGE:
            done += self.call(memory.sys_fault(self.k, task, addr + done, pages * PAGE - done, write=write))

    def mbind(self, task: Task, addr: int, pages: int, mode: int, nodes: set[int], flags: int = 0) -> int:
        """The system call with a mask of 64 bits."""
        return int(self.call(mbind.sys_mbind(self.k, task, addr, pages * PAGE, mode, [mask_of(nodes)], 65, flags)))

    def where(self, task: Task, addr: int, pages: int) -> list[int]:
        """The node of each page, or -errno."""
        answer: bytes = self.call(proc.sys_where(self.k, task, addr, pages * PAGE))
        return memoryview(answer).cast("i").tolist()

    def entry(self, task: Task, addr: int) -> int:
        """The page-table entry of an address, 0 where there is none."""
        flat = self.k.tables.pte_offset(task.mm.pgd, addr // PAGE)
        return int(self.k.c.pte[flat]) if flat >= 0 else 0

    def poke(self, task: Task, addr: int, value: int) -> None:
        """Write a byte as a client would whose page is there and writable."""
        entry = self.entry(task, addr)
        assert entry & 7 == 7
        self.k.c.frames[entry // PAGE, addr % PAGE] = value

    def peek(self, task: Task, addr: int) -> int:
        """Read a byte as a client would whose page is there."""
        entry = self.entry(task, addr)
        assert entry & 3 == 3
        return int(self.k.c.frames[entry // PAGE, addr % PAGE])

    def clear_young(self) -> None:
        """Age every page: the accessed bytes are cleared, as a scan would."""
        self.k.c.accessed[:] = 0

    def recover(self) -> None:
        """The daemon dies while nothing is under way, and the next one goes on."""
        self.k = reborn(self.k)
        self.performer = Performer(self.k.topology, kernel=self.k)

    def fsck(self) -> list[str]:
        """Bring the machine to rest and check it."""
        self.performer.run()
        return fsck(self.k)


@pytest.fixture
def machine() -> Iterator[Callable[..., Machine]]:
    """Makes machines; fsck must find each sound at the end of the test."""
    made: list[Machine] = []

    def make(
        nodes: int = 2, memory: str = "1M", swap: str = "1M", seed: int | None = None, **topology: object
    ) -> Machine:
        description = (
            from_dict({"swap": swap, **topology}) if topology else uniform(nodes, memory, swap, "swap-v3", PAGE)
        )
        made.append(Machine(description, seed))
        return made[-1]

    yield make
    for one in made:
        assert one.fsck() == []


def pressed(machine: Callable[..., Machine], memory_size: str = "1M", **options: object) -> Machine:
    """Two nodes with the watermarks that a kernel would choose."""
    nodes = [{"id": nid, "memory": memory_size, "cpus": [nid]} for nid in range(2)]
    return machine(node=nodes, **({"swap": "4M", "min_free_kbytes": 256} | options))
