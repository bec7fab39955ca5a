"""The hit path, one page at a time."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.client.conftest import MM, PAGE, READ, START

from numaemu.window import byte_view
from numaemu_core.errors import SegmentationFault

if TYPE_CHECKING:
    from types import FrameType

    from tests.client.conftest import FakeKernel

    from numaemu.task import Task

VPN = START >> 12


def test_hit_sends_nothing(kernel: FakeKernel, task: Task) -> None:
    """A page that is there is read and written without a call, and the counter moves by two each time."""
    kernel.map(VPN, 9)
    task.read(START, 1)
    sent, before = len(kernel.calls), kernel.counters
    task.write(START + 5, b"hello")
    assert task.read(START + 4, 7) == b"\0hello\0"
    assert bytes(kernel.frame(9)[5:10]) == b"hello"
    assert len(kernel.calls) == sent
    assert kernel.counters == [counter + 4 for counter in before]


def test_read_sets_accessed_only(kernel: FakeKernel, task: Task) -> None:
    """A read marks the page accessed, a write accessed and dirty."""
    kernel.map(VPN, 9)
    at = kernel.flat(VPN)
    task.read(START, 8)
    assert (kernel.views.accessed[at], kernel.views.dirty[at]) == (1, 0)
    kernel.views.accessed[at] = 0
    task.write(START, b"x")
    assert (kernel.views.accessed[at], kernel.views.dirty[at]) == (1, 1)


def test_bits_before_bytes(kernel: FakeKernel, task: Task) -> None:
    """Accessed and dirty are set, inside a window, before the first byte changes."""
    kernel.map(VPN, 9)
    task.read(START, 1)
    window, at = task.window(), kernel.flat(VPN)
    seen: list[tuple[int, int, int, int]] = []

    def look(frame: FrameType, event: str, _argument: object) -> object:
        if frame.f_code.co_name == "write" and event == "line":
            counter = kernel.views.windows[window.slot]
            seen.append((counter & 1, kernel.views.accessed[at], kernel.views.dirty[at], kernel.frame(9)[0]))
        return look

    kernel.views.accessed[at] = 0
    before = sys.gettrace()
    sys.settrace(look)  # type: ignore[arg-type] # a trace function gives itself or None
    task.write(START, b"\x07")
    sys.settrace(before)
    assert [state for state in seen if state[2] == 0 and state[3] == 7] == []
    assert (1, 1, 1, 0) in seen
    assert (1, 1, 1, 7) in seen


def test_faults_what_is_missing(kernel: FakeKernel, task: Task) -> None:
    """A page that is not there is asked for once, with what shall be done to it."""
    assert task.read(START, 3) == b"\0\0\0"
    task.write(START + PAGE, b"abc")
    assert [write for _, _, write in kernel.asked("fault")] == [False, True]
    assert task.read(START + PAGE, 3) == b"abc"
    assert len(kernel.asked("fault")) == 2


def test_write_to_read_only_page(kernel: FakeKernel, task: Task) -> None:
    """A page that may only be read is not written to, and no counter stays odd over the error."""
    kernel.mapped[VPN] = READ
    kernel.map(VPN, 9, READ)
    assert task.read(START, 1) == b"\0"
    with pytest.raises(SegmentationFault):
        task.write(START, b"x")
    assert kernel.frame(9)[0] == 0


@pytest.mark.parametrize("addr", [-1, 0, 1 << 47, 1 << 63, 1 << 64, 1 << 80])
def test_no_such_address(kernel: FakeKernel, task: Task, addr: int) -> None:
    """An address outside the address space, however large, is a segmentation fault."""
    with pytest.raises(SegmentationFault):
        task.read(addr, 4)
    with pytest.raises(SegmentationFault):
        task.write(addr, b"four")
    assert all(0 <= asked < 1 << 47 for asked, _, _ in kernel.asked("fault"))


def test_nothing_and_less(kernel: FakeKernel, task: Task) -> None:
    """No bytes are no access, wherever; fewer than none are an error."""
    assert task.read(12345, 0) == b""
    task.write(12345, b"")
    task.touch(12345, 0)
    task.read_into(12345, bytearray())
    assert not kernel.asked("fault")
    with pytest.raises(ValueError, match="negative"):
        task.read(START, -1)
    with pytest.raises(ValueError, match="negative"):
        task.touch(START, -1)


@pytest.mark.parametrize("how", ["read", "write", "read_into"])
def test_epoch_forgets_the_walk(kernel: FakeKernel, task: Task, how: str) -> None:
    """Once the mm's epoch moves, entries are looked for anew, whatever is done first."""
    kernel.map(VPN, 9)
    task.write(START, b"old")
    old = kernel.flat(VPN)
    # Another pte table takes the place of the first, whose memory somebody else has now.
    pmd_entry = next(i for i in range(512 * 16) if int(kernel.views.pte[i]) == (old >> 9) << 12 | 1)
    kernel.views.pte[pmd_entry] = 0
    kernel.map(VPN, 10)
    kernel.frame(10)[:3] = b"new"
    assert task.read(START, 3) == b"old"
    kernel.views.epochs[MM] = 1
    target = bytearray(3)
    match how:
        case "read":
            assert task.read(START, 3) == b"new"
        case "read_into":
            task.read_into(START, target)
            assert target == b"new"
        case _:
            task.write(START, b"two")
            assert bytes(kernel.frame(10)[:3]) == b"two"
    assert bytes(kernel.frame(9)[:3]) == b"old"


def test_missing_table_is_not_remembered(kernel: FakeKernel, task: Task) -> None:
    """A table that comes later is found although the epoch stands still."""
    far = START + (1 << 30)
    with pytest.raises(SegmentationFault):
        task.read(far, 1)
    kernel.map(far >> 12, 9)
    assert task.read(far, 1) == b"\0"


def test_access_inside_a_window(kernel: FakeKernel, task: Task) -> None:
    """Inside an open window of its own thread an access works, page by page or not, and leaves the counter alone."""
    task.write(START, bytes(range(200)))
    window = task.window()
    before = kernel.views.windows[window.slot]
    number, window.odd = window.odd, 0
    try:
        assert task.read(START + 3, 4) == bytes(range(3, 7))
        task.write(START, b"in")
        assert task.read(START + PAGE - 4, 8) == bytes(8)
        assert kernel.views.windows[window.slot] == before
    finally:
        window.odd = number
    assert task.read(START, 2) == b"in"
    assert kernel.views.windows[window.slot] == before + 2


def test_signal_handlers_inside(kernel: FakeKernel, task: Task) -> None:
    """A handler that accesses memory, or raises, in the middle of accesses leaves every window shut."""
    task.touch(START, 4 * PAGE, write=True)
    seen = 0

    class Stop(BaseException):
        pass

    def handler(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        task.write(START + 8, b"handler")
        assert task.read(START + 8, 7) == b"handler"
        if seen % 2:
            raise Stop

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        while seen < 50:
            try:
                while True:
                    task.write(START, b"x" * 8)
                    task.read(START, 2 * PAGE)
                    assert task.read(START, 8) == b"x" * 8
            except Stop:
                assert not task.window().inside
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert all(counter % 2 == 0 for counter in kernel.counters)


def test_threads_have_slots_of_their_own(kernel: FakeKernel, task: Task) -> None:
    """Two threads at a time use two slots; a thread that comes later takes that of one that has ended."""
    task.write(START, b"shared")
    hold = threading.Barrier(3)

    def work() -> None:
        assert task.read(START, 6) == b"shared"
        hold.wait(10)

    for _ in range(2):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        hold.wait(10)
        for thread in threads:
            thread.join()
    assert len(kernel.asked("window")) == 3


def test_no_access_after_close(kernel: FakeKernel) -> None:
    """A closed task says so; its exit is told once."""
    kernel.add_pages(1)
    with kernel.task() as task:
        task.write(START, b"x")
        task.close()
        for use in (lambda: task.read(START, 1), lambda: task.where(START, 1), lambda: task.munmap(START, 1)):
            with pytest.raises(ValueError, match="the task is closed"):
                use()
    assert kernel.asked("exit") == [()]


def test_close_waits_for_other_threads(kernel: FakeKernel) -> None:
    """A task exits only once no thread is inside a window, and a thread that comes late gets no further."""
    kernel.add_pages(1)
    task = kernel.task()
    inside, leave = threading.Event(), threading.Event()
    late: list[Exception] = []

    def work() -> None:
        window = task.window()
        number, window.odd = window.odd, 0
        inside.set()
        leave.wait(10)
        assert not kernel.asked("exit")
        window.odd = number
        while not kernel.asked("exit"):
            time.sleep(0.001)
        try:
            window.read(START, 1)
        except ValueError as error:
            late.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    threading.Timer(0.1, leave.set).start()
    task.close()
    thread.join()
    assert len(late) == 1


def test_slot_left_odd_is_made_even(kernel: FakeKernel) -> None:
    """Whoever gets a slot whose last thread was torn away inside a window begins with an even counter."""
    kernel.add_pages(1)
    kernel.views.windows[5] = 41
    with kernel.task() as task:
        task.read(START, 1)
        assert kernel.views.windows[5] > 41
        assert kernel.views.windows[5] % 2 == 0


@pytest.mark.parametrize(
    "data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd").cast("H"), memoryview(b"a?b?c?d?")[::2]]
)
def test_any_buffer_is_written(task: Task, data: bytes) -> None:
    """Bytes of any buffer are written, whatever its items and steps."""
    task.write(START, data)
    assert task.read(START, 5) == b"abcd\0"
    assert bytes(byte_view(data)) == b"abcd"
