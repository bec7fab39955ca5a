"""What a run of many programs came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from numaemu.replay.compare import fields

if TYPE_CHECKING:
    from numaemu.replay.excuses import Excuse, Excuses
    from numaemu.replay.runner import Outcome


@dataclass(slots=True)
class Sums:
    """Counts of programs and calls; those that are excused are in none of them."""

    excuses: Excuses = field(default_factory=dict)
    programs: int = 0
    programs_agreeing: int = 0
    calls: int = 0
    calls_agreeing: int = 0
    #: What fsck found, in all machines.
    violations: int = 0
    #: Programs that came to a halt.
    failed: int = 0
    #: Excuses that were used, with the first call that differs; None: the program agrees, the excuse should go.
    excused: list[tuple[Excuse, int | None]] = field(default_factory=list)
    #: Programs that differ by the word of their first call that does, and the fields in which it does; one of each.
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """One program more."""
        record = outcome.record
        self.violations += len(outcome.violations)
        self.failed += outcome.failed is not None
        if not record.results:
            return
        first = outcome.differing[0] if outcome.differing else None
        excuse = self.excuses.get((record.file, record.id))
        if excuse is not None:
            self.excused.append((excuse, first))
            return
        self.programs += 1
        self.programs_agreeing += first is None
        self.calls += outcome.compared
        self.calls_agreeing += outcome.compared - len(outcome.differing)
        if first is not None:
            kind = (record.ops[first].split()[1], ",".join(fields(record.results[first], outcome.answers[first])))
            self.kinds[kind] += 1
            self.examples.setdefault(kind, f"{record.file} {record.id} call {first}: {record.ops[first]}")

    @property
    def clean(self) -> bool:
        """Every program that is not excused agrees, none came to a halt, and every machine is sound."""
        return self.programs_agreeing == self.programs and not self.violations and not self.failed

    def as_dict(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "programs": self.programs,
            "programs_agreeing": self.programs_agreeing,
            "calls": self.calls,
            "calls_agreeing": self.calls_agreeing,
            "violations": self.violations,
            "failed": self.failed,
            "excused": [{**asdict(excuse), "first_differing": first} for excuse, first in self.excused],
            "kinds": [
                {"word": word, "fields": names, "programs": count, "example": self.examples[word, names]}
                for (word, names), count in self.kinds.most_common()
            ],
        }

    def line(self) -> str:
        """The last line of a run."""
        return (
            f"agree {self.programs_agreeing} of {self.programs} programs, {self.calls_agreeing} of {self.calls} calls"
        )
