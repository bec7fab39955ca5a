"""Processes whose parent has ended: they are our children now, and the host does not tell whose they were."""

import contextlib
import os
from collections.abc import Container, Iterator, Sequence
from typing import Final

from numaemu_run.processes import Process
from numaemu_run.procfs import Status, children_of, speaker_of, status_of
from numaemu_run.trouble import Troubles


class Orphans:
    """Those of a run, among our children."""

    def __init__(self, troubles: Troubles) -> None:
        """None were looked for yet."""
        self._troubles: Final = troubles
        #: Children of ours that are none of the program's: the machine.
        self._strangers: set[int] = set()

    def new(self, known: Container[int]) -> Iterator[Status]:
        """Those whose processes are not `known`, which may grow meanwhile: of each a thread that has not ended."""
        children = children_of(os.getpid(), os.getpid())
        self._strangers &= set(children)
        for pid in children:
            if pid in known or pid in self._strangers:
                continue
            with self._troubles.confined():
                status = status_of(speaker_of(pid))
                if status.filtered:
                    yield status
                else:
                    self._strangers.add(pid)


def likely_parent(pid: int, candidates: Sequence[Process]) -> Process:
    """One of the process group of a process, or else of its session, or else the first.

    Raises:
        ProcessLookupError: it is gone.
    """
    for relation in (os.getpgid, os.getsid):
        mark = relation(pid)
        for process in candidates:
            with contextlib.suppress(ProcessLookupError):
                if relation(process.pid) == mark:
                    return process
    return candidates[0]
