"""Machines by name, and as files."""

import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from numaemu.cli import main as cli
from numaemu.cli.topologies import as_toml
from numaemu.description import Usual, Wanted, describe
from numaemu.presets import PRESETS
from numaemu_core.profiles import PROFILES
from numaemu_core.topology import Topology, from_dict, uniform

USUAL = Usual(nodes=2, memory="64M", swap="128M", profile="swap-v3")


def made(name: str, **other: Any) -> Topology:  # noqa: ANN401 - fields of Wanted
    return describe(Wanted(preset=name, **other), USUAL)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name: str, profile: str) -> None:
    """With every profile; memory, swap and page size are as usual, or as they are wanted."""
    found = made(name, profile=profile)
    assert (found.profile, found.swap_bytes, found.page_size) == (profile, 128 << 20, 4096)
    assert max(node.memory_bytes for node in found.nodes) == 64 << 20
    scaled = made(name, profile=profile, memory="1M", swap="4M", page_size="64K")
    assert (scaled.swap_bytes, scaled.page_size) == (4 << 20, 1 << 16)
    assert [node.memory_bytes for node in scaled.nodes] == [node.memory_bytes // 64 for node in found.nodes]
    assert scaled.distances == found.distances


#: What a preset is there for: name, and what holds of it.
ODDITIES: dict[str, Callable[[Topology], bool]] = {
    "sparse-ids": lambda t: [node.id for node in t.nodes] == [0, 1, 16, 17],
    "memoryless-node": lambda t: [bool(node.memory_bytes) for node in t.nodes] == [True, False, True, False],
    "dram-cxl": lambda t: [bool(node.cpus) for node in t.nodes] == [True, False],
    "dram-hbm": lambda t: [bool(node.cpus) for node in t.nodes] == [True, True, False, False],
    "four-socket-ring": lambda t: [row[(i + 2) % 4] for i, row in enumerate(t.distances)] == [30] * 4,
    "sub-numa-clusters": lambda t: t.nodes[0].cpus[-1] > t.nodes[1].cpus[0],
    "uneven-memory": lambda t: t.nodes[1].memory_bytes == 8 * t.nodes[0].memory_bytes,
    "asymmetric-distances": lambda t: all(
        t.distances[i][j] != t.distances[j][i] for i in range(3) for j in range(3) if i != j
    ),
}


@pytest.mark.parametrize("name", ODDITIES)
def test_presets_are_as_odd_as_they_say(name: str) -> None:
    """Each has what its name promises."""
    assert ODDITIES[name](made(name))


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"asymmetric-distances"}))
def test_distances_are_the_same_there_and_back(name: str) -> None:
    """But in the one that is made for it."""
    distances = made(name).distances
    assert distances == tuple(zip(*distances, strict=True))


def test_the_list_shows_each_preset(capsys: pytest.CaptureFixture[str]) -> None:
    """Its name, and for each node its memory, its CPUs and its distances; --memory scales all of them."""
    assert cli.main(["topologies"]) == 0
    out = capsys.readouterr().out
    assert [block.split(":")[0] for block in out.split("\n\n")] == list(PRESETS)
    assert "  node 16  memory 64M    cpus 64,72,80,88      distances 40 40 10 20\n" in out
    assert "  node  1  memory none   cpus 4-7              distances 16 10 16 16\n" in out
    assert cli.main(["topologies", "--memory", "2G"]) == 0
    assert "  node  1  memory 2G     cpus none             distances 14 10\n" in capsys.readouterr().out


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Each in the shape of a topology file, or one of them alone."""
    assert cli.main(["topologies", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: from_dict(value) for name, value in found.items()} == {name: made(name) for name in PRESETS}
    assert cli.main(["topologies", "--json", "--preset", "dram-cxl"]) == 0
    assert from_dict(json.loads(capsys.readouterr().out)) == made("dram-cxl")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_printed_is_a_topology_file(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """What is printed describes the same machine."""
    assert cli.main(["topologies", "--preset", name, "--memory", "12K", "--profile", "linux-6.1"]) == 0
    printed = capsys.readouterr().out
    assert from_dict(tomllib.loads(printed)) == made(name, memory="12K", profile="linux-6.1")


def test_every_setting_is_printed() -> None:
    """Settings that a machine need not have are printed where it has them."""
    described = uniform(2, "1M", 12288, "linux-6.12", 4096).as_dict() | {
        "page_cluster": 3,
        "fault_around": 16,
        "swap_device": "disk",
        "min_free_kbytes": 0,
        "preallocate": False,
        "disk": 4096,
    }
    topology = from_dict(described)
    assert from_dict(tomllib.loads(as_toml(topology))) == topology
