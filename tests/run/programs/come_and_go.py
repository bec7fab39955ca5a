"""Memory that comes and goes, counted in numa_maps."""

import ctypes
import mmap
import os
from pathlib import Path

from calls import Memory, mbind


def count(start: int) -> int:
    """The pages of the mapping at an address, as numa_maps has them."""
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        if line.startswith(f"{start:08x} "):
            return sum(int(word[3:]) for word in line.split() if word[0] == "N" and word[2] == "=")
    return 0


block = Memory(256)
mbind(block.start, block.length, 0)  # else it may be one mapping with its neighbours
block.write()
print("touched", count(block.start))
block.map.madvise(mmap.MADV_DONTNEED, 0, 128 * 4096)
print("discarded", count(block.start))
ctypes.CDLL(None).munmap(ctypes.c_void_p(block.start), ctypes.c_size_t(block.length))
print("unmapped", count(block.start), flush=True)
os._exit(0)  # Python would unmap it once more
