"""What differs between kernels: one frozen record of named choices, read by one engine.

No code asks for a profile's name. A difference between kernels is a field here, with what it selects and where that
comes from; `profiles` has the records.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """The choices of one kernel version."""

    name: str

    # -- nodes and allocation ------------------------------------------------------------------------------------------

    #: Bits that a node mask may have: MAX_NUMNODES (x86_64 of 2.6.15: 64; Debian's 6.1 and 6.12: 1024).
    max_numnodes: int
    #: True: the nodes of a tie in distance are examined in rotation from the local one (2.6.15 find_next_best_node);
    #: False: by ascending id, those below the local one at a penalty of one (5.16 and later).
    zonelist_rotates: bool
    #: True: of nodes at one distance those without CPUs are tried first (2.6.15 find_next_best_node); False: x86 builds
    #: its zonelists at boot, before it says which CPUs a node has (6.x numa_add_cpu in identify_cpu).
    zonelist_spares_cpus: bool
    #: True: BIND tries its nodes from the one that is nearest to the CPU (2.6.26); False: by ascending id (2.6.15
    #: bind_zonelist).
    bind_nearest_first: bool
    #: The node that numa_hit is about. True: the first one that mask and cpuset allow (6.x preferred_zoneref), and
    #: interleave_hit asks for the very node; False: the head of the zonelist, allowed or not (2.6.15 zone_statistics).
    hit_means_first_allowed: bool
    #: True: the cpuset at the top has the nodes with memory (6.x N_MEMORY); False: those that are online (2.6.15).
    top_cpuset_has_memory: bool

    # -- modes and masks -----------------------------------------------------------------------------------------------

    #: Highest mode (include/linux/mempolicy.h: 2.6.15 MPOL_MAX, 6.x MPOL_MAX - 1).
    mode_max: int
    #: Mode flags that are accepted: STATIC and RELATIVE since 2.6.26, NUMA_BALANCING since 5.12.
    mode_flags: int
    #: True: the mode is an int that also carries the mode flags (2.6.26); False: an unsigned long in mbind (2.6.15).
    mode_is_int: bool
    #: True: words of a mask above the last possible node are read from the last one down, each whole (6.x get_nodes);
    #: False: upwards, up to the last bit that counts (2.6.15).
    mask_read_downwards: bool
    #: Modes that may carry MPOL_F_NUMA_BALANCING (6.1: BIND; 6.12: PREFERRED_MANY, too).
    balancing_modes: frozenset[int]
    #: True: nodes that are not there are dropped from a mask as long as one is left (6.x mpol_set_nodemask); False: one
    #: of them is EINVAL (2.6.15 mpol_check_policy).
    offline_nodes_dropped: bool
    #: True: get_mempolicy asks for room for the nodes that this machine can have (6.x kernel_get_mempolicy:
    #: nr_node_ids); False: for MAX_NUMNODES (2.6.15 sys_get_mempolicy).
    get_mempolicy_counts_possible: bool
    #: True: get_mempolicy knows MPOL_F_MEMS_ALLOWED (2.6.24, commit 754af6f5).
    mems_allowed_flag: bool
    #: True: the set_mempolicy_home_node system call is there (5.17, commit c6018b4b).
    home_nodes: bool

    # -- interleaving --------------------------------------------------------------------------------------------------

    #: Bits of the page offset that count (2.6.15 and 6.1: an unsigned int; 6.12: all).
    interleave_offset_bits: int
    #: True: interleaving on tmpfs starts at the inode number (2.6.28 and later), False: at the start of the file.
    shmem_interleave_adds_inode: bool
    #: True: copies on write and targets of MOVE in mappings of tmpfs files add the inode number, too (6.12).
    vma_interleave_adds_inode: bool
    #: True: the task keeps the node that it used last (4.13 il_prev); False: the next one (il_next).
    interleave_keeps_last: bool
    #: True: COW pages and numa_maps of a tmpfs mapping whose object has no policy are under the system's default
    #: (2.6.15 get_vma_policy); False: under the task's policy (6.x).
    shmem_hides_task_policy: bool

    # -- cpusets -------------------------------------------------------------------------------------------------------

    #: True: a new cpuset changes the policies of VMAs, too (2.6.16).
    cpuset_rebinds_vmas: bool
    #: True: every policy follows a new cpuset by position, PREFERRED too (2.6.15 rebind_policy); False: PREFERRED keeps
    #: its node, and mode flags decide for the others (6.x mpol_rebind_policy).
    cpuset_remaps_preferred: bool
    #: True: pages move to the new nodes (cgroup v2: always); False: they stay (2.6.15, before memory_migrate).
    cpuset_migrates: bool
    #: True: nodes of a cpuset that are not there are dropped, and none left is ENOSPC (2.6.15 update_nodemask);
    #: False: they are EINVAL, and none at all means those of the parent (cgroup v2).
    cpuset_drops_unknown: bool

    # -- mbind and migration -------------------------------------------------------------------------------------------

    #: Capability that MPOL_MF_MOVE_ALL asks for (V3: CAP_SYS_RESOURCE; since 2.6.16 CAP_SYS_NICE, commit 74c00241).
    move_all_capability: str
    #: True: misplaced pages are copied to their new node at once (2.6.16 and later); False: they are sent to swap and
    #: come back by their policy when they are touched ("Swap migration V3").
    direct_migration: bool
    #: True: mmap_sem is dropped before mbind moves pages (6.6, commit 72e315f7a750); False: it is held for writing.
    mbind_moves_unlocked: bool
    #: True: MOVE places a page by the policy that was set and the page's index, counted from the first page of the list
    #: (6.7, commit 88c91dc58582); False: by the first VMA of the range that may map it (6.1 new_page).
    move_targets_by_index: bool
    #: True: a page that is being migrated counts as misplaced and immovable (6.7, commit 1cb5d11a370f).
    migration_entries_fail: bool
    #: True: with STRICT and MOVE, mbind looks no further than the mapping that has a page which cannot be queued (6.1
    #: queue_pages_pte_range); False: it goes on (6.7, commit 1cb5d11a370f).
    unmovable_ends_walk: bool
    #: True: migrate_pages pairs old and new nodes by their positions, copies, and with CAP_SYS_NICE takes shared pages,
    #: too (2.6.16 and later); False: it evicts what is on old nodes, and pages come back anywhere (V3).
    migrate_pages_pairs_nodes: bool
    #: True: pages that could not be isolated count in what migrate_pages gives (6.7, commit 1cb5d11a370f).
    unisolated_pages_count: bool
    #: True: migrate_pages and move_pages ask whether the caller may trace the other task (ptrace_may_access); False:
    #: anybody may migrate any task (V3 as mailed).
    migration_asks_ptrace: bool
    #: True: there is a move_pages (2.6.18, commit 742755a1).
    move_pages: bool
    #: True: pages join the migration list at its head, so that it runs against the addresses (V2, V4, V5).
    pagelist_lifo: bool
    #: True: MOVE takes pages that one entry maps (2.6.16, commit fc301289); False: anonymous pages, and pages of files
    #: that somebody maps shared and writable or that only one mm maps (V3).
    move_needs_mapcount_one: bool
    #: True: mbind looks for holes only between two VMAs and above the last one (V3).
    holes_between_vmas_only: bool
    #: True: mbind merges VMAs that have become equal (2.6.34, commit 9d8cebd4).
    mbind_merges_vmas: bool
    #: True: VMAs merge only if the neighbour's anon_vma was not inherited in a fork (3.0, "avoid merging cloned VMAs").
    merge_needs_single_chain: bool
    #: True: locked pages stay under MOVE and fail under STRICT (V3 vma_migratable and try_to_unmap).
    locked_pages_stay: bool
    #: What move_pages says of an anonymous page that was never touched (6.1: EFAULT; 6.12: ENOENT).
    untouched_page_status: int
    #: True: move_pages neither finds nor moves pages that are mapped PROT_NONE (6.1).
    move_pages_skips_prot_none: bool

    # -- the life of a page --------------------------------------------------------------------------------------------

    #: True: an entry that was accessed stops try_to_unmap, which clears it (2.6.15).
    young_stops_unmap: bool
    #: log2 of the pages that swap readahead reads around a slot (vm.page-cluster). Kernels start with 3, the profiles
    #: with none, so that each page is placed by its own address; a topology may say otherwise.
    page_cluster: int
    #: True: swap readahead places each page by the address so many pages after the fault (2.6.15 swapin_readahead);
    #: False: by the address of the fault (6.1 swap_cluster_readahead).
    readahead_addresses_advance: bool
    #: True: swap is as fast as memory (SWP_SYNCHRONOUS_IO, a RAM disk): a page with one user leaves and comes back
    #: without staying in the swap cache (4.15, commit 0bcac06f).
    swap_synchronous: bool
    #: True: a page that is swapped in for writing, and has no other user, gives its slot up (5.18
    #: should_try_to_free_swap); False: while swap is less than half full, the slot stays (2.6.15).
    write_gives_slot_up: bool
    #: True: writing a tmpfs page out starts with the step into the swap cache and goes on in it (3.x shmem_writepage);
    #: False: the step is all that one pass does (2.6.15).
    shmem_writepage_writes: bool
    #: True: a write fault on a shared mapping makes the page dirty (5.x fault_dirty_shared_page); False: only its
    #: entry, until that is unmapped (2.6.15).
    write_fault_dirties_page: bool
    #: True: each fault that maps a page of a file or the swap cache, each read and write of a file, and the end of an
    #: accessed mapping count as a use of the page, and the second use makes it active (2.6.15 filemap_nopage,
    #: do_swap_page, zap_pte_range); False: the first use marks it, and reclaim sees the rest (6.x).
    uses_activate: bool
    #: True: pages can be locked as they are touched (mlock2, MCL_ONFAULT: 4.4).
    mlock_on_fault: bool
    #: True: mlock counts what it locks again a second time against the limit (2.6.15; not since 4.9, commit 0cf2f6f6).
    mlock_counts_twice: bool
    #: True: mlock faults in each mapping that becomes locked, up to a hole (2.6.15 mlock_fixup); False: all of the
    #: range, locked before or not, and nothing if there is a hole (2.6.39 and later).
    mlock_populates_as_it_goes: bool
    #: True: mlock fails when a page cannot be faulted in (__mlock_posix_error_return); False: it stays quiet (2.6.15).
    mlock_reports_faults: bool
    #: True: madvise knows FREE, REMOVE, DONTFORK, COLD and POPULATE, mremap DONTUNMAP (what came from 2.6.16 to 5.18).
    madvise_of_today: bool
    #: True: MADV_REMOVE is for shared mappings that may be made writable (6.7); False: for those that are.
    remove_asks_maywrite: bool
    #: True: MADV_POPULATE ends at the first hole (6.9); False: it goes on behind it.
    populate_ends_at_hole: bool
    #: True: MADV_WILLNEED places pages of shared memory by the mapping's policy (6.12); False: by the task's (6.1).
    willneed_knows_vma: bool
    #: True: private memory that was never touched is no longer accounted for when it loses the right to be written to,
    #: and may merge with what never had it (6.7 mprotect_fixup).
    mprotect_unaccounts: bool
    #: True: private locked memory that may be written to from now on is faulted in for it (4.2 mprotect_fixup).
    mprotect_fills_locked: bool
    #: Passes that MADV_PAGEOUT makes over its pages where swap is not synchronous: one starts the writes and goes on
    #: (5.4 reclaim_pages); in 2005, which had no MADV_PAGEOUT, it is given all those of swapout_pages.
    pageout_passes: int
    #: True: mremap looks first whether anything is mapped at the old address (mm/mremap.c of 6.1); False: it first
    #: clears the new place, and the end of what shrinks, whether or not there was anything (2.6.15 do_mremap).
    mremap_looks_first: bool
    #: True: locking and MAP_POPULATE fault shared writable mappings in for writing (2.6.15); False: for reading.
    populate_writes_shared: bool
    #: Pages that a read fault of a file maps around the one that was asked for (fault_around_bytes, 3.15), 1: none.
    fault_around_pages: int
    #: True: attaching to a cpuset resets the CPUs of sched_setaffinity (6.1).
    cpuset_resets_affinity: bool

    # -- memory pressure -----------------------------------------------------------------------------------------------

    #: Highest min_free_kbytes that a kernel chooses by itself (2.6.15: 65536, 6.x: 262144; mm/page_alloc.c).
    min_free_kbytes_max: int
    #: Least gap between the watermarks in ten-thousandths of the zone (watermark_scale_factor, 4.6); 0: the gap from
    #: min to low is a quarter of min, that to high a half (2.6.15 setup_per_zone_pages_min).
    watermark_scale_factor: int
    #: True: mapped pages that were referenced stay on the active list (2.6.15 refill_inactive_zone), and one reference
    #: activates an inactive page; False: anonymous pages are always deactivated (shrink_active_list since 2.6.28), and
    #: an inactive one is activated at its second reference (folio_check_references).
    referenced_pages_stay_active: bool
    #: True: the OOM killer chooses by what is resident, in swap and in page tables (oom_badness, 2.6.36), False: by
    #: the size of the address space and those of the children (badness, 2.6.14).
    oom_badness_by_rss: bool
    #: True: the OOM killer spares tasks whose policy or cpuset cannot use the nodes that are short
    #: (CONSTRAINT_MEMORY_POLICY and CONSTRAINT_CPUSET, 6.x); False: cpusets count, policies do not (2.6.15).
    oom_knows_policies: bool
    #: Names in /proc/vmstat of what reclaim counts, each with the counts that it sums up (mm/vmstat.c).
    reclaim_events: tuple[tuple[str, tuple[str, ...]], ...]

    # -- views ---------------------------------------------------------------------------------------------------------

    #: True: numa_maps, node meminfo and vmstat as 2.6.14 and 2.6.15 print them; False: as 6.x does
    #: (fs/proc/task_mmu.c, drivers/base/node.c, mm/vmstat.c).
    views_of_2005: bool
    #: True: numa_maps calls a mapping that only touches the heap `heap`, too (6.1); False: one that overlaps it (6.5,
    #: commit d3bb89ea). Nothing where there are no such words.
    heap_includes_neighbours: bool
