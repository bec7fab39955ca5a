"""Of processes that nobody has met: which of their ancestors was."""

import os
from collections.abc import Mapping
from typing import Final

from numaemu_host.pidfd import started_at
from numaemu_run.processes import Process
from numaemu_run.procfs import Status, status_of

#: A kernel has no more processes at a time, as a rule (kernel.pid_max).
_REMEMBERED_MAX: Final = 1 << 16


class Ancestors:
    """Looked for once for each process: chains of forks may be thousands long, and each of them ends.

    Who is met later is no nearer one: his policies are those of whom he starts then, and these have him for a parent.
    """

    def __init__(self, known: Mapping[int, Process]) -> None:
        """`known`: those that were met; it may change."""
        self._known = known
        #: The nearest one that was met, by number and start of a process.
        self._found: dict[tuple[int, int], Process | None] = {}

    def nearest(self, status: Status) -> Process | None:
        """The process itself, or its next ancestor that was met; None: none was, or that has ended.

        Raises:
            ProcessLookupError: it is gone, or one of the ancestors is.
        """
        passed = []
        while status.tgid not in self._known and status.parent not in {0, 1, os.getpid()}:
            key = status.tgid, started_at(status.tgid)
            if key in self._found:
                found = self._found[key]
                break
            passed.append(key)
            status = status_of(status.parent)
        else:
            found = self._known.get(status.tgid)
        if len(self._found) > _REMEMBERED_MAX:
            self._found.clear()
        self._found.update(dict.fromkeys(passed, found))
        return found if found is not None and self._known.get(found.pid) is found else None
