"""The words of a program's lines: addresses in pages, lengths, masks, modes, flags."""

from __future__ import annotations

import re
from typing import Final

from numaemu_core import uapi

PAGE: Final = 4096
#: Where page 0 of the programs' arena lies.
ARENA: Final = 0x10000000000
#: A pointer that points nowhere.
BAD_POINTER: Final = 8
WORD_BITS: Final = 64
_ULONG: Final = 1 << 64

_MODES: Final = {
    "default": uapi.MPOL_DEFAULT,
    "prefer": uapi.MPOL_PREFERRED,
    "bind": uapi.MPOL_BIND,
    "interleave": uapi.MPOL_INTERLEAVE,
    "local": uapi.MPOL_LOCAL,
    "prefer_many": uapi.MPOL_PREFERRED_MANY,
    "winterleave": uapi.MPOL_WEIGHTED_INTERLEAVE,
    "static": uapi.MPOL_F_STATIC_NODES,
    "relative": uapi.MPOL_F_RELATIVE_NODES,
    "balancing": uapi.MPOL_F_NUMA_BALANCING,
}
_FLAGS: Final = {
    "strict": uapi.MPOL_MF_STRICT,
    "move": uapi.MPOL_MF_MOVE,
    "moveall": uapi.MPOL_MF_MOVE_ALL,
    "lazy": uapi.MPOL_MF_LAZY,
    "node": uapi.MPOL_F_NODE,
    "addr": uapi.MPOL_F_ADDR,
    "mems": uapi.MPOL_F_MEMS_ALLOWED,
}
ADVICE: Final = {
    "normal": uapi.MADV_NORMAL,
    "random": uapi.MADV_RANDOM,
    "sequential": uapi.MADV_SEQUENTIAL,
    "willneed": uapi.MADV_WILLNEED,
    "dontneed": uapi.MADV_DONTNEED,
    "free": uapi.MADV_FREE,
    "remove": uapi.MADV_REMOVE,
    "dontfork": uapi.MADV_DONTFORK,
    "dofork": uapi.MADV_DOFORK,
    "cold": uapi.MADV_COLD,
    "pageout": uapi.MADV_PAGEOUT,
    "populate_read": uapi.MADV_POPULATE_READ,
    "populate_write": uapi.MADV_POPULATE_WRITE,
    "dontneed_locked": uapi.MADV_DONTNEED_LOCKED,
}
MREMAP: Final = {
    "none": 0,
    "maymove": uapi.MREMAP_MAYMOVE,
    "fixed": uapi.MREMAP_FIXED,
    "dontunmap": uapi.MREMAP_DONTUNMAP,
}
RIGHTS: Final = {
    "rw": uapi.PROT_READ | uapi.PROT_WRITE,
    "r": uapi.PROT_READ,
    "n": uapi.PROT_NONE,
    "w": uapi.PROT_WRITE,
    "rx": uapi.PROT_READ | uapi.PROT_EXEC,
    "rwx": uapi.PROT_READ | uapi.PROT_WRITE | uapi.PROT_EXEC,
    "x": uapi.PROT_EXEC,
}


def integer(word: str) -> int:
    """A number as C writes it."""
    return int(word, 0)


def _pages_and_bytes(word: str) -> int:
    parts = re.fullmatch(r"(-?\d+)([+-]\d+)?", word)
    if parts is None:
        raise ValueError(f"{word!r} is no number of pages")
    return int(parts[1]) * PAGE + int(parts[2] or 0)


def address(word: str) -> int:
    """PAGE, PAGE+BYTES, PAGE-BYTES in the arena; @HEX; null."""
    if word == "null":
        return 0
    if word.startswith("@"):
        return int(word[1:], 16)
    return ARENA + _pages_and_bytes(word)


def length(word: str) -> int:
    """PAGES, PAGES+BYTES, PAGES-BYTES, #BYTES; negative ones wrap."""
    size = int(word[1:], 0) if word.startswith("#") else _pages_and_bytes(word)
    return size % _ULONG


def _joined(word: str, names: dict[str, int]) -> int:
    total = 0
    for part in word.split("|"):
        total |= names[part] if part in names else int(part, 0)
    return total


def mode(word: str) -> int:
    """A mode, with mode flags joined by |."""
    return _joined(word, _MODES)


def flags(word: str) -> int:
    """Flags of mbind, move_pages and get_mempolicy, joined by |."""
    return _joined(word, _FLAGS) % _ULONG


def mremap_flags(word: str) -> int:
    """Flags of mremap, joined by |."""
    return _joined(word, MREMAP)


def mask(word: str) -> tuple[list[int] | None, bool]:
    """(words of a mask, or None for a null pointer; may the words behind them be read?).

    A pointer that points nowhere has no words; behind those of an edge nothing is mapped.
    """
    if word == "null":
        return None, True
    if word == "bad":
        return [], False
    edge = word.startswith("edge:")
    digits = word.removeprefix("edge:")
    value = int(digits, 16)
    count = max(1, -(-value.bit_length() // WORD_BITS))
    return [value >> (WORD_BITS * i) & (_ULONG - 1) for i in range(count)], not edge


def mask_for(word: str, maxnode: int) -> list[int] | None:
    """The words that the kernel can read for a mask of `maxnode` bits: zeros behind those that are given."""
    words, readable = mask(word)
    if words is not None and readable:
        needed = min(-(-max(maxnode, 1) // WORD_BITS) + 1, PAGE * 8 // WORD_BITS)
        words = words + [0] * (needed - len(words))
    return words


def mask_bytes(maxnode: int) -> int:
    """Bytes of a mask that get_mempolicy writes, in the arithmetic of an unsigned long: whole words."""
    return (maxnode - 1 + WORD_BITS - 1) % _ULONG // WORD_BITS * 8


def hex_mask(body: bytes) -> list[str]:
    """Words of a mask that the kernel wrote, as the recordings have them: one at least, but no zeros at the end."""
    words = [f"{int.from_bytes(body[i : i + 8], 'little'):x}" for i in range(0, len(body), 8)]
    while len(words) > 1 and words[-1] == "0":
        words.pop()
    return words
