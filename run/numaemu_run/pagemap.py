"""Which pages of a process have memory: its present and swapped pages, without the page of zeros and without caches.

Two ways: the ioctl PAGEMAP_SCAN (Linux 6.7) finds them in one call for the whole address space; before that,
/proc/PID/pagemap is read mapping by mapping (and cannot tell the page of zeros).
Source: Documentation/admin-guide/mm/pagemap.rst (6.12).
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import Final

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


def present_runs(pid: int, areas: Sequence[Area]) -> Runs:
    """Pages that have memory of their own: anonymous ones, and those of the shared objects that areas name.

    Pages of other files are the host's page cache.

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
            return _read(fd, touched(pid, areas))
    finally:
        os.close(fd)
    private = regions["categories"] & np.uint64(_IS_FILE) == 0
    shared = [[area.start // PAGE_SIZE, area.end // PAGE_SIZE] for area in areas if area.name]
    if not shared:
        return _spans(regions[private])
    return union(_spans(regions[private]), intersection(_spans(regions[~private]), np.array(shared, np.int64)))


def is_present(pid: int, page_number: int) -> bool:
    """Has one page memory, of whatever kind? ProcessLookupError, PermissionError as `present_runs`."""
    fd = _opened(pid)
    try:
        entry = os.pread(fd, _ENTRY_BYTES, page_number * _ENTRY_BYTES)
    finally:
        os.close(fd)
    return int.from_bytes(entry, "little") & int(_PRESENT_BITS) != 0


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
    """Regions with memory, ascending, each with whether it is of a file; without the page of zeros."""
    parts: list[Regions] = []
    start = 0
    while start < _SCAN_END:
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
                _IS_ZERO,  # inverted
                _IS_ZERO,  # all of these
                _IS_PRESENT | _IS_SWAPPED,  # one of these
                _IS_FILE,  # told
            )
        )
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, argument)
        parts.append(regions[:count])
        start = _ARGUMENT.unpack(argument)[4]
    return np.concatenate(parts)


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


def holds(runs: Runs, page_number: int) -> bool:
    """Is the page in one of the runs?"""
    at = int(np.searchsorted(runs[:, 0], page_number, "right")) - 1
    return at >= 0 and page_number < int(runs[at, 1])


def inside(runs: Runs, outer: Runs) -> bool:
    """Does every run lie within one of `outer`?"""
    at = np.searchsorted(outer[:, 0], runs[:, 0], "right") - 1
    return bool(((at >= 0) & (runs[:, 1] <= outer[at, 1])).all()) if len(outer) else not len(runs)
