"""Memory policies: checking and making them, which one is in force, and what it allocates.

Mirrors: mm/mempolicy.c (2.6.15; "Swap migration V3" for the flags). Left out: shared policies of objects, cpusets.
"""

import errno
from collections.abc import Sequence
from typing import Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I8, NO_INDEXES
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import AddressSpace, Task, VmArea
from numaemu_core.mmzone import alloc_pages, free_pages
from numaemu_core.nodemask import first_node, next_node, nodes_of
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    MPOL_PREFERRED,
)

MPOL_MAX: Final = MPOL_INTERLEAVE
_WORD_BITS: Final = 64


def get_nodes(words: Sequence[int] | None, maxnode: int, page_size: int) -> int:
    """A mask from user words; maxnode is one more than the bits that count (2.6.15 get_nodes).

    Raises:
        MmError: EINVAL for a mask longer than a page, maxnode 0 with a pointer (2.6.15 wrapped around and corrupted
            memory; 2.6.16 refuses), or a bit above the last possible node; EFAULT where the words end too early.
    """
    if words is None:
        return 0
    if maxnode == 0:
        raise MmError(errno.EINVAL, "maxnode 0 with a mask: it counts one more than the bits of the mask")
    bits = maxnode - 1
    if bits == 0:
        return 0
    needed = -(-bits // _WORD_BITS)
    if needed > page_size * 8 // _WORD_BITS:
        raise MmError(errno.EINVAL, f"a mask of {bits} bits is longer than one page")
    mask = sum(word << (_WORD_BITS * i) for i, word in enumerate(words[:needed])) & ((1 << bits) - 1)
    if mask >> limits.MAX_NUMNODES:  # words above the last node are read first, one by one
        raise MmError(errno.EINVAL, f"a node above {limits.MAX_NUMNODES - 1} in the mask")
    if len(words) < needed:
        raise MmError(errno.EFAULT, f"{bits} bits take {needed} words, {len(words)} can be read")
    return mask


def mpol_check_policy(k: Kernel, mode: int, mask: int) -> None:
    """Does the mask fit the mode (2.6.15 mpol_check_policy)?

    Raises:
        MmError: EINVAL: DEFAULT with nodes, BIND or INTERLEAVE without, or one offline node in any mode.
    """
    if mode == MPOL_DEFAULT and mask:
        raise MmError(errno.EINVAL, "MPOL_DEFAULT takes no nodes")
    if mode in (MPOL_BIND, MPOL_INTERLEAVE) and not mask:
        raise MmError(errno.EINVAL, "the mode needs at least one node")
    if mask & ~k.online:
        offline = sorted(nodes_of(mask & ~k.online))
        raise MmError(errno.EINVAL, f"node {offline[0]} is not online")


def mpol_new(mode: int, mask: int) -> Mempolicy | None:
    """The policy object of a checked mode and mask; None for MPOL_DEFAULT (2.6.15 mpol_new)."""
    match mode:
        case 0:
            return None
        case 1:
            return Mempolicy(mode, preferred=first_node(mask) if mask else -1)
        case _:
            return Mempolicy(mode, nodes=mask)


def get_vma_policy(task: Task, vma: VmArea) -> Mempolicy | None:
    """The policy in force in a VMA for a task; None is the system's default: local (2.6.15 get_vma_policy)."""
    return vma.vm_policy or task.policy


def offset_il_node(k: Kernel, policy: Mempolicy, vma: VmArea, vpns: I8) -> I8:
    """The interleave node of pages of a VMA, by their offset truncated to 32 bits (2.6.15 offset_il_node)."""
    nodes = np.array(list(nodes_of(policy.nodes)))
    offsets = vpns - (vma.vm_start >> k.page_shift) + vma.vm_pgoff
    return np.asarray(nodes[(offsets & 0xFFFFFFFF) % len(nodes)])


def interleave_nodes(task: Task) -> int:
    """The task's next interleave node without an address; the one after it becomes next (2.6.15 interleave_nodes)."""
    assert task.policy is not None
    node = task.il_next
    task.il_next = next_node(node, task.policy.nodes)
    return node


def bind_zonelist(k: Kernel, policy: Mempolicy) -> tuple[int, ...]:
    """Nodes of a BIND policy that have memory, lowest id first (2.6.15 bind_zonelist)."""
    return tuple(nid for nid in nodes_of(policy.nodes) if nid in k.zones)


def policy_zonelist(k: Kernel, policy: Mempolicy | None, cpu_node: int) -> tuple[int, ...]:
    """The nodes that an allocation without an interleave tries, in order (2.6.15 zonelist_policy).

    A BIND to nodes without memory acts like the default, as with cpusets compiled in.
    """
    if policy is not None and policy.mode == MPOL_BIND:
        return bind_zonelist(k, policy) or k.zonelists[cpu_node]
    if policy is not None and policy.mode == MPOL_PREFERRED and policy.preferred >= 0:
        return k.zonelists[policy.preferred]
    return k.zonelists[cpu_node]


def alloc_page_vma(k: Kernel, task: Task, vma: VmArea, vpns: I8, *, zero: bool = True) -> KernelTask[I8]:
    """A frame for each of these pages of a VMA, in their order, as its policy says; fewer when memory ran out.

    Shapes: `vpns` int64[n]; gives int64[m], m <= n: the first m pages have got one.
    Mirrors: alloc_page_vma, mm/mempolicy.c (2.6.15), for many pages at a time.
    """
    policy = get_vma_policy(task, vma)
    cpu_node = k.node_of_task(task)
    if policy is None or policy.mode != MPOL_INTERLEAVE:
        zonelist = policy_zonelist(k, policy, cpu_node)
        return (yield from alloc_pages(k, zonelist, len(vpns), cpu_node, zero=zero))
    return (yield from _alloc_interleaved(k, offset_il_node(k, policy, vma, vpns), cpu_node, zero=zero))


def alloc_page_object(
    k: Kernel, task: Task | None, mapping: AddressSpace, indexes: I8, *, zero: bool = True
) -> KernelTask[I8]:
    """A frame for each of these pages of a tmpfs object; fewer when memory ran out."""
    del mapping
    return (yield from alloc_page_cache(k, task, len(indexes), zero=zero))


def alloc_page_cache(k: Kernel, task: Task | None, count: int, *, zero: bool = True) -> KernelTask[I8]:
    """Frames for page cache, as the policy of the task says; fewer when memory ran out."""
    cpu_node = k.node_of_task(task) if task is not None else first_node(k.online)
    zonelist = policy_zonelist(k, task.policy if task is not None else None, cpu_node)
    return (yield from alloc_pages(k, zonelist, count, cpu_node, zero=zero))


def _alloc_interleaved(k: Kernel, nodes: I8, cpu_node: int, *, zero: bool) -> KernelTask[I8]:
    """A frame for each page, page i from the zonelist of nodes[i]; as if they were taken one after the other.

    While every node that the batch really draws from has room for its whole share, the order does not matter; else the
    batch is halved. A node becomes full once, so that there are few halvings.
    """
    wanted = np.unique(nodes).tolist()
    source = {nid: next((n for n in k.zonelists[nid] if k.zones[n].nr_free), None) for nid in wanted}
    if None in source.values():
        return NO_INDEXES
    shares = {nid: int((nodes == nid).sum()) for nid in wanted}
    demand: dict[int | None, int] = {}
    for nid in wanted:
        demand[source[nid]] = demand.get(source[nid], 0) + shares[nid]
    fits = all(k.zones[n].nr_free >= count for n, count in demand.items() if n is not None)
    if not fits and len(nodes) > 1:
        half = len(nodes) // 2
        first = yield from _alloc_interleaved(k, nodes[:half], cpu_node, zero=zero)
        if len(first) < half:
            return first
        second = yield from _alloc_interleaved(k, nodes[half:], cpu_node, zero=zero)
        return np.concatenate((first, second))
    pfns = np.full(len(nodes), -1)
    for nid in wanted:
        got = yield from alloc_pages(k, k.zonelists[nid], shares[nid], cpu_node, interleave=True, zero=zero)
        pfns[np.flatnonzero(nodes == nid)[: len(got)]] = got
    short = np.flatnonzero(pfns < 0)
    if len(short):  # others took frames while a zone lock was waited for
        spare = pfns[short[0] :]
        yield from free_pages(k, spare[spare >= 0])
        rest = yield from _alloc_interleaved(k, nodes[short[0] :], cpu_node, zero=zero)
        return np.concatenate((pfns[: short[0]], rest))
    return pfns


# -- set_mempolicy ---------------------------------------------------------------------------------------------------


def sys_set_mempolicy(k: Kernel, task: Task, mode: int, words: Sequence[int] | None, maxnode: int) -> KernelTask[int]:
    """Set the policy of the calling task (2.6.15 sys_set_mempolicy). Takes no mmap_sem."""
    if k.tasks.get(task.pid) is not task:
        raise MmError(errno.ESRCH, f"task {task.pid} has ended")
    if mode > MPOL_MAX:
        raise MmError(errno.EINVAL, f"mode {mode} is none of 0 to {MPOL_MAX}")
    mask = get_nodes(words, maxnode, k.page_size) & task.mems_allowed
    mpol_check_policy(k, mode, mask)
    task.policy = mpol_new(mode, mask)
    if mode == MPOL_INTERLEAVE:
        task.il_next = first_node(mask)
    k.journal.task(task)
    yield from ()  # it needs nothing from the world
    return 0
