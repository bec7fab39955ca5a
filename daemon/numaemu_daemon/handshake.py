"""What init and its children say to each other on init's socket, and the check of each message.

    child -> init   {"hello": role, "node": nid or nil, "pid": pid}
    init -> child   {"create": true}                                   the first start: make what you own
    child -> init   {"created": [names]} + descriptors
    init -> child   {"go": true, "segments": [names], "more": false} + descriptors
    init -> child   {"create": false, "segments": ...} + descriptors   instead of the three above, after a restart
    child -> init   {"up": true}                                       it serves
    child -> init   {"done": {counter: value}}                         now and then
    child -> init   {"failed": "one line"}                             it ends because of that
    init -> child   {"fence": generation}                              the kernel daemon died, another one will come
    child -> init   {"fenced": generation}                             nothing that the old one asked for goes on
    child -> init   {"watch": pid}           on a second connection, which is silent: its end tells of the end of init
    anyone -> init  {"waits_for": role, "node": nid or nil}            no answer: is it stopped?
    anyone -> init  {"command": "status"} or {"command": "down"}, each answered

Descriptors go in portions, as one message carries at most `fdsock.MAX_FDS`: `more` is true for all but the last.
"""

import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from numaemu_host import fdsock

#: Descriptors in one message: few enough that 128 nodes' segments are sent while others are still read.
PORTION_FDS: Final = 64
#: Counters that one child may report.
COUNTERS_MAX: Final = 64
_NAME_MAX: Final = 64
_LINE_MAX: Final = 2000

assert PORTION_FDS <= fdsock.MAX_FDS


class HandshakeError(Exception):
    """The other side sent what it must not."""


def send_segments(sock: socket.socket, head: Mapping[str, object], fds: Mapping[str, int]) -> None:
    """Send `head` with all descriptors and their names. OSError as the socket is set."""
    names = list(fds)
    for start in range(0, max(len(names), 1), PORTION_FDS):
        portion = names[start : start + PORTION_FDS]
        more = start + PORTION_FDS < len(names)
        fdsock.send(sock, {**head, "segments": portion, "more": more}, [fds[name] for name in portion])


def receive_segments(
    sock: socket.socket, first: Mapping[str, Any], first_fds: list[int], expected: list[str]
) -> dict[str, int]:
    """The descriptors by name, given the first portion; the caller's to close.

    EOFError if init is gone, HandshakeError if not exactly the `expected` names came.
    """
    fds: dict[str, int] = {}
    message, portion = first, first_fds
    while True:
        names = message.get("segments")
        if not isinstance(names, list) or len(names) != len(portion):
            raise _refusal([*fds.values(), *portion], "names and descriptors do not match")
        fds |= zip(names, portion, strict=True)
        if message.get("more") is not True:
            break
        received, portion = fdsock.recv(sock)
        message = received if isinstance(received, dict) else {}
    if sorted(fds) != sorted(expected):
        raise _refusal(list(fds.values()), f"expected the segments {sorted(expected)}, got {sorted(fds)}")
    return fds


def _refusal(fds: list[int], reason: str) -> HandshakeError:
    close_all(fds)
    return HandshakeError(reason)


def close_all(fds: list[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def message_of(received: object) -> dict[str, Any]:
    """A message's shape: a map with names as keys. HandshakeError if it is something else."""
    if not isinstance(received, dict) or not all(isinstance(key, str) for key in received):
        raise HandshakeError("expected a map")
    return received


def counters_of(value: object) -> dict[str, int]:
    """Counters as a child reports them. HandshakeError if they are something else."""
    if not isinstance(value, dict) or len(value) > COUNTERS_MAX:
        raise HandshakeError(f"expected at most {COUNTERS_MAX} counters")
    for name, count in value.items():
        if not isinstance(name, str) or len(name) > _NAME_MAX or isinstance(count, bool) or not isinstance(count, int):
            raise HandshakeError("expected whole numbers by name")
    return dict(value)


def generation_of(value: object) -> int:
    """The number in `{"fence": N}`. HandshakeError if it is something else."""
    match message_of(value):
        case {"fence": int(number)} if number > 0:
            return number
    raise HandshakeError("expected the generation of a kernel daemon")


def line_of(value: object) -> str:
    """One line of text. HandshakeError if it is something else."""
    if not isinstance(value, str):
        raise HandshakeError("expected one line of text")
    return " ".join(value.split())[:_LINE_MAX]


def answer(sock: socket.socket, message: Mapping[str, object]) -> None:
    """Answer a command. OSError if the one who asked is gone or does not read."""
    fdsock.send(sock, dict(message))
