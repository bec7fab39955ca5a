"""The search for free places in a column of states: from a cursor on, around, in growing steps."""

import numpy as np
import numpy.typing as npt

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES


def next_fit(states: npt.NDArray[np.unsignedinteger], below: int, count: int, cursor: int) -> tuple[I8, int]:
    """The first `count` indexes whose state is less than `below`, going round from `cursor`; and the next cursor.

    The caller knows that there are that many.
    """
    total = len(states)
    found: list[I8] = []
    missing = count
    chunk = max(64, 2 * count)
    while missing:
        end = min(cursor + chunk, total)
        hits = np.flatnonzero(states[cursor:end] < below)[:missing]
        if len(hits):
            found.append(hits + cursor)
            missing -= len(hits)
            if not missing:
                end = int(found[-1][-1]) + 1
        cursor = end % total
        chunk = min(chunk * 4, limits.SCAN_CHUNK_MAX)
    return (found[0] if len(found) == 1 else np.concatenate([NO_INDEXES, *found])), cursor
