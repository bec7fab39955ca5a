"""The wire: what is sent is what is received, and whatever else arrives is refused in one of two ways."""

import errno
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numaemu_core import limits, wire
from numaemu_core.errors import BugError, MmError, OutOfMemory, PeerError, SegmentationFault
from numaemu_core.wire import (
    CALLS,
    VERSION,
    Request,
    WireError,
    pack_refusal,
    pack_reply,
    pack_request,
    unpack_reply,
    unpack_request,
)

BOOT = "6a3f"
TOKEN = b"0123456789abcdef"
WORD = (1 << 64) - 1


def raw(*fields: Any) -> bytes:  # noqa: ANN401 - anything can be sent
    body: bytes = msgpack.packb(list(fields))
    return body


def request(name: object, args: object, window: object = None) -> bytes:
    return raw(VERSION, BOOT, 7, name, args, window)


def nested(depth: int) -> Any:  # noqa: ANN401 - a list of a list of a list
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# -- requests ----------------------------------------------------------------------------------------------------------

#: One valid call of each name, with what the daemon sees of it where that is not the same.
VALID: dict[str, tuple[list[Any], list[Any] | None]] = {
    "join": ([], None),
    "alive": ([], None),
    "leave": ([], None),
    "hello": ([TOKEN], [TOKEN, None]),
    "attach": ([0, ["CAP_SYS_NICE"], None], [0, ["CAP_SYS_NICE"], None, None]),
    "adopt": ([3], None),
    "window": ([3], None),
    "window_close": ([3, 17], None),
    "exit": ([3], None),
    "fork": ([3], None),
    "set_cpu": ([3, 1], None),
    "fault": ([3, 0x2AAAAAAAB000, 4096, True], None),
    "read": ([3, 0x2AAAAAAAB000, 64], None),
    "write": ([3, 0x2AAAAAAAB000, b"bytes"], None),
    "touch": ([3, 0x2AAAAAAAB000, 4096, True], None),
    "mmap": ([3, 0, 4096, 3, 0x22], [3, 0, 4096, 3, 0x22, None, 0, "r+"]),
    "create_file": (["/t/data", "tmpfs", 8192], None),
    "file_write": ([3, "/t/data", 4096, b"bytes"], None),
    "file_read": ([3, "/t/data", 0, 5], None),
    "munmap": ([3, -4096, -1], [3, WORD - 4095, WORD]),
    "mprotect": ([3, 0, 4096, 1], None),
    "mlock": ([3, 0, WORD], None),
    "mlock2": ([3, 0, 4096, 1], None),
    "munlock": ([3, 0, 1], None),
    "mremap": ([3, 0, 4096, 8192, 1, 0], None),
    "mlockall": ([3, 3], None),
    "munlockall": ([3], None),
    "madvise": ([3, 0, 4096, -1], [3, 0, 4096, WORD]),
    "brk": ([3, 0x600000], None),
    "mbind": ([3, 0, 4096, 2, [1, -1], 65, 2], [3, 0, 4096, 2, [1, WORD], 65, 2]),
    "set_mempolicy": ([3, 0, None, 0], None),
    "migrate_pages": ([3, WORD, 65, [1], [2]], [3, -1, 65, [1], [2]]),
    "move_pages": (
        [3, 0, 2, [4096, WORD], struct.pack("<2i", 1, -1), 2],
        [3, 0, 2, [4096, WORD], [1, -1], 2, True],
    ),
    "set_cpuset": ([3, [3]], None),
    "set_mempolicy_home_node": ([3, 0, 4096, 1, 0], None),
    "get_mempolicy": ([3, None, 0, 0], None),
    "where": ([3, 0, 4096], None),
    "mirror": ([3, [[0, 4096]], [[4096, 8192, "0:1 7", 0, False, None]], [], [[4096, 8192]], []], None),
    "let_go_shared": ([3, ["0:1 8"]], None),
    "truncate_shared": ([3, "0:1 8", 0, 4096], None),
    "unpinned": ([3], None),
    "numa_maps": ([3], None),
    "maps": ([3], None),
    "pagemap": ([3, 0, 4096], None),
    "setuid": ([3, 65534], None),
    "drop_capabilities": ([3, ["CAP_SYS_NICE"]], None),
    "set_dumpable": ([3, 1], None),
    "setrlimit": ([3, 8, -1], [3, 8, WORD]),
    "sysctl": (["/sys/kernel/mm/mempolicy/weighted_interleave/node0", "3"], None),
    "hardware": ([], None),
    "numastat": ([], None),
    "meminfo": ([], [None]),
    "vmstat": ([], None),
    "status": ([], None),
    "fsck": ([], None),
}


def test_every_call_has_a_valid_example() -> None:
    """The table of valid calls here names the calls that there are."""
    assert sorted(VALID) == sorted(CALLS)


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("window", [None, 0, 12])
@pytest.mark.parametrize("as_view", [False, True], ids=["bytes", "memoryview"])
def test_a_request_survives_the_wire(name: str, window: int | None, as_view: bool) -> None:  # noqa: FBT001 - a column of the table
    """What a client packs is what the daemon gets; negative numbers come as the kernel sees them."""
    args, seen = VALID[name]
    body = pack_request(BOOT, 9, name, args, window)
    got = unpack_request(memoryview(body) if as_view else body, BOOT)
    got.args[:] = [value.tolist() if isinstance(value, np.ndarray) else value for value in got.args]
    assert got == Request(9, name, args if seen is None else seen, window)


NO_REQUESTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no msgpack"),
    "cut-short": (request("exit", [1])[:-1], "no msgpack"),
    "trailing": (request("exit", [1]) + b"\x00", "no msgpack"),
    "reserved-byte": (b"\xc1", "no msgpack"),
    "text": (b"GET / HTTP/1.1\r\n\r\n", "no msgpack"),
    "bad-utf8": (raw(VERSION, BOOT, 7, "exit", [1], None).replace(b"exit", b"\xff\xfe\xfd\xfc"), "no msgpack"),
    "map-of-lists": (b"\x81\x91\x01\x01", "no msgpack"),
    "array-that-is-not-there": (b"\xdd\xff\xff\xff\xff", "no msgpack"),
    "bytes-that-are-not-there": (b"\xc6\xff\xff\xff\xff", "no msgpack"),
    "deep": (b"\x91" * 100_000, "no msgpack"),
    "number": (b"\x07", "expected an array of 6"),
    "map": (b"\x80", "expected an array of 6"),
    "too-few": (raw(VERSION, BOOT, 7, "exit", [1]), "expected an array of 6"),
    "too-many": (raw(VERSION, BOOT, 7, "exit", [1], None, None), "expected an array of 6"),
    "huge": (request("exit", [b"\0" * limits.MESSAGE_BYTES_MAX]), "too long"),
    "version-old": (raw(0, BOOT, 7, "exit", [1], None), "version 0, this machine speaks 1"),
    "version-text": (raw("1", BOOT, 7, "exit", [1], None), "version '1'"),
    "version-none": (raw(None, BOOT, 7, "exit", [1], None), "version None"),
    "version-deep": (raw(nested(400), BOOT, 7, "exit", [1], None), "version "),
    "other-boot": (raw(VERSION, "beef", 7, "exit", [1], None), "another machine"),
    "boot-bytes": (raw(VERSION, BOOT.encode(), 7, "exit", [1], None), "another machine"),
    "id-negative": (raw(VERSION, BOOT, -1, "exit", [1], None), "request id -1"),
    "id-bool": (raw(VERSION, BOOT, True, "exit", [1], None), "request id True"),  # noqa: FBT003 - what is tested
    "id-text": (raw(VERSION, BOOT, "7", "exit", [1], None), "request id '7'"),
    "id-float": (raw(VERSION, BOOT, 7.0, "exit", [1], None), "request id 7.0"),
    "id-deep": (raw(VERSION, BOOT, nested(400), "exit", [1], None), "request id "),
}


@pytest.mark.parametrize(("body", "text"), NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_is_a_wire_error(body: bytes, text: str) -> None:
    """A message without a version, a machine and an id to answer to is refused as a whole."""
    with pytest.raises(WireError) as refusal:
        unpack_request(body, BOOT)
    assert text in str(refusal.value)
    assert isinstance(refusal.value, PeerError)
    assert len(str(refusal.value)) < 200


BAD_CALLS: dict[str, tuple[bytes, int]] = {
    "name-unknown": (request("reboot", []), errno.ENOSYS),
    "name-number": (request(7, []), errno.ENOSYS),
    "name-bytes": (request(b"exit", [1]), errno.ENOSYS),
    "name-list": (request(["exit"], [1]), errno.ENOSYS),
    "name-long": (request("x" * 1000, []), errno.ENOSYS),
    "kept-as-nothing": (request("mirror", [3, [], [[0, 4096, "0:1 7", 0, False, ""]], [], [], []]), errno.EINVAL),
    "kept-as-number": (request("mirror", [3, [], [[0, 4096, "0:1 7", 0, False, 0]], [], [], []]), errno.EINVAL),
    "kept-as-list": (request("mirror", [3, [], [[0, 4096, "0:1 7", 0, False, []]], [], [], []]), errno.EINVAL),
    "args-none": (request("exit", None), errno.EINVAL),
    "args-map": (request("exit", {"pid": 1}), errno.EINVAL),
    "args-number": (request("exit", 1), errno.EINVAL),
    "args-too-few": (request("exit", []), errno.EINVAL),
    "args-too-many": (request("exit", [1, 2]), errno.EINVAL),
    "args-many": (request("exit", [1] * 10_000), errno.EINVAL),
    "pid-negative": (request("exit", [-1]), errno.EINVAL),
    "pid-text": (request("exit", ["1"]), errno.EINVAL),
    "pid-bool": (request("exit", [True]), errno.EINVAL),
    "pid-float": (request("exit", [1.0]), errno.EINVAL),
    "pid-none": (request("exit", [None]), errno.EINVAL),
    "pid-deep": (request("exit", [nested(400)]), errno.EINVAL),
    "address-text": (request("brk", [1, "0x600000"]), errno.EINVAL),
    "address-bool": (request("brk", [1, False]), errno.EINVAL),
    "address-float": (request("brk", [1, 4096.0]), errno.EINVAL),
    "write-number": (request("fault", [1, 0, 1, 1]), errno.EINVAL),
    "write-none": (request("fault", [1, 0, 1, None]), errno.EINVAL),
    "mask-number": (request("mbind", [1, 0, 1, 2, 3, 65, 0]), errno.EINVAL),
    "mask-bytes": (request("mbind", [1, 0, 1, 2, b"\x03", 65, 0]), errno.EINVAL),
    "mask-of-text": (request("mbind", [1, 0, 1, 2, ["3"], 65, 0]), errno.EINVAL),
    "mask-too-long": (request("set_mempolicy", [1, 2, [0] * (limits.MASK_WORDS_MAX + 1), 65]), errno.EINVAL),
    "mask-deep": (request("set_mempolicy", [1, 2, nested(400), 65]), errno.EINVAL),
    "names-text": (request("attach", [0, "CAP_SYS_NICE", None]), errno.EINVAL),
    "names-of-numbers": (request("attach", [0, [1], None]), errno.EINVAL),
    "names-of-bytes": (request("attach", [0, [b"CAP_SYS_NICE"], None]), errno.EINVAL),
    "names-too-many": (request("attach", [0, ["x"] * 65, None]), errno.EINVAL),
    "share-text": (request("attach", [0, [], "1"]), errno.EINVAL),
    "token-short": (request("hello", [TOKEN[:-1]]), errno.EACCES),
    "token-text": (request("hello", [TOKEN.decode()]), errno.EACCES),
    "token-none": (request("hello", [None]), errno.EACCES),
    "window-text": (request("exit", [1], "3"), errno.EINVAL),
    "window-negative": (request("exit", [1], -3), errno.EINVAL),
    "window-bool": (request("exit", [1], True), errno.EINVAL),  # noqa: FBT003 - what is tested
}


@pytest.mark.parametrize(("body", "number"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_wrong_call_is_refused_under_its_id(body: bytes, number: int) -> None:
    """A request whose name or arguments are wrong gets an errno, one short line, and keeps its id for the answer."""
    with pytest.raises(MmError) as refusal:
        unpack_request(body, BOOT)
    assert refusal.value.errno == number
    assert refusal.value.request_id == 7
    assert 0 < len(refusal.value.detail) < 200


@pytest.mark.parametrize("depth", [450, 511, 900, 1022, 5000])
@pytest.mark.parametrize("place", ["version", "id", "name", "args", "pid", "window"])
def test_deep_nesting_is_refused_at_every_place(place: str, depth: int) -> None:
    """However deep a value is nested, wherever it stands, it is refused like any other value that is wrong there."""
    marks = {"version": 91, "boot": 92, "id": 93, "name": "exit", "args": [94], "window": 95}
    flat = {"version": raw(91)[1:], "id": raw(93)[1:], "name": raw("exit")[1:], "args": raw([94])[1:]}
    flat |= {"pid": raw(94)[1:], "window": raw(95)[1:]}
    body = raw(*marks.values()).replace(flat[place], b"\x91" * depth + b"\x01")
    for field, right in (("version", raw(VERSION)[1:]), ("boot", raw(BOOT)[1:])):
        if place != field:
            body = body.replace(raw(marks[field])[1:], right)
    with pytest.raises((WireError, MmError)):
        unpack_request(body, BOOT)


def test_only_what_fits_is_sent() -> None:
    """A client is told before it sends what cannot be sent."""
    for args in ([1, 1 << 64], [1, -(1 << 63) - 1], [1, object()], [1, b"x" * limits.MESSAGE_BYTES_MAX]):
        with pytest.raises(MmError) as refusal:
            pack_request(BOOT, 1, "brk", args)
        assert refusal.value.errno == errno.EINVAL
        assert refusal.value.detail.startswith("brk: ")


# -- replies -----------------------------------------------------------------------------------------------------------


#: Longer than a request may be, as numa_maps of many mappings are.
LONG = "7f0000000000 default\n" * (limits.MESSAGE_BYTES_MAX // 16)


@pytest.mark.parametrize(
    "result",
    [None, 0, WORD, True, "text", b"\0\xff", [1, None, [2]], {"a": 1}, LONG],
    ids=lambda result: repr(result)[:20],
)
def test_a_reply_survives_the_wire(result: Any) -> None:  # noqa: ANN401 - any call's result
    """A result arrives as it was sent, with the machine and the request that it belongs to."""
    assert unpack_reply(pack_reply(BOOT, 7, result)) == (BOOT, 7, result)


REFUSALS: dict[str, MmError] = {
    "errno": MmError(errno.EPERM, "MPOL_MF_MOVE_ALL needs CAP_SYS_RESOURCE"),
    "errno-bare": MmError(errno.EINVAL),
    "errno-unknown": MmError(4000, "no such number"),
    "segmentation-fault": SegmentationFault(0x7FFF_FFFF_F000, "nothing is mapped there"),
    "segmentation-fault-bare": SegmentationFault(WORD),
    "out-of-memory": OutOfMemory(),
    "out-of-memory-detail": OutOfMemory("no page-table page is left"),
}


@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_arrives_as_the_same_exception(error: MmError) -> None:
    """What the daemon raised is what the client's caller gets: class, errno, words and address."""
    with pytest.raises(MmError) as refusal:
        unpack_reply(pack_refusal(BOOT, 7, error))
    got = refusal.value
    assert type(got) is type(error)
    assert (got.errno, got.detail, str(got)) == (error.errno, error.detail, str(error))
    assert getattr(got, "address", None) == getattr(error, "address", None)


@pytest.mark.parametrize("error", [WireError("version 2"), PeerError("gone"), BugError("a bug"), ValueError("odd")])
def test_any_other_refusal_is_a_breach_of_the_protocol(error: Exception) -> None:
    """What is no refusal of a call arrives as a WireError with its words."""
    with pytest.raises(WireError) as refusal:
        unpack_reply(pack_refusal(BOOT, 7, error))
    assert str(refusal.value) == str(error)


NO_REPLIES: dict[str, bytes] = {
    "empty": b"",
    "cut-short": pack_reply(BOOT, 7, [1, 2])[:-1],
    "too-few": raw(VERSION, BOOT, 7, 0),
    "too-many": raw(VERSION, BOOT, 7, 0, None, None),
    "request": request("exit", [1]),
    "version": raw(2, BOOT, 7, 0, None),
    "refusal-none": raw(VERSION, BOOT, 7, errno.EINVAL, None),
    "refusal-number": raw(VERSION, BOOT, 7, errno.EINVAL, 5),
    "refusal-short": raw(VERSION, BOOT, 7, errno.EINVAL, ["errno", "text"]),
    "status-list": raw(VERSION, BOOT, 7, [22], ["errno", "text", 0]),
    "address-text": raw(VERSION, BOOT, 7, errno.EFAULT, ["segv", "", "0x1000"]),
}


@pytest.mark.parametrize("body", NO_REPLIES.values(), ids=NO_REPLIES)
def test_what_is_no_reply_is_a_wire_error(body: bytes) -> None:
    """A message that is no reply of this protocol is refused as such, whatever its parts are."""
    with pytest.raises(WireError):
        unpack_reply(body)


def test_a_reply_that_is_longer_than_any_is_not_read() -> None:
    """However it goes on."""
    with pytest.raises(WireError, match="too long"):
        unpack_reply(bytes(limits.REPLY_BYTES_MAX + 1))


# -- anything at all ---------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), WORD),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=20),
        st.sampled_from([VERSION, BOOT, TOKEN, *CALLS, "errno", "segv", "oom", "protocol"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.one_of(st.text(max_size=4), st.binary(max_size=4)), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_random_bytes_are_refused(body: bytes) -> None:
    """Bytes that nobody packed are no request and no reply, and nothing else comes of them."""
    with pytest.raises((WireError, MmError)):
        unpack_request(body, BOOT)
    with pytest.raises((WireError, MmError)):
        unpack_reply(body)


@settings(max_examples=200)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_a_request_with_one_byte_changed_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """A damaged request is still a request, or it is refused; no other exception escapes."""
    body = bytearray(pack_request(BOOT, 9, name, VALID[name][0], 3))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = unpack_request(bytes(body), BOOT)
    except (WireError, MmError):
        return
    assert got.name in CALLS
    assert len(got.args) == len(CALLS[got.name])


@settings(max_examples=100)
@given(st.sampled_from(sorted(CALLS)), st.data())
def test_random_arguments_are_read_or_refused(name: str, data: st.DataObject) -> None:
    """Arguments of any types are checked one by one: what passes is of the type that the call takes."""
    args = data.draw(st.lists(VALUES, min_size=len(CALLS[name]), max_size=len(CALLS[name])))
    body = request(name, args, data.draw(st.one_of(st.none(), VALUES)))
    refused: MmError | None = None
    try:
        got = unpack_request(body, BOOT)
    except MmError as error:
        refused = error
    if refused is not None:
        assert refused.errno in (errno.EINVAL, errno.EACCES)
        assert refused.request_id == 7
    else:
        assert [check(value) for check, value in zip(CALLS[name], got.args, strict=True)] == got.args


@settings(max_examples=150)
@given(st.sampled_from([VERSION, VERSION, 2]), VALUES, VALUES, VALUES, VALUES)
def test_random_replies_are_read_or_refused(
    version: int, boot: object, number: object, status: object, result: object
) -> None:
    """A reply made of any values is a reply or is refused; no other exception escapes."""
    try:
        got = unpack_reply(raw(version, boot, number, status, result))
    except (WireError, MmError):
        return
    assert len(got) == 3


def test_the_protocol_version_is_one() -> None:
    """Version 1 is what this library and this daemon speak."""
    assert wire.VERSION == 1
