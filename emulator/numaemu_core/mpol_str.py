"""A memory policy as the kernels print it, in numa_maps.

Mirrors: the policy words of show_numa_map, fs/proc/task_mmu.c (2.6.14), and mpol_to_str, mm/mempolicy.c (6.1 and 6.12).
"""

from typing import Final

from numaemu_core.kernel import Kernel
from numaemu_core.nodemask import mask_of, node_list, nodes_of
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_NUMA_BALANCING,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
)

#: Names of the modes by number (policy_modes of 6.12).
_MODES: Final = ("default", "prefer", "bind", "interleave", "local", "prefer (many)", "weighted interleave")
#: Characters that fit the buffer of show_numa_map; a longer list of nodes is cut.
_TEXT_MAX: Final = 63


def mpol_to_str(k: Kernel, policy: Mempolicy | None) -> str:
    """A policy in the words of the machine's kernel; None is the default one."""
    return _words_of_2005(k, policy) if k.profile.views_of_2005 else _words_of_today(policy)


def _words_of_2005(k: Kernel, policy: Mempolicy | None) -> str:
    """`bind={0/Normal}` names the zones of the list, all Normal here; `prefer=-1` is the local node."""
    if policy is None:
        return "default"
    if policy.mode == MPOL_BIND:
        return "bind={" + ",".join(f"{nid}/Normal" for nid in nodes_of(policy.nodes) if nid in k.zones) + "}"
    if policy.mode == MPOL_INTERLEAVE:
        return "interleave={" + ",".join(map(str, nodes_of(policy.nodes))) + "}"
    return f"prefer={policy.preferred}"


def _words_of_today(policy: Mempolicy | None) -> str:
    """Mode, flags behind `=`, the nodes in force behind `:`."""
    if policy is None:
        return _MODES[MPOL_DEFAULT]
    nodes = policy.nodes
    if policy.mode == MPOL_PREFERRED and policy.preferred >= 0:
        nodes = mask_of([policy.preferred])
    if policy.mode == MPOL_LOCAL or (policy.mode == MPOL_PREFERRED and not nodes):
        return _MODES[MPOL_LOCAL]
    text = _MODES[policy.mode] + _flag_words(policy.flags) + ":" + node_list(list(nodes_of(nodes)))
    return text[:_TEXT_MAX]


def _flag_words(flags: int) -> str:
    words = []
    if flags & MPOL_F_STATIC_NODES:
        words.append("static")
    elif flags & MPOL_F_RELATIVE_NODES:
        words.append("relative")
    if flags & MPOL_F_NUMA_BALANCING:
        words.append("balancing")
    return "=" + "|".join(words) if words else ""
