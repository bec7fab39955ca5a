"""Allocation of frames: other nodes before this one is pressed, reclaim before anybody is killed.

Mirrors: __alloc_pages, mm/page_alloc.c (2.6.15; 6.x has the same order). Left out: the reserves for a dying task, which
fails at once instead.
"""

import enum

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES
from numaemu_core.effects import Breathe, KernelTask, Nap
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task
from numaemu_core.mmzone import Zonelist, rmqueue


def alloc_pages(  # noqa: PLR0913 - who wants what, from where, and how
    k: Kernel,
    task: Task | None,
    zonelist: Zonelist,
    count: int,
    *,
    cpu_node: int,
    interleave: bool = False,
    zero: bool = True,
    may_reclaim: bool = True,
    may_kill: bool = True,
) -> KernelTask[I8]:
    """Take `count` frames from the nodes of a zonelist, in its order.

    All nodes down to pages_low; then, kswapd being awake, down to pages_min; then, if it has got none at all, the task
    reclaims; then somebody is killed. Who wants more than a batch, and more than there is, reclaims once before that.
    Fewer frames than `count`, at least one: use these and come again. So nobody waits with frames in hand that others
    would have their work done with. None: the task is dying, or may not do what would help.

    The frames are ALLOCATED and, with `zero`, all bytes 0; they are on no list and have no identity yet.
    """
    if may_reclaim and count > limits.SWAP_CLUSTER_MAX:
        yield from _make_room_ahead(k, task, zonelist, count)
    taken = yield from rmqueue(k, zonelist, count, cpu_node, low=True, interleave=interleave, zero=zero)
    missing = count - sum(map(len, taken))
    if missing:
        _wake_kswapds(k, zonelist)
    fruitless = 0
    while missing:
        more = yield from rmqueue(k, zonelist, missing, cpu_node, low=False, interleave=interleave, zero=zero)
        missing -= sum(map(len, more))
        taken += more
        if missing < count or not may_reclaim:
            break
        again = yield from _make_room(k, task, zonelist, missing, kill=may_kill, fruitless=fruitless)
        if again is Room.NONE:
            break
        fruitless = fruitless + 1 if again is Room.PERHAPS else 0
    return taken[0] if len(taken) == 1 else np.concatenate([NO_INDEXES, *taken])


def _wake_kswapds(k: Kernel, zonelist: Zonelist) -> None:
    """Nodes that have no more than pages_low left have theirs woken."""
    for nid in zonelist.nodes:
        if k.zones[nid].nr_free <= k.zones[nid].pages_low:
            k.wake_kswapd(nid)


def _make_room_ahead(k: Kernel, task: Task | None, zonelist: Zonelist, count: int) -> KernelTask[None]:
    """Many frames are wanted, and a part of them would have to be reclaimed: that is done first, and at once.

    Else the task would get the few that are left, come again, reclaim 32, and so on.
    """
    from numaemu_core.reclaim import try_to_free_pages  # noqa: PLC0415 - reclaim itself uses modules that allocate

    room = sum(max(k.zones[nid].nr_free - k.zones[nid].pages_min, 0) for nid in zonelist.nodes)
    if room < count and not (task and task.dying):
        _wake_kswapds(k, zonelist)
        yield from try_to_free_pages(k, zonelist.nodes, task, count)


class Room(enum.Enum):
    """What came of reclaim."""

    SOME = "some"
    PERHAPS = "perhaps"
    """Another round may free some."""
    NONE = "none"


def _make_room(
    k: Kernel, task: Task | None, zonelist: Zonelist, wanted: int, *, kill: bool, fruitless: int
) -> KernelTask[Room]:
    """Reclaim; what others are evicting or writing is waited for, within bounds; then have somebody killed.

    Where no page has anywhere to go, one round is enough to know (should_reclaim_retry, mm/page_alloc.c of 6.1).
    """
    # reclaim itself uses modules that allocate, and these import this one
    from numaemu_core.oom_kill import out_of_memory  # noqa: PLC0415 - as above
    from numaemu_core.reclaim import is_on_its_way, may_free_pages, try_to_free_pages  # noqa: PLC0415 - as above

    if task is not None and task.dying:
        return Room.NONE
    freed = yield from try_to_free_pages(k, zonelist.nodes, task, wanted)
    if freed or _is_above_min(k, zonelist):
        return Room.SOME
    if not kill:
        return Room.NONE
    naps = 0
    while naps < limits.OOM_PATIENCE_NAPS and is_on_its_way(k, zonelist.nodes) and not (task and task.dying):
        naps += 1
        yield Nap()
        if _is_above_min(k, zonelist):
            return Room.SOME
    if fruitless < limits.MAX_RECLAIM_RETRIES and any(may_free_pages(k, nid) for nid in zonelist.nodes):
        yield Breathe()  # referenced pages go round more than once
        return Room.PERHAPS
    if task is None:
        return Room.NONE
    return Room.SOME if (yield from out_of_memory(k, task, zonelist.nodes)) else Room.NONE


def _is_above_min(k: Kernel, zonelist: Zonelist) -> bool:
    return any(k.zones[nid].nr_free > k.zones[nid].pages_min for nid in zonelist.nodes)
