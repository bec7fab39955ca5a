"""Machines that lstopo wrote down."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu.description import Usual, Wanted, describe
from numaemu.hwloc_xml import is_xml, parse_hwloc_xml
from numaemu_core.errors import TopologyError
from numaemu_core.topology import Topology, from_dict

DATA = Path(__file__).resolve().parents[1] / "data"
USUAL = Usual(nodes=2, memory="64M", swap="128M", profile="linux-6.12")
PRESETS = {
    "lstopo-2-sparse-ids.xml": "sparse-ids",
    "lstopo-1-sparse-ids.xml": "sparse-ids",
    "lstopo-2-memoryless-node.xml": "memoryless-node",
}


def text_of(name: str) -> str:
    return (DATA / name).read_text()


def machine(inside: str, cpuset: str = "0x3") -> str:
    """A file with one object Machine."""
    return f'<topology><object type="Machine" cpuset="{cpuset}">{inside}</object></topology>'


def node(os_index: int | str, cpuset: str, more: str = 'local_memory="1048576"') -> str:
    return f'<object type="NUMANode" os_index="{os_index}" cpuset="{cpuset}" {more}/>'


TWO = node(0, "0x1") + node(1, "0x2")


def imported(text: str) -> Topology:
    return from_dict(parse_hwloc_xml(text))


@pytest.mark.parametrize(("name", "preset"), PRESETS.items(), ids=PRESETS)
def test_what_lstopo_wrote_of_a_preset_is_the_preset(name: str, preset: str) -> None:
    """Ids, CPUs, memory and distances come back from both formats; the rest is as usual."""
    found = describe(Wanted(topology=DATA / name), USUAL)
    assert found == describe(Wanted(preset=preset), USUAL)


def test_cpus_belong_to_the_node_that_is_first_among_equals() -> None:
    """Memory beside a node with the same CPUs has none of its own; memory is cut to whole pages, or scaled."""
    name = "lstopo-2-two-kinds-of-memory.xml"
    found = describe(Wanted(topology=DATA / name), USUAL)
    assert [(n.id, n.cpus) for n in found.nodes] == [(0, (0, 1)), (1, ()), (2, (2, 3)), (3, ())]
    assert [n.memory_bytes for n in found.nodes] == [16 * 10**9, 976562 * 4096] * 2
    assert found.distances[0] == (10, 20, 20, 20)
    small = describe(Wanted(topology=DATA / name, memory="64M", page_size="64K", swap="1M", profile="swap-v3"), USUAL)
    assert [n.memory_bytes for n in small.nodes] == [64 << 20, 16 << 20] * 2
    assert (small.swap_bytes, small.profile) == (1 << 20, "swap-v3")


def test_cpus_belong_to_the_smallest_set() -> None:
    """Memory that a whole package shares has none of the CPUs of its clusters, whatever its number is."""
    found = imported(machine(node(0, "0xf") + node(1, "0x3") + node(2, "0xc"), "0xf"))
    assert [n.cpus for n in found.nodes] == [(), (0, 1), (2, 3)]


def test_sets_of_many_words() -> None:
    """The highest word comes first, and words of zeros may be empty."""
    found = imported(machine(node(3, "0x80000000,,0x1"), "0x80000000,,0x1"))
    assert found.nodes[0].cpus == (0, 95)


def test_a_machine_of_one_node_in_the_old_format() -> None:
    """Hwloc 1.x has no NUMANode there; memory and CPUs are the machine's."""
    text = '<topology><object type="Machine" cpuset="0xf" local_memory="4194304"/></topology>'
    assert imported(text).as_dict()["node"] == [{"id": 0, "memory": 4 << 20, "cpus": [0, 1, 2, 3]}]


#: Distances, in the order that their indexes say: of objects by gp_index, in pieces, not those of bandwidth.
MATRICES = {
    "by gp_index, turned round": (
        '<distances2 type="NUMANode" kind="5" indexing="gp"><indexes>9 7</indexes>'
        "<u64values>10 31 32 10</u64values></distances2>"
    ),
    "in pieces": (
        '<distances2 type="NUMANode" kind="5"><indexes>0 </indexes><indexes>1 </indexes>'
        "<u64values>10 32 31 </u64values><u64values>10 </u64values></distances2>"
    ),
    "after those of others": (
        '<distances2 type="PU" kind="5"/><distances2 type="NUMANode" kind="9"/>'
        '<distances2 type="NUMANode" kind="6"><indexes>0 1</indexes><u64values>10 32 31 10</u64values></distances2>'
    ),
    "in the old format": (
        '<distances nbobjs="3" relative_depth="1" latency_base="1"/>'
        '<distances nbobjs="2" relative_depth="1" latency_base="10.000000"><latency value="1.000000"/>'
        '<latency value="3.200000"/><latency value="3.100000"/><latency value="1.000000"/></distances>'
    ),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_distances(matrix: str) -> None:
    """Latencies between nodes are taken, whatever form and order they have."""
    inside = node(0, "0x1", 'local_memory="4096" gp_index="7"') + node(1, "0x2", 'gp_index="9"')
    text = machine(inside).replace("</topology>", matrix + "</topology>")
    assert imported(text).distances == ((10, 32), (31, 10))


LAUGHS = '<!DOCTYPE topology [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>\n<topology>&b;</topology>'
#: What is wrong, and how it is told.
BAD: dict[str, tuple[str, str]] = {
    "cut off": ("<topology><object", "no XML: "),
    "another document": ("<html/>", "XML, but not of lstopo: expected <topology>, got <html>"),
    "entities": (LAUGHS, "line 1: expected no document type but that of hwloc"),
    "two document types": (
        '<!DOCTYPE topology SYSTEM "hwloc.dtd">\n<!DOCTYPE topology SYSTEM "hwloc.dtd">\n<topology/>',
        "line 2: expected no document type but that of hwloc",
    ),
    "another document type": (
        '\n<!DOCTYPE topology SYSTEM "file:///etc/passwd"><topology/>',
        "line 2: expected no document type but that of hwloc",
    ),
    "no machine": ("<topology/>", "there is no object of the type Machine"),
    "no id": (machine('<object type="NUMANode" cpuset="0x3"/>'), "NUMANode: os_index: expected a number, got ''"),
    "no set": (
        machine('<object type="NUMANode" os_index="0"/>'),
        "NUMANode with os_index 0: cpuset: expected words such as 0x000000ff, got ''",
    ),
    "no end": (
        machine(node(0, "0xf...f")),
        "NUMANode with os_index 0: cpuset: expected words such as 0x000000ff, got '0xf...f'",
    ),
    "too long a set": (machine(node(0, "0x1" + ",0x0" * 256)), "NUMANode with os_index 0: cpuset: expected words"),
    "memory": (
        machine(node(7, "0x3", 'local_memory="much"')),
        "NUMANode with os_index 7: local_memory: expected a number, got 'much'",
    ),
    "hidden nodes": (
        machine(node(0, "0x3"), "0x1f"),
        "CPUs 2-4 belong to no NUMANode: lstopo leaves out nodes",
    ),
    "no kind": (machine(TWO + '<distances2 type="NUMANode"/>'), "distances2: kind: expected a number, got ''"),
    "other indexes": (
        machine(TWO + '<distances2 type="NUMANode" kind="5"><indexes>0 2</indexes></distances2>'),
        "distances2: expected the indexes of all 2 nodes, got others",
    ),
    "few values": (
        machine(TWO + '<distances2 type="NUMANode" kind="5"><indexes>0 1</indexes></distances2>'),
        "distances2: expected 4 values, got 0",
    ),
    "odd values": (
        machine(TWO + '<distances2 type="NUMANode" kind="5"><indexes>0 one</indexes></distances2>'),
        "distances2: indexes: expected numbers, got 'one'",
    ),
    "no base": (machine(TWO + '<distances nbobjs="2"/>'), "distances: expected numbers as latency_base"),
    "endless base": (
        machine(TWO + '<distances nbobjs="2" latency_base="inf"><latency value="1"/></distances>'),
        "distances: expected numbers as latency_base",
    ),
    "few latencies": (machine(TWO + '<distances nbobjs="2" latency_base="1"/>'), "distances: expected 4 values, got 0"),
    "many nodes": (machine("".join(node(i, "0x3") for i in range(2000))), "expected at most"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """In one line: the file, what is wrong, and where."""
    path = tmp_path / "box"
    path.write_text(text)
    with pytest.raises(TopologyError) as caught:
        describe(Wanted(topology=path), USUAL)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_of_xml_has_a_limit(tmp_path: Path) -> None:
    """More is not read."""
    path = tmp_path / "box.xml"
    path.write_text("<topology>" + " " * (16 << 20))
    with pytest.raises(TopologyError, match="at most 16777216 bytes"):
        describe(Wanted(topology=path), USUAL)


def test_depth_is_no_danger() -> None:
    """A hundred thousand objects in one another are read, or refused."""
    text = machine(TWO + "<object>" * 100_000 + "</object>" * 100_000)
    assert len(imported(text).nodes) == 2


SAMPLES = st.sampled_from([text_of(name) for name in PRESETS])


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A file of lstopo with some places overwritten."""
    text = draw(SAMPLES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        inserted = draw(st.one_of(st.text(max_size=6), st.sampled_from(['"', "<", ">", "0", "<object>", "0x", ",,"])))
        text = text[:at] + inserted + text[at + draw(st.integers(0, 40)) :]
    return text


@given(st.one_of(damaged(), st.text(max_size=80).map(lambda text: "<" + text), st.text(max_size=80).map(machine)))
def test_any_text_is_a_topology_or_refused(text: str) -> None:
    """However a file is damaged."""
    assert is_xml(text) or not text.lstrip("\ufeff \t\r\n").startswith("<")
    try:
        imported(text)
    except TopologyError as error:
        assert len(str(error)) < 1 << 12  # noqa: PT017 - that it raises nothing else is what is tested
