"""Other people's programs: hwloc, a stress test of NUMA calls, Go and Rust, a database under numactl."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.run.conftest import Run

pytestmark = pytest.mark.shares_machines


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Skips where a program is not installed."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program}: apt-get install {package}")


@needs("lstopo-no-graphics", "hwloc-nox")
@pytest.mark.parametrize("options", [(), ("--no-mount",)], ids=["mounted", "answered"])
def test_lstopo_draws_the_machine(run: Run, options: tuple[str, ...]) -> None:
    """A package with its node, its memory and its CPU for each of the four."""
    done = run("lstopo-no-graphics", "--no-io", "--of", "console", options=options)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == "Machine (256MB total)"
    assert [line for line in lines if line.startswith("NUMANode")] == [
        f"NUMANode L#{nid} (P#{nid} 64MB)" for nid in range(4)
    ]
    assert sum("PU L#" in line for line in lines) == 4


@needs("hwloc-bind", "hwloc-nox")
def test_hwloc_bind_binds(run: Run) -> None:
    """CPUs and memory that hwloc-bind asks for are what it finds in the program that it starts."""
    assert run("hwloc-bind", "--cpubind", "node:1", "--", "hwloc-bind", "--get").stdout == "0x00000002\n"
    done = run("hwloc-bind", "--membind", "node:3", "--", "hwloc-bind", "--get", "--membind")
    assert done.stdout == "0x00000008 (bind)\n"


@needs("stress-ng", "stress-ng")
def test_stress_ng_finds_nothing_wrong(run: Run, tmp_path: Path) -> None:
    """Its stressor of NUMA calls, with right and wrong arguments, runs and verifies what it gets."""
    done = run("stress-ng", "--numa", "1", "--numa-ops", "3", "--verify", "--temp-path", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "system has 4 of" in done.stdout + done.stderr
    assert "fail" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("fzf", "--filter", "nod7"), id="go", marks=needs("fzf", "fzf")),
        pytest.param(("rg", "--threads", "2", "node [7]+$"), id="rust", marks=needs("rg", "ripgrep")),
    ],
)
def test_programs_in_go_and_rust_run_where_they_are_bound(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Their runtimes with threads of their own find what they find elsewhere, and have their pages on node 2."""
    words = "".join(f"node {i}\n" for i in range(20_000))
    elsewhere = subprocess.run(command, input=words, capture_output=True, text=True, check=True)
    report = tmp_path / "report"
    options = ("--report", "json", "--report-file", str(report))
    done = run("numactl", "--membind=2", *command, options=options, stdin=words)
    assert (done.returncode, done.stdout) == (0, elsewhere.stdout), done.stderr
    pages = json.loads(report.read_text())["pages_by_node"]
    assert pages["1"] == pages["3"] == 0
    assert pages["2"] > 100


REDIS = """
cd {folder}
numactl --interleave=all redis-server --port 0 --unixsocket {folder}/s --save '' --appendonly no >log 2>&1 &
server=$!
until redis-cli -s {folder}/s ping 2>/dev/null | grep -q PONG; do kill -0 $server || exit 9; done
for i in $(seq 200); do echo "set k$i $(printf %04096d $i)"; done | redis-cli -s {folder}/s | tail -1
cat /proc/$server/numa_maps
redis-cli -s {folder}/s shutdown nosave
wait $server
"""


@needs("redis-server", "redis-server")
def test_redis_is_spread_over_the_nodes(run: Run, tmp_path: Path) -> None:
    """A server under numactl --interleave=all has its memory on all nodes, to a few pages in equal parts."""
    done = run("sh", "-c", REDIS.format(folder=tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OK\n")
    pages = [0, 0, 0, 0]
    for word in done.stdout.split():
        if word[0] == "N" and word[2:3] == "=":
            pages[int(word[1])] += int(word[3:])
    assert min(pages) > 0
    assert max(pages) - min(pages) < sum(pages) // 4, pages
