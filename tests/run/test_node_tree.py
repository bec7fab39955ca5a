"""The tree of nodes: what its files say of usual and of odd machines."""

import os
import re
from pathlib import Path

import pytest

from numaemu.description import Usual, Wanted, describe
from numaemu_core.topology import Topology, from_dict
from numaemu_run.node_tree import NodeTree, bitmap, huge_page_sizes


def tree(topology: Topology) -> dict[str, str]:
    return NodeTree(topology).files()


ODD = from_dict(
    {
        "profile": "linux-6.12",
        "distances": [[10, 17, 255], [12, 10, 40], [30, 40, 10]],
        "node": [
            {"id": 1, "memory": "4M", "cpus": [0, 2]},
            {"id": 4, "memory": 0, "cpus": [40]},
            {"id": 9, "memory": "8M", "cpus": []},
        ],
    }
)


@pytest.mark.parametrize(
    ("mask", "bits", "text"),
    [
        (0b1111, 4, "f"),
        (0b11, 2, "3"),
        (1, 5, "01"),
        (1, 32, "00000001"),
        (1 << 32, 33, "1,00000000"),
        (0b101, 64, "00000000,00000005"),
        (1 << 40, 41, "100,00000000"),
    ],
)
def test_masks_are_printed_as_the_kernel_prints_them(mask: int, bits: int, text: str) -> None:
    """Words of 32 bits, the highest first, with as many digits as there are bits."""
    assert bitmap(mask, bits) == text


def test_sparse_and_incomplete_nodes_are_told() -> None:
    """Ids with gaps, a node without memory, one without CPUs, distances that differ by direction."""
    files = tree(ODD)
    node = "sys/devices/system/node"
    assert (files[f"{node}/online"], files[f"{node}/possible"]) == ("1,4,9", "0-9")
    assert (files[f"{node}/has_cpu"], files[f"{node}/has_memory"]) == ("1,4", "1,9")
    assert [files[f"{node}/node{nid}/distance"] for nid in (1, 4, 9)] == ["10 17 255", "12 10 40", "30 40 10"]
    assert [files[f"{node}/node{nid}/cpulist"] for nid in (1, 4, 9)] == ["0,2", "40", ""]
    assert files[f"{node}/node1/cpumap"] == "000,00000005"
    assert f"{node}/node2/cpulist" not in files


def test_nodes_have_no_huge_pages() -> None:
    """And say so for each size that the host has."""
    files = NodeTree(ODD, ["hugepages-2048kB"]).files()
    found = {name: text for name, text in files.items() if "huge" in name}
    place = "sys/devices/system/node/node4/hugepages/hugepages-2048kB"
    assert len(found) == 9
    assert {found[f"{place}/{which}_hugepages"] for which in ("nr", "free", "surplus")} == {"0"}
    assert all(re.fullmatch(r"hugepages-\d+kB", size) for size in huge_page_sizes())


def test_cpus_are_told_where_they_are() -> None:
    """Each CPU has the package of its node, here one for both; numbers between are possible and not present."""
    files = tree(ODD)
    cpu = "sys/devices/system/cpu"
    assert (files[f"{cpu}/online"], files[f"{cpu}/possible"]) == ("0,2,40", "0-40")
    assert files[f"{cpu}/cpu40/topology/physical_package_id"] == "1"
    assert files[f"{cpu}/cpu0/topology/core_siblings_list"] == "0,2,40"
    assert files[f"{cpu}/cpu0/topology/thread_siblings_list"] == "0"
    assert f"{cpu}/cpu1/topology/core_id" not in files


@pytest.mark.parametrize(
    ("preset", "packages", "beside_cpu_0"),
    [
        ("two-socket", [0, 1], "0-3,8-11"),
        ("sub-numa-clusters", [0, 0, 2, 2], "0-7"),
        ("eight-nodes", [0, 0, 0, 0, 4, 4, 4, 4], "0-7,16-23"),
        ("memoryless-node", [0, 0, 0, 0], "0-15"),
        ("dram-cxl", [0], "0-7"),
        ("sparse-ids", [0, 1, 16, 17], "0,8,16,24"),
    ],
)
def test_near_nodes_share_a_package(preset: str, packages: list[int], beside_cpu_0: str) -> None:
    """A package is a socket: parts of one are nearer to each other than 20, and memory without CPUs is in none."""
    topology = describe(Wanted(preset=preset), Usual(2, "64M", "64M", "linux-6.12"))
    files = tree(topology)
    place = "sys/devices/system/cpu/cpu{}/topology/"
    first = [node.cpus[0] for node in topology.nodes if node.cpus]
    assert [int(files[place.format(cpu) + "physical_package_id"]) for cpu in first] == packages
    assert files[place.format(0) + "package_cpus_list"] == beside_cpu_0


def test_links_lead_from_cpus_to_nodes_and_back(tmp_path: Path) -> None:
    """The links of the tree lead to what they name, also through the directories of the buses."""
    NodeTree(ODD).write(tmp_path)
    system = tmp_path / "sys/devices/system"
    assert (system / "node/node4/cpu40").resolve() == (system / "cpu/cpu40").resolve()
    assert (system / "cpu/cpu2/node1").resolve() == (system / "node/node1").resolve()
    assert (tmp_path / "sys/bus/node/devices/node9").resolve() == (system / "node/node9").resolve()
    assert (tmp_path / "sys/bus/cpu/devices/cpu40/topology/core_id").read_text() == "40\n"
    assert all(path.exists() for path in tmp_path.rglob("*"))


def test_the_files_are_for_everybody_to_read(tmp_path: Path) -> None:
    """Their rights are those of sysfs, whatever umask the command has."""
    root = tmp_path / "root"
    before = os.umask(0o077)
    try:
        root.mkdir()
        NodeTree(ODD).write(root)
    finally:
        os.umask(before)
    rights = {
        (path.is_dir(), path.stat().st_mode & 0o777) for path in (root, *root.rglob("*")) if not path.is_symlink()
    }
    assert rights == {(True, 0o755), (False, 0o444)}
