"""Says that it is there, waits until its parent is another one, and makes a call that nobody answers any more."""

import os
import time

from calls import set_mempolicy

parent = os.getppid()
print("ready", flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
print(set_mempolicy(0), flush=True)
