"""Whom a machine admits beside its owner, and with which capabilities: what `numaemu up` was told, checked once.

Users are numbers: uids of the host, and numbers that stand for the keys of those who come over TCP. In the emulated
kernel a task of the owner's clients begins as root, one of another user's with that number as its uid.
"""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from numaemu_core.errors import TopologyError
from numaemu_core.uapi import CAPABILITIES

#: The emulated uid of the owner's clients.
ROOT: Final = 0
_UID_MAX: Final = (1 << 32) - 2
#: Users and keys that one machine admits.
_COUNT_MAX: Final = 1024
#: The first of the numbers that keys get which were given none.
_FIRST_KEY_UID: Final = 2_000_000_000
#: A CURVE key in Z85.
KEY_CHARACTERS: Final = 40
_Z85: Final = frozenset(string.digits + string.ascii_letters + ".-:+=^!/*?&<>()[]{}@%$#")


class AdmissionError(TopologyError):
    """What was said about other users cannot be; the message names it and what was expected."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may come in, and what they may: nobody and nothing unless told."""

    #: Users of the host who may attach, remotely.
    uids: frozenset[int] = frozenset()
    #: Capabilities that every other user may name, and those that one user may name beside them.
    granted: frozenset[str] = frozenset()
    grants: Mapping[int, frozenset[str]] = field(default_factory=dict)
    #: The TCP endpoint, "" for none; public keys (Z85) of those who may come over it, with their numbers; and the path
    #: of the file with the machine's own keys.
    listen: str = ""
    keys: Mapping[str, int] = field(default_factory=dict)
    server_key: str = ""

    def capabilities(self, uid: int) -> frozenset[str]:
        """What tasks of that user may have."""
        return self.granted | self.grants.get(uid, frozenset())

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "uids": sorted(self.uids),
            "granted": sorted(self.granted),
            "grants": {str(uid): sorted(names) for uid, names in self.grants.items()},
            "listen": self.listen,
            "keys": dict(self.keys),
            "server_key": self.server_key,
        }


def from_dict(described: Mapping[str, Any]) -> Admission:
    """The admission that `as_dict` described. AdmissionError."""
    return make_admission(
        described["uids"],
        [",".join(described["granted"]), *(f"{uid}:{','.join(caps)}" for uid, caps in described["grants"].items())],
        listen=described["listen"],
        keys=[f"{key}={uid}" for key, uid in described["keys"].items()],
        server_key=described["server_key"],
    )


def make_admission(
    uids: Iterable[int] = (),
    grants: Iterable[str] = (),
    *,
    listen: str = "",
    keys: Iterable[str] = (),
    server_key: str = "",
) -> Admission:
    """Check what was said; `grants` are texts "CAP,…" and "UID:CAP,…", `keys` are "KEY" and "KEY=UID".

    Raises:
        AdmissionError: something of it cannot be.
    """
    admitted = frozenset(_uid(uid) for uid in uids)
    numbered = _numbered_keys(keys)
    if len(admitted) + len(numbered) > _COUNT_MAX:
        raise AdmissionError(f"a machine admits at most {_COUNT_MAX} users and keys")
    for_all: frozenset[str] = frozenset()
    for_one: dict[int, frozenset[str]] = {}
    for text in grants:
        who, colon, names = text.rpartition(":")
        if colon:
            uid = parse_uid(who)
            for_one[uid] = for_one.get(uid, frozenset()) | _capabilities(names)
        else:
            for_all |= _capabilities(names)
    strangers = sorted(for_one.keys() - admitted - set(numbered.values()))
    if strangers:
        raise AdmissionError(f"capabilities for user {strangers[0]}, whom nothing admits")
    if listen and not listen.startswith("tcp://"):
        raise AdmissionError(f"expected an endpoint such as tcp://127.0.0.1:5555, got {listen!r}")
    if listen and not numbered:
        raise AdmissionError(f"{listen} would admit nobody: TCP is for the holders of keys, and no key is authorized")
    if numbered and not listen:
        raise AdmissionError("keys are authorized, and there is no endpoint on TCP that they could come to")
    return Admission(admitted, for_all, for_one, listen, numbered, server_key)


def parse_uid(text: str) -> int:
    """A user id as a person types it. AdmissionError."""
    if not (text.isascii() and text.isdecimal()):
        raise AdmissionError(f"expected a user id, got {text!r}")
    return _uid(int(text))


def _uid(uid: int) -> int:
    if uid == ROOT:
        raise AdmissionError("root is not admitted as another user: in the machine its owner is root")
    if not 0 < uid <= _UID_MAX:
        raise AdmissionError(f"expected a user id from 1 to {_UID_MAX}, got {uid!r}")
    return uid


def _capabilities(text: str) -> frozenset[str]:
    names = frozenset(name for name in text.split(",") if name)
    unknown = sorted(names - CAPABILITIES)
    if unknown:
        raise AdmissionError(f"capability {unknown[0]!r} is not known; known: {', '.join(sorted(CAPABILITIES))}")
    return names


def _numbered_keys(keys: Iterable[str]) -> dict[str, int]:
    """Each key with its number: that which it was given, or one that nobody else has."""
    found: dict[str, int] = {}
    for position, text in enumerate(keys):
        key, rest = text[:KEY_CHARACTERS], text[KEY_CHARACTERS:]
        if not is_key(key) or (rest and not rest.startswith("=")):
            raise AdmissionError(f"expected a public key of {KEY_CHARACTERS} characters, or KEY=UID, got {text!r}")
        if key in found:
            raise AdmissionError(f"the key {key} is authorized twice")
        found[key] = parse_uid(rest[1:]) if rest else _FIRST_KEY_UID + position
    return found


def is_key(text: str) -> bool:
    """Has it the shape of a CURVE key in Z85?"""
    return len(text) == KEY_CHARACTERS and set(text) <= _Z85
