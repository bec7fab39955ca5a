"""Node sets as the system calls take them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu.masks import mask_words, masks_alike, nodes_of_bytes, status_array


@given(st.sets(st.integers(0, 300)))
def test_round_trip(nodes: set[int]) -> None:
    """Words and maxnode hold exactly the set, and maxnode is one more than the bits sent."""
    words, maxnode = mask_words(nodes)
    assert maxnode == 64 * len(words) + 1
    assert nodes_of_bytes(b"".join(word.to_bytes(8, "little") for word in words)) == nodes


def test_empty_set_is_one_word() -> None:
    """No nodes are a word of zeros, not a missing mask."""
    assert mask_words(()) == ([0], 65)


@pytest.mark.parametrize("node", [-1, 1 << 20, 1 << 70])
def test_no_such_bit(node: int) -> None:
    """An id that no mask has is EINVAL, without making a mask of that size."""
    with pytest.raises(OSError, match="node ids"):
        mask_words([node])


@pytest.mark.parametrize("nodes", [["1"], "1", 1, None])
def test_no_set_of_numbers(nodes: object) -> None:
    """What is no set of whole numbers is a TypeError that says what was expected."""
    with pytest.raises(TypeError, match="nodes: expected a set of node ids, got"):
        mask_words(nodes)  # type: ignore[arg-type] # that is the point


@given(st.sets(st.integers(0, 300)), st.sets(st.integers(0, 300)))
def test_two_masks_of_one_length(first: set[int], second: set[int]) -> None:
    """Both sets are told by as many words, and one maxnode counts the bits of either."""
    maxnode, one, other = masks_alike(first, second)
    assert len(one) == len(other) == (maxnode - 1) // 64
    for nodes, words in ((first, one), (second, other)):
        assert nodes_of_bytes(b"".join(word.to_bytes(8, "little") for word in words)) == nodes


def test_statuses_that_were_not_written() -> None:
    """What the kernel left unwritten is -EAGAIN: no node, and no error that it gives."""
    assert status_array(b"\x01\x00\x00\x00", 3).tolist() == [1, -11, -11]
    assert status_array(None, 1).tolist() == [-11]
