"""numactl, numastat, migratepages and memhog as Debian ships them, on a machine of four nodes."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, Run

import numaemu as nm

pytestmark = [
    pytest.mark.shares_machines,
    pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed: apt-get install numactl"),
]

DISTANCES = """node distances:
node   0   1   2   3
  0:  10  20  20  20
  1:  20  10  20  20
  2:  20  20  10  20
  3:  20  20  20  10
"""

#: Options of numactl, and what numactl --show says of policy and CPUs under them.
SHOWN: list[tuple[str, dict[str, str]]] = [
    ("--localalloc", {"policy": "local"}),
    ("--membind=2", {"policy": "bind", "membind": "2", "preferred": "2"}),
    ("--membind=1-3", {"policy": "bind", "membind": "1 2 3"}),
    ("--membind=!0", {"policy": "bind", "membind": "1 2 3"}),
    ("--interleave=all", {"policy": "interleave", "interleavemask": "0 1 2 3"}),
    ("--interleave=0,3", {"policy": "interleave", "interleavemask": "0 3"}),
    ("--preferred=3", {"policy": "preferred", "preferred node": "3"}),
    ("--preferred-many=1,2", {"policy": "preferred-many", "preferred": "1 2"}),
    ("--cpunodebind=1", {"policy": "default", "physcpubind": "1", "cpubind": "1", "nodebind": "1"}),
    ("--physcpubind=0,2", {"policy": "default", "physcpubind": "0 2", "nodebind": "0 2"}),
    ("--physcpubind=+1", {"physcpubind": "1"}),
]


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize("options", [(), ("--no-mount",)], ids=["mounted", "answered"])
def test_hardware_shows_four_nodes(run: Run, options: tuple[str, ...]) -> None:
    """Nodes, CPUs, memory and distances are the machine's, whichever way the tree of nodes is given."""
    done = run("numactl", "--hardware", options=options)
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout)[0] == "available: 4 nodes (0-3)"
    assert "node 3 cpus: 3" in lines(done.stdout)
    assert "node 2 size: 64 MB" in lines(done.stdout)
    assert lines(done.stdout)[-6:] == lines(DISTANCES)


@pytest.mark.parametrize(("option", "expected"), SHOWN, ids=[option for option, _ in SHOWN])
def test_a_policy_is_inherited_by_what_numactl_starts(run: Run, option: str, expected: dict[str, str]) -> None:
    """Numactl sets it and executes numactl --show, which finds it."""
    done = run("numactl", option, "numactl", "--show")
    assert done.returncode == 0, done.stderr
    shown = dict(line.partition(":")[::2] for line in lines(done.stdout))
    found = {name: shown.get(name, "").split("(")[0].strip() for name in expected}
    if "preferred node" in found and "preferred-many" not in option:
        found["preferred node"] = found["preferred node"].split()[0]
    assert found == expected


@pytest.mark.parametrize("option", ["--membind=7", "--cpunodebind=9", "--interleave=4", "--physcpubind=77"])
def test_what_is_not_there_is_refused(run: Run, option: str) -> None:
    """Numactl says so by itself: it has been told which nodes and CPUs there are."""
    done = run("numactl", option, "true")
    assert done.returncode == 1
    assert "out of range" in done.stderr


def pages_by_node(text: str) -> dict[int, int]:
    """The pages of numa_maps."""
    found: dict[int, int] = {}
    for word in text.split():
        name, _, count = word.partition("=")
        if name[:1] == "N" and name[1:].isdecimal():
            found[int(name[1:])] = found.get(int(name[1:]), 0) + int(count)
    return found


@pytest.mark.parametrize(
    ("option", "nodes"),
    [("--membind=2", {2}), ("--interleave=1,3", {1, 3}), ("--preferred=3", {3}), ("--cpunodebind=1", {1})],
)
def test_pages_are_where_the_policy_says(run: Run, option: str, nodes: set[int]) -> None:
    """A program under numactl finds all its pages there, with heap, stack and files under their names."""
    done = run("numactl", option, "cat", "/proc/self/numa_maps")
    assert done.returncode == 0, done.stderr
    assert pages_by_node(done.stdout).keys() == nodes
    assert " heap " in done.stdout
    assert " stack " in done.stdout
    assert " file=/" in done.stdout


def test_numastat_reads_the_counters(run: Run) -> None:
    """Numastat has a column a node, and counts what a program before it has allocated."""
    script = "numactl --membind=3 cat /proc/self/numa_maps >/dev/null; numastat; numastat -m"
    done = run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout)[0].split() == ["node0", "node1", "node2", "node3"]
    hits = next(line for line in lines(done.stdout) if line.startswith("numa_hit")).split()
    assert int(hits[4]) > 0
    total = next(line for line in lines(done.stdout) if line.startswith("MemTotal")).split()
    assert total == ["MemTotal", "64.00", "64.00", "64.00", "64.00", "256.00"]


def test_migratepages_moves_the_pages_of_a_process(run: Run) -> None:
    """The pages of a process that sleeps leave node 0 for node 2, as numa_maps and numastat -p then say."""
    done = run(sys.executable, PROGRAMS / "mover.py")
    assert done.returncode == 0, done.stderr
    before, after, numastat = done.stdout.split("@@\n")
    assert pages_by_node(before).keys() == {0}
    assert pages_by_node(after).keys() == {2}
    total = next(line for line in numastat.splitlines() if line.startswith("Total")).split()
    assert float(total[3]) > 0
    assert total[1] == "0.00"


def test_migratepages_of_a_process_elsewhere_is_refused(run: Run) -> None:
    """Processes that do not run on the machine are not there."""
    done = run("migratepages", os.getpid(), "0", "1")
    assert done.returncode == 1
    assert "No such process" in done.stderr


@pytest.mark.skipif(shutil.which("memhog") is None, reason="memhog is not installed")
def test_memhog_writes_under_its_policies(run: Run) -> None:
    """Each policy that it can set is accepted."""
    for words in (("default",), ("membind", "1"), ("interleave", "0,2"), ("preferred", "3")):
        done = run("memhog", "1m", *words)
        assert done.returncode == 0, (words, done.stderr)


def test_shared_memory_has_the_policy_of_the_object(run: Run, machine: nm.Machine, tmp_path: Path) -> None:
    """What numactl sets on a file in shared memory is where its pages are, also when nobody has mapped it meanwhile."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108 - the kernel's tmpfs, which the policy is about
        pytest.skip("no tmpfs at /dev/shm")
    name = f"/dev/shm/{tmp_path.name}-{os.getpid()}"  # noqa: S108 - as above
    try:
        done = run("numactl", "--length=4m", f"--file={name}", "--interleave=1,3", "--touch", "--dump")
        assert done.returncode == 0, done.stderr
        assert "0000000000400000: interleave : 1 3" in done.stdout
        done = run("numactl", "--length=4m", f"--file={name}", "--dump")
        assert done.stdout == "0000000000000000-0000000000400000: interleave : 1 3 \n"
        before = dict(machine.figures("numastat"))
        assert run("numactl", "--length=8m", f"--file={name}", "--membind=2", "--touch").returncode == 0
        given = {node: counters[0] - before[node][0] for node, counters in machine.figures("numastat")}
        assert (given[1], given[2], given[3]) == (0, 1024, 0)  # the first half was there
    finally:
        Path(name).unlink(missing_ok=True)
