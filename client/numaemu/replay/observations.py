"""What a program can see of its pages and mappings: where they are, in what state, under which policy."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from numaemu.replay import words
from numaemu.replay.host import Refused
from numaemu.replay.words import PAGE, address

if TYPE_CHECKING:
    from numaemu.replay.program import Program
    from numaemu.replay.records import Answer

#: Pages of the arena that `nm` shows: everything from page 0 up to here.
_ARENA_PAGES: Final = 1 << 20
_STATUS_MARKS: Final = {-errno.ENOENT: "-", -errno.EFAULT: "z", -errno.EBUSY: "b", -errno.EACCES: "a"}
#: The status array of move_pages can be written to.
_WRITABLE: Final = True


def statuses_of(program: Program, pid: int, target: int, addresses: list[int]) -> list[int]:
    """What move_pages without nodes, called by `pid`, says of pages of `target`: a node or -errno each.

    Raises:
        Refused: it was.
    """
    if not addresses:
        return []
    result, status = program.host.call(pid, "move_pages", target, len(addresses), addresses, None, 0, _WRITABLE)
    if result < 0:
        raise Refused(-result)
    return memoryview(status).cast("i").tolist()


def _where(program: Program, pid: int, target: int, start: int, count: int) -> str:
    statuses = statuses_of(program, pid, target, [start + i * PAGE for i in range(count)])
    # One character a page: those behind "9" stand for nodes from 10 on.
    return "".join(chr(ord("0") + status) if status >= 0 else _STATUS_MARKS.get(status, "?") for status in statuses)


def where(program: Program, pid: int, addr: str, count: str) -> Answer:
    """`where addr n`: move_pages without nodes, by the process itself."""
    return {"w": _where(program, pid, pid, address(addr), int(count))}


def _pagemap(program: Program, pid: int, start: int, count: int) -> str:
    marks: str = program.host.call(pid, "pagemap", start, count * PAGE)
    return marks


def pagemap(program: Program, pid: int, addr: str, count: str) -> Answer:
    """`pm addr n`."""
    return {"pm": _pagemap(program, pid, address(addr), int(count))}


def _numa_maps(program: Program, pid: int) -> list[list[Any]]:
    """Each VMA of the arena: first page, pages, rights, policy, counts."""
    spans = {}
    for line in program.host.call(pid, "maps").splitlines():
        span, rights, *_ = line.split()
        start, end = (int(bound, 16) for bound in span.split("-"))
        spans[start] = ((end - start) // PAGE, rights)
    rows: list[list[Any]] = []
    for line in program.host.call(pid, "numa_maps").splitlines():
        start = int(line.split(" ", 1)[0], 16)
        if not words.ARENA <= start < words.ARENA + _ARENA_PAGES * PAGE:
            continue
        text = line.split(" ", 1)[1].replace("prefer (many)", "prefer(many)")
        policy, counts = _policy_and_counts(text)
        rows.append([(start - words.ARENA) // PAGE, *spans[start], policy, counts])
    return rows


def _policy_and_counts(text: str) -> tuple[str, str]:
    """The policy without spaces, and the counts without those that depend on the moment."""
    text = text.replace("weighted interleave", "weightedinterleave")
    policy, _, rest = text.partition(" ")
    rest = rest.replace("\\040(deleted)", "")
    kept = [word for word in rest.split() if not word.startswith(("kernelpagesize_kB=", "active="))]
    return policy, " ".join(kept)


def numa_maps(program: Program, pid: int) -> Answer:
    """`nm`."""
    return {"nm": _numa_maps(program, pid)}


def snap(program: Program, pid: int, count: str) -> Answer:
    """`snap n`: where, pm and nm, asked by the privileged runner."""
    pages = int(count)
    return {
        "w": _where(program, program.runner, pid, words.ARENA, pages),
        "pm": _pagemap(program, pid, words.ARENA, pages),
        "nm": _numa_maps(program, pid),
    }
