"""Cleaning of free frames: what a node process does with its zone, step by step."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from numaemu_core.columns import Columns, columns_in_memory
from numaemu_core.layout import MUTEX_BYTES, layout_of
from numaemu_core.page_flags import ALLOCATED, FREE_CLEAN, FREE_UNCLEAN, RESERVED
from numaemu_core.topology import from_dict
from numaemu_daemon.cleaning import NODE_CLEAN_BATCH_PAGES, Cleaner, Progress
from numaemu_host import memfd
from numaemu_host.robust import MutexState, MutexTable

LAYOUT = layout_of(from_dict({"node": [{"memory": "1M", "cpus": [0]}, {"memory": "2M"}, {"memory": 0}]}))
LOG = structlog.get_logger()
NODE = 1
FIRST, END = LAYOUT.node_pfns[NODE]
ZONE_LOCK = LAYOUT.zone_mutex + NODE


@pytest.fixture(scope="module")
def mutexes() -> Iterator[MutexTable]:
    """Mutexes of the spin locks, in real memory: libc keeps them by their addresses."""
    fd = memfd.create("mutexes", LAYOUT.pte_mutex * MUTEX_BYTES, preallocate=True)
    segment = memfd.Segment(fd, LAYOUT.pte_mutex * MUTEX_BYTES)
    table = MutexTable(segment.address, LAYOUT.pte_mutex)
    table.initialise_range(0, LAYOUT.pte_mutex)
    yield table
    segment.close()


def dirty_columns() -> Columns:
    """All frames allocated and full of old bytes."""
    columns = columns_in_memory(LAYOUT)
    columns.free_state[:] = ALLOCATED
    columns.frames[:] = 0xEE
    return columns


def run(cleaner: Cleaner) -> list[Progress]:
    """Steps until there is nothing left; fails the test if that never comes."""
    steps = []
    for _ in range(1000):
        steps.append(cleaner.step())
        if steps[-1] is not Progress.MORE:
            return steps
    pytest.fail("it goes on for ever")


@given(states=st.lists(st.sampled_from([FREE_CLEAN, FREE_UNCLEAN, ALLOCATED, RESERVED]), max_size=256))
def test_exactly_the_unclean_frames_of_the_node_are_cleaned(mutexes: MutexTable, states: list[int]) -> None:
    """Whatever the frames are, the unclean free ones of this node become zero and clean, and no other cell changes."""
    columns = dirty_columns()
    columns.free_state[: len(states)] = states
    columns.free_state[FIRST : FIRST + len(states)] = states
    columns.frames[columns.free_state == FREE_CLEAN] = 0
    before = columns.free_state.copy()
    mine = np.zeros(LAYOUT.frame_count, bool)
    mine[FIRST:END] = before[FIRST:END] == FREE_UNCLEAN
    cleaner = Cleaner(columns, mutexes, NODE, LOG)
    cleaner.begin()
    assert run(cleaner)[-1] is Progress.DONE
    assert (columns.free_state == np.where(mine, FREE_CLEAN, before)).all()
    assert not columns.frames[mine].any()
    assert (columns.frames[~mine & (before != FREE_CLEAN)] == 0xEE).all()
    assert columns.cleaned.tolist() == [0, int(mine.sum())] + [0] * (LAYOUT.topology.nr_node_ids - 2)
    assert cleaner.pages == int(mine.sum())


def test_a_batch_is_bounded(mutexes: MutexTable) -> None:
    """No hold of the zone lock cleans more than a batch."""
    columns = dirty_columns()
    columns.free_state[FIRST:END] = FREE_UNCLEAN
    cleaner = Cleaner(columns, mutexes, NODE, LOG)
    cleaner.begin()
    cleaned = []
    while cleaner.step() is Progress.MORE:
        cleaned.append(int(columns.cleaned[NODE]))
    assert cleaned[-1] == END - FIRST
    assert max(np.diff([0, *cleaned])) == NODE_CLEAN_BATCH_PAGES
    assert cleaner.batches == (END - FIRST) // NODE_CLEAN_BATCH_PAGES


def test_nothing_is_done_unasked(mutexes: MutexTable) -> None:
    """A cleaner that nobody told to begin leaves unclean frames alone, and begins again each time it is told."""
    columns = dirty_columns()
    columns.free_state[FIRST] = FREE_UNCLEAN
    cleaner = Cleaner(columns, mutexes, NODE, LOG)
    assert run(cleaner) == [Progress.DONE]
    for frame in (FIRST, END - 1):
        columns.free_state[frame] = FREE_UNCLEAN
        cleaner.begin()
        run(cleaner)
        assert columns.free_state[frame] == FREE_CLEAN


def test_frames_taken_meanwhile_are_left_alone(mutexes: MutexTable) -> None:
    """A frame that was seen unclean and has been allocated since keeps its bytes."""
    columns = dirty_columns()
    columns.free_state[FIRST : FIRST + 2 * NODE_CLEAN_BATCH_PAGES] = FREE_UNCLEAN
    cleaner = Cleaner(columns, mutexes, NODE, LOG)
    cleaner.begin()
    assert cleaner.step() is Progress.MORE
    taken = FIRST + NODE_CLEAN_BATCH_PAGES
    columns.free_state[taken] = ALLOCATED
    assert run(cleaner)[-1] is Progress.DONE
    assert columns.free_state[taken] == ALLOCATED
    assert (columns.frames[taken] == 0xEE).all()
    assert cleaner.pages == 2 * NODE_CLEAN_BATCH_PAGES - 1


def test_busy_lock_blocks_and_nothing_is_lost(mutexes: MutexTable) -> None:
    """While someone else holds the zone lock no frame changes; afterwards the work goes on where it was."""
    columns = dirty_columns()
    columns.free_state[FIRST] = FREE_UNCLEAN
    cleaner = Cleaner(columns, mutexes, NODE, LOG)
    cleaner.begin()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        assert mutexes.trylock(ZONE_LOCK) is MutexState.ACQUIRED
        held.set()
        release.wait(20)
        mutexes.unlock(ZONE_LOCK)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(20)
    assert run(cleaner) == [Progress.BLOCKED]
    assert columns.free_state[FIRST] == FREE_UNCLEAN
    release.set()
    holder.join(20)
    assert run(cleaner)[-1] is Progress.DONE
    assert columns.free_state[FIRST] == FREE_CLEAN


def test_dead_holder_is_left_to_the_daemon(mutexes: MutexTable) -> None:
    """A lock whose holder died is marked, made usable and let go; frames change only after the daemon's repair."""
    columns = dirty_columns()
    columns.free_state[FIRST] = FREE_UNCLEAN
    cleaner = Cleaner(columns, mutexes, NODE, LOG)
    cleaner.begin()
    # A thread that ends with a robust mutex is a dead holder, as a killed process is.
    holder = threading.Thread(target=mutexes.trylock, args=(ZONE_LOCK,))
    holder.start()
    holder.join(20)
    assert run(cleaner) == [Progress.BLOCKED]
    assert run(cleaner) == [Progress.BLOCKED]
    assert np.flatnonzero(columns.needs_recovery).tolist() == [ZONE_LOCK]
    assert mutexes.trylock(ZONE_LOCK) is MutexState.ACQUIRED
    columns.needs_recovery[ZONE_LOCK] = 0
    mutexes.unlock(ZONE_LOCK)
    assert run(cleaner)[-1] is Progress.DONE
    assert columns.free_state[FIRST] == FREE_CLEAN


def test_node_without_memory_has_nothing_to_clean(mutexes: MutexTable) -> None:
    """A node of CPUs alone is done at once."""
    cleaner = Cleaner(dirty_columns(), mutexes, 2, LOG)
    cleaner.begin()
    assert run(cleaner) == [Progress.DONE]
