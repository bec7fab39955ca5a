"""Odd machines as programs see them: presets, and machines that were written down by other programs."""

import shutil

import pytest
from tests.run.conftest import numaemu

pytestmark = [
    pytest.mark.usefixtures("runtime"),
    pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed: apt-get install numactl"),
]

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


@pytest.mark.parametrize("name", SHOWN)
def test_numactl_shows_the_preset(name: str) -> None:
    """Ids, CPUs, memory as it was scaled, distances."""
    done = numaemu("run", "--preset", name, "--memory", "8M", "--", "numactl", "--hardware")
    assert done.returncode == 0, done.stderr
    assert set(SHOWN[name]) <= {line.rstrip() for line in done.stdout.splitlines()}
