"""Pages whose entry is gone while a window may still set its dirty byte: dirty for recovery until the byte was read.

Several tasks may take entries of one page away at the same time; PG_HARVEST stays until the last of them has looked.
"""

import numpy as np

from numaemu_core.columns import I8, Bool
from numaemu_core.kernel import Kernel
from numaemu_core.page_flags import PG_DIRTY, PG_HARVEST


def begin_harvest(k: Kernel, pfns: I8) -> None:
    """Entries of these frames, which may stand several times, are about to go."""
    k.c.pg_flags[pfns] |= PG_HARVEST
    np.add.at(k.harvests, pfns, 1)


def end_harvest(k: Kernel, pfns: I8, dirty: Bool) -> None:
    """The windows have closed: which of the entries had been written through. Page by page as in begin_harvest."""
    k.c.pg_flags[pfns[dirty]] |= PG_DIRTY
    np.subtract.at(k.harvests, pfns, 1)
    k.c.pg_flags[pfns[k.harvests[pfns] == 0]] &= ~np.uint16(PG_HARVEST)
