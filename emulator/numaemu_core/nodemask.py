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


def nth_node(ordinal: int, mask: int) -> int:
    """The node of a mask that so many nodes of it lie below."""
    for _ in range(ordinal):
        mask &= mask - 1
    return first_node(mask)


def node_remap(node: int, old: int, new: int) -> int:
    """Where a node goes when `new` takes the place of `old`: the same position, counted round; others stay.

    Mirrors: bitmap_bitremap, lib/bitmap.c.
    """
    if node < 0 or not old >> node & 1 or not new:
        return node
    ordinal = (old & (1 << node) - 1).bit_count()
    return nth_node(ordinal % new.bit_count(), new)


def nodes_remap(mask: int, old: int, new: int) -> int:
    """The nodes of a mask, each where `node_remap` puts it."""
    return mask_of(node_remap(node, old, new) for node in nodes_of(mask))


def nodes_relative(mask: int, allowed: int) -> int:
    """A mask of positions, folded to the number of allowed nodes, as nodes (mpol_relative_nodemask)."""
    count = allowed.bit_count()
    return mask_of(nth_node(position % count, allowed) for position in nodes_of(mask))


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
