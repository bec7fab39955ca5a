"""The scalar twin of a one-page fault does what the range path does, to the last cell."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from numaemu_core import memory, mempolicy
from numaemu_core.columns import Columns
from numaemu_core.mm_types import Task
from numaemu_core.page_flags import PG_HOSTED
from numaemu_core.uapi import MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED

Make = Callable[..., Any]

PAGE = 4096
#: Every shared column that a fault may touch.
COLUMNS = [
    "pte",
    "accessed",
    "dirty",
    "free_state",
    "lru_state",
    "lru_stamp",
    "pg_flags",
    "mapcount",
    "mapping",
    "index",
    "private",
    "numastat",
    "frames",
    "page_lock_owner",
    "swap_count",
]
POLICIES = {
    "default": None,
    "preferred": (MPOL_PREFERRED, [0b10]),
    "bind": (MPOL_BIND, [0b110]),
    "interleave": (MPOL_INTERLEAVE, [0b111]),
}


def columns_after(
    make: Make, policy: tuple[int, list[int]] | None, *, dirty_frames: bool, mirrored: bool = False
) -> Columns:
    """The columns of a machine whose task has written to pages one by one, here and there, until nodes are full."""
    machine = make(nodes=3, memory="64K", swap="64K")
    if dirty_frames:
        machine.k.c.free_state[1:20] = 1
        machine.k.c.frames[1:20] = 7
    task: Task = machine.attach(1)
    if policy is not None:
        machine.call(mempolicy.sys_set_mempolicy(machine.k, task, *policy, 65))
    base = machine.mmap(task, 40)
    task.mm.mirrored = mirrored
    machine.k.journal.mm(task.mm)
    for page in [3, 1, 2, 20, 21, 3, 0, *range(22, 38)]:
        machine.touch(task, base + page * PAGE, write=page != 1)
    columns: Columns = machine.k.c
    return columns


@pytest.mark.parametrize("free", ["clean", "unclean"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_twin_leaves_every_column_as_the_range_path_does(
    policy: tuple[int, list[int]] | None, free: str, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single writes under each policy, with and without the twin: the same cells, the same bytes."""
    with_twin = columns_after(machine, policy, dirty_frames=free == "unclean")
    monkeypatch.setattr(memory, "try_anonymous_page", lambda *_: False)
    without = columns_after(machine, policy, dirty_frames=free == "unclean")
    assert_equal(with_twin, without)


def test_the_twin_says_whose_bytes_they_are(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that follows one of the host is marked as such."""
    with_twin = columns_after(machine, None, dirty_frames=True, mirrored=True)
    monkeypatch.setattr(memory, "try_anonymous_page", lambda *_: False)
    assert_equal(with_twin, columns_after(machine, None, dirty_frames=True, mirrored=True))
    assert (with_twin.pg_flags & PG_HOSTED).any()


def assert_equal(with_twin: Columns, without: Columns) -> None:
    for name in COLUMNS:
        assert np.array_equal(getattr(with_twin, name), getattr(without, name)), name
