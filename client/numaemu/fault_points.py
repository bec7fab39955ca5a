"""The steps of this process at which tests may let it die or stop (`numaemu_core.fault_points`).

Nobody listens unless the environment variable NUMAEMU_FAULT_BOARD was set when the library was imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from numaemu_core.fault_points import FAULT_POINTS, unarmed
from numaemu_host.fault_board import FaultBoard

if TYPE_CHECKING:
    from numaemu_core.fault_points import Reach

_board: Final = FaultBoard.of_environment(list(FAULT_POINTS))
#: Told of each step.
reach: Final[Reach] = unarmed if _board is None else _board.reach
#: Does anybody listen?
ARMED: Final = _board is not None
