"""numactl and numastat themselves read what the views print, and show the numbers of the machine.

They find it where the kernel has its own: in a mount namespace a folder lies over /sys/devices/system/node, and a file
over /proc/PID/numa_maps.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.core.conftest import PAGE, Machine

from numaemu_core import mmap, node_views, numa_maps, views
from numaemu_core.mm_types import Task
from numaemu_core.uapi import MPOL_BIND, MPOL_INTERLEAVE

Make = Callable[..., Machine]
#: `in_namespace(folder, script)`: what the script prints where the kernel's views are those of the folder.
InNamespace = Callable[[Path, str], str]

PROFILES = ("swap-v3", "linux-6.1", "linux-6.12")
MB = 1 << 20
#: Ids with gaps, distances that depend on the direction, a node without CPUs, one without memory.
SPARSE: dict[str, Any] = {
    "swap": "1M",
    "distances": [[10, 15, 20, 255], [16, 10, 21, 30], [20, 24, 10, 17], [28, 30, 17, 10]],
    "node": [
        {"id": 0, "memory": "8M", "cpus": [0, 1]},
        {"id": 2, "memory": "3M", "cpus": []},
        {"id": 3, "memory": 0, "cpus": [2]},
        {"id": 5, "memory": "5M", "cpus": [3, 9]},
    ],
}


@pytest.fixture(scope="session")
def in_namespace() -> InNamespace:
    """Runs a script with a folder as the kernel's views; skips where that cannot be."""
    if shutil.which("numastat") is None or shutil.which("numactl") is None:
        pytest.skip("numactl and numastat are not installed: apt-get install numactl")
    unshare, why = shutil.which("unshare") or "unshare", ""
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        command = [unshare, *options, "/bin/sh", "-euc"]
        script = "numactl --show >&2; mount --bind /dev /sys/devices/system/node"
        probe = subprocess.run([*command, script], capture_output=True, check=False)
        if not probe.returncode:
            break
        why = probe.stderr.decode().strip()
    else:
        pytest.skip(f"the host refuses a mount namespace, or numactl in it: {why}")

    def run(folder: Path, script: str) -> str:
        text = f'mount --bind "$1" /sys/devices/system/node; {script}'
        done = subprocess.run(
            [*command, text, "sh", folder],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        return done.stdout

    return run


def write_views(m: Machine, task: Task, folder: Path) -> Path:
    """The views of a machine as files, named as in /sys/devices/system/node; gives the folder."""
    hardware = node_views.hardware(m.k)
    counters = dict(node_views.numastat(m.k))
    for node, distances, figures in zip(hardware["nodes"], hardware["distances"], node_views.meminfo(m.k), strict=True):
        place = folder / f"node{node['id']}"
        place.mkdir()
        (place / "meminfo").write_text(views.meminfo(figures, of_2005=m.k.profile.views_of_2005))
        (place / "numastat").write_text(views.node_numastat(counters[node["id"]]))
        (place / "distance").write_text(" ".join(map(str, distances)) + "\n")
        (place / "cpumap").write_text(f"{sum(1 << cpu for cpu in node['cpus']):08x}\n")
    (folder / "numa_maps").write_text(m.call(numa_maps.sys_numa_maps(m.k, task)))
    return folder


def busy(make: Make, profile: str) -> tuple[Machine, Task]:
    """A machine with a task that has 1 MB of heap on node 2, and besides 1 MB on node 0 and 2 MB on node 5."""
    m = make(profile=profile, **SPARSE)
    task = m.attach()
    heap = m.call(mmap.sys_brk(m.k, task, 0))
    m.call(mmap.sys_brk(m.k, task, heap + MB))
    m.mbind(task, heap, MB // PAGE, MPOL_BIND, {2})
    m.touch(task, heap, MB // PAGE)
    spread = m.mmap(task, 3 * MB // PAGE)
    m.mbind(task, spread, 2 * MB // PAGE, MPOL_INTERLEAVE, {0, 5})
    m.mbind(task, spread + 2 * MB, MB // PAGE, MPOL_BIND, {5})
    m.touch(task, spread, 3 * MB // PAGE)
    return m, task


def table(text: str) -> dict[str, list[str]]:
    """The rows of a table of numastat: the words behind each name."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith((" ", "-", "Per-node", "Token"))]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("profile", PROFILES)
def test_numactl_prints_the_same_hardware(
    machine: Make, profile: str, tmp_path: Path, in_namespace: InNamespace
) -> None:
    """`numactl --hardware` on our meminfo prints what `hardware` prints, character by character."""
    m, task = busy(machine, profile)
    printed = in_namespace(write_views(m, task, tmp_path), "numactl --hardware")
    assert printed == views.hardware(node_views.hardware(m.k))
    assert "node 5 free: 3 MB" in printed


@pytest.mark.parametrize("profile", PROFILES)
def test_numastat_prints_the_same_counters(
    machine: Make, profile: str, tmp_path: Path, in_namespace: InNamespace
) -> None:
    """`numastat` on our files of the nodes prints what `stat` prints, character by character."""
    m, task = busy(machine, profile)
    printed = in_namespace(write_views(m, task, tmp_path), "numastat")
    assert printed == views.numastat([(node, row) for node, row in node_views.numastat(m.k)])
    assert table(printed)["numa_hit"] == ["256", "256", "0", "512"]


@pytest.mark.parametrize("profile", PROFILES)
def test_numastat_finds_every_field_of_meminfo(
    machine: Make, profile: str, tmp_path: Path, in_namespace: InNamespace
) -> None:
    """`numastat -m` shows each field of each node in MB; of names that it does not know it says so."""
    m, task = busy(machine, profile)
    printed = in_namespace(write_views(m, task, tmp_path), "numastat -m 2>&1")
    unknown = {line.split()[1] for line in printed.splitlines() if line.startswith("Token")}
    assert unknown <= {"SwapCached", "SecPageTables"}
    found = table(printed)
    for name in [name for name in node_views.meminfo(m.k)[0] if name not in {"node", *unknown}]:
        sizes = [node[name] / 1024 for node in node_views.meminfo(m.k)]
        assert found[name] == [f"{size:.2f}" for size in [*sizes, sum(sizes)]], name
    assert found["MemUsed"] == ["1.00", "1.00", "0.00", "2.00", "4.00"]


@pytest.mark.parametrize(("profile", "knows_heap"), [("swap-v3", False), ("linux-6.1", True), ("linux-6.12", True)])
def test_numastat_finds_the_pages_of_a_task(
    machine: Make,
    profile: str,
    knows_heap: bool,  # noqa: FBT001 - a table
    tmp_path: Path,
    in_namespace: InNamespace,
) -> None:
    """`numastat -p` adds up our numa_maps by node; the heap apart, where the kernel marks it."""
    m, task = busy(machine, profile)
    script = 'mount --bind "$1/numa_maps" /proc/$$/numa_maps; numastat -p $$'
    found = table(in_namespace(write_views(m, task, tmp_path), script))
    heap = "1.00" if knows_heap else "0.00"
    assert found["Heap"] == ["0.00", heap, "0.00", "0.00", heap]
    assert found["Private"][2:4] == ["0.00", "2.00"]
    assert found["Total"] == ["1.00", "1.00", "0.00", "2.00", "4.00"]
