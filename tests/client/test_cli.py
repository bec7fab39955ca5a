"""The command line: what it understands, how it fails, how fast it answers."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import numaemu
import numaemu_core
from numaemu.bench.figures import FIGURES, GROWTH
from numaemu.cli import bench, migratepages, options, reports, status, up
from numaemu.cli import main as cli
from numaemu.cli.options import machine_name
from numaemu_core.profiles import PROFILES
from numaemu_host import fdsock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOTS = [str(Path(module.__file__ or "").parents[1]) for module in (numaemu, numaemu_core)]


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place without machines, short enough for sockets, and no machine named in the environment."""
    folder = tmp_path_factory.mktemp("n")
    monkeypatch.setenv("NUMAEMU_RUNTIME", str(folder))
    monkeypatch.delenv("NUMAEMU_MACHINE", raising=False)
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "numaemu", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_imports_nothing_heavy() -> None:
    """--help lists every command without numpy, ZeroMQ or the daemon's parts being imported."""
    code = (
        "import contextlib, sys\nfrom numaemu.cli.main import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])\n"
        "print([name for name in ('numpy', 'zmq', 'structlog', 'multiprocess', 'msgpack') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for command in (
        "up",
        "down",
        "status",
        "ls",
        "hardware",
        "stat",
        "maps",
        "meminfo",
        "vmstat",
        "fsck",
        "migratepages",
    ):
        assert f"\n    {command} " in done.stdout


def test_version() -> None:
    """--version says the version of the package."""
    assert run("--version").stdout == f"numaemu {numaemu.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status"], "no machine named 'default' is running"),
        (["down", "-m", "box"], "no machine named 'box' is running"),
        (["-m", "box", "hardware"], "no machine named 'box' is running"),
        (["fsck", "--machine", "../x"], "a machine's name has"),
        (["maps", "3", "--json"], "no machine named 'default' is running"),
        (["migratepages", "3", "0", "1"], "no machine named 'default' is running"),
        (["up", "--memory", "7"], "memory: expected a multiple of the page size"),
        (["up", "--memory", "lots"], "expected a size such as 64M"),
        (["up", "--nodes", "0"], "nodes: expected a whole number from 1 to 64"),
        (["up", "--page-size", "3000"], "page_size: expected a power of two"),
        (["stress", "--seconds", "inf"], "--seconds: expected more than 0 and at most 604800, got inf"),
        (["stress", "--profile", "vms"], "profile 'vms' is not known; known: "),
        (["up", "--profile", "vms"], "profile: 'vms' is not known"),
        (["up", "--preset", "moon"], "preset: 'moon' is not known; known: two-socket, "),
        (["topologies", "--preset", "moon"], "preset: 'moon' is not known; known: two-socket, "),
        (["topologies", "--memory", "5"], "memory: expected a multiple of the page size"),
        (["up", "--topology", "/nonexistent.toml"], "/nonexistent.toml: No such file or directory"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """What went wrong is one line on stderr, and the exit code is 1."""
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("numaemu: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sideways"],
        ["maps"],
        ["maps", "x"],
        ["meminfo", "one"],
        ["migratepages", "3", "0"],
        ["migratepages", "three", "0", "1"],
        ["up", "--nodes", "two"],
        ["up", "--topology", "t.toml", "--nodes", "2"],
        ["up", "--topology", "t.toml", "--preset", "two-socket"],
        ["up", "--preset", "two-socket", "--nodes", "2"],
        ["topologies", "--preset", "two-socket", "--nodes", "2"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """A command line that is none ends with exit code 2 and the usage."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: numaemu" in capsys.readouterr().err


def test_what_help_says_without_looking_is_true() -> None:
    """Names of profiles and of figures stand in --help as they are where they are defined."""
    assert sorted(options.PROFILES) == sorted(PROFILES)
    assert (tuple(FIGURES), tuple(GROWTH)) == (bench.NAMES, bench.GROWTH_NAMES)


def test_which_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """-m may stand before or after the command; it comes before NUMAEMU_MACHINE, that before `default`."""
    parser = cli.make_parser()
    assert machine_name(parser.parse_args(["status"])) == "default"
    monkeypatch.setenv("NUMAEMU_MACHINE", "env")
    assert machine_name(parser.parse_args(["status"])) == "env"
    assert machine_name(parser.parse_args(["-m", "a", "status"])) == "a"
    assert machine_name(parser.parse_args(["status", "--machine", "b"])) == "b"
    assert machine_name(parser.parse_args(["-m", "a", "status", "-m", "b"])) == "b"


def test_up_options() -> None:
    """Numbers and sizes make the topology; what is not given has its default; user ids are a list."""
    parse = cli.make_parser().parse_args
    found = up.topology_of(parse(["up", "--nodes", "3", "--memory", "2M", "--swap", "1G", "--page-size", "16K"]))
    assert [node.memory_bytes for node in found.nodes] == [2 << 20] * 3
    assert (found.swap_bytes, found.page_size, found.profile) == (1 << 30, 16384, "swap-v3")
    found = up.topology_of(parse(["up"]))
    assert [(node.memory_bytes, node.cpus) for node in found.nodes] == [(64 << 20, (0,)), (64 << 20, (1,))]


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141), (numaemu.MachineGone("box"), 1)]
)
def test_how_it_ends(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: BaseException | type[BaseException],
    code: int,
) -> None:
    """Ctrl-C is 130, a reader that went away is quiet, a machine that ended is an error."""

    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr(status, "run_ls", fail)
    saved = os.dup(1)
    try:
        assert cli.main(["ls"]) == code
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert capfd.readouterr().err == ("numaemu: the machine 'box' has ended\n" if code == 1 else "")


def test_sentences() -> None:
    """An error of the host is told by its file and its meaning, one of the machine by what it says."""
    assert cli.sentence(FileNotFoundError(2, "No such file or directory", "x.toml")) == (
        "x.toml: No such file or directory"
    )
    assert cli.sentence(PermissionError(1, "task 5 belongs to another process")) == "task 5 belongs to another process"
    assert cli.sentence(numaemu.SegmentationFault(4096)) == "address 0x1000 may not be accessed so"
    assert cli.sentence(ValueError()) == "ValueError"


STATUS = {
    "machine": "box",
    "boot_id": "b00t",
    "generation": 1,
    "processes": [
        {"role": "init", "node": None, "pid": 7, "state": "up", "restarts": 0, "memory_kb": 4000, "done": {}},
        {
            "role": "node",
            "node": 12,
            "pid": 12345,
            "state": "starting",
            "restarts": 3,
            "memory_kb": 65536,
            "done": {"pages_cleaned": 5, "batches": 1, "pages_copied": 0},
        },
    ],
}

STATUS_TEXT = """\
machine box, boot id b00t, generation 1
ROLE  NODE    PID  STATE     RESTARTS    MEMORY  DONE
init     -      7  up               0   4000 kB
node    12  12345  starting         3  65536 kB  5 pages_cleaned, 1 batches
"""


@pytest.fixture
def box(runtime: Path) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A machine named box whose init answers one message with STATUS."""

    @contextlib.contextmanager
    def running() -> Iterator[None]:
        (runtime / "box").mkdir(exist_ok=True)
        with fdsock.listen(runtime / "box" / "init.sock") as listener:

            def serve() -> None:
                sock, _ = listener.accept()
                with sock:
                    fdsock.recv(sock)
                    fdsock.send(sock, STATUS)

            thread = threading.Thread(target=serve)
            thread.start()
            yield
            thread.join()
        (runtime / "box" / "init.sock").unlink()

    return running


def test_status(box: Callable[[], contextlib.AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]) -> None:
    """A line a process, numbers to the right, counts of 0 left out; or the same as JSON, whole."""
    with box():
        assert cli.main(["status", "-m", "box"]) == 0
    assert capsys.readouterr().out == STATUS_TEXT
    with box():
        assert cli.main(["status", "-m", "box", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


LOCKS = {
    "mmap_sem.write": {
        "taken": 12,
        "contended": 3,
        "recoveries": 0,
        "wait_s": 0.25,
        "wait_max_s": 0.125,
        "hold_s": 1.5,
        "hold_max_s": 1.0,
    }
}
LOCK_TEXT = """\
LOCK            TAKEN  CONTENDED  RECOVERIES  WAITED ms  AT MOST   HELD ms   AT MOST
mmap_sem.write     12          3           0    250.000  125.000  1500.000  1000.000
"""


def test_lock_table() -> None:
    """A line a class of locks, times in milliseconds."""
    assert status.lock_table(LOCKS) == LOCK_TEXT


def test_ls(
    box: Callable[[], contextlib.AbstractContextManager[None]], runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every machine that has a directory, and whether it runs; nothing where there is none."""
    assert cli.main(["ls"]) == 0
    assert capsys.readouterr().out == ""
    (runtime / "killed").mkdir()
    with box():
        assert cli.main(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "box", "state": "running", "pid": 7, "processes": 2, "directory": str(runtime / "box")},
        {"name": "killed", "state": "dead", "pid": None, "processes": None, "directory": str(runtime / "killed")},
    ]
    with box():
        assert cli.main(["ls"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in lines[1:]] == [["box", "running", "7", "2"], ["killed", "dead", "-", "-"]]


def test_numa_maps_as_json() -> None:
    """A line of numa_maps becomes its words by name, numbers as numbers."""
    assert reports.parsed_line("2aaaaaaab000 bind={1/Normal} MaxRef=1 Pages=256 N1=256 huge") == {
        "start": "2aaaaaaab000",
        "policy": "bind={1/Normal}",
        "MaxRef": 1,
        "Pages": 256,
        "N1": 256,
        "huge": True,
    }


@pytest.mark.parametrize(
    ("rest", "policy", "words"),
    [
        (
            "default file=/dev/zero\\040(deleted) mapped=2 N1=2",
            "default",
            {"file": "/dev/zero\\040(deleted)", "mapped": 2, "N1": 2},
        ),
        ("prefer (many)=static:0-1 heap anon=2", "prefer (many)=static:0-1", {"heap": True, "anon": 2}),
        ("weighted interleave:0,2", "weighted interleave:0,2", {}),
        ("prefer=static:0 dirty=1", "prefer=static:0", {"dirty": 1}),
    ],
)
def test_numa_maps_of_today_as_json(rest: str, policy: str, words: dict[str, object]) -> None:
    """Names of policies with a blank stay in one piece."""
    assert reports.parsed_line(f"7f00 {rest}\n") == {"start": "7f00", "policy": policy, **words}


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("0", {0}),
        ("all", {0, 1, 3, 6}),
        ("0-1,6", {0, 1, 6}),
        ("!0", {1, 3, 6}),
        ("!all", set()),
        ("+2", {3}),
        ("+0,3", {0, 6}),
        ("!+0-1", {3, 6}),
    ],
)
def test_sets_of_nodes(text: str, nodes: set[int]) -> None:
    """Numbers, ranges, all, complements, and nodes counted among those that there are."""
    assert migratepages.node_set(text, [0, 1, 3, 6]) == nodes


@pytest.mark.parametrize("text", ["", "2", "0-3", "x", "1-0", "-1", "0,", "+4", "99999999999999", "0-99999999999", "²"])
def test_no_set_of_nodes(text: str) -> None:
    """What is no such set, or names a node that is not there, is told in one sentence."""
    with pytest.raises(ValueError, match="nodes "):
        migratepages.node_set(text, [0, 1, 3, 6])


EXPLAINED = ("up", "down", "status", "fsck", "demo", "stress", "bench", "maps", "meminfo", "vmstat", "migratepages")


@pytest.mark.parametrize("command", [*EXPLAINED, "hardware", "stat"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """--help of a command ends with command lines, each of which is one."""
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text, _, examples = capsys.readouterr().out.partition("examples:\n")
    assert max(map(len, text.splitlines())) <= 80
    lines = examples.splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line.partition("|")[0])
        assert words[0] == "numaemu"
        cli.make_parser().parse_args(words[1:])
