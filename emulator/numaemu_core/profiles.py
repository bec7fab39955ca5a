"""Semantics are data: one frozen record of named choices a profile, read by one engine.

No code asks for a profile's name. A difference between kernels is a field here, with where it comes from.
"""

from dataclasses import dataclass
from typing import Final

from numaemu_core.errors import TopologyError


@dataclass(frozen=True, slots=True)
class Profile:
    """The choices of one kernel version."""

    name: str
    #: Capability that MPOL_MF_MOVE_ALL asks for (V3: CAP_SYS_RESOURCE; since 2.6.16 CAP_SYS_NICE, commit 74c00241).
    move_all_capability: str
    #: True: pages join the migration list at its head, so that it runs against the addresses (V2, V4, V5).
    pagelist_lifo: bool
    #: True: the nodes of a tie in distance are examined in rotation from the local one (2.6.15 find_next_best_node).
    zonelist_rotates: bool


SWAP_V3: Final = Profile(
    name="swap-v3",
    move_all_capability="CAP_SYS_RESOURCE",
    pagelist_lifo=True,
    zonelist_rotates=True,
)

PROFILES: Final = {profile.name: profile for profile in (SWAP_V3,)}


def profile_named(name: str) -> Profile:
    """The profile of that name.

    Raises:
        TopologyError: there is none.
    """
    if name not in PROFILES:
        known = ", ".join(sorted(PROFILES))
        message = f"profile {name!r} is not known; known: {known}"
        raise TopologyError(message)
    return PROFILES[name]
