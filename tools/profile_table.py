"""Writes the tables of profiles in docs/semantics.md: each field, what it selects, and its value in each profile.

What a field selects is the `#:` comment in front of it in profile.py, the headings are the comments between the
groups, the values come from the records themselves. `--check` writes nothing and says by its exit status whether the
page is what would be written.
"""

import argparse
import errno
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from numaemu_core import uapi
from numaemu_core.profile import Profile
from numaemu_core.profiles import PROFILES

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "semantics.md"
BEGIN: Final = "<!-- profiles: `make docs` writes from here -->\n"
END: Final = "<!-- profiles: to here -->\n"

_GROUP: Final = re.compile(r"# -- (.+?) -+")
_FIELD: Final = re.compile(r"(\w+): ")
_MODE: Final = re.compile(r"MPOL_(?!F_|MF_)\w+")
_MODES: Final = {value: name for name, value in vars(uapi).items() if _MODE.match(name)}
_MODE_FLAGS: Final = (
    "MPOL_F_STATIC_NODES",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_NUMA_BALANCING",
)


def groups() -> dict[str, dict[str, str]]:
    """What each field selects, by the heading of its group and its name.

    Raises:
        ValueError: a field of a group has no comment.
    """
    found: dict[str, dict[str, str]] = {}
    words: list[str] = []
    for line in map(str.strip, inspect.getsource(Profile).splitlines()):
        if group := _GROUP.match(line):
            found[group[1]] = {}
        elif line.startswith("#: "):
            words.append(line.removeprefix("#: "))
        elif found and (field := _FIELD.match(line)):
            if not words:
                message = f"{field[1]} does not say what it selects"
                raise ValueError(message)
            found[list(found)[-1]][field[1]] = " ".join(words)
            words = []
    return found


def _flag_names(flags: int) -> str:
    return ", ".join(name for name in _MODE_FLAGS if getattr(uapi, name) & flags)


def _mode_names(modes: frozenset[int]) -> str:
    return ", ".join(_MODES[mode] for mode in sorted(modes))


def _event_names(events: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    return ", ".join(name for name, _ in events)


#: Fields whose values are numbers, or sets of them, that have names.
_NAMED: Final[dict[str, Callable[..., str]]] = {
    "mode_max": _MODES.__getitem__,
    "mode_flags": _flag_names,
    "balancing_modes": _mode_names,
    "untouched_page_status": errno.errorcode.__getitem__,
    "reclaim_events": _event_names,
}


def _value(profile: Profile, field: str) -> str:
    return _NAMED.get(field, str)(getattr(profile, field)) or "none"


def tables() -> str:
    """The Markdown that stands between the two marks."""
    head = f"| Field | What it selects | {' | '.join(PROFILES)} |\n| --- | --- |{' --- |' * len(PROFILES)}\n"
    text = ""
    for heading, fields in groups().items():
        text += f"\n### {heading[0].upper() + heading[1:]}\n\n{head}"
        for field, selects in fields.items():
            values = " | ".join(_value(profile, field) for profile in PROFILES.values())
            text += f"| `{field}` | {selects} | {values} |\n"
    return text + "\n"


def main() -> int:
    """Write the page, or compare; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1: the page is out of date")
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    options = parser.parse_args()
    old = options.page.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        parser.error(f"{options.page} lacks the marks between which the tables stand")
    new = before + BEGIN + tables() + END + after
    if options.check:
        if new != old:
            print(f"{options.page}: the tables are not what profiles.py says; run `make docs`")
        return int(new != old)
    options.page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
