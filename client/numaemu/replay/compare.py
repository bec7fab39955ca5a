"""Which answers count, and whether they are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from numaemu.replay.records import Answer, Record

#: Fields that depend on memory size and watermarks.
_VOLATILE_FIELDS: Final = frozenset({"cnt"})
#: Programs whose last call depends on them, too.
_VOLATILE_ENDS: Final = frozenset({"f-full-move-bind"})


def skipped(record: Record) -> frozenset[int]:
    """Calls of a program that are not compared."""
    if record.id in _VOLATILE_ENDS:
        return record.volatile | {len(record.ops) - 1}
    return record.volatile


def same(recorded: Answer, ours: Answer) -> bool:
    """Every field that counts is equal."""
    return _counted(recorded) == _counted(ours)


def _counted(answer: Answer) -> Answer:
    return {name: value for name, value in answer.items() if name not in _VOLATILE_FIELDS}


def differences(record: Record, ours: list[Answer]) -> list[int]:
    """The calls whose answers are not those of the recording."""
    left_out = skipped(record)
    pairs = enumerate(zip(record.results, ours, strict=True))
    return [i for i, (recorded, answer) in pairs if i not in left_out and not same(recorded, answer)]
