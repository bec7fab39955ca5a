"""What is left in a handle that may not be used any more: everything asked of it raises one clear sentence."""

from __future__ import annotations

from typing import NoReturn

FORKED = "this handle belongs to the process that this one was forked from: connect to the machine anew"


class Ended:
    """Stands where the insides of a handle were, after `close` or in a forked child."""

    __slots__ = ("_error", "_sentence")

    def __init__(self, error: type[Exception], sentence: str) -> None:
        """Every attribute raises `error` with `sentence`."""
        self._error = error
        self._sentence = sentence

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error(self._sentence)


def closed(what: str) -> Ended:
    """For a handle that was closed."""
    return Ended(ValueError, f"the {what} is closed")


def forked() -> Ended:
    """For a handle of the parent, in a forked child."""
    return Ended(RuntimeError, FORKED)
