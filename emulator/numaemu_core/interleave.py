"""Interleaving: which node a page at an offset has, and which one comes next where there is no offset.

Mirrors: offset_il_node, interleave_nodes and their weighted twins, mm/mempolicy.c (2.6.15, 6.1, 6.12).
"""

import errno
from typing import Final

import numpy as np

from numaemu_core.columns import I8, NO_INDEXES
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task
from numaemu_core.nodemask import nodes_of
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.uapi import MPOL_INTERLEAVE, MPOL_WEIGHTED_INTERLEAVE

#: The modes that spread pages over their nodes.
INTERLEAVE_MODES: Final = (MPOL_INTERLEAVE, MPOL_WEIGHTED_INTERLEAVE)
_IL_WEIGHT_MAX: Final = 255


def interleaves(policy: Mempolicy | None) -> bool:
    """Does a policy spread pages?"""
    return policy is not None and policy.mode in INTERLEAVE_MODES


def set_il_weight(k: Kernel, nid: int, weight: int) -> None:
    """How many pages a node gets in a round of weighted interleaving, 1 to 255; 0 for the default, which is 1.

    Raises:
        MmError: EINVAL: another weight; ENOENT: no such node.
    """
    if not k.online >> nid & 1:
        raise MmError(errno.ENOENT, f"node {nid} is not online")
    if not 0 <= weight <= _IL_WEIGHT_MAX:
        raise MmError(errno.EINVAL, f"weight {weight} is none of 0 to {_IL_WEIGHT_MAX}")
    k.il_weights[nid] = weight or 1
    k.journal.append(["weights", dict(k.il_weights)])


def _round(k: Kernel, policy: Mempolicy, nodes: I8) -> I8:
    """One round over these nodes: each as often as it weighs."""
    if policy.mode == MPOL_INTERLEAVE:
        return nodes
    return np.repeat(nodes, [k.il_weights.get(nid, 1) for nid in nodes.tolist()])


def _nodes(policy: Mempolicy) -> I8:
    return np.array(list(nodes_of(policy.nodes)), np.int64)


def interleave_nid(k: Kernel, policy: Mempolicy, ilx: I8) -> I8:
    """The node of each page by its interleave index. The index is cut to 32 bits first, but for 6.12.

    Shapes: `ilx` int64[n]; gives int64[n].
    """
    one_round = _round(k, policy, _nodes(policy))
    if k.profile.interleave_offset_bits < 64:  # noqa: PLR2004 - the width of an unsigned long
        ilx = ilx & (1 << k.profile.interleave_offset_bits) - 1
    return np.asarray(one_round[ilx % len(one_round)])


def start_over(k: Kernel, task: Task) -> None:
    """A task that gets a policy of this kind begins at its first node (set_mempolicy)."""
    assert task.policy is not None
    task.il_next = next(nodes_of(task.policy.nodes))
    task.il_prev = k.profile.max_numnodes - 1
    task.il_weight = 0


def next_il_node(k: Kernel, task: Task) -> int:
    """The node that an interleave without an offset takes next; get_mempolicy(MPOL_F_NODE) tells it."""
    assert task.policy is not None
    if not k.profile.interleave_keeps_last:
        return task.il_next
    if task.policy.mode == MPOL_WEIGHTED_INTERLEAVE and task.il_weight:
        return task.il_prev
    return int(_after(task.policy, task.il_prev)[0])


def _after(policy: Mempolicy, node: int) -> I8:
    """The nodes of a policy in the order in which they follow a node, round and round."""
    nodes = _nodes(policy)
    return np.roll(nodes, -int(np.searchsorted(nodes, node, "right")))


def interleave_nodes(k: Kernel, task: Task, count: int) -> I8:
    """The nodes of so many pages without an offset; the task goes on behind them. Shapes: gives int64[count]."""
    assert task.policy is not None
    assert count > 0
    head = NO_INDEXES
    last = task.il_prev
    if not k.profile.interleave_keeps_last:
        head = np.array([task.il_next])
        last = task.il_next
    elif task.policy.mode == MPOL_WEIGHTED_INTERLEAVE and task.policy.nodes >> last & 1:
        head = np.full(task.il_weight, last)
    one_round = _round(k, task.policy, _after(task.policy, last))
    steps = np.arange(max(count - len(head), 0))
    found = np.concatenate((head, one_round[steps % len(one_round)]))[:count]
    task.il_prev = int(found[-1])
    if task.policy.mode == MPOL_WEIGHTED_INTERLEAVE:
        task.il_weight = _weight_left(one_round, len(head), count)
    task.il_next = int(_after(task.policy, task.il_prev)[0])
    return found


def _weight_left(one_round: I8, head: int, count: int) -> int:
    """Pages that the last node may still have after `count` pages, of which `head` came before the first round."""
    if count <= head:
        return head - count
    at = (count - head - 1) % len(one_round)
    same = np.flatnonzero(one_round == one_round[at])
    return int(same[-1]) - at
