"""Prefers a node, then wants its pages on another one: prints how many are on each node, and what mbind has said."""

from calls import Memory, mbind, node_of

PREFERRED, BIND = 1, 2
STRICT_MOVE = 3
PAGES = 300

memory = Memory(PAGES)
mbind(memory.start, memory.length, 2, mode=PREFERRED)
memory.write()


def nodes() -> list[int]:
    """The node of each page."""
    return [node_of(memory.start + page * 4096) for page in range(PAGES)]


before = nodes()
print([before.count(node) for node in range(4)])
print(mbind(memory.start, memory.length, 1, mode=BIND, flags=STRICT_MOVE))
print("".join(map(str, nodes())))
