"""Programs that are known to answer otherwise, each with its reason."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_FIELDS: Final = {"file": str, "id": str, "call": int, "reason": str}


@dataclass(frozen=True, slots=True)
class Excuse:
    """One program that may differ: the recording's file name and the program's id, the first call that does, why."""

    file: str
    id: str
    call: int
    reason: str


#: By file and id.
Excuses = dict[tuple[str, str], Excuse]


def read_excuses(path: str) -> Excuses:
    """The `[[program]]` tables of a TOML file: `file`, `id`, `call`, `reason`; no patterns.

    Raises:
        ValueError: it is no TOML, an entry is incomplete, wrong, or stands twice; the message names file and entry.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # tomllib goes as deep as the text
        raise ValueError(f"{path}: no TOML: {error}") from None
    entries = table.pop("program", [])
    if table or not isinstance(entries, list):
        raise ValueError(f"{path}: expected [[program]] tables only, got {', '.join(sorted(table)) or 'a value'}")
    found: Excuses = {}
    for number, entry in enumerate(entries, 1):
        excuse = _excuse(f"{path}: program {number}", entry)
        key = (excuse.file, excuse.id)
        if key in found:
            raise ValueError(f"{path}: {excuse.id} of {excuse.file} stands twice")
        found[key] = excuse
    return found


def _excuse(where: str, entry: Any) -> Excuse:  # noqa: ANN401 - whatever stands in the file
    if not isinstance(entry, dict) or entry.keys() != _FIELDS.keys():
        raise ValueError(f"{where}: expected {', '.join(_FIELDS)}, got {entry!r}")
    for name, kind in _FIELDS.items():
        if type(entry[name]) is not kind or (kind is str and not entry[name].strip()):
            raise ValueError(f"{where}: {name}: expected {'text' if kind is str else 'a number'}, got {entry[name]!r}")
    return Excuse(**entry)
