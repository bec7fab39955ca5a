"""Masks as they lie in a program's memory."""

from typing import Final

from numaemu_core import limits
from numaemu_run import target

WORD_BYTES: Final = 8
_WORD_BITS: Final = 64


def read_words(tid: int, address: int, maxnode: int) -> list[int] | None:
    """The words of a node mask, as many as can be read of those that `maxnode` promises; None for a null pointer.

    What is missing, and masks that are too long, the machine refuses.
    """
    if not address:
        return None
    wanted = min(-(-max(maxnode - 1, 0) // _WORD_BITS), limits.MASK_WORDS_MAX)
    body = target.read_some(tid, address, wanted * WORD_BYTES) if wanted else b""
    return words_of(body)


def words_of(body: bytes) -> list[int]:
    """Whole words of bytes."""
    whole = len(body) // WORD_BYTES * WORD_BYTES
    return [int.from_bytes(body[at : at + WORD_BYTES], "little") for at in range(0, whole, WORD_BYTES)]
