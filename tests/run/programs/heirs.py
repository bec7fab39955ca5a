"""Whose policy a child, a program that it executes, and an orphan have, when their ancestor changes its own."""

import os
import subprocess
import sys
from pathlib import Path

from calls import BIND, policy, set_mempolicy

MODES = {0: "default", BIND: "bind"}


def show(who: str) -> None:
    """Its mode and nodes."""
    mode, nodes = policy()
    print(who, MODES[mode], set(nodes) or "{}", flush=True)


if len(sys.argv) > 1:
    show(sys.argv[1])
    sys.exit()

assert set_mempolicy(BIND, 2) == 0
begin, may_begin = os.pipe()
end, ends = os.pipe()
if not os.fork():  # its child is an orphan at once, and asks only when its grandparent has another policy
    if not os.fork():
        os.read(begin, 1)
        show("grandchild")
    os._exit(0)
os.wait()
os.close(ends)
if not os.fork():
    show("child")
    os._exit(0)
os.wait()
subprocess.run([sys.executable, Path(__file__), "executed"], check=True)
assert set_mempolicy(BIND, 1) == 0
os.write(may_begin, b"x")
assert os.read(end, 1) == b""
show("after")
