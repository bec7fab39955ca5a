"""A bar on stderr that says how far a run is, and gets out of the way of what is printed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_WIDTH: Final = 30
_INTERVAL_S: Final = 0.1


class Bar:
    """A context manager; draws on a terminal only."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._drawn = 0.0
        self._shown = False
        self._on = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Since it began; never 0."""
        return max(time.monotonic() - self._began, _INTERVAL_S)

    def draw(self, part: float, text: str) -> None:
        """So much of the whole is done, 0 to 1; drawn now and then."""
        now = time.monotonic()
        if not self._on or now - self._drawn < _INTERVAL_S:
            return
        self._drawn = now
        bar = "█" * int(min(part, 1.0) * _WIDTH)
        print(f"\r▕{bar:<{_WIDTH}}▏ {text}\x1b[K", end="", file=sys.stderr, flush=True)
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


class Progress(Bar):
    """How many of a number of things are done."""

    def __init__(self, total: int, what: str) -> None:
        """`total` things of the kind `what` are to be done."""
        super().__init__()
        self._total = total
        self._what = what
        self._done = 0

    def step(self, note: str = "") -> None:
        """One more is done; `note` is what else there is to say."""
        self._done += 1
        rate = self._done / self.seconds
        left_s = (self._total - self._done) / rate
        text = f"{self._done} of {self._total} {self._what}, {rate:.3g} a second, {left_s:.0f} s left"
        self.draw(self._done / self._total, f"{text}{note and ', '}{note}")
