"""Settings of the machine that are files of /sys or /proc on a real one.

Mirrors: mm/mempolicy.c of 6.12 for the weights of weighted interleaving.
"""

import errno
import re
from typing import Final

from numaemu_core.errors import MmError
from numaemu_core.interleave import set_il_weight
from numaemu_core.kernel import Kernel
from numaemu_core.uapi import MPOL_WEIGHTED_INTERLEAVE

_WEIGHT: Final = re.compile(r"/sys/kernel/mm/mempolicy/weighted_interleave/node(\d{1,4})")
_WEIGHT_MAX: Final = 255


def write_sysctl(k: Kernel, path: str, value: str) -> int:
    """Write a setting; gives 0.

    Settings: `/sys/kernel/mm/mempolicy/weighted_interleave/nodeN`, 1 to 255 (6.12); 0 and nothing: the default.

    Raises:
        MmError: ENOENT (this kernel has no such file), EINVAL (no value of it).
    """
    weight = _WEIGHT.fullmatch(path)
    if weight is None or k.profile.mode_max < MPOL_WEIGHTED_INTERLEAVE or not k.online >> int(weight[1]) & 1:
        raise MmError(errno.ENOENT, f"no setting {path!r}")
    text = value.strip()
    if text and (not text.isascii() or not text.isdecimal() or int(text) > _WEIGHT_MAX):
        raise MmError(errno.EINVAL, f"{path}: {value!r} is no weight from 0 to {_WEIGHT_MAX}")
    set_il_weight(k, int(weight[1]), int(text or 0))
    return 0
