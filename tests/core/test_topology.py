"""Topologies: what can be built and what is refused by name; the layout of a machine in shared memory."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu_core import limits
from numaemu_core.columns import columns_in_memory
from numaemu_core.errors import TopologyError
from numaemu_core.layout import CACHE_LINE_BYTES, SEGMENT_GRANULE_BYTES, Layout, layout_of
from numaemu_core.profiles import PROFILES
from numaemu_core.topology import Node, Topology, from_dict, uniform

PAGE = 4096
NODE: dict[str, object] = {"id": 0, "memory": "1M", "cpus": [0]}


def with_node(**fields: object) -> dict[str, object]:
    """A machine of one node with some fields changed."""
    return {"node": [NODE | fields]}


def with_two(*distances: object) -> dict[str, object]:
    """A machine of two nodes with these distances."""
    return {"node": [NODE, {"id": 1, "memory": "1M"}], "distances": list(distances)}


#: Name: (description, what the message must begin with, what else it must say).
BAD: dict[str, tuple[Mapping[str, object], str, str]] = {
    "nothing": ({}, "node: expected at least one [[node]] table", "None"),
    "no-nodes": ({"node": []}, "node: expected at least one [[node]] table", "[]"),
    "nodes-text": ({"node": "two"}, "node: expected at least one", "'two'"),
    "node-table": ({"node": {"id": 0}}, "node: expected at least one", "{'id': 0}"),
    "node-number": ({"node": [NODE, 7]}, "node 1: expected a table", "7"),
    "unknown-key": (
        {"node": [NODE], "swop": 0},
        "topology: unknown key 'swop'",
        "known: disk, distances, fault_around, faults, min_free_kbytes, node, page_",
    ),
    "preallocate-text": ({"node": [NODE], "preallocate": "no"}, "preallocate: expected true or false", "'no'"),
    "unknown-node-key": (with_node(cpu=[1]), "node 0: unknown key 'cpu'", "known: cpus, id, memory"),
    "page-size-odd": ({"node": [NODE], "page_size": 5000}, "page_size: expected a power of two", "5000"),
    "page-size-small": ({"node": [NODE], "page_size": 2048}, "page_size: expected a power of two", "2048"),
    "page-size-large": ({"node": [NODE], "page_size": "128K"}, "page_size: expected a power of two", "131072"),
    "page-size-text": ({"node": [NODE], "page_size": "big"}, "page_size: expected a size", "'big'"),
    "page-size-none": ({"node": [NODE], "page_size": None}, "page_size: expected a size", "None"),
    "profile-unknown": ({"node": [NODE], "profile": "swap-v9"}, "profile: 'swap-v9' is not known", "swap-v3"),
    "profile-number": ({"node": [NODE], "profile": 3}, "profile: 3 is not known", "swap-v3"),
    "swap-not-pages": ({"node": [NODE], "swap": 4097}, "swap: expected a multiple of the page size 4096", "4097"),
    "swap-negative": ({"node": [NODE], "swap": -4096}, "swap: expected a size", "-4096"),
    "swap-float": ({"node": [NODE], "swap": 1.5}, "swap: expected a size", "1.5"),
    "too-much": ({"node": [NODE], "swap": "8T"}, "memory and swap together: expected fewer than", str((8 << 28) + 256)),
    "id-negative": (with_node(id=-1), "node 0: id: expected a whole number from 0 to 63", "-1"),
    "id-too-high": (with_node(id=64), "node 0: id: expected a whole number from 0 to 63", "64"),
    "id-text": (with_node(id="0"), "node 0: id: expected a whole number", "'0'"),
    "id-bool": (with_node(id=True), "node 0: id: expected a whole number", "True"),
    "id-twice": ({"node": [NODE, NODE | {"cpus": [1]}]}, "node: each id may stand once", "[0, 0]"),
    "memory-not-pages": (with_node(memory="1K"), "node 0: memory: expected a multiple of the page size", "1024"),
    "memory-text": (with_node(memory="lots"), "node 0: memory: expected a size", "'lots'"),
    "memory-list": (with_node(memory=[1]), "node 0: memory: expected a size", "[1]"),
    "cpus-number": (with_node(cpus=3), "node 0: cpus: expected a list of numbers", "3"),
    "cpus-text": (with_node(cpus="03"), "node 0: cpus: expected a list of numbers", "'03'"),
    "cpus-of-text": (with_node(cpus=["0"]), "node 0: cpus: expected a whole number from 0 to 1023", "'0'"),
    "cpu-too-high": (with_node(cpus=[1024]), "node 0: cpus: expected a whole number from 0 to 1023", "1024"),
    "cpu-twice": ({"node": [NODE, {"id": 1, "cpus": [1, 0]}]}, "node: each CPU belongs to one node", "[0, 0, 1]"),
    "cpu-twice-in-node": (with_node(cpus=[5, 5]), "node: each CPU belongs to one node", "[5, 5]"),
    "no-cpus": (with_node(cpus=[]), "node: at least one node needs a CPU", ""),
    "no-memory": (with_node(memory=0), "node: at least one node needs memory", ""),
    "distances-text": (with_two() | {"distances": "10"}, "distances: expected 2 rows of 2 numbers", "'10'"),
    "distances-rows": (with_two([10, 20]), "distances: expected 2 rows of 2 numbers", "[[10, 20]]"),
    "distances-row": (with_two([10, 20], [20]), "distances: row 1: expected 2 numbers", "[20]"),
    "distances-row-text": (with_two("aa", [20, 10]), "distances: row 0: expected 2 numbers", "'aa'"),
    "distance-to-itself": (
        with_two([10, 20], [20, 11]),
        "distances: row 1, column 1: expected",
        "from 10 to 10, got 11",
    ),
    "distance-too-near": (
        with_two([10, 10], [20, 10]),
        "distances: row 0, column 1: expected",
        "from 11 to 255, got 10",
    ),
    "distance-too-far": (with_two([10, 20], [256, 10]), "distances: row 1, column 0: expected", "to 255, got 256"),
    "distance-float": (with_two([10, 20.5], [20, 10]), "distances: row 0, column 1: expected", "20.5"),
}


@pytest.mark.parametrize(("description", "beginning", "also"), BAD.values(), ids=BAD)
def test_a_bad_description_is_refused_by_field(description: Mapping[str, object], beginning: str, also: str) -> None:
    """What cannot be built is refused; the message begins with the field and says what was expected and what it got."""
    with pytest.raises(TopologyError) as refusal:
        from_dict(description)
    assert str(refusal.value).startswith(beginning)
    assert also in str(refusal.value)


GOOD: dict[str, tuple[Mapping[str, object], list[Node]]] = {
    "defaults": ({"node": [{"memory": "1M", "cpus": [0]}]}, [Node(0, 1 << 20, (0,))]),
    "memory-without-cpus": ({"node": [NODE, {"memory": "2M"}]}, [Node(0, 1 << 20, (0,)), Node(1, 2 << 20, ())]),
    "cpus-without-memory": ({"node": [NODE, {"cpus": [9, 4]}]}, [Node(0, 1 << 20, (0,)), Node(1, 0, (4, 9))]),
    "sparse-ids": (
        {"node": [{"id": 63, "cpus": [1023]}, {"id": 5, "memory": 4096}]},
        [Node(5, 4096, ()), Node(63, 0, (1023,))],
    ),
    "large-pages": (with_node(memory="64K") | {"page_size": "64K"}, [Node(0, 1 << 16, (0,))]),
}


@pytest.mark.parametrize(("description", "nodes"), GOOD.values(), ids=GOOD)
def test_odd_but_legal_machines_pass(description: Mapping[str, object], nodes: list[Node]) -> None:
    """Nodes without CPUs or without memory and sparse ids are legal; nodes and CPUs come out ascending."""
    topology = from_dict(description)
    assert list(topology.nodes) == nodes
    assert topology.online == sum(1 << node.id for node in nodes)
    assert topology.profile == "swap-v3"


def test_distances_are_10_and_20_unless_given() -> None:
    """A node is 10 from itself and 20 from the others; given distances need not be symmetric."""
    assert uniform(3, "1M", 0, "swap-v3", PAGE).distances == ((10, 20, 20), (20, 10, 20), (20, 20, 10))
    assert from_dict(with_two([10, 11], [255, 10])).distances == ((10, 11), (255, 10))


def test_uniform_machines_have_a_cpu_a_node() -> None:
    """`uniform` makes equal nodes; CPU i is on node i."""
    topology = uniform(4, "8M", "16M", "swap-v3", "16K")
    assert topology.nodes == tuple(Node(i, 8 << 20, (i,)) for i in range(4))
    assert (topology.swap_bytes, topology.page_size) == (16 << 20, 16 << 10)


@pytest.mark.parametrize("nodes", [0, 65, -1, True, "2"], ids=repr)
def test_uniform_refuses_a_bad_count(nodes: Any) -> None:  # noqa: ANN401 - the wrong types are what is tested
    """The number of nodes is checked before they are made."""
    with pytest.raises(TopologyError, match="nodes: expected a whole number from 1 to 64"):
        uniform(nodes, "1M", 0, "swap-v3", PAGE)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Machines that can be built."""
    page_size = 1 << draw(st.integers(12, 16))
    profile = draw(st.sampled_from(sorted(PROFILES)))
    ids = sorted(draw(st.sets(st.integers(0, PROFILES[profile].max_numnodes - 1), min_size=1, max_size=6)))
    cpus = draw(st.lists(st.integers(0, 1023), min_size=1, max_size=12, unique=True))
    homes = [draw(st.sampled_from(ids)) for _ in cpus]
    pages = [draw(st.integers(0, 40)) for _ in ids]
    pages[draw(st.integers(0, len(ids) - 1))] += 1
    return from_dict(
        {
            "profile": profile,
            "page_size": page_size,
            "swap": draw(st.integers(0, 40)) * page_size,
            "preallocate": draw(st.booleans()),
            "distances": [[10 if i == j else draw(st.integers(11, 255)) for j in ids] for i in ids],
            "node": [
                {
                    "id": nid,
                    "memory": count * page_size,
                    "cpus": [cpu for cpu, home in zip(cpus, homes, strict=True) if home == nid],
                }
                for nid, count in zip(ids, pages, strict=True)
            ],
        }
    )


@given(topologies())
def test_a_topology_survives_being_a_dict(topology: Topology) -> None:
    """as_dict gives a description of the same machine."""
    assert from_dict(topology.as_dict()) == topology


# -- the layout --------------------------------------------------------------------------------------------------------


@given(topologies())
def test_columns_are_aligned_and_apart(topology: Topology) -> None:
    """Every column begins at a cache line, none reaches into the next, and all end inside of their segment."""
    layout = layout_of(topology)
    for segment in layout.segments.values():
        end = 0
        for column in segment.columns:
            assert column.offset % CACHE_LINE_BYTES == 0
            assert column.offset >= end
            end = column.offset + column.size
        assert end <= segment.size
        granule = topology.page_size if segment.name.startswith("pool.") else SEGMENT_GRANULE_BYTES
        assert segment.size % granule == 0
    names = [column.name for segment in layout.segments.values() for column in segment.columns]
    assert len([name for name in names if name != "bytes"]) == len(set(names) - {"bytes"})


@given(topologies())
def test_frames_lie_back_to_back(topology: Topology) -> None:
    """Every node with memory has its stretch of frames, in the order of ids and without a gap, and a pool for them."""
    layout = layout_of(topology)
    spans = list(layout.node_pfns.values())
    assert list(layout.node_pfns) == [node.id for node in topology.nodes if node.memory_bytes]
    assert spans[0][0] == 0
    assert spans[-1][1] == layout.frame_count
    assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    for nid, (first, end) in layout.node_pfns.items():
        assert layout.segments[f"pool.{nid}"].size == (end - first) * topology.page_size
    assert layout.slot_count * topology.page_size == topology.swap_bytes


@given(topologies())
def test_every_lock_has_its_own_mutex(topology: Topology) -> None:
    """The mutexes of nodes, of the swap map and of page tables do not share a place in the table."""
    layout = layout_of(topology)
    places = [
        *(layout.lru_mutex + nid for nid in range(topology.nr_node_ids)),
        *(layout.zone_mutex + nid for nid in range(topology.nr_node_ids)),
        layout.swap_mutex,
        *(layout.pte_mutex + table for table in range(layout.table_count)),
    ]
    assert sorted(places) == list(range(layout.mutex_count))


def test_columns_share_no_byte() -> None:
    """A column filled with ones leaves all others zero."""
    layout = layout_of(uniform(2, "64K", "32K", "swap-v3", PAGE))
    buffers = {segment.name: np.zeros(segment.size, np.uint8) for segment in layout.segments.values()}
    for segment in layout.segments.values():
        if segment.size > 1 << 28:  # the pin table is sparse: its bounds are checked above
            continue
        for column in segment.columns:
            cells = buffers[segment.name][column.offset : column.offset + column.size]
            assert not cells.any(), f"{column.name} shares bytes with a column before it"
            cells[:] = 1


def per_frame_bytes(layout: Layout) -> dict[str, int]:
    """Bytes that each frame takes in the columns with an entry a frame, by segment."""
    return {
        segment.name: sum(
            np.dtype(column.dtype).itemsize for column in segment.columns if column.shape == (layout.frame_count,)
        )
        for segment in layout.segments.values()
        if segment.owner == "kernel"
    }


def test_metadata_of_a_frame_stays_small() -> None:
    """All that the kernel keeps for a frame that is mapped densely is the sum of its columns: less than 96 bytes."""
    layout = layout_of(uniform(2, "1G", 0, "swap-v3", PAGE))
    frames = per_frame_bytes(layout)
    assert {name: count for name, count in frames.items() if count} == {"frames": 41}
    entry = {
        column.name: np.dtype(column.dtype).itemsize
        for name in ("ptes", "pte_bits")
        for column in layout.segments[name].columns
    }
    assert entry == {"pte": 8, "accessed": 1, "dirty": 1}
    tables = layout.frame_count // limits.PTRS_PER_TABLE
    tables_above = tables // limits.PTRS_PER_TABLE + 2
    table_bytes = limits.PTRS_PER_TABLE * sum(entry.values()) + 64 + 1  # its mutex and the mark beside it
    fixed = sum(column.size for column in layout.segments["frames"].columns if column.shape != (layout.frame_count,))
    dense = layout.frame_count * frames["frames"] + (tables + tables_above) * table_bytes + fixed
    assert layout.frame_count * 51 < dense < layout.frame_count * 52
    assert dense <= layout.frame_count * 96
    padding = len(layout.segments["frames"].columns) * CACHE_LINE_BYTES + SEGMENT_GRANULE_BYTES
    assert 0 <= layout.segments["frames"].size - layout.frame_count * 41 - fixed <= padding


def test_what_lies_in_memory_is_what_the_layout_says() -> None:
    """The arrays of a machine have the shapes of the layout, and each cell of the frame table is its own."""
    layout = layout_of(from_dict({"node": [NODE, {"id": 7, "memory": "64K"}], "swap": "128K"}))
    columns = columns_in_memory(layout)
    assert layout.frame_count == 256 + 16
    assert layout.node_pfns == {0: (0, 256), 7: (256, 272)}
    assert columns.frames.shape == (272, PAGE)
    assert columns.swap.shape == (32, PAGE)
    assert columns.pte.shape == (layout.table_count * 512,)
    for name in ("free_state", "page_lock_owner", "lru_state", "lru_stamp", "pg_flags", "mapcount", "mapping"):
        assert getattr(columns, name).shape == (272,)
    assert columns.pins.shape == (limits.MAX_ACCESS_SLOTS, limits.MAX_PINS_PER_SLOT)
