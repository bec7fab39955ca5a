"""Node sets as the system calls take them: words of 64 bits, and maxnode.

The kernel looks at maxnode - 1 bits of a mask (get_nodes of mm/mempolicy.c takes one off), so maxnode here is one more
than the bits that are sent.
"""

from __future__ import annotations

import errno
import operator
from typing import TYPE_CHECKING, Final

import numpy as np

from numaemu_core import limits
from numaemu_core.nodemask import mask_of, nodes_of
from numaemu_core.wire import STATUS_UNWRITTEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numaemu_core.columns import I8

_WORD_BITS: Final = 64
_WORD: Final = (1 << _WORD_BITS) - 1
#: What fits a mask on the wire.
_NODE_MAX: Final = limits.MASK_WORDS_MAX * _WORD_BITS - 1


def mask_words(nodes: Iterable[int]) -> tuple[list[int], int]:
    """The words of a set of node ids (one word at least), and its maxnode.

    Raises:
        OSError: EINVAL: an id is negative, or too large for any mask. TypeError: it is no number.
    """
    try:
        ids = [operator.index(node) for node in nodes]
    except TypeError:
        raise TypeError(f"nodes: expected a set of node ids, got {nodes!r}") from None
    for node in ids:
        if not 0 <= node <= _NODE_MAX:
            raise OSError(errno.EINVAL, f"expected node ids from 0 to {_NODE_MAX}, got {node}")
    mask = mask_of(ids)
    words = [mask & _WORD]
    while mask := mask >> _WORD_BITS:
        words.append(mask & _WORD)
    return words, len(words) * _WORD_BITS + 1


def masks_alike(first: Iterable[int], second: Iterable[int]) -> tuple[int, list[int], list[int]]:
    """Maxnode and the words of two sets, both as long as the longer one asks for. OSError as `mask_words`."""
    one, other = mask_words(first)[0], mask_words(second)[0]
    longer = max(len(one), len(other))
    one, other = (words + [0] * (longer - len(words)) for words in (one, other))
    return longer * _WORD_BITS + 1, one, other


def status_array(status: bytes | None, pages: int) -> I8:
    """The statuses of move_pages as numbers; -EAGAIN where there are none, or none that the kernel wrote."""
    found = np.full(pages, -errno.EAGAIN)
    if status:
        known = np.frombuffer(status, "<i4")
        written = np.flatnonzero(known != STATUS_UNWRITTEN)
        found[written] = known[written]
    return found


def nodes_of_bytes(mask: bytes) -> set[int]:
    """The node ids of a mask that came back, little-endian."""
    return set(nodes_of(int.from_bytes(mask, "little")))


#: maxnode that has room for every node of a machine.
MAXNODE: Final = limits.MAX_NUMNODES + 1
