"""What the numbers of a request to copy pages must be: checked before anything is touched."""

from typing import Final

import numpy as np

from numaemu_core.columns import I8
from numaemu_daemon.bus_client import BusMessageError

_WORD_BYTES: Final = 8
_TICKET_MAX: Final = 1 << 63


def check_ticket(ticket: object) -> None:
    """A ticket is a number that comes back with the answer.

    Raises:
        BusMessageError: it is none.
    """
    if isinstance(ticket, bool) or not isinstance(ticket, int) or not 0 <= ticket < _TICKET_MAX:
        raise BusMessageError("expected a number as ticket")


def page_numbers(value: object, what: str, first: int, end: int) -> I8:
    """Bytes of little-endian int64, each from `first` to `end` - 1, as an array.

    Raises:
        BusMessageError: they are something else.
    """
    if not isinstance(value, bytes) or len(value) % _WORD_BYTES:
        raise BusMessageError(f"{what}: expected bytes of 64-bit numbers")
    numbers = np.frombuffer(value, "<i8").astype(np.int64, copy=False)
    if len(numbers) and (int(numbers.min()) < first or int(numbers.max()) >= end):
        raise BusMessageError(f"{what}: expected numbers from {first} to {end - 1}")
    return numbers
