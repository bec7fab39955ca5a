"""Odd machines as programs see them: presets, and machines that were written down by other programs."""

import shutil
import sys
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, numaemu

from numaemu.description import Usual, Wanted, describe

pytestmark = [
    pytest.mark.usefixtures("runtime"),
    pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed: apt-get install numactl"),
]

USUAL = Usual(nodes=2, memory="64M", swap="64M", profile="linux-6.12")

#: Preset, and lines of numactl --hardware on it.
SHOWN: dict[str, list[str]] = {
    "sparse-ids": [
        "available: 4 nodes (0-1,16-17)",
        "node 17 cpus: 96 104 112 120",
        "node 16 size: 8 MB",
        " 16:  40  40  10  20",
    ],
    "memoryless-node": ["available: 4 nodes (0-3)", "node 1 cpus: 4 5 6 7", "node 1 size: 0 MB", "node 2 size: 8 MB"],
    "dram-cxl": ["node 0 size: 4 MB", "node 1 cpus:", "node 1 size: 8 MB", "  1:  14  10"],
}


LSTOPO = "lstopo-no-graphics --disallowed --no-io --of xml"


@pytest.mark.parametrize("name", SHOWN)
def test_a_preset_comes_back_from_what_programs_say_of_it(name: str, tmp_path: Path) -> None:
    """Numactl shows what it is; numactl's text, and lstopo's XML in both formats, describe the same machine."""
    files = {"text": "numactl --hardware"}
    if shutil.which("lstopo-no-graphics") is not None:
        files |= {"xml of 2": LSTOPO, "xml of 1": f"{LSTOPO} --export-xml-flags v1"}
    script = "; ".join(f"{command} > '{tmp_path}/{file}'" for file, command in files.items())
    done = numaemu("run", "--preset", name, "--memory", "8M", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert set(SHOWN[name]) <= {line.rstrip() for line in (tmp_path / "text").read_text().splitlines()}
    preset = describe(Wanted(preset=name, memory="8M"), USUAL)
    for file in files:
        found = describe(Wanted(topology=tmp_path / file), USUAL)
        assert found.nodes == preset.nodes, file
        # hwloc tells a 1.x file no distances where a node has no CPUs
        assert file == "xml of 1" or found.distances == preset.distances, file


def test_seventy_two_nodes(tmp_path: Path) -> None:
    """More than a word has bits, and one far off: numactl shows them, mbind and move_pages reach them."""
    ids = [*range(71), 1000]
    tables = [f'[[node]]\nid = {nid}\nmemory = "1M"\ncpus = [{cpu}]' for cpu, nid in enumerate(ids)]
    box, text = tmp_path / "box.toml", tmp_path / "text"
    box.write_text("\n".join(tables))
    script = f"numactl --hardware > '{text}'; '{sys.executable}' '{PROGRAMS / 'far.py'}'"
    done = numaemu("run", "--topology", box, "--profile", "linux-6.12", "--swap", "1M", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert text.read_text().startswith("available: 72 nodes (0-70,1000)\n")
    assert (
        describe(Wanted(topology=text), USUAL).nodes
        == describe(Wanted(topology=box, profile="linux-6.12"), USUAL).nodes
    )
    assert done.stdout.splitlines() == ["0 [70]", "0 [1000, 1000, 1000] [70, 1000]", "-22"]
