"""Memory policies: checking and making them, which one is in force, and what it allocates.

Mirrors: mm/mempolicy.c (2.6.15 with "Swap migration V3", 6.1, 6.12). Where they differ, a field of the profile says so.
"""

import errno
from collections.abc import Sequence
from typing import Final

import numpy as np

from numaemu_core.columns import I8, NO_INDEXES
from numaemu_core.distinct import distinct
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.interleave import INTERLEAVE_MODES, interleave_nid, interleave_nodes, interleaves, start_over
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import AddressSpace, Task, VmArea
from numaemu_core.mmzone import Zonelist, free_pages
from numaemu_core.nodemask import first_node, nodes_of, nodes_relative
from numaemu_core.page_alloc import alloc_pages
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
    MPOL_PREFERRED_MANY,
)

_WORD_BITS: Final = 64
_NODE_FLAGS: Final = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES
#: Zonelists that are remembered.
_REMEMBERED_MAX: Final = 4096


# -- checking and making -----------------------------------------------------------------------------------------------


def c_int(value: int) -> int:
    """What is left of an argument where the kernel takes an int."""
    return ((value + (1 << 31)) & (1 << 32) - 1) - (1 << 31)


def sanitize_mpol_flags(k: Kernel, mode: int) -> tuple[int, int]:
    """The mode and the mode flags of a mode argument.

    Raises:
        MmError: EINVAL: no such mode, STATIC and RELATIVE together, or NUMA_BALANCING with a mode that may not have it.
    """
    if k.profile.mode_is_int:
        mode = c_int(mode)
    flags = mode & k.profile.mode_flags
    mode &= ~k.profile.mode_flags
    if not 0 <= mode <= k.profile.mode_max:
        raise MmError(errno.EINVAL, f"mode {mode} is none of 0 to {k.profile.mode_max}")
    if flags & _NODE_FLAGS == _NODE_FLAGS:
        raise MmError(errno.EINVAL, "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other")
    if flags & MPOL_F_NUMA_BALANCING and mode not in k.profile.balancing_modes:
        raise MmError(errno.EINVAL, f"mode {mode} takes no MPOL_F_NUMA_BALANCING")
    return mode, flags


def get_nodes(k: Kernel, words: Sequence[int] | None, maxnode: int) -> int:
    """A mask from user words; maxnode is one more than the bits that count (get_nodes).

    Words above the last possible node must be zero. 2.6.15 reads them upwards and only the bits that count, 6.x reads
    them from the last one downwards and whole.

    Raises:
        MmError: EINVAL for a mask longer than a page, maxnode 0 with a pointer (2.6.15 wrapped around and corrupted
            memory; 2.6.16 refuses), or a bit above the last possible node; EFAULT where the words end too early.
    """
    bits = maxnode - 1
    if words is None or bits == 0:
        return 0
    if maxnode == 0:
        raise MmError(errno.EINVAL, "maxnode 0 with a mask: it counts one more than the bits of the mask")
    if bits > k.page_size * 8:
        raise MmError(errno.EINVAL, f"a mask of {bits} bits is longer than one page")
    needed = -(-bits // _WORD_BITS)
    mask = sum(word << (_WORD_BITS * i) for i, word in enumerate(words[:needed]))
    downwards = k.profile.mask_read_downwards and bits > k.profile.max_numnodes
    if downwards and len(words) < needed:
        raise MmError(errno.EFAULT, f"{bits} bits take {needed} words, {len(words)} can be read")
    if not downwards:
        mask &= (1 << bits) - 1
    if mask >> k.profile.max_numnodes:
        raise MmError(errno.EINVAL, f"a node above {k.profile.max_numnodes - 1} in the mask")
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


def mpol_new(k: Kernel, task: Task, mode: int, flags: int, mask: int) -> Mempolicy | None:
    """The policy object of a mode and a mask of the user's; None for MPOL_DEFAULT.

    Mirrors: mpol_check_policy and mpol_new (2.6.15), mpol_new and mpol_set_nodemask (6.x).

    Raises:
        MmError: EINVAL: mode, flags and mask do not go together, or no node of the mask can be used.
    """
    if k.profile.offline_nodes_dropped:
        return _mpol_new_today(k, task, mode, flags, mask)
    mpol_check_policy(k, mode, mask)
    if mode == MPOL_DEFAULT:
        return None
    if mode == MPOL_PREFERRED:
        return Mempolicy(mode, preferred=first_node(mask) if mask else -1)
    return Mempolicy(mode, nodes=mask)


def _mpol_new_today(k: Kernel, task: Task, mode: int, flags: int, mask: int) -> Mempolicy | None:
    """mpol_new of 6.x: PREFERRED without nodes becomes LOCAL; nodes that cannot be used are dropped."""
    if mode == MPOL_DEFAULT:
        if mask:
            raise MmError(errno.EINVAL, "MPOL_DEFAULT takes no nodes")
        return None
    if mode in (MPOL_LOCAL, MPOL_PREFERRED) and not mask:
        if flags & _NODE_FLAGS:
            raise MmError(errno.EINVAL, "local allocation takes no MPOL_F_STATIC_NODES and no MPOL_F_RELATIVE_NODES")
        return Mempolicy(MPOL_LOCAL, flags=flags)
    if mode == MPOL_LOCAL or not mask:
        raise MmError(errno.EINVAL, "MPOL_LOCAL takes no nodes, and this mode at least one" if mask else "no nodes")
    allowed = task.mems_allowed & k.memory_nodes
    nodes = nodes_relative(mask, allowed) if flags & MPOL_F_RELATIVE_NODES else mask & allowed
    if not nodes:
        raise MmError(errno.EINVAL, "no node of the mask has memory and is in the cpuset")
    kept = {"user_nodes": mask} if flags else {"cpuset_nodes": task.mems_allowed}
    if mode == MPOL_PREFERRED:
        return Mempolicy(mode, preferred=first_node(nodes), flags=flags, **kept)
    return Mempolicy(mode, nodes=nodes, flags=flags, **kept)


def sys_set_mempolicy(k: Kernel, task: Task, mode: int, words: Sequence[int] | None, maxnode: int) -> KernelTask[int]:
    """Set the policy of the calling task. Takes no mmap_sem.

    Raises:
        MmError: EINVAL or EFAULT: the mode, then the mask, then whether they go together; ESRCH: the task has ended.
    """
    if k.tasks.get(task.pid) is not task:
        raise MmError(errno.ESRCH, f"task {task.pid} has ended")
    mode, flags = sanitize_mpol_flags(k, c_int(mode))
    mask = get_nodes(k, words, maxnode)
    if not k.profile.offline_nodes_dropped:
        mask &= task.mems_allowed
    task.policy = mpol_new(k, task, mode, flags, mask)
    if interleaves(task.policy):
        start_over(k, task)
    k.journal.task(task)
    yield from ()  # it needs nothing from the world
    return 0


# -- which policy is in force ------------------------------------------------------------------------------------------


def get_vma_policy(k: Kernel, task: Task, vma: VmArea, index: int) -> Mempolicy | None:
    """The policy in force for a page of a VMA, and a task; None is the system's default: local.

    `index` counts as vm_pgoff does. Objects with shared policies answer for their VMAs, private ones too.
    """
    policy = get_own_policy(vma, index)
    if policy is None and vma.vm_file is not None and vma.vm_file.is_shmem and k.profile.shmem_hides_task_policy:
        return None
    return policy or task.policy


def get_own_policy(vma: VmArea, index: int) -> Mempolicy | None:
    """The policy that was set for a page of a VMA or of its object, None if none was (6.x __get_vma_policy)."""
    if vma.vm_file is not None and vma.vm_file.is_shmem:
        return vma.vm_file.policy.lookup(index)
    return vma.vm_policy


# -- which nodes -------------------------------------------------------------------------------------------------------


def bind_zonelist(k: Kernel, policy: Mempolicy) -> tuple[int, ...]:
    """Nodes of a BIND policy that have memory, lowest id first (2.6.15 bind_zonelist)."""
    return tuple(nid for nid in nodes_of(policy.nodes) if nid in k.zones)


def node_zonelist(k: Kernel, nid: int, mems_allowed: int, nodemask: int | None = None) -> Zonelist:
    """The nodes that an allocation at a node tries: nearest first, those of the cpuset and of the mask, if any.

    The node that numa_hit is about is the first one: of the mask, or else of the cpuset; in 2.6.15 of them all.
    """
    full = k.zonelists[nid]
    masked = full if nodemask is None else tuple(n for n in full if nodemask >> n & 1)
    nodes = tuple(n for n in masked if mems_allowed >> n & 1)
    heads = nodes if nodemask is None and k.profile.hit_means_first_allowed else masked
    return Zonelist(nodes, (heads or full)[0])


def policy_zonelists(k: Kernel, task: Task | None, policy: Mempolicy | None) -> tuple[Zonelist, ...]:
    """What an allocation without an interleave tries, one after the other; without a task: for the kernel itself.

    A BIND whose nodes have no memory or are all outside of the cpuset acts like the default.
    """
    cpu_node = first_node(k.online) if task is None else k.cpu_node[task.cpu]
    mems_allowed = k.online if task is None else task.mems_allowed
    key = (policy, cpu_node, mems_allowed)
    found = k.policy_zonelists.get(key)
    if found is None:
        if len(k.policy_zonelists) >= _REMEMBERED_MAX:
            k.policy_zonelists.clear()
        found = k.policy_zonelists[key] = _make_zonelists(k, policy, cpu_node, mems_allowed)
    return found


def _make_zonelists(k: Kernel, policy: Mempolicy | None, cpu_node: int, mems_allowed: int) -> tuple[Zonelist, ...]:
    """policy_zonelists, worked out."""
    if policy is None:
        return (node_zonelist(k, cpu_node, mems_allowed),)
    home = cpu_node if policy.home_node < 0 else policy.home_node
    if policy.mode == MPOL_PREFERRED and policy.preferred >= 0:
        home = policy.preferred
    if policy.mode == MPOL_BIND and policy.nodes & mems_allowed & k.memory_nodes:
        if k.profile.bind_nearest_first:
            return (node_zonelist(k, home, mems_allowed, policy.nodes),)
        nodes = bind_zonelist(k, policy)
        return (Zonelist(tuple(nid for nid in nodes if mems_allowed >> nid & 1), nodes[0]),)
    if policy.mode == MPOL_PREFERRED_MANY:
        return node_zonelist(k, home, mems_allowed, policy.nodes), node_zonelist(k, home, mems_allowed)
    return (node_zonelist(k, home, mems_allowed),)


# -- allocation --------------------------------------------------------------------------------------------------------


def alloc_page_vma(
    k: Kernel, task: Task, vma: VmArea, vpns: I8, *, zero: bool = True, may_kill: bool = True
) -> KernelTask[I8]:
    """A frame for each of these pages of a VMA, in their order, as its policy says; fewer when memory ran out.

    Shapes: `vpns` int64[n]; gives int64[m], m <= n: the first m pages have got one.
    Mirrors: alloc_page_vma, mm/mempolicy.c, for many pages at a time.
    """
    indexes = vpns - (vma.vm_start >> k.page_shift) + vma.vm_pgoff
    mapping = vma.vm_file
    if mapping is None or not mapping.is_shmem:
        policy = vma.vm_policy or task.policy
        return (yield from alloc_pages_mpol(k, task, policy, indexes, zero=zero, may_kill=may_kill))
    default = None if k.profile.shmem_hides_task_policy else task.policy
    inode = mapping.i_ino if k.profile.vma_interleave_adds_inode else 0
    return (yield from _alloc_shared(k, task, mapping, indexes, default, inode, zero=zero, may_kill=may_kill))


def alloc_page_object(
    k: Kernel, task: Task | None, mapping: AddressSpace, indexes: I8, *, zero: bool = True
) -> KernelTask[I8]:
    """A frame for each of these pages of an object, by its shared policy or else the task's (shmem_alloc_page).

    An object without shared policies gets them as page cache. Shapes as in alloc_page_vma.
    """
    if not mapping.is_shmem:
        return (yield from alloc_page_cache(k, task, len(indexes), zero=zero))
    default = None if task is None else task.policy
    inode = mapping.i_ino if k.profile.shmem_interleave_adds_inode else 0
    return (yield from _alloc_shared(k, task, mapping, indexes, default, inode, zero=zero, may_kill=True))


def _alloc_shared(
    k: Kernel,
    task: Task | None,
    mapping: AddressSpace,
    indexes: I8,
    default: Mempolicy | None,
    inode: int,
    *,
    zero: bool,
    may_kill: bool,
) -> KernelTask[I8]:
    """Frames by the shared policies of an object: runs of pages under one policy, one after the other."""
    if not len(indexes):
        return NO_INDEXES
    segments = list(mapping.policy.segments(int(indexes.min()), int(indexes.max()) + 1))
    place = np.searchsorted([start for start, _, _ in segments], indexes, "right") - 1
    taken: list[I8] = []
    for run in np.split(np.arange(len(indexes)), np.flatnonzero(np.diff(place)) + 1):
        policy = segments[int(place[run[0]])][2] or default
        got = yield from alloc_pages_mpol(k, task, policy, indexes[run] + inode, zero=zero, may_kill=may_kill)
        taken.append(got)
        if len(got) < len(run):
            break
    return np.concatenate(taken)


def alloc_page_cache(k: Kernel, task: Task | None, count: int, *, zero: bool = True) -> KernelTask[I8]:
    """Frames for page cache: by the policy of the task, which interleaves round and round; fewer when memory ran out.

    Mirrors: page_cache_alloc and alloc_pages_current. Shapes: gives int64[m], m <= count.
    """
    if task is None or task.policy is None or task.policy.mode not in INTERLEAVE_MODES or not count:
        policy = None if task is None else task.policy
        return (yield from alloc_pages_mpol(k, task, policy, np.arange(count), zero=zero))
    counted = task.policy.mode == MPOL_INTERLEAVE
    nodes = interleave_nodes(k, task, count)
    k.journal.task(task)
    return (yield from _alloc_interleaved(k, task, nodes, counted=counted, zero=zero))


def alloc_pages_mpol(
    k: Kernel, task: Task | None, policy: Mempolicy | None, ilx: I8, *, zero: bool = True, may_kill: bool = True
) -> KernelTask[I8]:
    """Frames by a policy, for the pages of these interleave indexes in their order; fewer when memory ran out.

    Without `may_kill` the OOM killer is not called for them.
    """
    if policy is not None and policy.mode in INTERLEAVE_MODES:
        counted = policy.mode == MPOL_INTERLEAVE
        nodes = interleave_nid(k, policy, ilx)
        return (yield from _alloc_interleaved(k, task, nodes, counted=counted, zero=zero, may_kill=may_kill))
    cpu_node = first_node(k.online) if task is None else k.cpu_node[task.cpu]
    left = len(ilx)
    taken: list[I8] = []
    zonelists = policy_zonelists(k, task, policy)
    for zonelist in zonelists:
        if left:
            last = zonelist is zonelists[-1]  # the nodes of MPOL_PREFERRED_MANY are tried without reclaim
            got = yield from alloc_pages(
                k, task, zonelist, left, cpu_node=cpu_node, zero=zero, may_reclaim=last, may_kill=may_kill
            )
            taken.append(got)
            left -= len(got)
    return np.concatenate([NO_INDEXES, *taken]) if len(taken) != 1 else taken[0]


def room_above_low(k: Kernel, nid: int) -> int:
    """Frames that a node gives before an allocation goes on to the next one."""
    return max(k.zones[nid].nr_free - k.zones[nid].pages_low, 0)


def _alloc_interleaved(
    k: Kernel, task: Task | None, nodes: I8, *, counted: bool, zero: bool, may_kill: bool = True
) -> KernelTask[I8]:
    """A frame for each page, page i from the zonelist of nodes[i]; as if they were taken one after the other.

    While every node that the batch really draws from has room for its whole share, the order does not matter; else the
    batch is halved. A node becomes full once, so that there are few halvings. `counted`: for interleave_hit.
    """
    cpu_node = first_node(k.online) if task is None else k.cpu_node[task.cpu]
    mems_allowed = k.online if task is None else task.mems_allowed
    zonelists = {nid: node_zonelist(k, nid, mems_allowed) for nid in distinct(nodes).tolist()}
    source = {nid: next((n for n in zl.nodes if room_above_low(k, n)), None) for nid, zl in zonelists.items()}
    shares = {nid: int((nodes == nid).sum()) for nid in zonelists}
    demand: dict[int | None, int] = {}
    for nid, share in shares.items():
        demand[source[nid]] = demand.get(source[nid], 0) + share
    fits = all(room_above_low(k, n) >= count for n, count in demand.items() if n is not None)
    if not fits and None not in source.values() and len(nodes) > 1:
        half = len(nodes) // 2
        first = yield from _alloc_interleaved(k, task, nodes[:half], counted=counted, zero=zero, may_kill=may_kill)
        if len(first) < half:
            return first
        second = yield from _alloc_interleaved(k, task, nodes[half:], counted=counted, zero=zero, may_kill=may_kill)
        return np.concatenate((first, second))
    pfns = np.full(len(nodes), -1)
    for nid, zonelist in zonelists.items():
        hit = counted and (not k.profile.hit_means_first_allowed or zonelist.wanted == nid)
        kill = may_kill and not (pfns >= 0).any()
        got = yield from alloc_pages(
            k, task, zonelist, shares[nid], cpu_node=cpu_node, interleave=hit, zero=zero, may_kill=kill
        )
        pfns[np.flatnonzero(nodes == nid)[: len(got)]] = got
    short = np.flatnonzero(pfns < 0)
    if len(short):  # memory is short: what has come beside the first gap is given back, so that it can be filled
        spare = pfns[short[0] :]
        yield from free_pages(k, spare[spare >= 0])
        if (spare >= 0).any() and not short[0]:
            return (yield from _alloc_interleaved(k, task, nodes[:1], counted=counted, zero=zero, may_kill=may_kill))
    return pfns[: short[0]] if len(short) else pfns
