"""Moves the pages of a process that waits, and shows where they are before and after."""

import subprocess
import sys
from pathlib import Path

WAITER = "print('ready', flush=True); input()"

with subprocess.Popen([sys.executable, "-c", WAITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiter:
    assert waiter.stdin is not None
    assert waiter.stdout is not None
    waiter.stdout.readline()
    maps = Path(f"/proc/{waiter.pid}/numa_maps")
    parts = [maps.read_text()]
    subprocess.run(["migratepages", str(waiter.pid), "0", "2"], check=True)
    parts.append(maps.read_text())
    parts.append(subprocess.run(["numastat", "-p", str(waiter.pid)], check=True, capture_output=True, text=True).stdout)
    print("@@\n".join(parts), flush=True)
    waiter.stdin.write(b"\n")
