"""One program under the kernels of two eras: `python examples/two_eras.py [PROFILE ...]`.

A task writes pages on node 0, binds them to node 1 with mbind(MPOL_BIND, {1}, MPOL_MF_MOVE | MPOL_MF_STRICT), and
reads them again. What the machine counted meanwhile is printed, a column a profile: docs/experiment.md explains it.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numaemu as nm

PROFILES = ("swap-v3", "linux-6.1", "linux-6.12")
PAGES = 1024
MOVE = nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT
#: The lines that differ from run to run.
SHARE = "of its time mbind held mmap_sem for writing"
RATIO = "the touch took as long as so many that find their pages"
#: How long the other threads may take to come to where they wait.
PATIENCE_S = 60.0

Results = dict[str, object]


def move_and_touch(machine: nm.Machine) -> Results:
    """Nobody else runs: what is copied, written and read until every byte is on node 1."""
    size = machine.topology.page_size
    data = bytes(range(256)) * (PAGES * size // 256)
    found: Results = {}
    with machine.attach(cpu=0) as task:
        buf = task.mmap(len(data))
        buf.write(0, data)
        start = machine.figures("vmstat")
        held_s, began = held_for_writing(machine), time.monotonic()
        task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, MOVE)
        mbind_s = time.monotonic() - began
        held_s = held_for_writing(machine) - held_s
        moved = machine.figures("vmstat")
        found["after mbind: pages on node 0, on node 1, in swap"] = places(task, buf)
        found["  copied from node to node (pgmigrate_success)"] = more(start, moved, "pgmigrate_success")
        found["  written to swap (pswpout)"] = more(start, moved, "pswpout")
        began = time.monotonic()
        same = buf.read(0, len(data)) == data
        touch_s = time.monotonic() - began
        began = time.monotonic()
        buf.read(0, len(data))
        again_s = time.monotonic() - began
        end = machine.figures("vmstat")
        found["after the touch: pages on node 0, on node 1, in swap"] = places(task, buf)
        found["  faults (pgfault)"] = more(moved, end, "pgfault")
        found["  read from swap (pswpin)"] = more(moved, end, "pswpin")
        found["  slots of swap still in use"] = more(end, start, "nr_swap_free")
        found["  every byte is what was written"] = "yes" if same else "NO"
    found[SHARE] = f"{held_s / mbind_s:.0%}"
    found[RATIO] = f"{touch_s / again_s:.1f}"
    return found


def places(task: nm.Task, buf: nm.Mapping) -> str:
    """How many pages are on node 0, on node 1, and on none."""
    nodes = task.where(buf.start, buf.length).tolist()
    return " ".join(str(sum(node == wanted or node < 0 > wanted for node in nodes)) for wanted in (0, 1, -1))


def more(before: dict[str, int], after: dict[str, int], name: str) -> int:
    """By how much a counter of vmstat has grown; one that the kernel does not show is 0."""
    return after.get(name, 0) - before.get(name, 0)


def held_for_writing(machine: nm.Machine) -> float:
    """Seconds for which any mmap_sem was held for writing, since boot."""
    held_s: float = machine.status()["locks"]["mmap_sem.write"]["hold_s"]
    return held_s


def others_meanwhile(machine: nm.Machine) -> Results:
    """The processes that copy are stopped halfway, so that there is time to see who gets on and who waits."""
    size = machine.topology.page_size
    found: Results = {}
    with machine.attach(cpu=0) as task, machine.attach(cpu=0) as stranger:
        buf, fresh, apart = task.mmap(PAGES * size), task.mmap(size), stranger.mmap(size)
        buf.write(0, b"x" * buf.length)
        with copiers_stopped(machine):
            mover = threading.Thread(target=task.mbind, args=(buf.start, buf.length, nm.MPOL_BIND, {1}, MOVE))
            mover.start()
            until(lambda: machine.status()["copies"] > 0)
            touches = (
                ("another process writes a new page", lambda: apart.write(0, b"y")),
                ("another thread writes a new page", lambda: fresh.write(0, b"y")),
                ("another thread reads those pages", lambda: buf.read(0, buf.length)),
            )
            threads = [mover]
            for what, touch in touches:
                found["while mbind copies: " + what], thread = attempt(machine, touch)
                threads.append(thread)
        for thread in threads:
            thread.join()
    return found


@contextlib.contextmanager
def copiers_stopped(machine: nm.Machine) -> Iterator[None]:
    """Nobody copies pages to node 1 or to swap meanwhile."""
    copiers = [row["pid"] for row in machine.status()["processes"] if row["role"] == "swap" or row["node"] == 1]
    for pid in copiers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in copiers:
            os.kill(pid, signal.SIGCONT)


def attempt(machine: nm.Machine, touch: Callable[[], object]) -> tuple[str, threading.Thread]:
    """Let a thread touch memory: it gets on, or it waits for a lock, and which."""
    before = waits(machine)
    thread = threading.Thread(target=touch)
    thread.start()
    until(lambda: not thread.is_alive() or waits(machine) != before)
    after = waits(machine)
    waited_for = [name for name in after if after[name] > before[name]]
    return f"waits: {waited_for[0]}" if waited_for else "gets on", thread


def waits(machine: nm.Machine) -> dict[str, int]:
    """How often one has had to wait for an mmap_sem or for the lock of a page."""
    locks = machine.status()["locks"]
    return {
        "mmap_sem": locks["mmap_sem.read"]["contended"],
        "page": locks["page"]["contended"],
    }


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("the machine does not come to where it was expected")
        time.sleep(0.005)


def experiment(profile: str) -> Results:
    """All lines of one column, each on a machine that nothing has happened to."""
    found: Results = {}
    for part in (move_and_touch, others_meanwhile):
        with nm.boot(nodes=2, memory="16M", swap="32M", profile=profile) as machine:
            found |= part(machine)
    return dict(sorted(found.items(), key=lambda item: item[0] in {SHARE, RATIO}))


def main() -> None:
    """Print a table."""
    profiles = sys.argv[1:] or PROFILES
    columns = [experiment(profile) for profile in profiles]
    print(f"{f'{PAGES} pages, written on node 0':<58}" + "".join(f"{profile:>18}" for profile in profiles))
    for what in columns[0]:
        print(f"{what:<58}" + "".join(f"{column[what]:>18}" for column in columns))


if __name__ == "__main__":
    main()
