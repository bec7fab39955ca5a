"""Says who it is, and on which machine; asks that when it is told to, and waits."""

import os
import sys

from calls import BIND, NUMBERS, set_mempolicy

print("ready", flush=True)
print(os.getpid(), NUMBERS["set_mempolicy"], os.environ["NUMAEMU_MACHINE"], flush=True)
sys.stdin.readline()
set_mempolicy(BIND, 0)
sys.stdin.readline()
