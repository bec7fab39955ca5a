"""The command line on real machines: from `up` to `down`, the demonstration, a short stress, a REPL."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from numaemu_host import pidfd

Eventually = Callable[[Callable[[], bool], str], None]
SECONDS = 90


def numaemu(*words: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    command = [sys.executable, "-m", "numaemu.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, input=stdin, check=False)


@pytest.mark.usefixtures("runtime")
def test_a_machine_lives_from_up_to_down(runtime: Path) -> None:
    """`up` gives a machine that every view can be asked of; `down` leaves no process and no file."""
    up = numaemu("-m", "one", "up", "--nodes", "3", "--memory", "4M", "--swap", "4M")
    assert up.returncode == 0, up.stderr
    assert str(runtime / "one" / "kernel.ipc") in up.stdout
    status = json.loads(numaemu("-m", "one", "status", "--json").stdout)
    roles = sorted((process["role"], process["node"]) for process in status["processes"] if process["node"] is not None)
    assert roles == [("node", 0), ("node", 1), ("node", 2)]
    assert {"init", "kernel", "swap"} <= {process["role"] for process in status["processes"]}
    assert "\nmmap_sem.write " in numaemu("-m", "one", "status", "--locks").stdout
    locks = json.loads(numaemu("-m", "one", "status", "--locks", "--json").stdout)["locks"]
    assert locks["zone"].keys() >= {"taken", "contended", "recoveries", "wait_s", "hold_s"}
    assert "available: 3 nodes (0-2)" in numaemu("-m", "one", "hardware").stdout
    assert "numa_hit" in numaemu("-m", "one", "stat").stdout
    assert "Node 2 MemTotal:" in numaemu("-m", "one", "meminfo", "2").stdout
    assert numaemu("-m", "one", "meminfo", "3").returncode == 1
    assert "pgfault 0" in numaemu("-m", "one", "vmstat").stdout
    assert "one" in numaemu("ls").stdout
    assert numaemu("-m", "one", "fsck").returncode == 0
    again = numaemu("-m", "one", "up")
    assert again.returncode == 1
    assert len(again.stderr.splitlines()) == 1
    pids = [process["pid"] for process in status["processes"]]
    assert numaemu("-m", "one", "down").returncode == 0
    assert not any(map(pidfd.is_running_pid, pids))
    assert not any(runtime.iterdir())


@pytest.mark.usefixtures("runtime")
def test_in_the_foreground_a_machine_ends_with_sigterm(runtime: Path, eventually: Eventually) -> None:
    """`up --foreground` serves a service manager: it says its endpoint, and SIGTERM takes it down cleanly."""
    command = [sys.executable, "-m", "numaemu.cli.main", "-m", "fg", "up", "--foreground", "--memory", "4M"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert "kernel.ipc" in process.stdout.readline()
        assert numaemu("-m", "fg", "fsck").returncode == 0
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
    eventually(lambda: not any(runtime.iterdir()), "files are left")


def test_the_demonstration_holds() -> None:
    """`demo` shows every page on node 0, then in swap, then on node 1, and two SHA-256 sums that are equal."""
    done = numaemu("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    sums = [line.split()[-1] for line in done.stdout.splitlines() if "sha256 of" in line]
    assert len(sums) == 2
    assert sums[0] == sums[1]
    assert "FAIL" not in done.stdout


REPL = """
import numaemu as nm
machine = nm.boot(nodes=2, memory="4M", swap="4M")
task = machine.attach()
buf = task.mmap(4096)
buf[0:2] = b"ok"
print(buf[0:2])
"""


def test_a_private_machine_boots_from_a_repl_and_ends_with_it(runtime: Path, eventually: Eventually) -> None:
    """Lines typed at an interpreter, and no goodbye: the machine goes when the interpreter does."""
    done = subprocess.run(
        [sys.executable, "-i"], input=REPL, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert "b'ok'" in done.stdout
    eventually(lambda: not any(runtime.iterdir()), "files are left")


def test_a_private_machine_ends_when_its_owner_is_killed(runtime: Path, eventually: Eventually) -> None:
    """SIGKILL of the process that booted it takes a private machine down."""
    script = "import numaemu as nm, sys\nm = nm.boot(memory='4M')\nprint('up', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        os.kill(owner.pid, signal.SIGKILL)
    eventually(lambda: not any(runtime.iterdir()), "the machine goes on without its owner, or left something")


BAD_WORDS = [
    ("up", "--nodes", "0"),
    ("up", "--memory", "lots"),
    ("up", "--topology", "/nowhere.toml"),
    ("up", "--profile", "linux-0.1"),
    ("up", "--fault", "node2: full of bees"),
    ("-m", "no/such", "status"),
    ("-m", "absent", "fsck"),
    ("stress", "--clients", "0"),
    ("stress", "--clients", "201"),
    ("stress", "--seconds", "0"),
    ("stress", "--kill", "client,nobody"),
    ("stress", "--profile", "linux-0.1"),
    ("stress", "--swap", "lots"),
    ("bench", "nonsense"),
    ("maps", "7"),
]


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("words", BAD_WORDS, ids=" ".join)
def test_bad_input_is_one_line_on_stderr(words: tuple[str, ...]) -> None:
    """What is wrong is said in one line, without a traceback, and the exit status says that it failed."""
    done = numaemu(*words)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
