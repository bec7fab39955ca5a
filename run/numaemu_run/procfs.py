"""What /proc tells of processes: whose thread, which mappings, which children. Anything may be gone when it is read."""

import functools
import os
import re
import resource
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

PAGE_SIZE: Final = resource.getpagesize()
#: Names of capabilities by their bit, as far as the machine knows them (linux/capability.h).
_CAPABILITY_BITS: Final = {
    14: "CAP_IPC_LOCK",
    19: "CAP_SYS_PTRACE",
    21: "CAP_SYS_ADMIN",
    23: "CAP_SYS_NICE",
    24: "CAP_SYS_RESOURCE",
}
_CHUNK_BYTES: Final = 1 << 16
#: Fields of /proc/PID/stat behind the name of the command: faults, threads, beginning of its code, of its stack.
_MINOR_FAULTS: Final = 7
_MAJOR_FAULTS: Final = 9
_THREADS: Final = 17
_START_CODE: Final = 23
_START_STACK: Final = 25
#: A kind and a value.
_AUXV_ENTRY: Final = struct.Struct("=2Q")
#: Addresses from here on are not those of a program (x86_64).
_USER_END: Final = 1 << 47


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc/TID/status says of a thread, as far as the machine has to know it."""

    tgid: int
    parent: int
    #: Its effective and its real user.
    uid: int
    real_uid: int
    #: Those that count for the host: of our user namespace, and of no other.
    capabilities: frozenset[str]
    #: Is it under a seccomp filter that this process is not under, as in a container everybody is under one?
    filtered: bool
    #: The thread itself.
    tid: int


def name_of(pid: int) -> str:
    """What a process calls itself: the name of its program, unless it has said otherwise.

    Raises:
        ProcessLookupError: it is gone.
    """
    return _read(f"/proc/{pid}/comm").decode(errors="replace").removesuffix("\n")


def status_of(tid: int) -> Status:
    """Of one thread.

    Raises:
        ProcessLookupError: it is gone.
    """
    fields = _status_fields(tid)
    bits = int(fields["CapEff"], 16)
    return Status(
        tgid=int(fields["Tgid"]),
        parent=int(fields["PPid"]),
        uid=int(fields["Uid"].split()[1]),
        real_uid=int(fields["Uid"].split()[0]),
        tid=int(fields["Pid"]),
        filtered=_filters(fields) > _own_filters(),
        capabilities=_capabilities(bits) if bits and _user_namespace(tid) == _user_namespace("self") else frozenset(),
    )


@functools.cache
def _capabilities(bits: int) -> frozenset[str]:
    return frozenset(name for bit, name in _CAPABILITY_BITS.items() if bits >> bit & 1)


def _user_namespace(who: int | str) -> str | None:
    """None: it is gone, or we may not look."""
    try:
        return os.readlink(f"/proc/{who}/ns/user")  # noqa: PTH115 - half the time
    except OSError:
        return None


def _status_fields(who: int | str) -> dict[str, str]:
    text = _read(f"/proc/{who}/status").decode(errors="replace")
    return dict(line.split(":", 1) for line in text.split("\n") if ":" in line)


def _filters(fields: dict[str, str]) -> int:
    """How many seccomp filters it is under (a kernel without that line: 1, if any)."""
    return int(fields.get("Seccomp_filters", fields.get("Seccomp", "").strip() == "2"))


@functools.cache
def _own_filters() -> int:
    """Ours, which do not change; where they are not counted, those of the program are no more than ours: 0."""
    fields = _status_fields("self")
    return _filters(fields) if "Seccomp_filters" in fields else 0


def places_of(tid: int) -> tuple[int, int]:
    """Where the code and the stack of a thread's program begin; 0: it has ended, others of its process have not.

    Raises:
        ProcessLookupError: it is gone.
    """
    fields = _stat_of(f"/proc/{tid}/stat")
    return int(fields[_START_CODE]), int(fields[_START_STACK])


def auxv_of(folder: str) -> dict[int, int]:
    """What the kernel told its program at the start, by kind; none if it is about to end.

    `folder`: where /proc has it. ProcessLookupError, PermissionError as `maps_of`.
    """
    text = _read(f"{folder}/auxv")
    return dict(_AUXV_ENTRY.iter_unpack(text[: len(text) // _AUXV_ENTRY.size * _AUXV_ENTRY.size]))


def faults_of(pid: int, tid: int) -> int:
    """How many pages a thread has faulted in so far. ProcessLookupError: it is gone."""
    fields = _stat_of(f"/proc/{pid}/task/{tid}/stat")
    return int(fields[_MINOR_FAULTS]) + int(fields[_MAJOR_FAULTS])


def _stat_of(path: str) -> list[bytes]:
    """The fields behind the name of the command, which may hold anything."""
    line = _read(path)
    return line[line.rindex(b")") + 2 :].split()


def threads_of(pid: int) -> list[int]:
    """The threads of a process, by their numbers; none if it is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - a third of the time
    except (FileNotFoundError, ProcessLookupError):
        return []


def live_threads_of(pid: int) -> list[int]:
    """The same without a first thread that has ended before the others: that one keeps its number."""
    found = threads_of(pid)
    if len(found) > 1 and found[0] == pid and _has_ended(_stat_of(f"/proc/{pid}/task/{pid}/stat")):
        del found[0]
    return found


def speaker_of(pid: int) -> int:
    """A thread of a process that has not ended: the first one if it can be.

    Raises:
        ProcessLookupError: the process has ended, though its parent may not have asked how.
    """
    fields = _stat_of(f"/proc/{pid}/stat")
    if not _has_ended(fields):
        return pid
    if int(fields[_THREADS]) > 1:
        for tid in threads_of(pid):
            if tid != pid:
                return tid
    raise ProcessLookupError(f"process {pid} has ended")


def _has_ended(fields: list[bytes]) -> bool:
    return fields[0] in {b"Z", b"X"}


def forker_of(pid: int, child: int) -> int | None:
    """Which thread of a process has forked a child, or has it now; None: none."""
    return next((tid for tid in threads_of(pid) if child in children_of(pid, tid)), None)


def children_of(pid: int, *tids: int) -> list[int]:
    """The processes that any thread of a process, or these, have forked and not lost."""
    found: list[int] = []
    for tid in tids or threads_of(pid):
        try:
            found += map(int, _read(f"/proc/{pid}/task/{tid}/children").split())
        except ProcessLookupError:
            continue
    return found


def descendants_of(pid: int) -> Iterator[int]:
    """Every process below another one."""
    left = children_of(pid)
    while left:
        child = left.pop()
        yield child
        left += children_of(child)


@dataclass(frozen=True, slots=True)
class Area:
    """One mapping of a process. `name`: of the object that several processes share, empty if the memory is private."""

    start: int
    end: int
    #: Bytes from the beginning of the shared object.
    offset: int
    name: str
    #: The file that it maps, [heap], [stack], or nothing.
    path: str

    @property
    def label(self) -> str:
        """As numa_maps calls it: heap, stack, file=…, or nothing."""
        if not self.path:
            return ""
        return _LABELS.get(self.path) or "file=" + self.path.translate(_ESCAPED)


def maps_of(pid: int) -> bytes:
    """The text of /proc/PID/maps. ProcessLookupError: it is gone. PermissionError: we may not look into it."""
    return _read(f"/proc/{pid}/maps")


def filled_areas_of(pid: int) -> set[int]:
    """Where the mappings begin that have pages in memory or in swap.

    Raises:
        ProcessLookupError, PermissionError: as `maps_of`.
    """
    found: set[int] = set()
    start = 0
    for line in _read(f"/proc/{pid}/smaps").split(b"\n"):
        name, *words = line.split(None, 2)[:2] or [b""]
        if not name.endswith(b":"):
            start = int(name.partition(b"-")[0] or b"0", 16)
        elif name in {b"Rss:", b"Swap:"} and words[0] != b"0":
            found.add(start)
    return found


def _read(path: str) -> bytes:
    """A whole file of /proc. ProcessLookupError: who it is about is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, _CHUNK_BYTES):
                parts.append(part)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise ProcessLookupError(f"{path} is gone") from None
    return b"".join(parts)


def areas_of(text: bytes) -> list[Area]:
    """The mappings of the user's half of an address space, ascending, from the text of /proc/PID/maps."""
    found = []
    for line in text.decode(errors="replace").removesuffix("\n").split("\n") if text else ():
        span, rights, offset, device, inode, *path = line.split(None, 5)
        first, _, last = span.partition("-")
        start, end = int(first, 16), int(last, 16)
        if end > _USER_END:
            continue
        where = path[0] if path else ""
        is_segment = _SEGMENT_PATH.fullmatch(where) is not None
        is_file = inode != "0" or is_segment
        shared = rights[3] == "s" and is_file
        name = (segment_name(inode) if is_segment else f"{device} {inode}") if shared else ""
        shown = where if is_file or where in _LABELS else ""
        found.append(Area(start, end, int(offset, 16) if shared else 0, name, shown))
    return found


def segment_name(shmid: str) -> str:
    """The name of a SysV segment, whose number maps tells in place of an inode's: the first one is 0."""
    return f"segment {shmid}"


def device_name(device: int) -> str:
    """A device as maps has it; that of a file is the first word of its name, its inode the second."""
    return f"{os.major(device):02x}:{os.minor(device):02x}"


def object_name(found: os.stat_result) -> str:
    """The name of a file as an object that processes share."""
    return f"{device_name(found.st_dev)} {found.st_ino}"


#: What maps calls SysV segments, by their keys.
_SEGMENT_PATH: Final = re.compile(r"/SYSV[0-9a-f]{8} \(deleted\)")
#: What maps and numa_maps call memory that is no file.
_LABELS: Final = {"[heap]": "heap", "[stack]": "stack"}
#: What stands as an octal number in a path of numa_maps.
_ESCAPED: Final = str.maketrans({char: f"\\{ord(char):03o}" for char in "\n\t= "})
