"""Bits of pg_flags and values of the other frame columns (include/linux/page-flags.h and mmzone.h of 2.6.15).

PG_locked is not a bit here: the owner column says who holds the page lock. PG_lru and PG_active are the LRU column.
"""

from typing import Final

PG_REFERENCED: Final = 1 << 2
PG_UPTODATE: Final = 1 << 3
PG_DIRTY: Final = 1 << 4
PG_WRITEBACK: Final = 1 << 12
#: Of this machine alone: an entry through which it may have been written is gone, and its dirty byte not yet read.
PG_HARVEST: Final = 1 << 0
#: Of this machine alone: its bytes are in memory of a process of the host, and those of the frame are zeros.
PG_HOSTED: Final = 1 << 1
#: Bit 17 in 2.6.15; the column has 16, and PG_nosave is none of ours.
PG_RECLAIM: Final = 1 << 13
#: In place of the absence of PG_swapbacked (4.12): MADV_FREE was said of the page, and it may go without a slot.
PG_LAZYFREE: Final = 1 << 14
PG_SWAPCACHE: Final = 1 << 15

# free_state: a frame is in exactly one of these.
FREE_CLEAN: Final = 0
FREE_UNCLEAN: Final = 1
ALLOCATED: Final = 2
RESERVED: Final = 3

# lru_state: 0 is off the lists; PG_active is kept while isolated.
LRU_NONE: Final = 0
LRU_INACTIVE: Final = 1
LRU_ACTIVE: Final = 3
LRU_ON_LIST: Final = 1
LRU_PG_ACTIVE: Final = 2
#: Isolated: this bit, and PG_active as it was.
LRU_ISOLATED: Final = 4

#: Bit of the mapping column: an address_space and not an anon_vma (PageAnon is its absence).
PAGE_MAPPING_FILE: Final = 1 << 31
