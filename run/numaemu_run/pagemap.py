"""Which pages of a process have memory: its present and swapped pages, those of the page of zeros, no caches.

Two ways: the ioctl PAGEMAP_SCAN (Linux 6.7) finds them in one call for the whole address space; before that,
/proc/PID/pagemap is read mapping by mapping (and cannot tell the page of zeros).
Source: Documentation/admin-guide/mm/pagemap.rst (6.12).
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from numaemu_run.procfs import PAGE_SIZE, Area, filled_areas_of

#: Pairs of page numbers, first and end, ascending and apart.
Runs = npt.NDArray[np.int64]
#: What the kernel tells of each.
Regions = npt.NDArray[np.void]

_PAGEMAP_SCAN: Final = 0xC0606610
_ARGUMENT: Final = struct.Struct("=12Q")
_IS_FILE: Final = 1 << 2
_IS_PRESENT: Final = 1 << 3
_IS_SWAPPED: Final = 1 << 4
_IS_ZERO: Final = 1 << 5
_REGIONS: Final = 4096
_REGION: Final = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])

_SCAN_END: Final = (1 << 47) - PAGE_SIZE

_PRESENT_BITS: Final = np.uint64(3 << 62)
_EXCLUSIVE_BIT: Final = np.uint64(1 << 56)
_FILE_BIT: Final = np.uint64(1 << 61)
_ENTRY_BYTES: Final = 8
_READ_BYTES: Final = 1 << 20
#: Areas from this length on are long: their entries take a millisecond to read.
_LONG_BYTES: Final = 1 << 28

#: How kernels refuse an ioctl that they do not know.
_NO_SCAN: Final = frozenset({errno.ENOTTY, errno.EINVAL})

NO_RUNS: Final[Runs] = np.empty((0, 2), np.int64)


class Present(NamedTuple):
    """Pages that are there."""

    #: With memory of their own: anonymous ones, and those of the shared objects that areas name.
    held: Runs
    #: Private ones that were only read: the page of zeros. Where the kernel does not tell they are among `held`.
    zeros: Runs


def present_runs(pid: int, areas: Sequence[Area]) -> Present:
    """Pages that are there, without those of other files: these are the host's page cache.

    Raises:
        ProcessLookupError: the process is gone. PermissionError: we may not look into it.
    """
    fd = _opened(pid)
    try:
        try:
            regions = _scan(fd)
        except OSError as error:
            if error.errno not in _NO_SCAN:
                raise
            return Present(_read(fd, touched(pid, areas)), NO_RUNS)
    finally:
        os.close(fd)
    categories = regions["categories"]
    of_files, zeros = (categories & np.uint64(bit) != 0 for bit in (_IS_FILE, _IS_ZERO))
    held = _spans(regions[~of_files & ~zeros])
    shared = [[area.start // PAGE_SIZE, area.end // PAGE_SIZE] for area in areas if area.name]
    if shared:
        held = union(held, intersection(_spans(regions[of_files]), np.array(shared, np.int64)))
    return Present(held, _spans(regions[zeros]))


def are_present(pid: int, page_numbers: Sequence[int]) -> bool:
    """Have a few pages memory, of whatever kind? ProcessLookupError, PermissionError as `present_runs`."""
    fd = _opened(pid)
    try:
        entries = [os.pread(fd, _ENTRY_BYTES, number * _ENTRY_BYTES) for number in page_numbers]
    finally:
        os.close(fd)
    return all(int.from_bytes(entry, "little") & int(_PRESENT_BITS) for entry in entries)


def exclusive_runs(pid: int, runs: Runs) -> Runs:
    """Those of the given pages that nobody else maps. ProcessLookupError, PermissionError as `present_runs`."""
    fd = _opened(pid)
    parts: list[Runs] = []
    try:
        for first, end in runs.tolist():
            at = first
            while at < end:
                body = os.pread(fd, min((end - at) * _ENTRY_BYTES, _READ_BYTES), at * _ENTRY_BYTES)
                if not body:
                    break
                entries = np.frombuffer(body, "<u8")
                parts.append(runs_of(entries & _EXCLUSIVE_BIT != 0) + at)
                at += len(entries)
    finally:
        os.close(fd)
    return joined(np.concatenate([NO_RUNS, *parts]))


def has_scan(pid: int) -> bool:
    """Does the kernel find pages in one call?

    Raises:
        OSError: we may not look into the process.
    """
    fd = _opened(pid)
    try:
        _scan(fd)
    except OSError as error:
        if error.errno not in _NO_SCAN:
            raise
        return False
    finally:
        os.close(fd)
    return True


def _opened(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None


def _scan(fd: int) -> Regions:
    """Regions with memory, ascending, each with whether it is of a file, or of the page of zeros."""
    parts: list[Regions] = []
    start = 0
    while True:
        regions = np.empty(_REGIONS, _REGION)
        argument = bytearray(
            _ARGUMENT.pack(
                _ARGUMENT.size,
                0,  # flags
                start,
                _SCAN_END,
                0,  # where it ended: told
                regions.ctypes.data,
                _REGIONS,
                0,  # pages: no limit
                0,  # inverted
                0,  # all of these
                _IS_PRESENT | _IS_SWAPPED,  # one of these
                _IS_FILE | _IS_ZERO,  # told
            )
        )
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, argument)
        parts.append(regions[:count])
        if count < _REGIONS:
            return np.concatenate(parts)
        # Where it says that it has ended, unless it was done: then it says where it was some regions before.
        start = max(_ARGUMENT.unpack(argument)[4], int(regions["end"][-1]))


def _spans(regions: Regions) -> Runs:
    return joined(np.stack([regions["start"], regions["end"]], 1).astype(np.int64) // PAGE_SIZE)


def touched(pid: int, areas: Sequence[Area]) -> Sequence[Area]:
    """The areas without the long ones that have no page at all: to read that none is there would take long."""
    if all(area.end - area.start < _LONG_BYTES for area in areas):
        return areas
    filled = filled_areas_of(pid)
    return [area for area in areas if area.end - area.start < _LONG_BYTES or area.start in filled]


def _read(fd: int, areas: Sequence[Area]) -> Runs:
    """The same from the entries themselves."""
    parts: list[Runs] = []
    for area in areas:
        first, end = area.start // PAGE_SIZE, area.end // PAGE_SIZE
        while first < end:
            body = os.pread(fd, min((end - first) * _ENTRY_BYTES, _READ_BYTES), first * _ENTRY_BYTES)
            if not body:
                break
            entries = np.frombuffer(body, "<u8")
            held = entries & _PRESENT_BITS != 0
            if not area.name:
                held &= entries & _FILE_BIT == 0
            parts.append(runs_of(held) + first)
            first += len(entries)
    return joined(np.concatenate([NO_RUNS, *parts]))


# -- sets of pages as runs ---------------------------------------------------------------------------------------------


def runs_of(held: npt.NDArray[np.bool_]) -> Runs:
    """Where an array is true, as runs of positions."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], held, [False])).astype(np.int8)))
    return edges.reshape(-1, 2).astype(np.int64)


def joined(runs: Runs) -> Runs:
    """Ascending runs, with those that touch made one."""
    if len(runs) < 2:  # noqa: PLR2004 - one run touches no other
        return runs
    apart = runs[1:, 0] > runs[:-1, 1]
    starts = runs[np.concatenate(([True], apart)), 0]
    ends = runs[np.concatenate((apart, [True])), 1]
    return np.stack([starts, ends], 1)


def _combined(one: Runs, other: Runs, depth: int, weight: int) -> Runs:
    """Where `one` counts 1 and `other` `weight`, and the sum is at least `depth`; none of the two is empty."""
    places = np.concatenate([one.ravel(), other.ravel()])
    steps = np.ones(len(places), np.int64)
    steps[1 : one.size : 2] = -1
    steps[one.size :: 2] = weight
    steps[one.size + 1 :: 2] = -weight
    order = places.argsort(kind="stable")
    places, sums = places[order], steps[order].cumsum()
    within = sums >= depth
    last = np.append(places[1:] != places[:-1], np.True_)  # of several at one place the last one counts
    places, within = places[last], within[last]
    changes = within.copy()
    changes[1:] ^= within[:-1]
    return places[changes].reshape(-1, 2)


def union(one: Runs, other: Runs) -> Runs:
    """Pages of either."""
    if not len(one) or not len(other):
        return other if len(other) else one
    return _combined(one, other, 1, 1)


def intersection(one: Runs, other: Runs) -> Runs:
    """Pages of both."""
    if not len(one) or not len(other):
        return NO_RUNS
    return _combined(one, other, 2, 1)


def difference(one: Runs, other: Runs) -> Runs:
    """Pages of `one` that are not in `other`."""
    if not len(one) or not len(other):
        return one
    return _combined(one, other, 1, -1)


def holds(runs: Runs, page_numbers: Sequence[int]) -> bool:
    """Is each page in one of the runs?"""
    pages = np.array(page_numbers, np.int64)
    return inside(np.stack([pages, pages + 1], 1), runs)


def inside(runs: Runs, outer: Runs) -> bool:
    """Does every run lie within one of `outer`?"""
    at = np.searchsorted(outer[:, 0], runs[:, 0], "right") - 1
    return bool(((at >= 0) & (runs[:, 1] <= outer[at, 1])).all()) if len(outer) else not len(runs)
