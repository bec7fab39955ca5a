"""A task of the emulated machine: its system calls, and its memory."""

from __future__ import annotations

import contextlib
import errno
import operator
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from numaemu.armed_window import ArmedWindow
from numaemu.connection import keep_out_of_reach
from numaemu.ended import closed, forked
from numaemu.errors import MachineGone
from numaemu.fault_points import ARMED
from numaemu.locked_window import LockedWindow
from numaemu.mapping import Mapping
from numaemu.masks import mask_words
from numaemu.remote import RemoteAccess
from numaemu.syscalls import SystemCalls
from numaemu.window import Here, Window, make_read, make_write
from numaemu_core import limits, uapi
from numaemu_core.errors import SegmentationFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer

    from numaemu.attachment import Attachment
    from numaemu.pin import Pin
    from numaemu_core.columns import I8

#: Access slots of ended threads that are kept for the next ones.
_SPARE_SLOTS: Final = 8
#: Pages that one `where` asks for: 4 bytes each in the answer.
_WHERE_PAGES: Final = limits.MESSAGE_BYTES_MAX // 8
#: How long `close` waits for other threads that are inside a window.
_SHUT_S: Final = limits.WINDOW_BOUND_RUNNING_S
_PAUSE_S: Final = 0.0005
#: Bytes of a file that travel in one message.
_FILE_BYTES: Final = limits.MESSAGE_BYTES_MAX // 2


class Task(SystemCalls):
    """A task with an mm: what a process is to the kernel. A context manager; any thread may use it.

    A refused call raises OSError with the kernel's errno. An access to memory raises SegmentationFault or OutOfMemory.
    After `close` every use raises ValueError, in a forked child RuntimeError, once the machine has ended MachineGone.
    Addresses and lengths are bytes; where the kernel rounds to pages, so does this.
    """

    def __init__(
        self,
        new_task: Callable[[list[int]], Task],
        attachment: Attachment,
        calls: Any,  # noqa: ANN401 - the machine's, or what stands in their place
        pid: int,
        mm_id: int,
        pgd: int,
        *,
        remote: bool = False,
    ) -> None:
        """A handle for task `pid` with mm `mm_id`, whose top table is `pgd`; `new_task` makes handles for others.

        `remote`: it is not to map the memory, and reads and writes through the daemon.
        """
        self.pid = pid
        self.remote = remote
        self.mm_id = mm_id
        self._pgd = pgd
        self._new_task = new_task
        self.attachment: Any = attachment
        self._calls = calls
        self._here: Any = Here()
        self._windows: weakref.WeakSet[Window] = weakref.WeakSet()
        #: Access slots of threads that have ended.
        self._spare: deque[int] = deque()
        self._pins: set[Pin] = set()
        self._open = True
        if not remote and attachment.fenced and not ARMED:
            self._read_and_write_quickly()

    # -- memory --------------------------------------------------------------------------------------------------------

    def read(self, addr: int, n: int) -> bytes:
        """`n` bytes from `addr`. ValueError for a negative `n`."""
        return self._access().read(addr, n)

    def write(self, addr: int, data: ReadableBuffer) -> None:
        """Copy all bytes of a buffer to `addr`. On SegmentationFault and OutOfMemory, what lies before is written."""
        self._access().write(addr, data)

    def _read_and_write_quickly(self) -> None:
        """Put functions in front of `read` and `write` that do the same, and hit faster. They hold nothing of self."""
        this = weakref.ref(self)

        def new_window() -> Window:
            task = this()
            if task is None:
                raise ValueError("the task is closed")
            return task._new_window()  # noqa: SLF001 - its own

        view = self.attachment.views, self.mm_id, self._here, new_window
        self.read = make_read(*view)  # type: ignore[assignment]  # that is the point
        self.write = make_write(*view)  # type: ignore[assignment]  # the same

    def _read_and_write_no_more(self, instead: object) -> None:
        """Every access of this thread fails as `instead` does, also one by a function that somebody has kept."""
        vars(self).pop("read", None)
        vars(self).pop("write", None)
        self._here.window = instead
        self._here = instead

    def read_into(self, addr: int, buffer: WriteableBuffer) -> None:
        """Fill a contiguous buffer with the bytes from `addr` on. On an error, what lies before is filled."""
        view = memoryview(buffer)
        if view.readonly or not view.c_contiguous:
            raise ValueError("expected a contiguous buffer that can be written to")
        if view.nbytes:
            self._access().read_into(addr, np.frombuffer(view.cast("B"), np.uint8))

    def touch(self, addr: int, length: int, write: bool = False) -> None:  # noqa: FBT001, FBT002 - as programs call it
        """Access each page of [addr, addr + length): it is faulted in, and counts as accessed (`write`: as dirty).

        No byte is read or changed. ValueError for a negative length.
        """
        self._access().touch(operator.index(addr), operator.index(length), write=write)

    def where(self, addr: int, length: int) -> I8:
        """Where each page of [addr, addr + length) is: its node, or -ENOENT (not in memory), -EFAULT (no mapping).

        Nothing is faulted in. Mirrors: the status array of move_pages without nodes.
        """
        addr, length = operator.index(addr), operator.index(length)
        if not 0 <= length <= limits.TASK_SIZE_BYTES:
            raise ValueError(f"expected a length from 0 to {limits.TASK_SIZE_BYTES}, got {length}")
        parts = []
        end = addr + length
        page_size = self.attachment.layout.topology.page_size
        while addr < end:
            stop = min(end, (addr // page_size + _WHERE_PAGES) * page_size)
            parts.append(np.frombuffer(self._call("where", addr, stop - addr), "<i4"))
            addr = stop
        return np.concatenate([np.empty(0, np.int64), *parts])

    def window(self) -> Window:
        """This thread's window, of a task that is not remote: for what belongs to the library."""
        found = self._access()
        assert isinstance(found, Window)
        return found

    def _access(self) -> Window | RemoteAccess:
        try:
            found: Window | RemoteAccess = self._here.window
        except AttributeError:
            found = self._new_access()
        return found

    def _new_access(self) -> Window | RemoteAccess:
        if not self.remote:
            return self._new_window()
        self._here.window = access = RemoteAccess(self._call)
        return access

    def _new_window(self) -> Window:
        slot = self._spare.pop() if self._spare else self._call("window")
        while len(self._spare) > _SPARE_SLOTS:
            self._call("window_close", self._spare.popleft())
        kind = (ArmedWindow if ARMED else Window) if self.attachment.fenced else LockedWindow
        window = kind(self.attachment.views, slot, self.mm_id, self._pgd, self._fault)
        # When its thread ends; a message would be too much to ask of a thread that is being taken apart.
        weakref.finalize(window, self._spare.append, slot).atexit = False
        self._windows.add(window)
        self._calls.note_window(window)
        self._here.window = window
        return window

    def _fault(self, addr: int, length: int, *, write: bool) -> None:
        if not 0 <= addr < limits.TASK_SIZE_BYTES:  # the number may not even fit a message
            raise SegmentationFault(addr)
        self._call("fault", addr, length, write)

    def mmap(
        self,
        length: int,
        addr: int | None = None,
        prot: int = uapi.PROT_READ | uapi.PROT_WRITE,
        flags: int = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS,
        file: str | None = None,
        offset: int = 0,
        file_mode: str | None = None,
    ) -> Mapping:
        """A new mapping of `length` bytes, at `addr` with MAP_FIXED, else where there is room.

        With `file`, the name of one that `Machine.create_file` made, its bytes from `offset` (a multiple of the page
        size); MAP_ANONYMOUS does not count then. The file is opened read-only, unless the mapping is shared and may
        write; `file_mode`, "r" or "r+", says otherwise. An access beyond its end raises BusError.

        Raises:
            OSError: ENOENT: no such file; EACCES: a shared mapping that writes to a file opened with "r"; others as in
            the manual. Mirrors: mmap(2).
        """
        if file is not None:
            flags &= ~uapi.MAP_ANONYMOUS
        if file_mode is None:
            writes = file is None or (flags & uapi.MAP_SHARED and prot & uapi.PROT_WRITE)
            file_mode = "r+" if writes else "r"
        return Mapping(self, self._call("mmap", addr or 0, length, prot, flags, file, offset, file_mode), int(length))

    def mremap(
        self, addr: int, old_length: int, new_length: int, flags: int = uapi.MREMAP_MAYMOVE, new_addr: int = 0
    ) -> Mapping:
        """Make a mapping longer or shorter, or move it: `flags` is made of MREMAP_*; gives it as it is now.

        `new_addr` counts with MREMAP_FIXED. Mirrors: mremap(2).
        """
        return Mapping(self, self._call("mremap", addr, old_length, new_length, flags, new_addr), new_length)

    def file_write(self, name: str, offset: int, data: ReadableBuffer) -> None:
        """Copy all bytes of a buffer into a file, without a mapping. New pages are placed as for a fault of this task.

        Raises:
            OSError: ENOENT: no such file; EFBIG: the file ends before the bytes do, it does not grow; what lies before
            is written. OutOfMemory. Mirrors: pwrite(2).
        """
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            written = self._call("file_write", name, offset + done, bytes(view[done : done + _FILE_BYTES]))
            if not written:
                raise OSError(errno.EFBIG, f"the file {name!r} ends at {offset + done}")
            done += written

    def file_read(self, name: str, offset: int, n: int) -> bytes:
        """Up to `n` bytes of a file from `offset`, without a mapping; fewer at its end. Mirrors: pread(2)."""
        parts = []
        while n > 0:
            part: bytes = self._call("file_read", name, offset, min(n, _FILE_BYTES))
            if not part:
                break
            parts.append(part)
            offset, n = offset + len(part), n - len(part)
        return b"".join(parts)

    # -- the task itself -----------------------------------------------------------------------------------------------

    def fork(self) -> Task:
        """A new task with a copy of the address space, page by page on write.

        Mirrors: fork(2). The handle is this process's; another process takes the task over with `Machine.adopt`.
        """
        return self._new_task(self._call("fork"))

    def set_cpu(self, cpu: int) -> None:
        """Run on another CPU from now on: pages that are local to the task come from its node."""
        self._call("set_cpu", cpu)

    def set_cpuset(self, nodes: Iterable[int]) -> None:
        """Move the task into a cpuset of its own with these memory nodes, or change the nodes of the one it is in.

        Policies are remapped and pages migrated as the kernel of the profile does. Mirrors: cpuset.mems.

        Raises:
            OSError: EINVAL: no node of these has memory.
        """
        self._call("set_cpuset", mask_words(nodes)[0])

    def setrlimit(self, resource: int, limit: int | None) -> None:
        """Limit what the task may lock (RLIMIT_MEMLOCK) or map (RLIMIT_AS), in bytes; None: no limit.

        Mirrors: setrlimit(2), the soft limit.
        """
        self._call("setrlimit", resource, uapi.RLIM_INFINITY if limit is None else limit)

    def _call(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - whatever the call takes and gives
        return self._calls.call(name, self.pid, *args)

    # -- the end -------------------------------------------------------------------------------------------------------

    def note_pin(self, pin: Pin) -> None:
        """A pin that `close` has to undo."""
        self._pins.add(pin)

    def drop_pin(self, pin: Pin) -> None:
        """A pin that was undone: the daemon may look for frames that can move again."""
        self._pins.discard(pin)
        if self._open:
            with contextlib.suppress(MachineGone):
                self._call("unpinned")

    def waits(self, seconds: float) -> None:
        """A thread has waited so long for a lock that the daemon may hold."""
        if seconds > limits.SILENCE_S:
            self._calls.complain()

    def unmap_quietly(self, addr: int, length: int) -> None:
        """Unmap as a context manager does at its end: that the task or the machine is gone already is no error."""
        if self._open:
            with contextlib.suppress(MachineGone):
                self.munmap(addr, length)

    def close(self) -> None:
        """The task exits: its memory is freed, unless another task shares the mm. A second call does nothing."""
        if not self._open:
            return
        self._open = False
        for pin in list(self._pins):
            pin.undo()
        # Held until the end of this call: the windows live no longer than what belongs to each thread.
        own = getattr(self._here, "window", None)
        self._read_and_write_no_more(closed("task"))
        self._shut_windows(own)
        try:
            self._call("exit")
        except MachineGone:
            pass
        except OSError as refused:
            # Gone, or taken over by another process: nothing that is ours to end.
            if refused.errno not in {errno.ESRCH, errno.EPERM}:
                raise
        finally:
            self._calls = self.attachment = closed("task")

    def _shut_windows(self, own: Window | None) -> None:
        """Let no thread of this process into the memory any more: its slots will be somebody else's."""
        deadline = time.monotonic() + _SHUT_S
        for window in list(self._windows):
            # Our own is open only if this runs in a signal handler inside of it: waiting would not close it.
            while not window.shut() and window is not own and time.monotonic() < deadline:
                time.sleep(_PAUSE_S)

    def abandon(self) -> None:
        """In a forked child: nothing of it may be touched."""
        if self._open:
            self._open = False
            keep_out_of_reach(getattr(self._here, "window", None))
            keep_out_of_reach(self._here)
            self._pins.clear()
            self._read_and_write_no_more(forked())
            self._calls = self.attachment = forked()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Task {self.pid}{'' if self._open else ', closed'}>"
