"""Calls that change something, from their intent to their answer, so that each happens once whatever dies meanwhile.

A call has a record of intent before it begins and one with its answer before that is sent. What lies between can be
done again: a daemon that finds an intent without an answer runs the call once more, before it listens to anybody. A
step that would come out differently the second time leaves a *note*, in one record with its effect: where a mapping was
put, which task was born. Whoever runs the call again goes on behind the note.
"""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from numaemu_core import limits
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.journal import Truth
from numaemu_core.kernel import Kernel

T = TypeVar("T")


@dataclass(slots=True)
class Caller:
    """On whose behalf a kernel task runs: a connection and its request; and what an earlier run has noted."""

    connection: int
    request: int
    note: Any = None


def begin_call(k: Kernel, caller: Caller, name: str, args: list[Any]) -> None:
    """A call is about to begin."""
    k.journal.append(["intent", caller.connection, caller.request, name, args])


def end_call(k: Kernel, caller: Caller, reply: bytes) -> None:
    """A call is over: this is its answer, which may be sent now."""
    k.journal.append(["done", caller.connection, caller.request, reply])


def on_behalf(k: Kernel, caller: Caller, body: KernelTask[T]) -> KernelTask[T]:
    """Run a call so that its notes are its caller's, and its death, if the daemon dies of it."""
    number = k.locks.current
    k.callers[number] = caller
    try:
        with blamed(k, caller):
            return (yield from body)
    finally:
        del k.callers[number]


@contextlib.contextmanager
def blamed(k: Kernel, caller: Caller) -> Iterator[None]:
    """An error in here that is no refusal ends the daemon: the next one knows which call it was.

    A call is made again by the daemon's successor, which would die of it, too; so it is not made for ever.
    """
    try:
        yield
    except MmError:
        raise
    except Exception:
        k.journal.fatal(caller.connection, caller.request)
        raise


def too_many(deaths: int) -> MmError | None:
    """Why a call is not made once more of which so many daemons have died; None: it is."""
    if deaths < limits.DEATHS_OF_A_CALL:
        return None
    return MmError(errno.EIO, f"the kernel daemon has died of this call {deaths} times")


def note(k: Kernel, value: Any) -> None:  # noqa: ANN401 - plain data, as the call has it
    """What the current call has done or chosen; a task that nobody called has nothing to note."""
    caller = k.callers.get(k.locks.current)
    if caller is not None:
        k.journal.append(["note", caller.connection, caller.request, value])


def noted(k: Kernel) -> Any:  # noqa: ANN401 - plain data, as the call has it
    """What an earlier run of the current call has noted, None if nothing."""
    caller = k.callers.get(k.locks.current)
    return None if caller is None else caller.note


def unfinished(truth: Truth) -> Iterator[tuple[Caller, str, list[Any]]]:
    """The calls that were on their way when the daemon died, in the order in which they began.

    Started in this order they get the locks in the order in which they had them: what one has taken away, and another
    got, is not taken away twice.
    """
    for connection, (request, call, _reply) in truth.calls.items():
        if call is not None:
            name, args = call
            yield Caller(connection, request, truth.notes.get(connection)), name, args
