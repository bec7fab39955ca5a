"""What other processes write may change at any moment, also while numpy looks at it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.core.test_interleavings import run_seed

from numaemu_core import fork, madvise, mmap
from numaemu_core.columns import Columns, columns_in_memory
from numaemu_core.layout import Layout
from numaemu_core.uapi import MADV_PAGEOUT, MPOL_BIND, MPOL_MF_MOVE

if TYPE_CHECKING:
    from tests.core.conftest import Machine

Make = Callable[..., "Machine"]

PAGE = 4096
#: Columns that client processes and node processes write.
OTHERS = ("accessed", "dirty", "window", "pin_count", "pins", "needs_recovery", "free_state", "cleaned", "frames")


class Changing(npt.NDArray[Any]):
    """An array that changes whenever numpy searches it; what is computed from it is an array of its own."""

    def nonzero(self) -> tuple[npt.NDArray[np.int64], ...]:
        """What numpy does when the second of its two passes finds another number than the first."""
        raise RuntimeError("number of non-zero array elements changed during function execution.")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401 - as numpy has it
        own = [np.asarray(one) if isinstance(one, Changing) else one for one in inputs]
        if "out" in options:
            options["out"] = tuple(np.asarray(one) for one in options["out"])
        return getattr(ufunc, method)(*own, **options)

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - as numpy has it
        """A slice changes as well, what was picked by numbers is a copy."""
        found = super().__getitem__(key)
        return found if np.may_share_memory(found, self) else np.asarray(found)


def changing_columns(layout: Layout, allocate: Callable[[int], Any]) -> Columns:
    columns = columns_in_memory(layout, allocate)
    for name in OTHERS:
        setattr(columns, name, getattr(columns, name).view(Changing))
    return columns


@pytest.fixture(autouse=True)
def _changing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numaemu_core.performer.columns_in_memory", changing_columns)


def test_nothing_searches_what_others_write() -> None:
    """Faults, moves, forks and exits do not rest on two looks at a column of others, nor does fsck."""
    for seed in range(8):
        run_seed(seed)


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
def test_nor_does_who_looks_for_pins_and_for_memory(machine: Make, profile: str) -> None:
    """While pages are pinned, others fork, move, reclaim and unmap."""
    m = machine(node=[{"memory": "256K", "cpus": [nid]} for nid in range(2)], swap="2M", profile=profile)
    task, other = m.attach(0), m.attach(1)
    base = m.mmap(task, 8)
    m.touch(task, base, 8)
    m.k.c.pins[3, 0] = m.entry(task, base) // PAGE + 1
    m.k.c.pin_count[3] = 1
    m.mbind(task, base, 8, MPOL_BIND, {1}, MPOL_MF_MOVE)
    m.call(madvise.sys_madvise(m.k, task, base, 8 * PAGE, MADV_PAGEOUT))
    child = m.call(fork.sys_fork(m.k, task))
    area = m.mmap(other, 200)
    m.touch(other, area, 200)
    assert m.k.vmstat["allocstall"]
    m.call(mmap.sys_munmap(m.k, task, base, 8 * PAGE))
    m.call(fork.sys_exit(m.k, child))
    m.k.c.pin_count[3] = 0
    m.call(fork.sys_exit(m.k, other))
