"""Machines that numactl --hardware has printed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu.description import Usual, Wanted, describe
from numaemu.numactl_text import is_numactl_text, parse_numactl_text
from numaemu.presets import PRESETS
from numaemu_core import views
from numaemu_core.errors import TopologyError
from numaemu_core.topology import Topology, from_dict

USUAL = Usual(nodes=2, memory="64M", swap="128M", profile="linux-6.12")

#: Of a server with two kinds of memory; numactl prints blanks at the ends of some lines.
SERVER = """available: 3 nodes (0-1,4)
node 0 cpus: 0 1 2 6 7 8
node 0 size: 128690 MB
node 0 free: 90217 MB
node 1 cpus: 3 4 5 9 10 11
node 1 size: 129019 MB
node 1 free: 121932 MB
node 4 cpus:
node 4 size: 257000 MB
node 4 free: 257000 MB
node distances:
node   0   1   4
  0:  10  21  14
  1:  21  10  24
  4:  14  24  10
""".replace("\n  ", " \n  ")


def printed(topology: Topology) -> str:
    """What numactl would print of it: numaemu's own text, which numactl's is compared with elsewhere."""
    nodes = [
        {"id": n.id, "cpus": n.cpus, "size_kb": n.memory_bytes >> 10, "free_kb": n.memory_bytes >> 11}
        for n in topology.nodes
    ]
    return views.hardware({"nodes": nodes, "distances": topology.distances})


def imported(text: str) -> Topology:
    return from_dict(parse_numactl_text(text))


def test_a_server(tmp_path: Path) -> None:
    """Ids, CPUs, memory and distances are taken from the text, swap and profile are as usual; --memory scales."""
    path = tmp_path / "server"
    path.write_text(SERVER)
    found = describe(Wanted(topology=path), USUAL)
    assert [(n.id, n.memory_bytes >> 20, n.cpus) for n in found.nodes] == [
        (0, 128690, (0, 1, 2, 6, 7, 8)),
        (1, 129019, (3, 4, 5, 9, 10, 11)),
        (4, 257000, ()),
    ]
    assert found.distances == ((10, 21, 14), (21, 10, 24), (14, 24, 10))
    assert (found.swap_bytes, found.profile) == (128 << 20, "linux-6.12")
    small = describe(Wanted(topology=path, memory="64M"), USUAL)
    assert [n.memory_bytes for n in small.nodes] == [8204 << 12, 8225 << 12, 64 << 20]


@pytest.mark.parametrize("name", PRESETS)
def test_a_machine_survives_being_printed(name: str) -> None:
    """What is read from the text of a machine is that machine."""
    topology = describe(Wanted(preset=name), USUAL)
    found = imported(printed(topology))
    assert (found.nodes, found.distances) == (topology.nodes, topology.distances)


#: Other forms that count: what is replaced in the text, and by what.
FORMS = {
    "columns in another order": (
        "node   0   1   4 \n  0:  10  21  14 \n  1:  21  10  24 \n  4:  14  24  10\n",
        "node   4   0   1\n  4:  10  14  24\n  0:  14  10  21\n  1:  24  21  10\n",
    ),
    "blank lines": ("node distances:", "\n\nnode distances:\n"),
    "no free memory": ("node 0 free: 90217 MB\n", ""),
}


@pytest.mark.parametrize(("old", "new"), FORMS.values(), ids=FORMS)
def test_other_forms(old: str, new: str) -> None:
    """What does not matter may differ."""
    assert old in SERVER
    assert imported(SERVER.replace(old, new)) == imported(SERVER)


def test_no_distances() -> None:
    """Where numactl knows none, they are as where nobody says any; what it does not know of memory is none."""
    head = SERVER.partition("node distances:")[0].replace("257000 MB", "<not available>", 1)
    found = imported(head + "No distance information available.\n")
    assert found.distances[0] == (10, 20, 20)
    assert found.nodes[2].memory_bytes == 0


#: What is replaced in the text, by what, and how that is refused.
BAD = {
    "a line too many": (
        "node 0 free",
        "$ numactl -s\nnode 0 free",
        "line 4: no line of numactl --hardware: '$ nu",
    ),
    "no number": ("128690 MB", "much MB", "line 3: no line of numactl --hardware: 'node 0 size: much MB'"),
    "a node twice": ("node 1 cpus", "node 0 cpus", "line 5: node 0 for the second time"),
    "a machine twice": ("node 0 cpus", "available: 1 nodes (0)\nnode 0 cpus", "line 2: a second machine"),
    "a header twice": ("  0:  10", "node 0 1 4\n  0:  10", "line 13: the distances have begun already"),
    "a node too few": (
        "available: 3",
        "available: 4",
        "it speaks of 4 available nodes, and then of 3",
    ),
    "other columns": (
        "node   0   1   4",
        "node   0   1   2",
        "node distances: expected a column for each of",
    ),
    "a row too few": ("  4:  14  24  10\n", "", "node distances: expected 3 numbers in the row of node 4"),
    "a short row": ("14  24  10", "14  24", "node distances: expected 3 numbers in the row of node 4"),
    "a wrong distance": (
        "14  24  10",
        "14  24  12",
        "distances: row 2, column 2: expected a whole number",
    ),
    "a CPU twice": ("cpus: 3", "cpus: 0", "node: each CPU belongs to one node"),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD.values(), ids=BAD)
def test_what_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """In one line: the file, what is wrong, and where."""
    path = tmp_path / "server"
    assert old in SERVER
    path.write_text(SERVER.replace(old, new, 1))
    with pytest.raises(TopologyError) as caught:
        describe(Wanted(topology=path), USUAL)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """The text with some places overwritten."""
    text = SERVER
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        inserted = draw(st.one_of(st.text(max_size=6), st.sampled_from(["\n", " ", ":", "9", "node 9 cpus: 99\n"])))
        text = text[:at] + inserted + text[at + draw(st.integers(0, 30)) :]
    return text


@given(st.one_of(damaged(), st.text(max_size=80).map(lambda text: "available: 1 nodes (0)\n" + text)))
def test_any_text_is_a_topology_or_refused(text: str) -> None:
    """However it is damaged; whether it is such a text is told by its first line."""
    is_numactl_text(text)
    try:
        imported(text)
    except TopologyError as error:
        assert len(str(error)) < 1 << 12  # noqa: PT017 - that it raises nothing else is what is tested
