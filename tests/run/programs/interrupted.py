"""Two processes that call when they are told to, and have a handler of signals without SA_RESTART."""

import os
import signal
import sys

from calls import BIND, NUMBERS, set_mempolicy

told, tell = os.pipe()
signal.signal(signal.SIGUSR1, lambda *_: None)
set_mempolicy(0)
child = os.fork()
if not child:
    set_mempolicy(0)
    os.read(told, 1)
    os._exit(-set_mempolicy(BIND, 1))
print("ready", flush=True)
print(NUMBERS["set_mempolicy"], os.getpid(), child, flush=True)
sys.stdin.readline()
os.write(tell, b"x")
own = set_mempolicy(BIND, 0)
print(own, -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
