"""A client that has nothing to do with what dies: `bystander.py MACHINE NUMBER`.

After a line on stdin it maps an area, writes, moves, forks and verifies until the next line; then it verifies all,
gives its memory back, and says right.
"""

import os
import select
import sys

import numpy as np

import numaemu as nm

PAGE = 4096
PAGES = 24
STDIN = 0


def tagged(seed: int) -> bytes:
    """A page that only this client has written at this time."""
    return np.random.default_rng(seed).integers(1, 255, PAGE, np.uint8).tobytes()


def say(word: str) -> None:
    """One line for the test."""
    print(word, flush=True)  # noqa: T201 - the test reads it


def use_memory(task: nm.Task, number: int) -> None:
    """Until somebody says something."""
    seeds = [number * 1_000_000 + page for page in range(PAGES)]
    with task.mmap(PAGES * PAGE) as area:
        area.write(0, b"".join(map(tagged, seeds)))
        turn = 0
        while not select.select([STDIN], [], [], 0.004)[0]:
            page = turn * 7 % PAGES
            seeds[page] += PAGES
            area.write(page * PAGE, tagged(seeds[page]))
            look = turn * 11 % PAGES
            assert area.read(look * PAGE, PAGE) == tagged(seeds[look])
            if turn % 8 == 3:
                task.mbind(area.start, area.length, nm.MPOL_BIND, {turn // 8 % 2}, nm.MPOL_MF_MOVE)
            if turn % 16 == 5:
                with task.fork() as child:
                    assert child.read(area.start + look * PAGE, PAGE) == tagged(seeds[look])
            turn += 1
        assert area.read(0, PAGES * PAGE) == b"".join(map(tagged, seeds))


def main() -> None:
    """One client, until the end of its input."""
    name, number = sys.argv[1], int(sys.argv[2])
    with nm.connect(name) as machine, machine.attach(cpu=number % 2) as task:
        say("here")
        while os.read(STDIN, 1):
            use_memory(task, number)
            os.read(STDIN, 1)
            say("right")


if __name__ == "__main__":
    main()
