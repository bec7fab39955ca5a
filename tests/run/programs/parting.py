"""A child writes to memory that it had in common with its parent, and moves it; then the parent moves its own."""

import os

from calls import Memory, mbind

MOVE = 2

memory = Memory(8)
mbind(memory.start, memory.length, 0)
memory.write()
if not os.fork():
    print("common", memory.nodes(), flush=True)
    memory.write()
    print("child", mbind(memory.start, memory.length, 3, flags=MOVE), memory.nodes(), flush=True)
    os._exit(0)
os.wait()
print("parent", memory.nodes(), flush=True)
print("moved", mbind(memory.start, memory.length, 1, flags=MOVE), memory.nodes())
