"""Watermarks: how many frames of a zone stay free for the kernel, and where kswapd begins and ends.

Mirrors: setup_per_zone_pages_min and init_per_zone_pages_min, mm/page_alloc.c (2.6.15), and their successors in 6.x.
"""

import math
from typing import Final, NamedTuple

from numaemu_core.faults_on_demand import pages_of_full_nodes
from numaemu_core.layout import Layout
from numaemu_core.profile import Profile
from numaemu_core.profiles import profile_named

#: Least min_free_kbytes that a kernel chooses by itself.
MIN_FREE_KBYTES_LEAST: Final = 128
#: A zone keeps at most this part of its frames. Kernels have no such rule: none of them runs in so little memory.
SMALLEST_SHARE: Final = 32
_SCALE: Final = 10000


class Watermarks(NamedTuple):
    """Free frames of one zone at which something happens."""

    #: Ordinary allocations leave so many.
    pages_min: int
    #: An allocation that would leave no more than this goes to the next node first; kswapd is woken.
    pages_low: int
    #: Where kswapd stops.
    pages_high: int


def zone_watermarks(layout: Layout) -> dict[int, Watermarks]:
    """The watermarks of every zone of a machine, by node."""
    profile = profile_named(layout.topology.profile)
    pages = {nid: end - first for nid, (first, end) in layout.node_pfns.items()}
    total = sum(pages.values())
    chosen = layout.topology.min_free_kbytes
    min_free_kbytes = auto_min_free_kbytes(profile, total << layout.page_shift >> 10) if chosen is None else chosen
    shared = min_free_kbytes >> (layout.page_shift - 10)
    marks: dict[int, Watermarks] = {}
    # A node that is to be full after so many pages gives these to the last one, and there is nothing to balance.
    full = pages_of_full_nodes(layout.topology.faults)
    for nid, count in pages.items():
        pages_min = min(shared * count // total, count // (SMALLEST_SHARE if chosen is None else 2))
        marks[nid] = Watermarks(0, 0, 0) if nid in full else _marks(profile, pages_min, count, scaled=chosen != 0)
    return marks


def auto_min_free_kbytes(profile: Profile, lowmem_kbytes: int) -> int:
    """What a kernel keeps free by itself: it grows as the root of what there is (init_per_zone_pages_min)."""
    wanted = math.isqrt(lowmem_kbytes * 16)
    return max(MIN_FREE_KBYTES_LEAST, min(wanted, profile.min_free_kbytes_max))


def _marks(profile: Profile, pages_min: int, zone_pages: int, *, scaled: bool) -> Watermarks:
    if not profile.watermark_scale_factor:
        return Watermarks(pages_min, pages_min + pages_min // 4, pages_min + pages_min // 2)
    step = max(pages_min // 4, zone_pages * profile.watermark_scale_factor // _SCALE if scaled else 0)
    return Watermarks(pages_min, pages_min + step, pages_min + 2 * step)
