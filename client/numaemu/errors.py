"""What the library raises beside the errors of the machine itself (those of `numaemu_core.errors`)."""

from __future__ import annotations


class MachineGone(ConnectionError):
    """The machine has ended: its memory is free and no call will be answered."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the machine {name!r} has ended")
