"""What a run did and what it found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

#: What fits on a screen; all are counted.
_LINES_MAX: Final = 20


@dataclass
class Report:
    """A run: what was asked for, what was done, and what is wrong."""

    clients: int
    seconds: float
    seed: int
    profile: str
    memory_bytes: int
    swap_bytes: int
    #: What clients did, by name.
    counts: dict[str, int] = field(default_factory=dict)
    #: What the machine counted.
    machine: dict[str, int] = field(default_factory=dict)
    #: How many were killed, by kind.
    kills: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    wrong: int = 0
    #: Pages whose writer was killed in the middle of a write.
    torn: int = 0
    #: What was lost or wrong, in words.
    found: list[str] = field(default_factory=list)
    #: Clients that failed or were stuck, and where; what else went wrong.
    failed: list[str] = field(default_factory=list)
    fsck: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing was lost, wrong, stuck or broken."""
        return not (self.lost or self.wrong or self.fsck or self.failed)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"sound": self.sound}

    def lines(self) -> list[str]:
        """The same for people; the last line says what came of it."""
        megabytes = 1 << 20
        head = f"{self.clients} clients, {self.seconds:g} s, seed {self.seed}, {self.profile}"
        memory = f"{self.memory_bytes / megabytes:.4g} MiB of memory, {self.swap_bytes / megabytes:.4g} MiB of swap"
        kills = {f"killed_{kind}": count for kind, count in self.kills.items()}
        told = [f"{head}, {memory}"]
        for name, count in {**self.counts, "torn": self.torn, **kills, **self.machine}.items():
            told.append(f"  {name.replace('_', ' '):<24}{count:>12,}")
        for kind in (self.found, self.failed, self.fsck):
            told += [f"  {line}" for line in kind[:_LINES_MAX]]
            if len(kind) > _LINES_MAX:
                told.append(f"  and {len(kind) - _LINES_MAX} more")
        if self.failed:
            told.append(f"failed {len(self.failed)}")
        return [*told, f"lost {self.lost}, wrong {self.wrong}, fsck {len(self.fsck)}"]
