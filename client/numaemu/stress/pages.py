"""What a page of the run holds, what is known of it, and what is wrong with one that holds something else.

A page repeats a tag of four words of 64 bits: a magic number, who wrote it, where it belongs (area and page), and when
(its version: the how manieth write of this page it is). The words of the n-th tag are mixed with n, so that bytes that
moved inside of the page show, too. Version 0 is a page that nobody has written: zeros.

What is known of a page is one word: its version, and flags that say what else it may hold. Whoever writes a page first
says so in its word, and says when it is done; so the word of a page whose writer was killed tells what it may hold.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numaemu_core.columns import U1, U8

_MAGIC: Final = 0x6E756D61656D7521
_TAG_WORDS: Final = 4
_TAG_BYTES: Final = 8 * _TAG_WORDS
#: An odd number: its multiples differ in all bits.
_MIX: Final = 0x9E3779B97F4A7C15

#: The version is being written: the page holds it, or what was there before, or a part of each.
WRITING: Final = 1
#: The page, before that write if one is under way, holds zeros.
ZERO: Final = 2
#: The page may hold zeros, too.
DROPPING: Final = 4
_VERSION_SHIFT: Final = 3

_AREA_SHIFT: Final = np.uint64(32)


class Verdict(enum.IntEnum):
    """What a page turned out to be."""

    #: All of a version that it may hold.
    RIGHT = 0
    #: Zeros, or all of an earlier version of this page.
    LOST = 1
    #: Anything else.
    WRONG = 2
    #: A part of each of those that it may hold, in the middle of a write.
    TORN = 3


def places(area: int, first: int, count: int) -> U8:
    """Where `count` pages of an area belong, from page `first` on."""
    return np.uint64(area) << _AREA_SHIFT | np.arange(first, first + count, dtype=np.uint64)


def contents(page_size: int, who: U8, where: U8, versions: U8) -> U8:
    """Whole pages; all arguments [n], gives [n, page_size / 8]."""
    tags = np.empty((len(versions), _TAG_WORDS), np.uint64)
    tags[:, 0] = _MAGIC
    tags[:, 1] = who
    tags[:, 2] = where
    tags[:, 3] = versions
    mixed: U8 = np.tile(tags, page_size // _TAG_BYTES) ^ _mix(page_size)
    mixed[versions == 0] = 0
    return mixed


def _mix(page_size: int) -> U8:
    numbers = np.repeat(np.arange(page_size // _TAG_BYTES, dtype=np.uint64), _TAG_WORDS)
    return numbers * np.uint64(_MIX)


# -- words -------------------------------------------------------------------------------------------------------------


def version_of(words: U8) -> U8:
    """The last version of each page that was begun."""
    return words >> np.uint64(_VERSION_SHIFT)


def settled(words: U8) -> Any:  # noqa: ANN401 - bool[n]; numpy does not say so
    """Which pages hold one thing that is known."""
    return words & np.uint64(WRITING | DROPPING) == 0


def begun(words: U8) -> U8:
    """Words while the next version is written; a version that was begun and not completed is written again."""
    under_way = words & np.uint64(WRITING) != 0
    return np.where(under_way, words, words + np.uint64(1 << _VERSION_SHIFT | WRITING)).astype(np.uint64)


def completed(words: U8) -> U8:
    """Words once that is done."""
    return version_of(words) << np.uint64(_VERSION_SHIFT)


def dropping(words: U8) -> U8:
    """Words while pages are thrown away."""
    return words | np.uint64(DROPPING)


def dropped(words: U8) -> U8:
    """Words once they are: the pages read as zeros."""
    return completed(words) | np.uint64(ZERO)


def may_hold(word: int) -> list[int]:
    """The versions that a page may hold, 0 for zeros, by its word."""
    version = word >> _VERSION_SHIFT
    before = [] if word & ZERO else [version - 1 if word & WRITING else version]
    versions = {version} if word & WRITING else set()
    versions.update(before)
    if word & (ZERO | DROPPING):
        versions.add(0)
    return sorted(versions, reverse=True)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def judge(found: U8, who: U8, where: U8, words: U8) -> list[Verdict]:
    """Compare pages, [n, page_size / 8], with what is known of them; who, where and words are [n]."""
    page_size = found.shape[1] * 8
    versions = version_of(words)
    versions[words & np.uint64(ZERO | WRITING) == ZERO] = 0
    right = (found == contents(page_size, who, where, versions)).all(axis=1)
    verdicts = [Verdict.RIGHT] * len(words)
    for i in np.flatnonzero(~right).tolist():
        verdicts[i] = judge_page(found[i], int(who[i]), int(where[i]), int(words[i]))
    return verdicts


def judge_page(found: U8, who: int, where: int, word: int) -> Verdict:
    """The verdict on one page, [page_size / 8]."""
    allowed = [_one(found, who, where, version) for version in may_hold(word)]
    if any(np.array_equal(found, page) for page in allowed):
        return Verdict.RIGHT
    if word & WRITING and _is_mixture(found, allowed):
        return Verdict.TORN
    return Verdict.LOST if _is_earlier(found, who, where, word >> _VERSION_SHIFT) else Verdict.WRONG


def _one(like: U8, who: int, where: int, version: int) -> U8:
    one = contents(len(like) * 8, *(np.array([value], np.uint64) for value in (who, where, version)))
    return one[0]


def _is_mixture(found: U8, allowed: list[U8]) -> bool:
    """Is every byte that of one of these pages at the same place?"""
    matches: U1 = np.zeros(found.nbytes, np.uint8)
    for page in allowed:
        matches |= found.view(np.uint8) == page.view(np.uint8)
    return bool(matches.all())


def _is_earlier(found: U8, who: int, where: int, last: int) -> bool:
    if not found.any():
        return True
    version = int(found[3])
    return version <= last and np.array_equal(found, _one(found, who, where, version))


def told(found: U8) -> str:
    """What a page says of itself, for people."""
    if not found.any():
        return "zeros"
    magic, who, where, version = found[:_TAG_WORDS].tolist()
    if magic != _MAGIC:
        return f"no tag but {found[:_TAG_WORDS].tobytes().hex()}"
    name = f"version {version} of page {where & 0xFFFFFFFF} of area {where >> 32}, written by {who:#x}"
    whole = np.array_equal(found, _one(found, who, where, version))
    return name if whole else f"{name}, and something else from word {_first_difference(found)} on"


def _first_difference(found: U8) -> int:
    _, who, where, version = found[:_TAG_WORDS].tolist()
    return int((found != _one(found, who, where, version)).argmax())
