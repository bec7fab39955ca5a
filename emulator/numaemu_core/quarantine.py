"""Frames and tables that a straggler's open window may still reach: neither freed nor reused until that window closes.

A frame in quarantine keeps its map count. Nothing of this is needed by recovery: that begins by waiting for every open
window, and keeps all that was not free for as long as one stays open.
"""

from dataclasses import dataclass, field

from numaemu_core.columns import I8, Columns


@dataclass(slots=True)
class Held:
    """`pfns` or `tables` that wait until each slot of `waits` has left the counter it had."""

    waits: dict[int, int]
    pfns: I8
    tables: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Quarantine:
    """All that is held now, oldest first."""

    entries: list[Held] = field(default_factory=list)

    def add(self, waits: dict[int, int], pfns: I8, tables: list[int]) -> None:
        """Hold frames and tables until the windows of `waits` have moved."""
        assert waits
        self.entries.append(Held(dict(waits), pfns, tables))

    def release(self, columns: Columns) -> list[Held]:
        """Take out the entries whose windows have all moved."""
        free: list[Held] = []
        for held in self.entries:
            moved = [slot for slot, counter in held.waits.items() if int(columns.window[slot]) != counter]
            for slot in moved:
                del held.waits[slot]
            if not held.waits:
                free.append(held)
        self.entries = [held for held in self.entries if held.waits]
        return free
