"""What the fixture `numa` gives: a machine, tasks, programs, and assertions about pages."""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import pytest

from numaemu.mapping import Mapping as Buffer
from numaemu.pytest_plugin import programs
from numaemu.pytest_plugin.pages import Found, of_range
from numaemu.pytest_plugin.programs import Ran
from numaemu.task import Task
from numaemu_core.views import pages_by_node

if TYPE_CHECKING:
    from numaemu.machine import Machine
    from numaemu_core.topology import Topology

#: What pages can be asked of: a buffer (`task.mmap`), an address and a length in bytes of the fixture's task, a task, a
#: program that was run, or the pid of a process that was part of one.
Where = Buffer | tuple[int, int] | Task | Ran | int


class Numa:
    """A machine for one test. Whatever is made by it ends with the test."""

    def __init__(self, machine: Machine, place: str, *, required: bool) -> None:
        """`place`: the machine's directory; `required`: that the host cannot run programs is a failure."""
        self.machine = machine
        self._place = place
        self._required = required
        self._task: Task | None = None
        self._ran: list[Ran] = []

    def __repr__(self) -> str:
        nodes = ", ".join(str(node.id) for node in self.topology.nodes)
        return f"<Numa {self.machine.name!r} with nodes {nodes}>"

    @property
    def topology(self) -> Topology:
        """Nodes, CPUs, distances, profile."""
        return self.machine.topology

    # -- tasks ---------------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """A task on the first CPU, made when it is first asked for."""
        if self._task is None:
            self._task = self.attach()
        return self._task

    def attach(self, cpu: int | None = None, **options: Any) -> Task:  # noqa: ANN401 - those of `Machine.attach`
        """Another task, on that CPU or the first one; `options` are those of `Machine.attach`."""
        first = min(number for node in self.topology.nodes for number in node.cpus)
        return self.machine.attach(first if cpu is None else cpu, **options)

    # -- programs ------------------------------------------------------------------------------------------------------

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        timeout: float = 60.0,
        report: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Ran:
        """Run an unmodified program on this machine, as `numaemu run` does; gives its output, exit code and report.

        `timeout` is in seconds; `env` is added to the environment. Without a `report` processes are not looked at when
        they exit: nothing is known of their pages. Where the host cannot run programs, the test is skipped, or fails if
        the ini option numa_required is true.

        Raises:
            subprocess.CalledProcessError: with `check`, its exit code is not 0. subprocess.TimeoutExpired: it took too
            long, and was ended. NumaemuFailure: `numaemu run` could not run it.
        """
        __tracebackhide__ = True
        if isinstance(command, (str, bytes)) or not command:
            raise TypeError(f"command: expected the program and its arguments as a list, got {command!r}")
        if reason := programs.cannot_run():
            self._cannot_run(f"this host cannot run programs on a NUMA machine: {reason}")
        ran = programs.run(self._place, command, timeout_s=timeout, report=report, stdin=stdin, env=env, cwd=cwd)
        self._ran.append(ran)
        if check:
            programs.check(ran)
        return ran

    def _cannot_run(self, reason: str) -> None:
        __tracebackhide__ = True
        if self._required:
            pytest.fail(f"{reason} [numa_required]", pytrace=False)
        pytest.skip(reason)

    # -- pages ---------------------------------------------------------------------------------------------------------

    def pages_by_node(self, where: Where, *, task: Task | None = None) -> Counter[int]:
        """How many pages each node has, of those that are in memory.

        `where` is a buffer (`task.mmap`), an (address, length) in bytes of `task` (default: the fixture's), a task with
        all its memory, what `run` has given (the process of the command itself, when it exited), or the pid of another
        process that has exited in a run of this test.
        """
        __tracebackhide__ = True
        return self._find(where, task).by_node

    def assert_on_node(
        self, where: Where, node: int | Iterable[int], *, task: Task | None = None, present_only: bool = False
    ) -> None:
        """Every page is on that node, or on one of those; `where` is that of `pages_by_node`.

        Pages that are not in memory are on no node: the assertion fails, unless `present_only` leaves them out and
        there are others.

        Raises:
            AssertionError: a table of nodes and pages. ValueError: the machine has no such node.
        """
        __tracebackhide__ = True
        nodes = self._nodes(node)
        wrong = self._find(where, task).misplaced(nodes, present_only=present_only)
        if wrong:
            raise AssertionError(wrong)

    def _nodes(self, node: int | Iterable[int]) -> set[int]:
        __tracebackhide__ = True
        wanted = {operator.index(one) for one in ([node] if isinstance(node, SupportsIndex) else node)}
        known = [one.id for one in self.topology.nodes]
        if not wanted or not wanted <= set(known):
            raise ValueError(f"node: expected some of {', '.join(map(str, known))}, got {node!r}")
        return wanted

    def _find(self, where: Where, task: Task | None) -> Found:
        __tracebackhide__ = True
        page_bytes = self.topology.page_size
        if isinstance(where, Buffer):
            return of_range(where.task, where.start, where.length, page_bytes)
        if isinstance(where, Task):
            return _counted(f"task {where.pid}", Counter(pages_by_node(self.machine.numa_maps(where.pid))))
        if isinstance(where, Ran):
            return _counted(str(where), where.pages_by_node())
        if isinstance(where, tuple):
            addr, length = where
            return of_range(task or self.task, operator.index(addr), operator.index(length), page_bytes)
        return self._of_process(operator.index(where))

    def _of_process(self, pid: int) -> Found:
        """A process of the last run in which there was one of that pid."""
        __tracebackhide__ = True
        if not self._ran:
            raise LookupError(f"process {pid}: no program was run in this test; a task is named by its handle")
        failures = []
        for ran in reversed(self._ran):
            try:
                return _counted(f"process {pid} of {ran}", ran.pages_by_node(pid))
            except LookupError as error:
                failures.append(error)
        raise failures[0]


def _counted(what: str, by_node: Counter[int]) -> Found:
    return Found(what, by_node, Counter())
