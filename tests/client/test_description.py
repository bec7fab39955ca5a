"""Topologies from files, dicts, presets and numbers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from numaemu.description import Usual, Wanted, describe
from numaemu_core.errors import TopologyError
from numaemu_core.topology import Topology

USUAL = Usual(nodes=2, memory="4M", swap="8M", profile="swap-v3")

TEXT = """
swap = "4M"
distances = [[10, 30], [30, 10]]
[[node]]
id = 0
memory = "1M"
cpus = [0, 1]
[[node]]
id = 5
memory = "2M"
"""


def topology_from(source: str | os.PathLike[str] | Mapping[str, object], **other: Any) -> Topology:  # noqa: ANN401 - fields of Wanted
    return describe(Wanted(topology=source, **other), USUAL)


def test_file(tmp_path: Path) -> None:
    """A file gives its topology; what is told beside it takes precedence, None does not."""
    path = tmp_path / "machine.toml"
    path.write_text(TEXT)
    found = topology_from(path, swap="8M", profile=None)
    assert [(node.id, node.memory_bytes, node.cpus) for node in found.nodes] == [(0, 1 << 20, (0, 1)), (5, 2 << 20, ())]
    assert (found.swap_bytes, found.profile) == (8 << 20, "swap-v3")
    assert topology_from(found.as_dict()) == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[[node", "no TOML, nor XML of lstopo, nor what numactl --hardware prints: "),
        (b"\xff\xfe", "no TOML"),
        (b"nodes = 2", "unknown key 'nodes'"),
        (b"x" * (1 << 20) + b"y", "at most 1048576 bytes"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that describes no machine is refused with its name and what is wrong, in one line."""
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(TopologyError) as caught:
        topology_from(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is an OSError with its name."""
    with pytest.raises(FileNotFoundError, match=r"missing\.toml"):
        topology_from(tmp_path / "missing.toml")


def test_numbers() -> None:
    """What is not said is as usual; what is said is not."""
    found = describe(Wanted(), USUAL)
    assert [(node.id, node.memory_bytes) for node in found.nodes] == [(0, 4 << 20), (1, 4 << 20)]
    assert (found.swap_bytes, found.profile, found.page_size) == (8 << 20, "swap-v3", 4096)
    found = describe(Wanted(nodes=3, memory="64K", swap=0, profile="linux-6.1", page_size="64K"), USUAL)
    assert [(node.id, node.memory_bytes) for node in found.nodes] == [(0, 1 << 16), (1, 1 << 16), (2, 1 << 16)]
    assert (found.swap_bytes, found.profile, found.page_size) == (0, "linux-6.1", 1 << 16)


#: Name: (memory of the nodes as described, what the largest shall have, page size, what they have then).
RESIZED: dict[str, tuple[list[object], str | int, int, list[int]]] = {
    "equal": (["1G", "1G"], "4M", 4096, [4 << 20, 4 << 20]),
    "proportions": (["128G", 0, "64G", "512G"], "8M", 4096, [2 << 20, 0, 1 << 20, 8 << 20]),
    "rounded down to pages": ([3, 2], "1M", 4096, [1 << 20, (1 << 20) * 2 // 3 // 4096 * 4096]),
    "a page is left": (["1T", 4096], "1M", 4096, [1 << 20, 4096]),
    "larger": (["4K", "8K"], "1G", 4096, [1 << 29, 1 << 30]),
    "large pages": (["64K", "1M"], 1 << 20, 1 << 16, [1 << 16, 1 << 20]),
}


@pytest.mark.parametrize(("described", "memory", "page_size", "expected"), RESIZED.values(), ids=RESIZED)
def test_memory_is_that_of_the_largest_node(
    described: list[object], memory: str | int, page_size: int, expected: list[int]
) -> None:
    """The others have theirs in proportion: whole pages, one at least, and none where there was none."""
    nodes = [{"memory": size, "cpus": [i]} for i, size in enumerate(described)]
    found = topology_from({"node": nodes}, memory=memory, page_size=page_size)
    assert [node.memory_bytes for node in found.nodes] == expected


#: What is wanted, and how the refusal begins.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"nodes": 2, "preset": "two-socket"}, "nodes and preset: both say which nodes there are"),
    ({"topology": {}, "preset": "two-socket"}, "topology and preset: both say"),
    ({"topology": "no-such-file", "nodes": 1}, "nodes and topology: both say"),
    ({"preset": "two-sockets"}, "preset: 'two-sockets' is not known; known: two-socket, four-socket-ring"),
    ({"preset": "two-socket", "memory": "5K"}, "memory: expected a multiple of the page size 4096, got 5120"),
    ({"preset": "two-socket", "memory": 0}, "memory: expected a multiple of the page size 4096, got 0"),
    ({"preset": "two-socket", "memory": "lots"}, "memory: expected a size"),
    ({"topology": {"node": []}, "memory": "4M"}, "node: expected at least one"),
    ({"topology": {"node": "x"}, "memory": "4M"}, "node: expected at least one"),
    ({"topology": {"node": [7]}, "memory": "4M"}, "node 0: expected a table"),
    ({"topology": {"node": [{"memory": "x"}]}, "memory": "4M"}, "node 0: memory: expected a size"),
    ({"topology": {"node": [{"cpus": [0]}]}, "memory": "4M"}, "node: at least one node needs memory"),
    ({"topology": {"node": [{"memory": "4M"}], "page_size": 0}, "memory": "4M"}, "page_size: expected a power of two"),
]


@pytest.mark.parametrize(("wanted", "message"), REFUSED, ids=[str(wanted) for wanted, _ in REFUSED])
def test_what_is_refused(wanted: dict[str, Any], message: str) -> None:
    """Two shapes at once, names that there are not, and memory that cannot be are refused, in one line."""
    with pytest.raises(TopologyError) as caught:
        describe(Wanted(**wanted), USUAL)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
