"""Waits for a line, and then sees what is left of the machine."""

import sys
from pathlib import Path

from calls import BIND, set_mempolicy

assert set_mempolicy(BIND, 1) == 0
print("ready", flush=True)
sys.stdin.readline()
answer = set_mempolicy(BIND, 2)
print(answer, "readable" if Path("/proc/self/stat").read_text() else "empty", flush=True)
sys.exit(6)
