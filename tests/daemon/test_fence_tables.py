"""What recovery does where the host refuses membarrier: it takes each pte lock once."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from numaemu_core.columns import columns_in_memory
from numaemu_core.layout import layout_of
from numaemu_core.lock_stats import LockStats
from numaemu_core.locks import Rank
from numaemu_core.topology import uniform
from numaemu_daemon.process_locks import ProcessLocks
from numaemu_host import memfd
from numaemu_host.ofdlock import OfdLock
from numaemu_host.robust import MutexState, MutexTable

TABLES = 6
HELD = 3
HOLDER = """
import sys
from numaemu_host import memfd, robust
fd, length, count, index = map(int, sys.argv[1:])
table = robust.MutexTable(memfd.Segment(fd, length).address, count)
print(table.lock(index, 10).name, flush=True)
sys.stdin.readline()
table.unlock(index)
"""


@pytest.fixture
def scene() -> Iterator[SimpleNamespace]:
    """The locks of a small machine, and another process that holds the pte lock of one table."""
    layout = layout_of(uniform(1, "64K", "0", "swap-v3", 4096))
    size = layout.segments["locks"].size
    fd, sems = memfd.create("locks", size, preallocate=False), memfd.create("sems", 4096, preallocate=False)
    segment = memfd.Segment(fd, size)
    mutexes = MutexTable(segment.address, layout.mutex_count)
    mutexes.initialise_range(0, layout.mutex_count)
    semaphores = OfdLock(sems)
    columns = columns_in_memory(layout)
    stats = LockStats(lambda: 0.0)
    locks = ProcessLocks(layout, columns, mutexes, semaphores, stats)
    numbers = map(str, (fd, size, layout.mutex_count, layout.pte_mutex + HELD))
    command = [sys.executable, "-c", HOLDER, *numbers]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[fd])
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ACQUIRED\n"
    yield SimpleNamespace(locks=locks, mutexes=mutexes, layout=layout, stats=stats, holder=holder)
    holder.kill()
    holder.communicate()
    semaphores.close()
    segment.close()
    os.close(fd)
    os.close(sems)


def test_whoever_is_inside_an_access_is_waited_for(scene: SimpleNamespace) -> None:
    """The fence is through only when the holder of a pte lock has let go; then every lock is free."""
    fence = threading.Thread(target=scene.locks.fence_tables, args=(TABLES,))
    fence.start()
    fence.join(0.3)
    assert fence.is_alive()
    scene.holder.communicate("\n", timeout=30)
    fence.join(30)
    assert not fence.is_alive()
    for table in range(1, TABLES):
        assert scene.mutexes.trylock(scene.layout.pte_mutex + table) is MutexState.ACQUIRED
        scene.mutexes.unlock(scene.layout.pte_mutex + table)
    assert scene.stats.classes[Rank.PTE].recoveries == 0


def test_a_holder_that_died_is_recovered_by_the_fence(scene: SimpleNamespace) -> None:
    """Its lock is taken over, counted once, and usable again."""
    scene.holder.kill()
    scene.holder.wait()
    scene.locks.fence_tables(TABLES)
    assert scene.stats.classes[Rank.PTE].recoveries == 1
    assert scene.mutexes.trylock(scene.layout.pte_mutex + HELD) is MutexState.ACQUIRED
    scene.mutexes.unlock(scene.layout.pte_mutex + HELD)
