"""The lines of a program that move pages.

`move_pages` and `migrate_pages` as raw system calls: arrays may end early, point nowhere, or be shorter than the count.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from numaemu.replay import words
from numaemu.replay.words import PAGE, address, flags, integer
from numaemu_core.wire import STATUS_UNWRITTEN

if TYPE_CHECKING:
    from numaemu.replay.program import Program
    from numaemu.replay.records import Answer

#: Addresses that the interpreter's buffer holds; those that no program gave are 0.
_BUFFER_PAGES: Final = 4096
#: A node that is none.
_GARBAGE: Final = 0x5A5A5A5A


def _page_list(word: str) -> list[int]:
    """Pages of move_pages: `a:b` ranges and addresses, by comma."""
    found: list[int] = []
    for part in word.split(","):
        span = re.fullmatch(r"(\d+):(\d+)", part)
        if span:
            found.extend(words.ARENA + page * PAGE for page in range(int(span[1]), int(span[2]) + 1))
        else:
            found.append(address(part))
    return found


def _target(program: Program, pid: int, who: str) -> int:
    """The process that is meant: self, Pk, or a number: that of init, who is root's as the runner is, or nobody's."""
    if who == "self":
        return pid
    if who == "pid:1":
        return program.runner
    if who.startswith("pid:"):
        return int(who[4:])
    return program.known_pids[who]


def move_pages(program: Program, pid: int, who: str, pages: str, nodes: str, how: str, *options: str) -> Answer:
    """`move_pages who pages nodes|null flags [count=N] [status=null|bad] [pages=null|bad] [nodes=bad]`."""
    chosen = dict(option.split("=", 1) for option in options)
    addresses: list[int] | None = _page_list(pages)
    assert addresses is not None
    count = integer(chosen["count"]) % (1 << 64) if "count" in chosen else len(addresses)
    targets: list[int] | None = None
    if nodes != "null":
        given = [int(node) for node in nodes.split(",")]
        targets = [given[i % len(given)] for i in range(len(addresses))]
    if chosen.get("nodes") == "bad":
        targets = []
    asked = len(addresses)
    if count > asked:  # the kernel reads on, in what the interpreter has there
        addresses += [0] * (min(count, _BUFFER_PAGES) - asked)
        if targets:
            targets.append(_GARBAGE)
    if "pages" in chosen:
        addresses = []
    writable = chosen.get("status") is None
    result, status = program.host.call(
        pid, "move_pages", _target(program, pid, who), count, addresses, targets, flags(how), writable
    )
    answer: Answer = {"r": result} if result >= 0 else {"r": -1, "e": -result}
    if writable:
        answer["st"] = (_written(status) + [None] * asked)[:asked]
    return answer


def _written(status: bytes) -> list[int | None]:
    """The statuses of move_pages, None for those that the kernel did not write."""
    return [None if value == STATUS_UNWRITTEN else value for value in memoryview(status).cast("i")]


def migrate_pages(program: Program, pid: int, who: str, maxnode: str, old: str, new: str) -> Answer:
    """`migrate_pages who maxnode oldmask newmask`."""
    bits = integer(maxnode)
    result = program.host.call(
        pid,
        "migrate_pages",
        _target(program, pid, who),
        bits,
        words.mask_for(old, bits),
        words.mask_for(new, bits),
    )
    return {"r": result}
