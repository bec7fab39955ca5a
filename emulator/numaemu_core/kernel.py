"""The state of one machine as its kernel daemon knows it. Every module with a Linux name works on a `Kernel`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from numaemu_core import limits
from numaemu_core.columns import I2, I8, Columns
from numaemu_core.effects import KernelTask
from numaemu_core.fault_points import Reach, unarmed
from numaemu_core.faults_on_demand import slots_of_full_swap
from numaemu_core.journal import Journal, Truth, truth_of
from numaemu_core.layout import Layout
from numaemu_core.locks import HostLocks, LockTable
from numaemu_core.lru import LruTails
from numaemu_core.mm_types import AddressSpace, AnonVma, Mm, Task
from numaemu_core.mmzone import Zone, Zonelist, build_zonelists, make_zones
from numaemu_core.nodemask import mask_of
from numaemu_core.page_table import TableArena
from numaemu_core.profile import Profile
from numaemu_core.profiles import profile_named
from numaemu_core.quarantine import Quarantine
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.strikes import Strikes
from numaemu_core.topology import Topology
from numaemu_core.vm_events import VmEvents

#: Shared anonymous memory gets inode numbers that are multiples of this: interleaving, which starts at the inode
#: number, then begins at the first node of any mask of 1, 2, 3, 4, 6 or 12 nodes.
ANON_INO_STEP: Final = 12
#: Stamps of the LRU begin in the middle, so that there is room at both ends.
LRU_CLOCK_START: Final = 1 << 62


class Kernel:
    """Everything that a kernel task may touch. One task runs at a time; between two yields it is alone."""

    def __init__(self, layout: Layout, columns: Columns, journal: Journal, host: HostLocks) -> None:
        """A machine just switched on: all frames free and clean but the zero page, no task."""
        self.layout = layout
        self.topology = layout.topology
        self.profile = _tuned(layout.topology)
        self.page_shift = layout.page_shift
        self.page_size = 1 << layout.page_shift
        self.c = columns
        self.journal = journal
        self.locks = LockTable(host)
        self.online = layout.topology.online
        self.cpu_node = {cpu: node.id for node in layout.topology.nodes for cpu in node.cpus}
        self.zones: dict[int, Zone] = make_zones(layout, columns)
        self.zonelists = build_zonelists(layout.topology)
        #: Nodes that have memory.
        self.memory_nodes = mask_of(self.zones)
        #: Answers of mempolicy.policy_zonelists.
        self.policy_zonelists: dict[tuple[Mempolicy | None, int, int], tuple[Zonelist, ...]] = {}
        #: Weights of weighted interleaving by node, where they are not 1 (/sys/kernel/mm/mempolicy).
        self.il_weights: dict[int, int] = {}
        self.nid_of_pfn: I2 = np.empty(layout.frame_count, np.int16)
        for nid, (first, end) in layout.node_pfns.items():
            self.nid_of_pfn[first:end] = nid
        #: pfn of the page that every first read maps.
        self.zero_pfn = min(first for first, _ in layout.node_pfns.values())
        self.tables = TableArena(layout, columns)
        #: The swap cache by slot: its frame, -1 where the slot is not cached.
        self.slot_frame: I8 = np.full(layout.slot_count, -1, np.int64)
        #: References that kernel tasks hold of frames (get_page), for as long as they run.
        self.page_refs = np.zeros(layout.frame_count, np.uint16)
        self.slot_cursor = 0
        #: Slots that may be given: all, or the first ones if a fault on demand has set the others apart.
        limit = slots_of_full_swap(self.topology.faults)
        self.usable_slots = layout.slot_count if limit is None else limit
        self.nr_swap_pages = self.usable_slots
        #: The stamp of the next frame at the head of a list, and of the next one at a tail.
        self.lru_clock = self.lru_tail = LRU_CLOCK_START
        self.lru_tails = LruTails()
        self.quarantine = Quarantine()
        #: Frames that nobody but a pin refers to any more: looked at again when pins are cleared.
        self.left_to_pins: set[int] = set()
        self._without_tasks()
        #: Events since boot, whichever daemon counted them.
        self.vmstat = VmEvents(columns.vm_events)
        #: Faults on demand.
        self.strikes = Strikes(self.topology.faults, self.topology.seed, columns)
        #: On whose behalf kernel tasks run, by their numbers (`intents.Caller`).
        self.callers: dict[int, Any] = {}
        #: How many entries of each frame are gone whose dirty bytes were not yet read (`harvest`).
        self.harvests: I8 = np.zeros(layout.frame_count, np.int64)
        #: Told what step a task has reached (`fault_points`): once a batch.
        self.reach: Reach = unarmed
        #: Pages that a long task handles between two yields; the performer has it shorter while others wait.
        self.batch_pages = limits.BATCH_PAGES
        #: Starts a kernel task that nobody waits for; the performer's.
        self.spawn: Callable[[str, KernelTask[Any]], object] = lambda _name, body: body.close()
        #: Wakes the kswapd of a node; the performer's.
        self.wake_kswapd: Callable[[int], object] = lambda _nid: None
        #: Writes to the swap area and to files that have ended.
        self.writes_ended = 0
        #: Set whenever a page lock is dropped or a writeback ends: the performer looks at its sleepers.
        self.pages_changed = False

    def _without_tasks(self) -> None:
        """Nobody runs, nothing is mapped, there is no file, and no number has been given."""
        self.tasks: dict[int, Task] = {}
        self.mms: dict[int, Mm] = {}
        self.anon_vmas: dict[int, AnonVma] = {}
        #: Objects that pages of files belong to, by the id in the `mapping` column (PAGE_MAPPING_FILE set).
        self.address_spaces: dict[int, AddressSpace] = {}
        #: Files by name.
        self.files: dict[str, AddressSpace] = {}
        #: What mirrors share by name, and those of it that the host keeps.
        self.mirrored_objects: dict[str, AddressSpace] = {}
        self.kept_objects: dict[str, AddressSpace] = {}
        self.next_object = 1
        #: Shared anonymous mappings since boot.
        self.anon_objects = 0
        #: First page of the disk segment that no file has.
        self.disk_cursor = 0
        #: VMAs of all mms.
        self.vma_count = 0
        self.next_pid = 1
        self.next_mm = 0
        self.next_anon_vma = 1
        #: Files that were opened for an mmap.
        self.openings = 0
        #: Copies of anon_vmas that forks made.
        self.anon_clones = 0

    def truth(self) -> Truth:
        """The live state in the form that a replay of the journal gives."""
        tasks = [task for task in self.tasks.values() if not task.mm.told_gone]
        mms = [mm for mm in self.mms.values() if not mm.told_gone]
        objects = [mapping for mapping in self.address_spaces.values() if not mapping.dead]
        truth = truth_of(tasks, mms, objects)
        truth.weights = dict(self.il_weights)
        truth.marks = {
            "pid": self.next_pid,
            "object": self.next_object,
            "anon_vma": self.next_anon_vma,
            "clone": self.anon_clones,
            "opening": self.openings,
            "anon_ino": self.anon_objects * ANON_INO_STEP,
        }
        return truth

    def count(self, event: str, times: int = 1) -> None:
        """Count an event for vmstat."""
        self.vmstat.count(event, times)

    def node_of_task(self, task: Task) -> int:
        """numa_node_id() while that task runs."""
        return self.cpu_node[task.cpu]

    def free_mm_id(self) -> int:
        """An id for a new mm; ids go round, so that a stale one is not soon another's."""
        for step in range(limits.MAX_MMS):
            mm_id = (self.next_mm + step) % limits.MAX_MMS
            if mm_id not in self.mms:
                self.next_mm = mm_id + 1
                return mm_id
        return -1


def _tuned(topology: Topology) -> Profile:
    """The profile of a machine, with the settings that the machine has in place of the profile's."""
    profile = profile_named(topology.profile)
    if topology.page_cluster is not None:
        profile = replace(profile, page_cluster=topology.page_cluster)
    if topology.fault_around is not None:
        profile = replace(profile, fault_around_pages=topology.fault_around)
    if topology.swap_device is not None:
        profile = replace(profile, swap_synchronous=topology.swap_device == "ram")
    return profile
