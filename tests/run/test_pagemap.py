"""Sets of pages as runs, and which pages of a process have memory."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu_run import pagemap
from numaemu_run.pagemap import Runs, difference, holds, inside, intersection, joined, runs_of, union
from numaemu_run.procfs import PAGE_SIZE, areas_of, maps_of

PAGES = st.sets(st.integers(0, 40))


def runs(pages: set[int]) -> Runs:
    return runs_of(np.isin(np.arange(64), list(pages)))


def pages(found: Runs) -> set[int]:
    return {page for first, end in found.tolist() for page in range(first, end)}


@given(PAGES, PAGES)
def test_runs_are_sets(one: set[int], other: set[int]) -> None:
    """Union, intersection, difference and membership are those of the pages, and what comes out is ascending."""
    a, b = runs(one), runs(other)
    for found, expected in (
        (union(a, b), one | other),
        (intersection(a, b), one & other),
        (difference(a, b), one - other),
    ):
        assert pages(found) == expected
        assert np.array_equal(found, runs(expected))
    assert inside(a, union(a, b))
    assert inside(a, b) == (one <= other)
    assert {page for page in range(64) if holds(a, [page])} == one


def test_runs_that_touch_are_one() -> None:
    """Neighbours are joined, others stay."""
    assert joined(np.array([[1, 3], [3, 4], [6, 7]])).tolist() == [[1, 4], [6, 7]]


@pytest.mark.parametrize("way", ["scan", "entries"])
def test_pages_with_memory_are_found(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Written pages of private and shared memory are found both ways, untouched ones and those of files are not."""
    if way == "entries":
        monkeypatch.setattr(pagemap, "_PAGEMAP_SCAN", 0x6601)  # an ioctl that no kernel knows
    elif not pagemap.has_scan(os.getpid()):
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    private, shared = mmap.mmap(-1, 16 * PAGE_SIZE, flags=flags), mmap.mmap(-1, 16 * PAGE_SIZE)
    with (
        Path(os.__file__).open("rb") as source,
        mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as file,
    ):
        touched = file[0]
        for memory in (private, shared):
            memory[3 * PAGE_SIZE] = memory[4 * PAGE_SIZE] = memory[9 * PAGE_SIZE] = touched | 1
        read = private[12 * PAGE_SIZE]
        found, zeros = pagemap.present_runs(os.getpid(), areas_of(maps_of(os.getpid())))
        first = address_of(private) // PAGE_SIZE
        if way == "scan":
            assert [page for page in range(16) if holds(zeros, [first + page])] == [12]
        else:  # it cannot be told from others
            assert (len(zeros), holds(found, [first + 12])) == (0, True)
            private.madvise(mmap.MADV_DONTNEED, 12 * PAGE_SIZE, PAGE_SIZE)
            found, zeros = pagemap.present_runs(os.getpid(), areas_of(maps_of(os.getpid())))
        assert read == 0
        for memory in (private, shared):
            first = address_of(memory) // PAGE_SIZE
            assert [page for page in range(16) if holds(found, [first + page])] == [3, 4, 9]
            assert pagemap.are_present(os.getpid(), [first + 3, first + 4])
            assert not pagemap.are_present(os.getpid(), [first + 4, first + 5])
        view = np.frombuffer(file, np.uint8)
        assert not holds(found, [view.ctypes.data // PAGE_SIZE])
        del view
    private.close()
    shared.close()


@pytest.mark.parametrize("count", [100, 700, 4000, 4096, 9000])
def test_each_page_is_found_once(count: int) -> None:
    """However many runs there are, they come ascending and apart: Linux tells of the last ones twice if it is let."""
    if not pagemap.has_scan(os.getpid()):
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    with mmap.mmap(-1, 4 * count * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(0, 4 * count, 4):
            memory[page * PAGE_SIZE] = 1
            assert memory[(page + 2) * PAGE_SIZE] == 0
        found, zeros = pagemap.present_runs(os.getpid(), areas_of(maps_of(os.getpid())))
        first = address_of(memory) // PAGE_SIZE
        for runs, begin in ((found, first), (zeros, first + 2)):
            assert (np.diff(runs.ravel()) > 0).all()
            starts = [start for start in runs[:, 0].tolist() if first < start < first + 4 * count - 2]
            assert starts == [*range(begin, first + 4 * count - 2, 4)][begin == first :]


def test_long_mappings_without_pages_are_not_read() -> None:
    """Where pages are found one by one, what is reserved and untouched costs nothing; one page makes it count."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE; shared: it is not merged with others
    with mmap.mmap(-1, 1 << 36, flags=flags) as memory:

        def left() -> bool:
            areas = areas_of(maps_of(os.getpid()))
            start = next(area.start for area in areas if area.start <= address < area.end)
            return start in {area.start for area in pagemap.touched(os.getpid(), areas)}

        address = address_of(memory)
        assert not left()
        memory[1 << 35] = 1
        assert left()


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_a_process_that_is_gone_is_no_process() -> None:
    """Whoever has ended is told as such."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        pagemap.present_runs(pid, [])
