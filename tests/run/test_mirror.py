"""What a mirror tells the machine of an address space."""

import mmap
import os
from typing import Any, cast

import pytest

from numaemu.task import Task
from numaemu_run import procfs
from numaemu_run.kernel import Kernel
from numaemu_run.mirror import Mirror
from numaemu_run.shared_objects import SharedObjects

TASK = cast("Task", object())


class Refusing:
    """A machine that refuses what it is told first."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []

    def let_go_shared(self, _task: Task, _names: list[str]) -> dict[str, str]:
        return {}

    def mirror(self, _task: Task, *parts: list[Any]) -> None:
        self.told.append(list(parts))
        if len(self.told) == 1:
            raise OSError(12, "too many mappings")


def test_what_was_refused_is_told_again() -> None:
    """The next time, all of it comes once more; what was accepted does not."""
    machine = Refusing()
    kernel = cast("Kernel", machine)
    mirror = Mirror(kernel, SharedObjects(kernel, ()), os.getpid())
    with pytest.raises(OSError, match="too many mappings"):
        mirror.settle(TASK, os.getpid())
    with mmap.mmap(-1, procfs.PAGE_SIZE) as memory:
        memory[0] = 1
        assert mirror.settle(TASK, os.getpid()) > 0
        mirror.settle(TASK, os.getpid())
    refused, accepted, *later = machine.told
    starts = {area[0] for area in refused[1]}
    assert len(starts & {area[0] for area in accepted[1]}) > len(starts) / 2
    assert all(len(parts[1]) < len(starts) / 2 for parts in later)


def test_names_of_files_do_not_end_lines() -> None:
    """Only a line feed ends a line of maps: names may hold what Python splits at."""
    line = "1000-2000 rw-s 00000000 00:01 7                          /tmp/odd\x0bna\x1cme\x85\u2028\n"
    areas = procfs.areas_of((line * 2).encode())
    assert [(area.start, area.end, area.name) for area in areas] == [(0x1000, 0x2000, "00:01 7")] * 2
    assert procfs.areas_of(b"") == []
