"""Writes more than the machine has, and asks where it is."""

from calls import Memory

memory = Memory(100_000)
memory.write()
print(memory.nodes())
