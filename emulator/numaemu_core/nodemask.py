"""Sets of nodes as integers: bit n is node n. Any width, one word or many."""

from collections.abc import Iterable, Iterator, Sequence


def mask_of(nodes: Iterable[int]) -> int:
    """The mask with the bits of `nodes` set."""
    mask = 0
    for node in nodes:
        mask |= 1 << node
    return mask


def nodes_of(mask: int) -> Iterator[int]:
    """The nodes of a mask, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def first_node(mask: int) -> int:
    """The lowest node of a mask that is not empty."""
    assert mask
    return (mask & -mask).bit_length() - 1


def next_node(after: int, mask: int) -> int:
    """The lowest node of `mask` above `after`, or its first one: how an interleave goes round."""
    above = mask >> (after + 1) << (after + 1)
    return first_node(above or mask)


def node_list(ids: Sequence[int]) -> str:
    """Ascending ids as today's kernels print sets: `0-3,5`."""
    parts: list[str] = []
    start = 0
    for i, node in enumerate(ids):
        if i + 1 < len(ids) and ids[i + 1] == node + 1:
            continue
        parts.append(str(node) if start == i else f"{ids[start]}-{node}")
        start = i + 1
    return ",".join(parts)
