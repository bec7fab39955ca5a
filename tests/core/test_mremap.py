"""mremap where nothing is mapped, or not enough: what is refused, and what is gone all the same.

Sources: mm/mremap.c (2.6.15, 6.1).
"""

from collections.abc import Callable

import pytest

from numaemu_core import mremap
from numaemu_core.errors import MmError
from numaemu_core.limits import TASK_SIZE_BYTES
from numaemu_core.uapi import MAP_FIXED, MREMAP_FIXED, MREMAP_MAYMOVE

from .conftest import PAGE, Machine

Make = Callable[..., Machine]
BASE = 0x10000000
FIXED = MREMAP_FIXED | MREMAP_MAYMOVE
NODES = [{"id": 0, "memory": "256K", "cpus": [0]}]

#: profile, old page, old and new length, flags, new page → errno, pages that are mapped then. Pages 0 to 3 and 8 to 9
#: are mapped.
ROWS = {
    "moves": ("swap-v3", 0, 4, 4, FIXED, 8, 0, {8, 9, 10, 11}),
    "no mapping: the new place is cleared first in 2005": ("swap-v3", 20, 2, 2, FIXED, 8, 14, {0, 1, 2, 3}),
    "no mapping: nothing happens today": ("linux-6.12", 20, 2, 2, FIXED, 8, 14, {0, 1, 2, 3, 8, 9}),
    "no mapping, and places that overlap: EINVAL in 2005": ("swap-v3", 20, 2, 2, FIXED, 21, 22, {0, 1, 2, 3, 8, 9}),
    "no mapping, and places that overlap: EFAULT today": ("linux-6.12", 20, 2, 2, FIXED, 21, 14, {0, 1, 2, 3, 8, 9}),
    "not one mapping: the new place is cleared": ("linux-6.12", 2, 3, 3, FIXED, 8, 14, {0, 1, 2, 3}),
    "shrinks what is not there: no error in 2005": ("swap-v3", 4, 5, 1, 0, 0, 0, {0, 1, 2, 3, 9}),
    "shrinks what is not there: EFAULT today": ("linux-6.12", 4, 5, 1, 0, 0, 14, {0, 1, 2, 3, 8, 9}),
    "shrinks beyond the address space": ("linux-6.12", 0, TASK_SIZE_BYTES // PAGE, 1, 0, 0, 22, {0, 1, 2, 3, 8, 9}),
}


@pytest.mark.parametrize("case", ROWS)
def test_mremap(machine: Make, case: str) -> None:
    """What is refused, and which pages are mapped behind it."""
    profile, first, old, new, flags, target, expected, mapped = ROWS[case]
    m = machine(profile=profile, node=NODES)
    task = m.attach()
    for page, pages in ((0, 4), (8, 2)):
        m.mmap(task, pages, BASE + page * PAGE, flags=MAP_FIXED)
    error = 0
    try:
        call = mremap.sys_mremap(
            m.k, task, BASE + first * PAGE, old * PAGE, new * PAGE, flags, BASE + target * PAGE if target else 0
        )
        m.call(call)
    except MmError as refusal:
        error = refusal.errno
    assert error == expected
    assert {page for page, node in enumerate(m.where(task, BASE, 32)) if node != -14} == mapped
