"""kswapd: a node process watches its watermarks once it was woken, and has the kernel daemon reclaim, step by step.

Messages on the bus: the daemon sends `["kswapd"]` when an allocation found the node below pages_low; the node process
answers `["balance", node]` as long as the node is below pages_high, each answered by `["balanced", pages]` when that
step of reclaim is over, and `["asleep", node]` when the node has enough, or some steps freed nothing.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import Columns
from numaemu_core.errors import MmError
from numaemu_core.fault_points import Reach, unarmed
from numaemu_core.kernel import Kernel
from numaemu_core.page_flags import FREE_UNCLEAN
from numaemu_core.reclaim import balance_pgdat
from numaemu_daemon.bus import Bus
from numaemu_daemon.scheduler import Scheduler

#: Column of pages_high in the watermarks.
_HIGH: Final = 2


class Kswapd:
    """The half in the node process: decides whether there is another step."""

    def __init__(self, columns: Columns, nid: int, send: Callable[[list[Any]], None], reach: Reach = unarmed) -> None:
        """For a node that may have no memory at all."""
        self._c = columns
        self._nid = nid
        self._send = send
        self._reach = reach
        self._first, self._end = columns.layout.node_pfns.get(nid, (0, 0))
        #: Times that it was woken, and pages that its steps freed.
        self.wakeups = 0
        self._fruitless = 0
        self.pages = 0

    def wake(self) -> None:
        """An allocation found the node below pages_low."""
        self.wakeups += 1
        self._fruitless = 0
        self._go_on()

    def balanced(self, pages: int) -> None:
        """A step is over: it freed so many pages."""
        self.pages += pages
        self._fruitless = 0 if pages else self._fruitless + 1
        if self._fruitless < limits.MAX_RECLAIM_RETRIES:
            self._go_on()
        else:
            self._send(["asleep", self._nid])

    def _go_on(self) -> None:
        free = int(np.count_nonzero(self._c.free_state[self._first : self._end] <= FREE_UNCLEAN))
        self._reach("kswapd.awake")
        short = free < int(self._c.watermarks[self._nid, _HIGH])
        self._send(["balance" if short else "asleep", self._nid])


class KswapdTasks:
    """The half in the kernel daemon: wakes node processes, and runs the steps that they ask for."""

    def __init__(self, k: Kernel, scheduler: Scheduler, bus: Bus) -> None:
        """Over their bus."""
        self._k = k
        self._scheduler = scheduler
        self._bus = bus
        self._awake: set[int] = set()
        self._running: set[int] = set()
        bus.node_asks = self._take
        k.wake_kswapd = self.wake

    def wake(self, nid: int) -> None:
        """Wake a node's kswapd, unless it is awake or its process is not there now: the next allocation tries again."""
        if nid not in self._awake and self._bus.tell_node(nid, ["kswapd"]):
            self._awake.add(nid)

    def _take(self, verb: str, nid: int) -> None:
        match verb:
            case "hello":  # a new process, asleep
                self._awake.discard(nid)
            case "asleep":
                self._awake.discard(nid)
            case "balance" if nid in self._k.zones and nid not in self._running:
                self._running.add(nid)
                self._scheduler.start(balance_pgdat(self._k, nid), lambda pages, _: self._done(nid, pages))
            case _:
                pass

    def _done(self, nid: int, pages: int | MmError | None) -> None:
        self._running.discard(nid)
        self._bus.tell_node(nid, ["balanced", pages or 0])
