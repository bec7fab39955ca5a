"""A bar on stderr that says how far a run is, and gets out of the way of what is printed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_WIDTH: Final = 30
_INTERVAL_S: Final = 0.1


class Progress:
    """A context manager; draws on a terminal only."""

    def __init__(self, total: int, what: str) -> None:
        """`total` things of the kind `what` are to be done."""
        self._total = total
        self._what = what
        self._done = 0
        self._began = time.monotonic()
        self._drawn = 0.0
        self._shown = False
        self._on = sys.stderr.isatty()

    def step(self, note: str = "") -> None:
        """One more is done; `note` is what else there is to say."""
        self._done += 1
        now = time.monotonic()
        if self._on and now - self._drawn >= _INTERVAL_S:
            self._drawn = now
            self._draw(now, note)

    def _draw(self, now: float, note: str) -> None:
        bar = "█" * (self._done * _WIDTH // self._total)
        rate = self._done / max(now - self._began, _INTERVAL_S)
        left_s = (self._total - self._done) / rate
        text = f"{self._done} of {self._total} {self._what}, {rate:.3g} a second, {left_s:.0f} s left"
        print(f"\r▕{bar:<{_WIDTH}}▏ {text}{note and ', '}{note}\x1b[K", end="", file=sys.stderr, flush=True)
        self._shown = True

    def clear(self) -> None:
        """Before anything is printed."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
