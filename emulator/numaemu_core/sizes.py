"""Sizes as people write them: `64M`, `1G`, `4096`; and back."""

import re

from numaemu_core.errors import TopologyError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TOO_LARGE = 10**15
#: Characters of a wrong size that an error shows.
_SHOWN = 60
_SIZE = re.compile(r"([0-9]{1,15})\s*([KMGT]?)(?:I?B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes from `64M`, `1G`, `4096` or a number.

    Raises:
        TopologyError: it is no size; the message names `what`.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        message = f"{what}: expected a size such as 64M, got {text!r}"
        raise TopologyError(message)
    if isinstance(text, int) and abs(text) >= _TOO_LARGE:  # which Python may not even print
        message = f"{what}: expected a size of at most 15 digits"
        raise TopologyError(message)
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        message = f"{what}: expected a size such as 64M or 1G, got {str(text)[:_SHOWN]!r}"
        raise TopologyError(message)
    return int(match[1]) * _UNITS[match[2].upper()]


def format_size(count_bytes: int) -> str:
    """The largest unit that divides it: 67108864 is `64M`."""
    for unit in ("T", "G", "M", "K"):
        if count_bytes and count_bytes % _UNITS[unit] == 0:
            return f"{count_bytes // _UNITS[unit]}{unit}"
    return str(count_bytes)
