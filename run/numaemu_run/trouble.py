"""What goes wrong with one process, or in one call, concerns that one only: it is counted, told once, and passed by."""

import collections
import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from numaemu.errors import MachineGone
from numaemu_run.telling import notice

#: What happens to any process: it ends, it does not let us look, its machine ends.
_ORDINARY: Final = (ProcessLookupError, PermissionError, MachineGone)


class Troubles:
    """Errors that nobody has expected, by kind and place."""

    def __init__(self) -> None:
        """None yet."""
        self.counts: Final[collections.Counter[str]] = collections.Counter()

    @contextlib.contextmanager
    def confined(self) -> Iterator[None]:
        """What is done inside is for one process; whatever becomes of it, the others go on."""
        try:
            yield
        except _ORDINARY:
            pass
        except Exception as error:  # noqa: BLE001 - the calls of all others wait for us
            self.note(error)

    def note(self, error: Exception) -> None:
        """Count it; the first one of its kind and place is told."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            notice(f"{kind}: {error}; what the machine knows of one process may be incomplete")
