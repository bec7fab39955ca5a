"""Which thread has touched which of the pages that are new: a guess from how often each thread has faulted.

The host counts the faults of each thread, and not where they were. Who has not faulted has touched nothing; of several,
the one whose count comes nearest to the length of a run of pages is taken to have touched it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from numaemu_run.pagemap import Runs

#: Faults beside those of a run that do not speak against a thread: its stack, its part of the heap, pages of files.
_STRAY: Final = 8
#: A page that is asked for and so near to the beginning of a run belongs to what begins there.
_NEAR: Final = 32

Run = tuple[int, int]


def shares(added: Runs, faults: Mapping[int, int], asker: int, asked: int | None = None) -> dict[int, list[Run]]:
    """New pages by thread. `faults`: since the last time, a thread; what nobody has faulted for is the asker's.

    The page `asked`, if one was asked for, is the asker's, with as many beside it as it has faulted for.
    """
    left = {tid: count for tid, count in faults.items() if count > 0}
    found: dict[int, list[Run]] = {}
    runs: list[Run] = [(first, end) for first, end in added.tolist()]
    if asked is not None and left.get(asker):
        at = next((i for i, (first, end) in enumerate(runs) if first <= asked < end), None)
        if at is not None:
            mine, *others = _around(runs.pop(at), asked, left[asker])
            _give(found, left, asker, mine)
            runs += others
    runs.sort(key=_length, reverse=True)
    while runs:
        run = runs.pop(0)
        able = [tid for tid, count in left.items() if count + _STRAY >= _length(run)]
        if able or len(left) < 2:  # noqa: PLR2004 - nobody else can have touched the rest
            tid = min(able or left, key=lambda tid: (abs(left[tid] - _length(run)), tid != asker), default=asker)
        else:  # too long for any one: it was touched by several
            tid = max(left, key=lambda tid: (left[tid], tid == asker))
            cut = run[0] + left[tid]
            runs.insert(0, (cut, run[1]))
            run = (run[0], cut)
        _give(found, left, tid, run)
    return found


def _length(run: Run) -> int:
    return run[1] - run[0]


def _give(found: dict[int, list[Run]], left: dict[int, int], tid: int, run: Run) -> None:
    found.setdefault(tid, []).append(run)
    if tid in left and len(left) > 1:
        left[tid] -= _length(run)
        if left[tid] <= 0:
            del left[tid]


def _around(run: Run, page_number: int, count: int) -> list[Run]:
    """The part of a run that holds a page and has so many, first; then what is left of the run.

    Memory is touched, and asked for, from its beginning on: the part begins with the page, or with the run if that has
    begun just before.
    """
    first, end = run
    start = first if page_number - first <= _NEAR else page_number
    stop = start + max(count, page_number + 1 - start)
    if end - stop <= _STRAY:
        stop = end
    return [(start, stop), *(part for part in ((first, start), (stop, end)) if part[0] < part[1])]


def as_runs(parts: Sequence[Run]) -> Runs:
    """Ascending."""
    return np.array(sorted(parts), np.int64).reshape(-1, 2)
