"""A test that leaves something behind fails: each kind is left on purpose, in a run of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRATCH = """
import os, subprocess, sys, threading, time
import numpy as np
from numaemu_host import memfd

kept = []

def test_descriptor():
    kept.append(os.open("/dev/null", os.O_RDONLY))

def test_thread():
    threading.Thread(target=time.sleep, args=(15,), daemon=True).start()

def test_child():
    kept.append(subprocess.Popen(["sleep", "15"]))

def test_zombie():
    kept.append(subprocess.Popen(["true"]))

def test_memory():
    fd = memfd.create("left", 4096, preallocate=False)
    kept.append(memfd.Segment(fd, 4096))
    os.close(fd)

def test_nothing():
    threading.Thread(target=lambda: None).start()
    os.close(os.open("/dev/null", os.O_RDONLY))
    subprocess.run(["true"])

def test_orphan():
    # Its parent is gone at once: no list of children knows it.
    subprocess.run([sys.executable, "-c", "import subprocess; subprocess.Popen(['sleep', '15'])"], check=True)

def test_file():
    open(os.path.join(os.environ["XDG_RUNTIME_DIR"], "left"), "w").close()
"""


def run_of(settings: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A run of the tests in a folder, watched as ours are but less patiently."""
    script = f"{settings}; import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-p", "tests.conftest", "-q", "-rE", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    command = [sys.executable, "-c", script, *options, "-c", os.devnull, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)


def test_what_is_left_behind_fails_the_run(tmp_path: Path) -> None:
    """Descriptor, thread, child, zombie and memory fail their test, an orphan and a file the last of the worker."""
    (tmp_path / "test_scratch.py").write_text(SCRATCH)
    found = run_of("from tests import leaks; leaks.PATIENCE_S = 0.3", tmp_path)
    failed = {line.split("::")[1].split(" ")[0] for line in found.stdout.splitlines() if line.startswith("ERROR ")}
    assert failed == {"test_descriptor", "test_thread", "test_child", "test_zombie", "test_memory", "test_file"}
    told = next(line for line in found.stdout.splitlines() if line.startswith("E  ") and "of this worker: " in line)
    assert "sleep 15" in told
    assert f"{os.sep}left" in told


STUCK = """
import pytest, time

@pytest.fixture
def first():
    yield
    time.sleep(80)

@pytest.fixture
def second(first):
    yield
    time.sleep(80)

@pytest.mark.timeout(1)
def test_stuck(second):
    time.sleep(80)

def test_next():
    pass
"""


def test_what_hangs_while_a_failed_test_is_taken_down_is_ended(tmp_path: Path) -> None:
    """The time of the test is over, and that of each of its fixtures: the next test has its turn."""
    (tmp_path / "test_stuck.py").write_text(STUCK)
    found = run_of("from tests import conftest; conftest.TEARDOWN_S = 0.2", tmp_path)
    assert "1 failed, 1 passed," in found.stdout
    assert found.stdout.count("TimeoutError: no end within 0.2 s") == 2, found.stdout
