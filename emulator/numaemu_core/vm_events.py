"""What is counted of events since boot (vm_event_states, mm/vmstat.c): in shared memory, as daemons come and go."""

from collections.abc import Iterator, Mapping
from typing import Final

from numaemu_core.columns import I8, cells_of
from numaemu_core.layout import VM_EVENTS

_AT: Final = {name: at for at, name in enumerate(VM_EVENTS)}


class VmEvents(Mapping[str, int]):
    """How often each event has happened, by name. KeyError for a name that is not in VM_EVENTS."""

    def __init__(self, column: I8) -> None:
        """Over the shared column, which one process at a time counts in."""
        self._cells = cells_of(column)

    def count(self, event: str, times: int) -> None:
        """So many more."""
        self._cells[_AT[event]] += times

    def __getitem__(self, event: str) -> int:
        return self._cells[_AT[event]]

    def __iter__(self) -> Iterator[str]:
        return iter(VM_EVENTS)

    def __len__(self) -> int:
        return len(VM_EVENTS)
