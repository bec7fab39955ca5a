"""The nouns of the .facts files: numbers, pages, nodes, policies, lists."""

import re
from typing import Final

from numaemu_core import uapi
from numaemu_core.nodemask import mask_of, nodes_of
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.uapi import MPOL_BIND, MPOL_DEFAULT, MPOL_INTERLEAVE, MPOL_PREFERRED

from .language import Misspelt

PAGE: Final = 4096

MODES: Final = {
    "DEFAULT": MPOL_DEFAULT,
    "PREFERRED": MPOL_PREFERRED,
    "BIND": MPOL_BIND,
    "INTERLEAVE": MPOL_INTERLEAVE,
}
_NAMES: Final = {mode: name for name, mode in MODES.items()}
_POLICY: Final = re.compile(r"([\w^+-]+)(?:\{([\d,]*)\})?")
_TERM: Final = re.compile(r"([+-]?)(\w+(?:\^\d+)?)")
_ULONG: Final = (1 << 64) - 1


class Words:
    """The words behind a verb: `plain` ones in their order, and `name=value` ones by name."""

    def __init__(self, words: list[str]) -> None:
        """Sort them."""
        self.plain = [word for word in words if "=" not in word]
        self.named = dict(word.split("=", 1) for word in words if "=" in word)

    def take(self, name: str, default: str = "") -> str:
        """A named word, which is then used up."""
        return self.named.pop(name, default)

    def number(self, name: str, default: int = 0) -> int:
        """A named number."""
        return number(self.named.pop(name)) if name in self.named else default

    def end(self) -> None:
        """Was every named word meant?"""
        if self.named:
            raise Misspelt(f"unknown: {', '.join(self.named)}")


def number(text: str) -> int:
    """Sums of numbers and powers: `7`, `0x20`, `2^32-4`; `ULONG_MAX` is the largest unsigned long."""
    total = 0
    if not _TERM.match(text) or "".join(sign + term for sign, term in _TERM.findall(text)) != text:
        raise Misspelt(f"{text!r} is no number")
    for sign, term in _TERM.findall(text):
        base, _, power = term.partition("^")
        value = _ULONG if base == "ULONG_MAX" else int(base, 0)
        value = value ** int(power) if power else value
        total += -value if sign == "-" else value
    return total


def pages(text: str) -> tuple[int, int]:
    """`3+4`: four pages from page 3 on; `3`: one."""
    first, _, count = text.partition("+")
    return number(first), number(count) if count else 1


def nodes(text: str) -> set[int]:
    """`{0,2}`."""
    return {int(word) for word in text.strip("{}").split(",") if word}


def policy(text: str) -> tuple[int, list[int] | None]:
    """`BIND{0,1}`: mode and mask; without braces there is no mask at all. A number is a mode, too."""
    found = _POLICY.fullmatch(text)
    if found is None:
        raise Misspelt(f"{text!r} is no policy")
    mode = MODES[found[1]] if found[1] in MODES else number(found[1]) & _ULONG
    return mode, None if found[2] is None else [mask_of(nodes(found[2]))]


def mask_words(text: str) -> list[int] | None:
    """`1,0*3`: words of a mask; `nil`: no mask; nothing: a mask of which no word can be read."""
    if text == "nil":
        return None
    return [number(word) for word in expand(text.replace(",", " "))]


def bits(text: str, prefix: str) -> int:
    """`STRICT|MOVE`: the constants of that prefix; numbers stand for themselves."""
    value = 0
    for word in text.split("|"):
        value |= getattr(uapi, prefix + word) if hasattr(uapi, prefix + word) else number(word)
    return value


def expand(text: str) -> list[str]:
    """`0*4 1`: a list, repetitions written out; `nothing`: an empty one."""
    items: list[str] = []
    if text == "nothing":
        return items
    for word in text.split():
        item, _, times = word.partition("*")
        items += [item] * (int(times) if times else 1)
    return items


def shown(value: Mempolicy | None) -> str:
    """A policy as these files spell it; PREFERRED without nodes is local."""
    if value is None:
        return "DEFAULT"
    if value.mode == MPOL_PREFERRED:
        return "PREFERRED{" + (str(value.preferred) if value.preferred >= 0 else "") + "}"
    return _NAMES[value.mode] + braces(value.nodes)


def braces(mask: int) -> str:
    """A mask as a set."""
    return "{" + ",".join(map(str, nodes_of(mask))) + "}"


def mode_name(mode: int) -> str:
    """A mode by name."""
    return _NAMES[mode]
