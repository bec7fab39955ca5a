"""Messages between a client and the kernel daemon: their shape, their limits, their check.

A request is a msgpack array `[version, boot_id, request_id, name, args, window]`, a reply
`[version, boot_id, request_id, status, result]`. `window` is the access slot that the sending thread has open just now,
or nil. `status` is 0, or the errno of a refusal whose `result` is then `[kind, detail, address]`. Everything is checked
here, size, types and counts, before anything acts on it; docs/protocol.md is the whole story.
"""

import errno
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np

from numaemu_core import limits
from numaemu_core.errors import BusError, MmError, OutOfMemory, PeerError, SegmentationFault

VERSION: Final = 1

#: Kinds of refusal.
KIND_ERRNO: Final = "errno"
KIND_SEGV: Final = "segv"
KIND_BUS: Final = "bus"
KIND_OOM: Final = "oom"
KIND_PROTOCOL: Final = "protocol"
#: The daemon does not know the connection: it is a new one, or nobody said hello.
KIND_STRANGER: Final = "stranger"

#: In an answer of move_pages: a status that the kernel did not write.
STATUS_UNWRITTEN: Final = -(1 << 31)

#: Calls that come on lines as well, and the most pages that one may ask for there.
_LINE_CALLS: Final = frozenset({"fault", "get_mempolicy"})
_LINE_PAGES_MAX: Final = 64

_WORD: Final = (1 << 64) - 1


class WireError(PeerError):
    """A message that is not what the protocol allows."""


class StrangerError(MmError):
    """The daemon does not know the connection: hello has to be said first, or again to a daemon that is new."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(errno.EACCES, detail)


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request."""

    request_id: int
    name: str
    args: list[Any]
    window: int | None


Check = Callable[[Any], Any]


def ulong(value: object) -> int:
    """An argument as the kernel takes it: 64 bits, negative numbers wrapped."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise MmError(errno.EINVAL, f"expected a whole number, got {_short(value)}")
    return value & _WORD


def number(value: object) -> int:
    """A pid, a CPU, a slot: a whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MmError(errno.EINVAL, f"expected a whole number from 0, got {_short(value)}")
    return value


def pid_t(value: object) -> int:
    """A pid as the kernel takes it: an int, and a negative one is nobody's."""
    return ((ulong(value) + (1 << 31)) & (1 << 32) - 1) - (1 << 31)


def flag(value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise MmError(errno.EINVAL, f"expected true or false, got {_short(value)}")
    return value


def mask_words(value: object) -> list[int]:
    """A node mask as words of 64 bits."""
    if not isinstance(value, list) or len(value) > limits.MASK_WORDS_MAX:
        raise MmError(errno.EINVAL, f"expected at most {limits.MASK_WORDS_MAX} words of a mask, got {_short(value)}")
    return [ulong(word) for word in value]


def names(value: object) -> list[str]:
    """A list of capability names."""
    most = limits.CAPABILITY_NAMES_MAX
    if not isinstance(value, list) or len(value) > most or not all(isinstance(v, str) for v in value):
        raise MmError(errno.EINVAL, f"expected a list of names, got {_short(value)}")
    return list(value)


def token(value: object) -> bytes:
    """The secret that the descriptor socket gave."""
    if not isinstance(value, bytes) or len(value) != limits.TOKEN_BYTES:
        raise MmError(errno.EACCES, "expected the token of the descriptor socket")
    return value


def text(value: object) -> str:
    """A name: of a file, of a kind."""
    if not isinstance(value, str):
        raise MmError(errno.EINVAL, f"expected text, got {_short(value)}")
    return value


def octets(value: object) -> bytes:
    """Bytes of a file."""
    if not isinstance(value, bytes):
        raise MmError(errno.EINVAL, f"expected bytes, got {_short(value)}")
    return value


def chunk(value: object) -> bytes:
    """Bytes of memory that a remote client writes."""
    data = octets(value)
    if len(data) > limits.REMOTE_BYTES_MAX:
        raise MmError(errno.EINVAL, f"expected at most {limits.REMOTE_BYTES_MAX} bytes, got {len(data)}")
    return data


def spans(value: object) -> list[list[int]]:
    """Ranges of addresses: a list of pairs."""
    if not isinstance(value, list) or not all(isinstance(one, list) and len(one) == 2 for one in value):  # noqa: PLR2004 - first byte and end
        raise MmError(errno.EINVAL, f"expected a list of ranges, got {_short(value)}")
    return [[number(edge) for edge in one] for one in value]


def areas(value: object) -> list[list[Any]]:
    """Mappings: a list of first byte, end, shared object or nil, its first byte, does it grow?, its keeper or nil."""
    if not isinstance(value, list) or not all(isinstance(one, list) and len(one) == 6 for one in value):  # noqa: PLR2004 - as many fields
        raise MmError(errno.EINVAL, f"expected a list of mappings, got {_short(value)}")
    name = optional(object_name)
    return [[number(one[0]), number(one[1]), name(one[2]), number(one[3]), flag(one[4]), name(one[5])] for one in value]


def object_names(value: object) -> list[str]:
    """A list of names of shared objects."""
    if not isinstance(value, list):
        raise MmError(errno.EINVAL, f"expected a list of names, got {_short(value)}")
    return [object_name(one) for one in value]


def object_name(value: object) -> str:
    """The name of a shared object."""
    name = text(value)
    if not (0 < len(name) <= limits.FILE_NAME_MAX and name.isprintable()):
        raise MmError(errno.EINVAL, f"a printable name of 1 to {limits.FILE_NAME_MAX} characters, got {_short(value)}")
    return name


def array_of(dtype: str) -> Check:
    """Numbers of a fixed width: a list of them, or little-endian bytes; as an array."""
    info = np.iinfo(dtype)

    def check(value: object) -> np.ndarray[Any, Any]:
        if isinstance(value, bytes) and len(value) % np.dtype(dtype).itemsize == 0:
            return np.frombuffer(value, dtype)
        if not isinstance(value, list) or not all(type(one) is int and info.min <= one <= info.max for one in value):
            raise MmError(errno.EINVAL, f"expected numbers from {info.min} to {info.max}, got {_short(value)}")
        return np.array(value, dtype)

    return check


def optional(check: Check) -> Check:
    """The same, or nil."""
    return lambda value: None if value is None else check(value)


#: Every call: its arguments in order.
CALLS: Final[dict[str, tuple[Check, ...]]] = {
    "join": (),  # over TCP, before hello: become a client
    "alive": (),
    "leave": (),
    "hello": (token, optional(number)),  # …, the connection that it goes on
    "attach": (number, names, optional(number), optional(number)),  # cpu, capabilities, share_mm, uid
    "adopt": (number,),
    "window": (number,),
    "window_close": (number, number),
    "exit": (number,),
    "fork": (number,),
    "set_cpu": (number, number),
    "fault": (number, ulong, ulong, flag),
    "read": (number, ulong, ulong),  # for a client that does not map the memory: pid, address, length
    "write": (number, ulong, chunk),
    "touch": (number, ulong, ulong, flag),
    "mmap": (number, ulong, ulong, ulong, ulong, optional(text), ulong, text),  # …, file, offset, "r" or "r+"
    "create_file": (text, text, number),
    "file_write": (number, text, number, octets),
    "file_read": (number, text, number, number),
    "munmap": (number, ulong, ulong),
    "mprotect": (number, ulong, ulong, ulong),
    "mlock": (number, ulong, ulong),
    "mlock2": (number, ulong, ulong, ulong),
    "munlock": (number, ulong, ulong),
    "mremap": (number, ulong, ulong, ulong, ulong, ulong),
    "mlockall": (number, ulong),
    "munlockall": (number,),
    "madvise": (number, ulong, ulong, ulong),
    "brk": (number, ulong),
    "mbind": (number, ulong, ulong, ulong, optional(mask_words), ulong, ulong),
    "set_mempolicy": (number, ulong, optional(mask_words), ulong),
    "set_mempolicy_home_node": (number, ulong, ulong, ulong, ulong),
    "migrate_pages": (number, pid_t, ulong, optional(mask_words), optional(mask_words)),  # pid, maxnode, old, new
    # pid, count, addresses, nodes, flags, can statuses be written?
    "move_pages": (number, pid_t, ulong, array_of("<u8"), optional(array_of("<i4")), ulong, flag),
    "set_cpuset": (number, mask_words),
    "get_mempolicy": (number, optional(ulong), ulong, ulong),
    "where": (number, ulong, ulong),
    "mirror": (number, spans, areas, spans, spans, spans),  # pid, unmapped, mapped, pages dropped, held, read
    "let_go_shared": (number, object_names),  # pid, shared memory that outlives its mappings no more
    "truncate_shared": (number, object_name, ulong, ulong),  # pid, shared memory, from which byte to which
    "unpinned": (number,),
    "numa_maps": (number,),
    "maps": (number,),
    "pagemap": (number, ulong, ulong),
    "setuid": (number, number),
    "drop_capabilities": (number, names),
    "set_dumpable": (number, number),
    "setrlimit": (number, number, ulong),
    "sysctl": (text, text),
    "hardware": (),
    "numastat": (),
    "meminfo": (optional(number),),  # of one node
    "vmstat": (),
    "status": (),
    "fsck": (),
}


#: Last arguments that may be left out, and what they are then: a task is its client's user's, an mmap of anonymous
#: memory names no file, who calls move_pages wants the statuses, and meminfo tells of all nodes.
DEFAULTS: Final[dict[str, list[Any]]] = {
    "hello": [None],
    "attach": [None],
    "mmap": [None, 0, "r+"],
    "move_pages": [True],
    "meminfo": [None],
}


def pack_request(boot_id: str, request_id: int, name: str, args: Sequence[Any], window: int | None = None) -> bytes:
    """A request as bytes.

    Raises:
        MmError: EINVAL: an argument does not fit 64 bits, or the message is too long.
    """
    try:
        body: bytes = msgpack.packb([VERSION, boot_id, request_id, name, list(args), window], default=_whole_number)
    except (OverflowError, TypeError, ValueError) as error:
        raise MmError(errno.EINVAL, f"{name}: an argument cannot be sent: {error}") from None
    if len(body) > limits.MESSAGE_BYTES_MAX:
        raise MmError(errno.EINVAL, f"{name}: a message of {len(body)} bytes is too long")
    return body


def _whole_number(value: object) -> int:
    """A number of another kind, such as numpy's, as Python's. TypeError: it is none."""
    try:
        return operator.index(value)  # type: ignore[arg-type]  # whether it is one is the question
    except TypeError:
        raise TypeError(f"expected numbers, text or bytes, got a {type(value).__name__}") from None


def fits_line(name: str, args: Sequence[Any]) -> bool:
    """May a call come on a line? Nothing is lost if it is taken twice, and its answer is short."""
    if name == "move_pages":  # only where a few pages are
        _, _, count, _, nodes, *_ = args
        return nodes is None and bool(count <= _LINE_PAGES_MAX)
    return name in _LINE_CALLS


def unpack_request(body: bytes | memoryview, boot_id: str) -> Request:
    """A checked request.

    Raises:
        WireError: it is no request of this version for this machine: it gets no answer that needs its id.
        MmError: its id is known (`request_id` attribute of the error), its name or arguments are wrong.
    """
    message = _unpack(body, 6, limits.MESSAGE_BYTES_MAX)
    version, boot, request_id, name, args, window = message
    if version != VERSION:
        raise WireError(f"version {_short(version)}, this machine speaks {VERSION}")
    if boot != boot_id and name != "join":  # who joins cannot know it yet
        raise WireError("a request for another machine")
    if isinstance(request_id, bool) or not isinstance(request_id, int) or request_id < 0:
        raise WireError(f"request id {_short(request_id)}")
    try:
        return Request(request_id, name, _checked(name, args), optional(number)(window))
    except MmError as error:
        error.request_id = request_id
        raise


def _checked(name: object, args: object) -> list[Any]:
    checks = CALLS.get(name) if isinstance(name, str) else None
    if checks is None:
        raise MmError(errno.ENOSYS, f"no call named {_short(name)}")
    defaults = DEFAULTS.get(str(name), [])
    if not isinstance(args, list) or not len(checks) - len(defaults) <= len(args) <= len(checks):
        raise MmError(errno.EINVAL, f"{name} takes {len(checks)} arguments")
    args = args + defaults[len(args) - len(checks) + len(defaults) :]
    return [check(value) for check, value in zip(checks, args, strict=True)]


def pack_reply(boot_id: str, request_id: int, result: Any) -> bytes:  # noqa: ANN401 - whatever the call gives
    """A reply that says it is done."""
    body: bytes = msgpack.packb([VERSION, boot_id, request_id, 0, result])
    return body


def pack_refusal(boot_id: str, request_id: int, error: Exception) -> bytes:
    """A reply that says no, and why."""
    match error:
        case BusError():
            refusal = [error.errno, [KIND_BUS, error.detail, error.address]]
        case SegmentationFault():
            refusal = [error.errno, [KIND_SEGV, error.detail, error.address]]
        case StrangerError():
            refusal = [error.errno, [KIND_STRANGER, error.detail, 0]]
        case OutOfMemory():
            refusal = [error.errno, [KIND_OOM, error.detail, 0]]
        case MmError():
            refusal = [error.errno, [KIND_ERRNO, error.detail, 0]]
        case _:
            refusal = [errno.EPROTO, [KIND_PROTOCOL, str(error), 0]]
    body: bytes = msgpack.packb([VERSION, boot_id, request_id, *refusal])
    return body


def unpack_reply(body: bytes | memoryview) -> tuple[str, int, Any]:
    """(boot id, request id, result) of a reply.

    Raises:
        MmError, SegmentationFault, OutOfMemory: the call was refused (`request_id`: which); WireError: it is no reply.
    """
    version, boot_id, request_id, status, result = _unpack(body, 5, limits.REPLY_BYTES_MAX)
    if version != VERSION:
        raise WireError(f"version {_short(version)}, this library speaks {VERSION}")
    if not isinstance(boot_id, str) or type(request_id) is not int:
        raise WireError(f"an answer to request {_short(request_id)} of {_short(boot_id)}")
    if status == 0:
        return boot_id, request_id, result
    match result:
        case [str(kind), str(detail), int(address)] if type(status) is int:
            pass
        case _:
            raise WireError(f"no refusal: {_short(status)}, {_short(result)}")
    if kind == KIND_PROTOCOL:
        raise WireError(detail)
    refusal = _refusal(kind, status, detail, address)
    refusal.request_id = request_id if type(request_id) is int else 0
    raise refusal


def _refusal(kind: str, status: int, detail: str, address: int) -> MmError:
    match kind:
        case "bus":
            return BusError(address, detail)
        case "segv":
            return SegmentationFault(address, detail)
        case "oom":
            return OutOfMemory(detail)
        case "stranger":
            return StrangerError(detail)
        case _:
            return MmError(status, detail)


def _unpack(body: bytes | memoryview, count: int, bytes_max: int) -> list[Any]:
    if len(body) > bytes_max:
        raise WireError(f"a message of {len(body)} bytes is too long")
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except Exception as error:  # noqa: BLE001 - msgpack raises many kinds on garbage; all mean the same
        raise WireError(f"no msgpack: {type(error).__name__}") from None
    if not isinstance(message, list) or len(message) != count:
        raise WireError(f"expected an array of {count}")
    return message


def _short(value: object) -> str:
    if isinstance(value, (list, dict)):  # the repr of a deep one is as deep
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - one line of an error
