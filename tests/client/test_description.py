"""Topologies from files and dicts."""

from pathlib import Path

import pytest

from numaemu.description import topology_from
from numaemu_core.errors import TopologyError

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
        (b"[[node", "no TOML"),
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
