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


def fields(recorded: Answer, ours: Answer) -> list[str]:
    """The fields that count and are not equal, or stand in one answer only."""
    names = sorted((recorded.keys() | ours.keys()) - _VOLATILE_FIELDS)
    return [name for name in names if name not in recorded or name not in ours or recorded[name] != ours[name]]


def differences(record: Record, ours: list[Answer]) -> list[int]:
    """The calls whose answers are not those of the recording."""
    left_out = skipped(record)
    pairs = enumerate(zip(record.results, ours, strict=True))
    return [call for call, (recorded, answer) in pairs if call not in left_out and fields(recorded, answer)]
