"""A process that uses memory: `memory_user.py MACHINE NUMBER PAGES TURNS`.

Writes an area of its own, again and again, and reads it back; says written, waits for a line on stdin, reads it once
more, and says how it ended: right, wrong bytes, or killed (for want of memory).
"""

import sys

import numpy as np

import numaemu as nm

PAGE = 4096


def tagged(seed: int, pages: int) -> bytes:
    """Bytes that only this client writes."""
    return np.random.default_rng(seed).integers(0, 255, pages * PAGE, np.uint8).tobytes()


def say(word: str) -> None:
    """One line for the test."""
    print(word, flush=True)  # noqa: T201 - the test reads it


def use_memory(task: nm.Task, number: int, pages: int, turns: int) -> str:
    """How it ended."""
    buf = task.mmap(pages * PAGE)
    for turn in range(turns):
        data = tagged(number * 100 + turn, pages)
        buf.write(0, data)
        if buf.read(0, len(data)) != data:
            return "wrong bytes"
    say("written")
    sys.stdin.readline()
    return "right" if buf.read(0, len(data)) == data else "wrong bytes"


def main() -> None:
    """One client."""
    name, number, pages, turns = sys.argv[1], *map(int, sys.argv[2:])
    with nm.connect(name) as machine, machine.attach(cpu=number % 2) as task:
        try:
            ending = use_memory(task, number, pages, turns)
        except nm.OutOfMemory:
            ending = "killed"
        say(ending)


if __name__ == "__main__":
    main()
