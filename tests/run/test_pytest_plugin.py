"""The pytest plug-in: each test runs a small suite in a pytest of its own."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from numaemu.pytest_plugin.shape import shape_of

CI_PAGE = Path(__file__).resolve().parents[2] / "docs" / "ci.md"
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
SECONDS = 90
#: Warnings are errors. The plug-in of hypothesis takes longer than the rest of pytest.
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-W", "error", "-rs")
#: A machine that starts fast.
SMALL = "@pytest.mark.numa(nodes=2, memory='8M', swap='1M')"
HEAD = "import os, subprocess, sys\nimport numaemu as nm\nimport pytest\n"


def suite(pytester: pytest.Pytester, text: str, *options: str) -> pytest.RunResult:
    """Run a file of tests. Its machines have all ended with it."""
    pytester.makepyfile(test_it=HEAD + text.replace("@SMALL", SMALL))
    found = pytester.runpytest_subprocess(*OPTIONS, *options, timeout=SECONDS)
    assert list(Path(os.environ["XDG_RUNTIME_DIR"]).glob("numaemu/*")) == []
    return found


@pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed: apt-get install numactl")
def test_the_example_of_the_docs(pytester: pytest.Pytester) -> None:
    """What docs/ci.md shows passes as it stands there."""
    (example,) = EXAMPLE.findall(CI_PAGE.read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nnuma_required = true")
    suite(pytester, example, "--strict-markers").assert_outcomes(passed=example.count("def test_"))


LENDING = """
from numaemu.pytest_plugin import machines
machines._PATIENCE_S = 0.2
machines._KEPT_MAX = 1
names = []
processes = []
HOLD = "import os, numaemu as nm; t = nm.connect(os.environ['NAME']).attach(); print(1, flush=True); input()"

@SMALL
def test_first(numa):
    names.append(numa.machine.name)
    numa.task.fork()
    numa.machine.attach()
    numa.attach(cpu=0).mmap(4096).touch(write=True)
    assert numa.machine.status()["tasks"] == 4

@SMALL
def test_the_same_machine_without_tasks(numa):
    assert (numa.machine.name, numa.machine.status()["tasks"]) == (names[0], 0)
    numa.machine.set_interleave_weight(0, 3)

@SMALL
def test_the_same_machine_again(numa):
    assert numa.machine.name == names[0]
    numa.task.set_mempolicy(nm.MPOL_WEIGHTED_INTERLEAVE, {0, 1})
    numa.task.mmap(4 * 4096).touch(write=True)
    assert numa.pages_by_node(numa.task) == {0: 2, 1: 2}  # weights are as they were
    numa.machine.create_file("left", b"behind")

@pytest.mark.numa(nodes=2, memory="8M", swap="1M", fresh=True)
def test_fresh(numa):
    names.append(numa.machine.name)

@SMALL
def test_not_one_with_files(numa):
    assert numa.machine.name not in names
    assert numa.machine.status()["files"] == 0
    names.append(numa.machine.name)
    environment = {**os.environ, "NAME": numa.machine.name}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes.append(subprocess.Popen([sys.executable, "-c", HOLD], env=environment, **pipes))
    assert processes[0].stdout.readline() == b"1\\n"

@SMALL
def test_not_one_with_tasks(numa):
    processes[0].communicate(b"\\n")
    assert numa.machine.name not in names
    os.kill(numa.machine.status()["processes"][0]["pid"], 9)

@SMALL
def test_not_one_that_has_ended(numa):
    assert numa.task.mmap(4096)[0:1] == b"\\0"

@pytest.mark.numa(nodes=1, memory="8M", swap="1M")
def test_the_last_one_used_is_kept(numa):
    assert os.listdir(os.environ["XDG_RUNTIME_DIR"] + "/numaemu") == [numa.machine.name]
"""


def test_machines_are_lent_to_one_test_after_the_other(pytester: pytest.Pytester) -> None:
    """Tests of one shape share a machine as good as new; one that leaves a task behind fails, and loses the machine."""
    found = suite(pytester, LENDING)
    found.assert_outcomes(passed=8, errors=1)
    found.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_not_one_with_files*",
            "the test has left a task on its machine: of processes that it has not ended",
        ]
    )


ASSERTING = """
pytestmark = pytest.mark.numa(nodes=3, memory="32M")

def test_buffer(numa):
    buffer = numa.task.mmap(8 * 4096)
    numa.task.mbind(buffer.start, 4 * 4096, nm.MPOL_BIND, {1})
    buffer.touch(0, 6 * 4096, write=True)
    numa.assert_on_node((buffer.start, 4 * 4096), 1)
    numa.assert_on_node(buffer, {0, 1}, present_only=True)
    assert numa.pages_by_node(buffer) == numa.pages_by_node(numa.task) == {0: 2, 1: 4}
    numa.assert_on_node(buffer, 1)

def test_untouched(numa):
    buffer = numa.task.mmap(2 * 4096)
    with pytest.raises(AssertionError, match="found none that is in memory"):
        numa.assert_on_node(buffer, 0, present_only=True)
    buffer.touch(0, 4096, write=True)
    numa.assert_on_node(buffer, 0, present_only=True)
    numa.assert_on_node(buffer, 0)

def test_no_such_node(numa):
    numa.assert_on_node(numa.task.mmap(4096), 3)

BIND = '''
import os
print(os.getpid(), flush=True)
if os.fork() == 0:
    os.execv("/bin/true", ["true"])
os.wait()
'''

def test_program(numa):
    done = numa.run(["numactl", "--membind=2", sys.executable, "-c", BIND])
    assert done.returncode == 0 and done.report["pid"] == int(done.stdout)
    child, parent = done.report["exited"]
    assert (child["name"], parent["pid"]) == ("true", done.report["pid"])
    numa.assert_on_node(child["pid"], 2)
    numa.assert_on_node(done, 2)
    assert numa.pages_by_node(done)[2] > 100
    numa.assert_on_node(done, 1)

def test_signal(numa):
    done = numa.run(["sh", "-c", "kill -9 $$"], check=False)
    assert done.returncode == -9
    numa.assert_on_node(done, 1)

def test_exit_code(numa):
    assert numa.run(["/nonexistent/program"], check=False).returncode == 127
    numa.run(["sh", "-c", "echo a word; exit 3"])

def test_too_long(numa):
    numa.run(["sh", "-c", "exec sleep 77"], timeout=1)
"""


@pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed: apt-get install numactl")
def test_what_is_wrong_is_told(pytester: pytest.Pytester) -> None:
    """Pages that are elsewhere come in a table; programs that fail, with what they have printed."""
    found = suite(pytester, ASSERTING)
    found.assert_outcomes(failed=7)
    found.stdout.fnmatch_lines(
        [
            "E *AssertionError: 32768 bytes at 0x* of task *: expected all pages on node 1, found 2 elsewhere and 2 *",
            "E *node     pages",
            "E *   0         2",
            "E *   1         4  expected",
            "E *   -         2  not in memory (never touched, or swapped out)",
            "E *bytes 0x4000 to 0x6000 (address 0x*): node 0",
            "E *bytes 0x6000 to 0x8000 (address 0x*): not in memory *",
            "E *AssertionError: *: expected all pages on node 0, found 1 on no node",
            "E *ValueError: node: expected some of 0, 1, 2, got 3",
            "E *AssertionError: numactl --membind=2 *: expected all pages on node 1, found * elsewhere",
            "E *   1         0  expected",
            "E *   2       *",
            "E *LookupError: the pages of process * are not known: *a signal has ended it*",
            "E *CalledProcessError: * returned non-zero exit status 3.",
            "E *a word",
            "E *TimeoutExpired: * timed out after 1 seconds",
        ]
    )
    found.stdout.no_fnmatch_line("*pytest_plugin*")  # no line of ours among theirs


#: Arguments of the marker, and what is said of them.
WRONG = {
    "nods=4": "unknown argument 'nods'; known: nodes, distances, *; did you mean 'nodes'?",
    "4": "arguments have names, as in numa(nodes=4), got 4 without one",
    "nodes=0": "nodes: expected a whole number from 1 to *, got 0",
    "nodes=2, distances=[[10]]": "distances: expected 2 rows of 2 numbers, got *",
    "nodes=2, memory='lots'": "*memory*'lots'*",
    "nodes=2, profile='linux-7'": "profile: 'linux-7' is not known; *",
    "topology='none.toml'": "*No such file*none.toml'",
    "topology={}, nodes=2": "topology says what nodes there are: leave out nodes",
    "topology=5": "topology: expected a path or a dict, got 5",
    "nodes=2, faults='node7: full'": "*node7*",
    "fresh='yes'": "fresh: expected True or False, got 'yes'",
}


def test_what_describes_no_machine_is_an_error(pytester: pytest.Pytester) -> None:
    """One line says what is wrong with a marker or the option, before a machine is started."""
    tests = [f"@pytest.mark.numa({words})\ndef test_{number}(numa): pass\n" for number, words in enumerate(WRONG)]
    tests.append("def test_option(numa): pass\n")
    pytester.makeini("[pytest]\nnuma_topology = ini.toml")
    found = suite(pytester, "".join(tests), "--strict-markers", "--numa-topology", "option.toml")
    found.assert_outcomes(errors=len(tests))
    found.stdout.fnmatch_lines(
        [
            f"numa: machines of {pytester.path}/option.toml, unless a test says otherwise",
            *(f"@pytest.mark.numa: {complaint}" for complaint in WRONG.values()),
            "--numa-topology: *No such file*/option.toml'",
        ]
    )
    found.stdout.no_fnmatch_line("*During handling*")


UNUSED = """
def test_without(tmp_path):
    heavy = {"numpy", "zmq", "numaemu.machine", "numaemu.pytest_plugin.machines"}
    assert "numaemu.pytest_plugin" in sys.modules
    assert not heavy & set(sys.modules)
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        assert children.read() == ""

@pytest.mark.numa(nodes=2)
def test_with_a_marker_only():
    test_without(None)
"""


def test_a_suite_without_the_fixture_pays_nothing(pytester: pytest.Pytester) -> None:
    """No machine is started, nothing heavy imported, and nothing said; and it works without xdist."""
    found = suite(pytester, UNUSED, "-p", "no:xdist")
    found.assert_outcomes(passed=2)
    found.stdout.no_fnmatch_line("*numa:*")


WORKERS = """
@SMALL
def test_own(numa, worker_id):
    with open(f"{os.environ['NAMES']}/{worker_id}", "x") as file:
        file.write(numa.machine.name)

@SMALL
def test_again(numa, worker_id):
    with open(f"{os.environ['NAMES']}/{worker_id}") as file:
        assert file.read() == numa.machine.name
"""


def test_each_worker_has_machines_of_its_own(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of xdist have two machines, and each worker keeps its own."""
    folder = pytester.mkdir("names")
    monkeypatch.setenv("NAMES", str(folder))
    suite(pytester, WORKERS, "-n", "2", "--dist", "each").assert_outcomes(passed=4)
    names = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(names) == {"gw0", "gw1"}
    assert names["gw0"] != names["gw1"]


#: Another supervisor is there: the host's kernel refuses a second one.
REFUSING = """
import struct
from numaemu_run import abi, seccomp

seccomp.set_no_new_privs()
ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
LISTENER = seccomp.install_filter(abi.abi_of_host(), ALLOW)
"""


WANTING = """
@SMALL
def test_required(numa):
    numa.run(["true"])

@SMALL
def test_not_required(numa):
    numa._required = False
    numa.run(["true"])
    raise AssertionError("not reached")
"""


def test_where_programs_cannot_be_run(pytester: pytest.Pytester) -> None:
    """The test that wants to is skipped, with what the doctor says, or fails if the host is required to."""
    pytester.makeconftest(REFUSING)
    found = suite(pytester, WANTING, "-o", "numa_required=true")
    found.assert_outcomes(failed=1, skipped=1)
    reason = "this host cannot run programs on a NUMA machine: seccomp notifications: Device or resource busy (*)"
    found.stdout.fnmatch_lines([f"{reason} [[]numa_required]", f"SKIPPED*{reason}"])


BOX = """
profile = "linux-6.12"
[[node]]
id = 1
memory = "8M"
cpus = [2]
[[node]]
id = 5
memory = "0"
cpus = [3]
"""
TOLD = """
def test_told(numa):
    assert [node.id for node in numa.topology.nodes] == [1, 5]
    buffer = numa.task.mmap(4096)
    buffer.touch(write=True)
    numa.assert_on_node(buffer, 1)
"""


def test_a_topology_for_all_tests(pytester: pytest.Pytester) -> None:
    """The file of the ini file gives the machine of tests that describe none, and the header of the report names it."""
    path = pytester.mkdir("machines") / "box.toml"
    path.write_text(BOX)
    pytester.makeini("[pytest]\nnuma_topology = machines/box.toml")
    found = suite(pytester, TOLD)
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines([f"numa: machines of {path}, unless a test says otherwise"])


#: Arguments of the marker beside BOX for all tests; ids of nodes with their MiB, profile, MiB of swap, is it fresh?
SHAPES: dict[str, tuple[dict[str, Any], list[tuple[int, int]], str, int, bool]] = {
    "none": ({}, [(1, 8), (5, 0)], "linux-6.12", 0, False),
    "others": ({"profile": "linux-6.1", "swap": "1M"}, [(1, 8), (5, 0)], "linux-6.1", 1, False),
    "fresh": ({"fresh": True}, [(1, 8), (5, 0)], "linux-6.12", 0, True),
    "nodes": ({"nodes": 3}, [(0, 256), (1, 256), (2, 256)], "linux-6.12", 128, False),
    "distances": ({"distances": [[10, 99], [98, 10]]}, [(0, 256), (1, 256)], "linux-6.12", 128, False),
    "a file": ({"topology": "box.toml", "swap": "2M"}, [(1, 8), (5, 0)], "linux-6.12", 2, False),
    "faults": ({"faults": "swap: full", "swap": "4M"}, [(1, 8), (5, 0)], "linux-6.12", 4, True),
    "a dict": ({"topology": {"node": [{"id": 7, "memory": "4M", "cpus": [1]}]}}, [(7, 4)], "swap-v3", 0, False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_a_machine(tmp_path: Path, name: str) -> None:
    """What the marker says of nodes takes the place of the file for all tests, other things are added to it."""
    (tmp_path / "box.toml").write_text(BOX)
    arguments, nodes, profile, swap, alone = SHAPES[name]
    topology, fresh = shape_of(pytest.mark.numa(**arguments).mark, tmp_path / "box.toml", tmp_path)
    assert [(node.id, node.memory_bytes >> 20) for node in topology.nodes] == nodes
    assert (topology.profile, topology.swap_bytes >> 20, fresh) == (profile, swap, alone)
    assert [list(row) for row in topology.distances] == arguments.get(
        "distances", [list(r) for r in topology.distances]
    )
    assert not topology.preallocate


def test_the_shape_without_any_word() -> None:
    """Two nodes with today's kernel."""
    topology, fresh = shape_of(None, None, Path())
    assert ([node.id for node in topology.nodes], topology.profile, fresh) == ([0, 1], "linux-6.12", False)
