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


def test_what_is_left_behind_fails_the_run(tmp_path: Path) -> None:
    """Descriptor, thread, child, zombie and memory fail their test, an orphan and a file the last of the worker."""
    (tmp_path / "test_scratch.py").write_text(SCRATCH)
    script = "from tests import leaks; leaks.PATIENCE_S = 0.3; import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-p", "tests.conftest", "-q", "-rE", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    command = [sys.executable, "-c", script, *options, "-c", os.devnull, str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    failed = {line.split("::")[1].split(" ")[0] for line in found.stdout.splitlines() if line.startswith("ERROR ")}
    assert failed == {"test_descriptor", "test_thread", "test_child", "test_zombie", "test_memory", "test_file"}
    told = next(line for line in found.stdout.splitlines() if line.startswith("E  ") and "of this worker: " in line)
    assert "sleep 15" in told
    assert f"{os.sep}left" in told
