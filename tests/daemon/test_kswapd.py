"""kswapd in the node process: when it asks for another step, and when it sleeps."""

from typing import Any

import pytest

from numaemu_core import limits
from numaemu_core.columns import columns_in_memory
from numaemu_core.layout import layout_of
from numaemu_core.page_flags import ALLOCATED, FREE_CLEAN
from numaemu_core.topology import from_dict
from numaemu_daemon.kswapd import Kswapd

LAYOUT = layout_of(from_dict({"node": [{"memory": "1M", "cpus": [0]}, {"memory": "1M"}]}))
HIGH = 12
BALANCE, ASLEEP = ["balance", 1], ["asleep", 1]


def woken(free: int) -> tuple[Kswapd, list[list[Any]]]:
    """Kswapd of node 1, just woken, with so many free frames; and what it has said."""
    columns = columns_in_memory(LAYOUT)
    columns.watermarks[1] = (8, 10, HIGH)
    first, end = LAYOUT.node_pfns[1]
    columns.free_state[first:end] = ALLOCATED
    columns.free_state[first : first + free] = FREE_CLEAN
    said: list[list[Any]] = []
    kswapd = Kswapd(columns, 1, said.append)
    kswapd.wake()
    return kswapd, said


@pytest.mark.parametrize(("free", "says"), [(HIGH - 1, BALANCE), (HIGH, ASLEEP)], ids=["below high", "at high"])
def test_it_asks_for_a_step_below_pages_high(free: int, says: list[Any]) -> None:
    """Frames of other nodes do not count."""
    _, said = woken(free)
    assert said == [says]


def test_it_sleeps_after_some_steps_without_a_page() -> None:
    """A step that frees something begins the count anew; so does the next time it is woken."""
    kswapd, said = woken(0)
    for pages in (0, 7, *[0] * (limits.MAX_RECLAIM_RETRIES - 1)):
        kswapd.balanced(pages)
        assert said[-1] == BALANCE
    kswapd.balanced(0)
    assert said[-1] == ASLEEP
    kswapd.wake()
    assert said[-1] == BALANCE
    assert (kswapd.wakeups, kswapd.pages) == (2, 7)
