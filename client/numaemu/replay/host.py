"""What a program needs of the machine that it runs on."""

from __future__ import annotations

from typing import Any, Final, Protocol

#: RLIMIT_MEMLOCK of every process of a program.
MEMLOCK_BYTES: Final = 64 << 20
#: What ends a process that gets no memory.
SIGKILL: Final = 9


class Refused(Exception):
    """A call gave -1."""

    def __init__(self, number: int) -> None:
        """`number`: the errno."""
        super().__init__(number)
        self.errno = number


class Killed(Exception):
    """The process was ended by a signal."""

    def __init__(self, signal: int) -> None:
        """`signal`: its number."""
        super().__init__(signal)
        self.signal = signal


class Host(Protocol):
    """A machine for one program. Calls have the names and arguments of the protocol; pids are the machine's."""

    def attach(self) -> int:
        """A new process on the first CPU with every capability; gives its pid."""

    def fork(self, pid: int) -> int:
        """The pid of its child."""

    def call(self, pid: int, name: str, *args: Any) -> Any:  # noqa: ANN401 - whatever the call gives
        """A system call of a process. Raises Refused, Killed."""

    def machine(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - as above
        """A call of the machine itself. Raises Refused."""

    def touch(self, pid: int, addr: int, pages: int, values: list[int] | None) -> tuple[str, list[int]]:
        """Touch pages one after the other; gives a mark a page (`.`, `S`, `B`) and the values read.

        With `values`, write each at the first and the last 8 bytes of its page. A page that faulted reads as -2, one
        whose ends differ as -1. Raises Killed.
        """

    def fsck(self) -> list[str]:
        """What is wrong with the machine."""

    def close(self) -> None:
        """The machine is over."""
