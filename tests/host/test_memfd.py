"""Memfds and their mappings."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from numaemu_host import memfd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.conftest import Child

PAGE = mmap.PAGESIZE


@pytest.fixture
def make() -> Iterator[Callable[..., int]]:
    """Creates memfds that are closed with the test."""
    with contextlib.ExitStack() as stack:

        def create(size: int = PAGE, *, preallocate: bool = False) -> int:
            fd = memfd.create("test", size, preallocate=preallocate)
            stack.callback(os.close, fd)
            return fd

        yield create


def mapped_addresses() -> list[int]:
    """Where the mappings of this process begin."""
    return [int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines()]


def test_size_is_sealed(make: Callable[..., int]) -> None:
    """A memfd can neither shrink nor grow, and is not inherited by a program that is executed."""
    fd = make(2 * PAGE)
    assert os.fstat(fd).st_size == 2 * PAGE
    assert not os.get_inheritable(fd)
    for size in (PAGE, 3 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_preallocation_takes_memory_now(make: Callable[..., int]) -> None:
    """A preallocated memfd has its blocks at once, a sparse one has none."""
    assert os.fstat(make(8 * PAGE, preallocate=True)).st_blocks * 512 == 8 * PAGE
    assert os.fstat(make(8 * PAGE)).st_blocks == 0


def test_populate_takes_memory_at_mapping(make: Callable[..., int]) -> None:
    """A mapping that is populated has its pages before anybody touches them."""
    fd = make(8 * PAGE)
    segment = memfd.Segment(fd, 8 * PAGE, populate=True)
    assert os.fstat(fd).st_blocks * 512 == 8 * PAGE
    segment.close()


@pytest.mark.parametrize("size", [0, -1])
def test_create_refuses_empty(size: int) -> None:
    """A memfd without bytes is refused."""
    with pytest.raises(ValueError, match="at least one byte"):
        memfd.create("empty", size, preallocate=False)


@pytest.mark.usefixtures("no_descriptor_leaks")
def test_preallocation_past_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """More memory than the host has is refused before any is taken, and leaves no descriptor behind."""
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("the host would begin to kill"))
    with pytest.raises(OSError, match=rf"Errno {errno.ENOMEM}\b"):
        memfd.create("huge", 1 << 60, preallocate=True)


def test_segment_is_shared(make: Callable[..., int]) -> None:
    """Two segments of one memfd show the same bytes, even after its descriptor is closed elsewhere."""
    fd = make()
    first, second = memfd.Segment(fd, PAGE), memfd.Segment(fd, PAGE)
    assert (first.fd, first.size, first.view.format, first.view.readonly) == (fd, PAGE, "B", False)
    assert first.address != second.address
    first.view[10:15] = b"hello"
    assert bytes(second.view[10:15]) == b"hello"
    first.close()
    second.close()
    assert os.fstat(fd).st_size == PAGE


def test_segment_of_odd_size(make: Callable[..., int]) -> None:
    """A segment's size need not be a multiple of the page size."""
    segment = memfd.Segment(make(PAGE + 100), PAGE + 100)
    assert len(segment.view) == PAGE + 100
    segment.close()


def test_close_releases_and_unmaps(make: Callable[..., int]) -> None:
    """Closing makes the view unusable, unmaps the memory, and may be repeated."""
    segment = memfd.Segment(make(), PAGE)
    assert segment.address in mapped_addresses()
    segment.close()
    assert segment.address not in mapped_addresses()
    with pytest.raises(ValueError, match="released"):
        segment.view[0]
    segment.close()


def test_close_with_an_exported_view(make: Callable[..., int]) -> None:
    """A view that something else still exports does not keep the memory mapped."""
    segment = memfd.Segment(make(), PAGE)
    exporter = memoryview(segment.view)
    pinned = (exporter, segment.view.obj)
    segment.close()
    assert segment.address not in mapped_addresses()
    del pinned


def test_mapping_past_the_end_is_refused(make: Callable[..., int]) -> None:
    """No mapping reaches past the end of its memfd, where touching it would be a bus error."""
    fd = make()
    with pytest.raises(ValueError, match="too few"):
        memfd.Segment(fd, PAGE + 1)
    with pytest.raises(ValueError, match="too few"):
        memfd.FlatMapping([(fd, PAGE), (fd, 2 * PAGE)])
    reservation = memfd.Reservation(4 * PAGE)
    with pytest.raises(ValueError, match="too few"):
        reservation.map_at(0, fd, PAGE, PAGE, writable=True)
    reservation.close()


def test_flat_mapping_is_contiguous_and_shared(make: Callable[..., int], spawn: Callable[..., Child]) -> None:
    """Three memfds of different sizes lie back to back under one view, which another process sees and writes."""
    sizes = (PAGE, 3 * PAGE, 2 * PAGE)
    fds = [make(size) for size in sizes]
    flat = memfd.FlatMapping(list(zip(fds, sizes, strict=True)))
    assert flat.size == len(flat.view) == 6 * PAGE
    flat.view[PAGE - 2 : PAGE + 2] = b"abcd"  # across the seam of the first two
    flat.view[4 * PAGE - 1 : 4 * PAGE + 1] = b"yz"  # and of the last two
    assert [os.pread(fds[0], 2, PAGE - 2), os.pread(fds[1], 2, 0)] == [b"ab", b"cd"]
    assert [os.pread(fds[1], 1, 3 * PAGE - 1), os.pread(fds[2], 1, 0)] == [b"y", b"z"]
    child = spawn(
        """
        from numaemu_host import memfd
        numbers = [int(word) for word in sys.argv[1:]]
        flat = memfd.FlatMapping(list(zip(numbers[:3], numbers[3:])), populate=numbers[1:3])
        page = numbers[3]
        say(bytes(flat.view[page - 2:page + 2]).decode())
        flat.view[-3:] = b"end"
        flat.close()
        say("closed")
        """,
        *fds,
        *sizes,
        pass_fds=fds,
    )
    assert (child.hear(), child.hear()) == ("abcd", "closed")
    assert bytes(flat.view[-3:]) == b"end"
    flat.close()
    flat.close()


@pytest.mark.parametrize("sizes", [(), (0,), (PAGE, PAGE // 2), (-PAGE,)])
def test_flat_mapping_refuses_sizes(make: Callable[..., int], sizes: tuple[int, ...]) -> None:
    """A flat mapping needs parts of whole host pages."""
    with pytest.raises(ValueError, match=r"must be a multiple|at least one part"):
        memfd.FlatMapping([(make(), size) for size in sizes])


def test_flat_mapping_leaves_nothing_after_an_error(make: Callable[..., int]) -> None:
    """A flat mapping that the host refuses half-way unmaps its first half."""
    good = make()
    read_only = os.open(f"/proc/self/fd/{good}", os.O_RDONLY)
    before = mapped_addresses()
    with pytest.raises(PermissionError):
        memfd.FlatMapping([(good, PAGE), (read_only, PAGE)])
    assert len(mapped_addresses()) <= len(before)
    os.close(read_only)


def test_reservation_maps_replaces_and_resets(make: Callable[..., int]) -> None:
    """Pieces are mapped into a reservation, replaced, and withdrawn, after which stale views read zeros."""
    one, two = make(2 * PAGE), make()
    os.pwrite(one, b"one", PAGE)
    os.pwrite(two, b"two", 0)
    reservation = memfd.Reservation(4 * PAGE)
    reservation.map_at(PAGE, one, PAGE, PAGE, writable=True)
    view = reservation.view(writable=True)
    assert bytes(view[PAGE : PAGE + 3]) == b"one"
    view[PAGE : PAGE + 3] = b"ONE"
    assert os.pread(one, 3, PAGE) == b"ONE"
    reservation.map_at(PAGE, two, 0, PAGE, writable=False)
    stale = view[PAGE : PAGE + 3]
    assert bytes(stale) == b"two"
    reservation.reset()
    assert bytes(stale) == bytes(3)
    assert bytes(view) == bytes(4 * PAGE)
    assert os.pread(two, 3, 0) == b"two"
    reservation.close()
    assert reservation.address not in mapped_addresses()


def test_reservation_views(make: Callable[..., int]) -> None:
    """A reservation hands out one writable and one read-only view, and none once it is closed."""
    reservation = memfd.Reservation(2 * PAGE)
    reservation.map_at(0, make(), 0, PAGE, writable=True)
    view = reservation.view(writable=False)
    assert view.readonly
    assert not reservation.view(writable=True).readonly
    assert reservation.view(writable=False) is view
    with pytest.raises(TypeError):
        view[0] = 1
    reservation.close()
    reservation.close()
    with pytest.raises(ValueError, match="released"):
        view[0]
    for use in (lambda: reservation.view(writable=True), reservation.reset):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.parametrize(
    ("offset", "fd_offset", "length"),
    [(1, 0, PAGE), (0, 1, PAGE), (0, 0, 1), (0, 0, 0), (-PAGE, 0, PAGE), (4 * PAGE, 0, PAGE), (3 * PAGE, 0, 2 * PAGE)],
)
def test_reservation_refuses_what_does_not_fit(
    make: Callable[..., int], offset: int, fd_offset: int, length: int
) -> None:
    """A piece must consist of whole host pages and lie inside the reservation."""
    reservation = memfd.Reservation(4 * PAGE)
    with pytest.raises(ValueError, match=r"must be a multiple|do not fit"):
        reservation.map_at(offset, make(8 * PAGE), fd_offset, length, writable=True)
    reservation.close()


@pytest.mark.parametrize("size", [0, -PAGE, PAGE + 1])
def test_reservation_refuses_sizes(size: int) -> None:
    """A reservation consists of whole host pages."""
    with pytest.raises(ValueError, match=r"must be a multiple"):
        memfd.Reservation(size)


def test_forked_child_inherits_no_mapping(spawn: Callable[..., Child]) -> None:
    """A forked child has none of the mappings, and closing them in it leaves its own memory alone."""
    child = spawn(
        """
        import mmap
        from numaemu_host import memfd
        page = mmap.PAGESIZE
        fd = memfd.create("x", page, preallocate=True)
        mappings = [memfd.Segment(fd, page), memfd.FlatMapping([(fd, page)]), memfd.Reservation(4 * page)]
        mappings[2].map_at(page, fd, 0, page, writable=True)
        addresses = {mapping.address for mapping in mappings} | {mappings[2].address + page}
        def mapped():
            return {int(line.split("-")[0], 16) for line in open("/proc/self/maps")} & addresses
        say(mapped() == addresses)
        pid = os.fork()
        if not pid:
            gone = not mapped()
            refused = 0
            for use in (mappings[2].reset, lambda: mappings[2].map_at(0, fd, 0, page, writable=True)):
                try:
                    use()
                except ValueError:
                    refused += 1
            from numaemu_host import _mman
            fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _mman.MAP_FIXED
            own = {_mman.map_memory(mapping.address, page, prot, fixed)
                   for mapping, prot in zip(mappings, (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE))}
            mappings[0].close()
            mappings[1].close()
            del mappings[:2]
            os._exit(0 if gone and refused == 2 and mapped() == own else 1)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        mappings[0].view[0] = 1
        say("parent keeps its own")
        """
    )
    assert [child.hear() for _ in range(3)] == ["True", "0", "parent keeps its own"]
