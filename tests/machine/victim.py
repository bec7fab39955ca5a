"""A process that gets to the steps at which somebody dies: `victim.py MACHINE`.

It says the pid of its task; then a line with the name of an action on stdin makes it act, verify every byte, and say
right. Actions that end in `here` first say where their area is, and wait for another line.
"""

import sys
from collections.abc import Callable, Mapping

import numpy as np

import numaemu as nm

PAGE = 4096
MOVE_STRICT = nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT
#: Pages of an area.
PAGES = 24
#: More than the memory of the machine, less than that and its swap area.
PAGES_OF_PRESSURE = 1400


def tagged(seed: int, pages: int = PAGES) -> bytes:
    """Bytes that nobody else writes."""
    return np.random.default_rng(seed).integers(1, 255, pages * PAGE, np.uint8).tobytes()


def say(word: str) -> None:
    """One line for the test."""
    print(word, flush=True)  # noqa: T201 - the test reads it


def touch(task: nm.Task, seed: int) -> None:
    """Many pages at once, and single ones."""
    data = tagged(seed)
    with task.mmap(len(data)) as area, task.mmap(len(data)) as single:
        area.write(0, data)
        for page in range(0, len(data), PAGE):
            single.write(page, data[page : page + PAGE])
        assert area.read(0, len(data)) == data
        assert single.read(0, len(data)) == data


def breed(task: nm.Task, seed: int) -> None:
    """A child, and writes of both to what they share."""
    old, new = tagged(seed), tagged(seed + 1)
    with task.mmap(len(old)) as area:
        area.write(0, old)
        with task.fork() as child:
            area.write(0, new)
            assert child.read(area.start, len(old)) == old
            child.write(area.start, new)
            assert child.read(area.start, len(new)) == new
        with task.fork() as child:
            child.write(area.start, old)
            assert child.read(area.start, len(old)) == old
        assert area.read(0, len(new)) == new


def move(task: nm.Task, seed: int, flags: int = nm.MAP_PRIVATE | nm.MAP_ANONYMOUS) -> None:
    """All pages to the other node and back."""
    data = tagged(seed)
    with task.mmap(len(data), flags=flags) as area:
        area.write(0, data)
        for node in (1, 0):
            task.mbind(area.start, area.length, nm.MPOL_BIND, {node}, MOVE_STRICT)
            assert area.read(0, len(data)) == data


def move_shared(task: nm.Task, seed: int) -> None:
    """The same with pages of an object."""
    move(task, seed, nm.MAP_SHARED | nm.MAP_ANONYMOUS)


def drop(task: nm.Task, seed: int) -> None:
    """Pages go, and with them their bytes."""
    data = tagged(seed)
    half = len(data) // 2
    with task.mmap(len(data)) as area:
        area.write(0, data)
        task.madvise(area.start, half, nm.MADV_DONTNEED)
        assert area.read(0, len(data)) == bytes(half) + data[half:]
        task.munmap(area.start, half)
        assert area.read(half, half) == data[half:]


def hold(task: nm.Task, seed: int) -> None:
    """Pinned pages stay where they are."""
    data = tagged(seed)
    with task.mmap(len(data)) as area:
        area.write(0, data)
        with area.pin() as pages:
            task.mbind(area.start, area.length, nm.MPOL_BIND, {1}, nm.MPOL_MF_MOVE)
            assert pages.tobytes() == data
        assert area.read(0, len(data)) == data


def press(task: nm.Task, seed: int) -> None:
    """More memory than there is."""
    data = tagged(seed, PAGES_OF_PRESSURE)
    with task.mmap(len(data)) as area:
        area.write(0, data)
        assert area.read(0, len(data)) == data


def check(_task: nm.Task, _seed: int) -> None:
    """The machine looks at all of itself."""
    with nm.connect(sys.argv[1]) as machine:
        assert machine.fsck() == []


def read_one(_task: nm.Task, area: nm.Mapping, old: bytes) -> None:
    """A hit that reads."""
    assert area.read(0, 64) == old[:64]


def write_one(_task: nm.Task, area: nm.Mapping, old: bytes) -> None:
    """A hit that writes the first page."""
    area.write(0, old[PAGE : 2 * PAGE])
    assert area.read(0, len(old)) == old[PAGE : 2 * PAGE] + old[PAGE:]


def write_many(_task: nm.Task, area: nm.Mapping, old: bytes) -> None:
    """A window over many pages."""
    area.write(0, old[::-1])
    assert area.read(0, len(old)) == old[::-1]


def pin(_task: nm.Task, area: nm.Mapping, old: bytes) -> None:
    """What is written through a pin is in the pages, and nowhere else."""
    with area.pin() as pages:
        assert pages.tobytes() == old
        pages[:PAGE] = np.frombuffer(old[PAGE : 2 * PAGE], np.uint8)
        assert area.read(0, len(old)) == old[PAGE : 2 * PAGE] + old[PAGE:]


def ask(task: nm.Task, area: nm.Mapping, old: bytes) -> None:
    """A call is on its way."""
    task.madvise(area.start, PAGE, nm.MADV_DONTNEED)
    assert area.read(0, len(old)) == bytes(PAGE) + old[PAGE:]


def stay() -> None:
    """Keep all as it is until somebody has looked."""
    say("done")
    sys.stdin.readline()


def drop_here(task: nm.Task, area: nm.Mapping, _old: bytes) -> None:
    """The first page is given up; who else writes there is somebody else's business."""
    task.madvise(area.start, PAGE, nm.MADV_DONTNEED)
    stay()


def map_here(task: nm.Task, _area: nm.Mapping, _old: bytes) -> None:
    """A mapping more."""
    task.mmap(PAGE, prot=nm.PROT_READ)
    stay()


def fork_here(task: nm.Task, _area: nm.Mapping, _old: bytes) -> None:
    """A child more."""
    with task.fork():
        stay()


def send_here(task: nm.Task, area: nm.Mapping, old: bytes) -> None:
    """All pages go to node 1, by move_pages."""
    pages = [area.start + at for at in range(0, len(old), PAGE)]
    assert task.move_pages(0, pages, [1] * len(pages)).tolist() == [1] * len(pages)
    assert area.read(0, len(old)) == old
    stay()


ACTIONS: Mapping[str, Callable[[nm.Task, int], None]] = {
    "touch": touch,
    "breed": breed,
    "move": move,
    "move_shared": move_shared,
    "drop": drop,
    "hold": hold,
    "press": press,
    "check": check,
}
HERE: Mapping[str, Callable[[nm.Task, nm.Mapping, bytes], None]] = {
    "read_one_here": read_one,
    "write_one_here": write_one,
    "write_many_here": write_many,
    "pin_here": pin,
    "ask_here": ask,
    "drop_here": drop_here,
    "map_here": map_here,
    "fork_here": fork_here,
    "send_here": send_here,
}


def act_here(task: nm.Task, name: str, seed: int) -> None:
    """Fill an area, say where it is, and act on it once somebody says so."""
    old = tagged(seed)
    with task.mmap(len(old)) as area:
        area.write(0, old)
        say(str(area.start))
        sys.stdin.readline()
        HERE[name](task, area, old)


def main() -> None:
    """One client, until the end of its input."""
    with nm.connect(sys.argv[1]) as machine, machine.attach(capabilities=["CAP_SYS_RESOURCE", "CAP_SYS_NICE"]) as task:
        say(str(task.pid))
        while line := sys.stdin.readline():
            name, seed = line.split()
            if name in HERE:
                act_here(task, name, int(seed))
            else:
                ACTIONS[name](task, int(seed))
            say("right")


if __name__ == "__main__":
    main()
