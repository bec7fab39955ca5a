"""The small tools against naive models: copies of many pages, the search for free places, node masks, sizes."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu_core import limits
from numaemu_core.errors import TopologyError
from numaemu_core.next_fit import next_fit
from numaemu_core.nodemask import first_node, mask_of, next_node, nodes_of
from numaemu_core.runs import clear_rows, copy_rows
from numaemu_core.sizes import format_size, parse_size

# -- runs --------------------------------------------------------------------------------------------------------------

#: More than pass through the cache at one time.
ROWS = 160


@st.composite
def row_lists(draw: st.DrawFn, count: int, *, unique: bool) -> list[int]:
    """`count` rows: ascending, descending, random, or stretches of each."""
    match draw(st.sampled_from(["ascending", "descending", "random", "stretches"])):
        case "ascending":
            first = draw(st.integers(0, ROWS - count))
            return list(range(first, first + count))
        case "descending":
            first = draw(st.integers(0, ROWS - count))
            return list(range(first, first + count))[::-1]
        case "random":
            return draw(st.lists(st.integers(0, ROWS - 1), min_size=count, max_size=count, unique=unique))
        case _:
            cuts = sorted(draw(st.lists(st.integers(0, ROWS), max_size=6)))
            parts = [list(range(low, high)) for low, high in itertools.pairwise([0, *cuts, ROWS])]
            parts = [part[::-1] if draw(st.booleans()) else part for part in parts]
            return [row for part in draw(st.permutations(parts)) for row in part][:count]


@st.composite
def copies(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Rows to write, none twice, and as many to read."""
    count = draw(st.integers(0, ROWS))
    return draw(row_lists(count, unique=True)), draw(row_lists(count, unique=False))


@given(copies())
def test_copied_rows_are_those_of_a_loop(rows: tuple[list[int], list[int]]) -> None:
    """Every row gets the bytes of its source, and no other row is touched, whichever way the rows run."""
    source = np.arange(ROWS * 8, dtype=np.uint16).view(np.uint8).reshape(ROWS, 16)
    target = np.full((ROWS, 16), 255, np.uint8)
    expected = target.copy()
    for to, of in zip(*rows, strict=True):
        expected[to] = source[of]
    copy_rows(target, np.array(rows[0], np.int64), source, np.array(rows[1], np.int64))
    assert (target == expected).all()


@given(st.permutations(range(ROWS)), st.integers(0, ROWS // 2), st.booleans(), st.booleans())
def test_rows_are_copied_inside_one_array(
    order: list[int],
    count: int,
    ascending: bool,  # noqa: FBT001 - drawn by hypothesis
    descending: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    """Source and target may be one array when no row is both."""
    to, of = order[:count], order[ROWS - count :]
    to = sorted(to) if ascending else to
    of = sorted(of, reverse=True) if descending else of
    pages = np.arange(ROWS, dtype=np.uint8)[:, None].repeat(4, 1)
    expected = pages.copy()
    expected[to] = pages[of]
    copy_rows(pages, np.array(to, np.int64), pages, np.array(of, np.int64))
    assert (pages == expected).all()


@given(st.data(), st.integers(0, ROWS))
def test_cleared_rows_are_zero_and_no_others(data: st.DataObject, count: int) -> None:
    """The rows that are named become zero, whichever way they run."""
    rows = data.draw(row_lists(count, unique=False))
    pages = np.full((ROWS, 4), 7, np.uint8)
    clear_rows(pages, np.array(rows, np.int64))
    assert np.flatnonzero(~pages.any(axis=1)).tolist() == sorted(set(rows))
    assert (pages[pages.any(axis=1)] == 7).all()


# -- next fit ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=300), st.integers(1, 3), st.data())
def test_the_next_free_places_are_found(states: list[int], below: int, data: st.DataObject) -> None:
    """The places found are the first ones going round from the cursor, and the next search begins behind the last."""
    cursor = data.draw(st.integers(0, len(states) - 1))
    free = [at % len(states) for at in range(cursor, cursor + len(states)) if states[at % len(states)] < below]
    count = data.draw(st.integers(0, len(free)))
    found, after = next_fit(np.array(states, np.uint8), below, count, cursor)
    assert found.tolist() == free[:count]
    assert after == ((free[count - 1] + 1) % len(states) if count else cursor)


@pytest.mark.parametrize("seed", range(5))
def test_a_long_search_goes_round(seed: int) -> None:
    """A search through many more places than one step looks at finds the same as a short one."""
    rng = random.Random(seed)
    total = 3 * limits.SCAN_CHUNK_MAX
    states = np.full(total, 2, np.uint8)
    places = sorted(rng.sample(range(total), 20))
    states[places] = 0
    cursor = rng.randrange(total)
    expected = [place for place in places if place >= cursor] + [place for place in places if place < cursor]
    found, after = next_fit(states, 1, 20, cursor)
    assert found.tolist() == expected
    assert after == (expected[-1] + 1) % total


# -- node masks --------------------------------------------------------------------------------------------------------

NODES = st.sets(st.integers(0, 200))


@given(NODES)
def test_a_mask_is_a_set_of_nodes(nodes: set[int]) -> None:
    """A mask has one bit a node, and gives its nodes ascending."""
    mask = mask_of(nodes)
    assert mask == sum(1 << node for node in nodes)
    assert list(nodes_of(mask)) == sorted(nodes)
    assert mask_of([*nodes, *nodes]) == mask


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(0, 201))
def test_the_next_node_goes_round(nodes: set[int], after: int) -> None:
    """The next node is the lowest one above, or the first of all when there is none."""
    mask = mask_of(nodes)
    assert first_node(mask) == min(nodes)
    assert next_node(after, mask) == min((node for node in nodes if node > after), default=min(nodes))


def test_an_empty_mask_has_no_first_node() -> None:
    """Asking for the first of none is a mistake of ours."""
    with pytest.raises(AssertionError):
        first_node(0)


# -- sizes -------------------------------------------------------------------------------------------------------------

SIZES: dict[str | int, int] = {
    0: 0,
    4096: 4096,
    "0": 0,
    "4096": 4096,
    "4096B": 4096,
    "4K": 4096,
    "4k": 4096,
    "64M": 64 << 20,
    "64MB": 64 << 20,
    "64MiB": 64 << 20,
    "64 mib": 64 << 20,
    " 1G\n": 1 << 30,
    "1T": 1 << 40,
    "007K": 7 << 10,
}


@pytest.mark.parametrize(("text", "count_bytes"), SIZES.items(), ids=map(repr, SIZES))
def test_sizes_are_read_as_people_write_them(text: str | int, count_bytes: int) -> None:
    """Units are powers of 1024, in either case, with or without the B."""
    assert parse_size(text) == count_bytes


NO_SIZES: tuple[object, ...] = (
    "",
    "M",
    "64X",
    "-1",
    -1,
    "1.5G",
    "1e3",
    "0x10",
    "64M 64M",
    "٣K",
    "1_000",
    "9" * 16,
    True,
    None,
    4096.0,
    b"64M",
)


@pytest.mark.parametrize("text", NO_SIZES, ids=repr)
def test_what_is_no_size_is_refused(text: object) -> None:
    """Everything else is refused in words that name the field and what it got."""
    with pytest.raises(TopologyError) as refusal:
        parse_size(text, "node 3: memory")  # type: ignore[arg-type]  # the wrong types are what is tested
    assert str(refusal.value).startswith("node 3: memory: expected a size such as 64M")
    assert repr(text) in str(refusal.value)


FORMATTED = {0: "0", 1: "1", 1023: "1023", 1024: "1K", 1536: "1536", 3 << 20: "3M", 1 << 30: "1G", 5 << 40: "5T"}


@pytest.mark.parametrize(("count_bytes", "text"), FORMATTED.items(), ids=FORMATTED.values())
def test_sizes_are_written_in_the_largest_unit_that_divides(count_bytes: int, text: str) -> None:
    """No digit of a size is lost, and no unit is too small."""
    assert format_size(count_bytes) == text


@given(st.integers(0, 10**15 - 1))
def test_a_size_survives_being_written(count_bytes: int) -> None:
    """What is written is read back as the same number."""
    assert parse_size(format_size(count_bytes)) == count_bytes
