"""Every bound of the machine, each with its unit in its name; relations between them are asserted at import."""

from typing import Final

#: Node ids run from 0 to MAX_NUMNODES - 1 at the most (x86_64 of today: NODES_SHIFT 10); a profile may have fewer.
MAX_NUMNODES: Final = 1024
#: Nodes of one machine: each is a process, and every process maps the memory of all.
MAX_NODES: Final = 128
#: CPU numbers run from 0 to MAX_CPUS - 1.
MAX_CPUS: Final = 1024
#: Entries of one page-table page, at each of the four levels.
PTRS_PER_TABLE: Final = 512
#: log2 of PTRS_PER_TABLE.
TABLE_SHIFT: Final = 9
#: Levels of a page table: pgd, pud, pmd, pte.
TABLE_LEVELS: Final = 4
#: User addresses end here (x86_64: 47 bits).
TASK_SIZE_BYTES: Final = 1 << 47
#: mmap without an address looks for room from here upwards (x86_64 of 2.6.15: TASK_SIZE / 3, rounded up).
TASK_UNMAPPED_BASE: Final = 0x2AAAAAAAB000
#: Where the heap of a new address space begins.
START_BRK: Final = 0x600000

PAGE_SHIFT_MIN: Final = 12
PAGE_SHIFT_MAX: Final = 16

#: VMAs of one address space (sysctl_max_map_count of 2.6.15).
MAX_MAP_COUNT: Final = 65536
#: VMAs of all address spaces together: a snapshot of them fits half a journal.
MAX_VMAS: Final = 1 << 18
#: Ranges of pages with a policy, in all objects together.
MAX_SHARED_POLICIES: Final = 1 << 16
#: Tasks alive at one time (pid_max of 2.6.15).
MAX_TASKS: Final = 32768
#: Address spaces alive at one time: rows of the epoch column.
MAX_MMS: Final = 4096
#: Files and shared anonymous mappings alive at one time.
MAX_FILES: Final = 65536
#: Faults on demand of one machine.
FAULTS_MAX: Final = 128
#: Pages of one file: 1 TiB of small pages.
FILE_PAGES_MAX: Final = 1 << 28
#: Characters of the name of a file.
FILE_NAME_MAX: Final = 255
#: Shared objects that outlast their mappings; their names fit into a message.
KEPT_OBJECTS_MAX: Final = 1024
#: Connections of one client whose last answers are kept: one a thread.
MAX_CONNECTIONS_PER_CLIENT: Final = 1024
#: Access slots: one a thread and task that touches memory.
MAX_ACCESS_SLOTS: Final = 4096
#: Pin records of one client thread's task: frames it may hold pinned at one time.
MAX_PINS_PER_SLOT: Final = 65536

#: Frames of a whole machine: a pfn fits 31 bits.
MAX_FRAMES: Final = 1 << 31
#: A swap map counter saturates here (SWAP_MAP_MAX of 2.6.15).
SWAP_MAP_MAX: Final = 0x7FFF

#: Passes of swapout_pages over its list ("Swap migration V3: Page Eviction": pass runs 0..10).
SWAPOUT_PASSES: Final = 11
#: The first passes only try a page lock; later ones sleep for it.
SWAPOUT_TRYLOCK_PASSES: Final = 3
#: Pages that one step of a long task handles between two yields, while nobody else waits, and while somebody does.
BATCH_PAGES: Final = 4096
SHARED_BATCH_PAGES: Final = 256
#: How long steps stay short after somebody else has come.
SHARED_S: Final = 0.1
#: Passes of migrate_pages over its list (6.1), and how many of them only try page locks.
MIGRATE_PASSES: Final = 10
MIGRATE_TRYLOCK_PASSES: Final = 3
#: Reclaim works in batches of this many pages, and is content with as many (SWAP_CLUSTER_MAX of 2.6.15).
SWAP_CLUSTER_MAX: Final = 32
#: While none of its pages can be freed, a batch of reclaim doubles up to this many.
RECLAIM_BATCH_MAX: Final = 512
#: Reclaim scans 1/2^12 of the lists first, and all of them last (DEF_PRIORITY of 2.6.15).
DEF_PRIORITY: Final = 12
#: How much reclaim likes to take mapped pages, in per cent (vm_swappiness).
VM_SWAPPINESS: Final = 60
#: A sleep for want of something else to do.
NAP_S: Final = 0.02
#: Rounds of reclaim that free nothing before somebody is killed (6.x: 16; 2.6.15 gives up after one).
MAX_RECLAIM_RETRIES: Final = 4
#: Frames at the end of an LRU list that are remembered in their order.
LRU_TAIL_PAGES: Final = 4096
#: A zone smaller than so many batches is scanned in smaller ones.
SCAN_BATCHES_OF_ZONE: Final = 32
#: Naps that an allocation takes for pages that others are evicting, before somebody is killed.
OOM_PATIENCE_NAPS: Final = 64
#: Times that a fault begins anew when frames ran out under it although nobody was killed.
FAULT_RETRIES: Final = 64
#: A fault request takes no more than this part of the smallest node at one time: else its first pages are gone again
#: before its last ones are there.
FAULT_SHARE_OF_NODE: Final = 8
#: Pages that one fault request may cover: some batches, of which one is read while that before it is mapped.
FAULT_REQUEST_PAGES: Final = 16384
#: Page-table pages whose entries one step scans, and so the pte locks held at one time.
PTE_LOCK_BATCH: Final = 512
#: States that one step of the search for free frames or slots looks at.
SCAN_CHUNK_MAX: Final = 1 << 18

#: Kernel daemons that may die of one call: then it is refused.
DEATHS_OF_A_CALL: Final = 3

#: A running client's open window is waited for so long; past it, it is a straggler.
WINDOW_BOUND_RUNNING_S: Final = 5.0
#: A stopped client's open window is waited for so long.
WINDOW_BOUND_STOPPED_S: Final = 0.2

#: A process of the machine that is stopped and that others wait for is killed after so long, and started again.
PROCESS_STOPPED_BOUND_S: Final = 0.5
#: Whoever waits for a process says so after so long, and again as often as that while it waits.
SILENCE_S: Final = 0.2

#: One half of the journal.
JOURNAL_HALF_BYTES: Final = 64 << 20
#: Bytes that calls on their way write into files: they stand in the journal, and in a snapshot of it.
JOURNALLED_WRITES_BYTES: Final = 8 << 20
#: What a VMA, a task or an mm takes in a journal at the most.
JOURNAL_ROW_BYTES_MAX: Final = 128
#: The same where node ids do not fit one word, so that a policy has three masks of up to MAX_NUMNODES bits; the journal
#: is then so many times as long.
JOURNAL_WIDE_ROW_BYTES_MAX: Final = 512
JOURNAL_WIDE_FACTOR: Final = 4

#: One request on the wire.
MESSAGE_BYTES_MAX: Final = 1 << 20
#: Replies are as long as what was asked for: numa_maps of as many mappings as there may be, 256 bytes each.
REPLY_BYTES_MAX: Final = MAX_VMAS * 256
#: Bytes of memory that one call reads or writes for a remote client: a write stands in the journal.
REMOTE_BYTES_MAX: Final = 256 << 10
#: A client on TCP of which nothing was heard for so long is gone.
LEASE_S: Final = 10.0
#: Clients on TCP with one key.
LEASES_PER_USER: Final = 64
#: The secret that binds a connection to the process that got the descriptors.
TOKEN_BYTES: Final = 16
#: Bytes of requests of one client that wait or are on their way; one call a connection is.
REQUEST_BYTES_PER_CLIENT: Final = 64 << 20
#: Calls of one client that run at one time; its others wait for them.
RUNNING_CALLS_PER_CLIENT: Final = 16
#: Messages that a connection's queue in the daemon holds, either way: more stay with the peer, or are dropped. Half as
#: many pass between two signals of its threads to one another: fewer would slow down each call.
QUEUED_MESSAGES: Final = 32
#: Messages that one turn of the daemon's loop takes, and requests that it begins: so long may others have to wait.
RECEIVED_PER_TURN: Final = 16
SERVED_PER_TURN: Final = 4
#: Connections on the endpoint of the calls: of a process, of all; no more than half of the daemon's descriptors.
CONNECTIONS_PER_PROCESS: Final = MAX_CONNECTIONS_PER_CLIENT + 64
MAX_CONNECTIONS: Final = 8192
#: Those of them that have not said hello: of a process, of all, and for how long.
STRANGERS_PER_PROCESS: Final = MAX_CONNECTIONS_PER_CLIENT
MAX_STRANGERS: Final = 4096
STRANGER_S: Final = 2.0
#: Refused messages of one connection before it is dropped: of a stranger, of a client.
STRIKES_OF_STRANGER: Final = 8
STRIKES_OF_CLIENT: Final = 64
#: A process whose connections were dropped so often may not make any, until it was quiet for so long.
DROPS_OF_PROCESS: Final = 4
BARRED_S: Final = 1.0
#: Clients on the descriptor socket, no more than an eighth of the daemon's descriptors; of one process there.
MAX_CLIENTS: Final = 1024
CLIENTS_PER_PROCESS: Final = 64
#: Memory of its own that the daemon may have, and more for each frame and slot. The objects of a full journal take some
#: 100 MiB, fsck takes about 1,100 bytes a page for a moment; the rest is for requests.
DAEMON_BYTES: Final = 2 << 30
DAEMON_BYTES_PER_PAGE: Final = 2048
#: Capabilities that one request names.
CAPABILITY_NAMES_MAX: Final = 64
#: Words of a node mask on the wire: one page of bits.
MASK_WORDS_MAX: Final = (1 << PAGE_SHIFT_MAX) // 8
#: Names of machines: they become part of a socket path of at most 107 bytes.
MACHINE_NAME_MAX: Final = 32

#: A robust mutex list that the host's kernel recovers holds no more than this many.
ROBUST_LIST_MAX: Final = 2048

assert 1 << TABLE_SHIFT == PTRS_PER_TABLE
assert PTE_LOCK_BATCH + 3 * MAX_NODES + 1 <= ROBUST_LIST_MAX // 2
assert SHARED_BATCH_PAGES < BATCH_PAGES <= FAULT_REQUEST_PAGES
assert SWAPOUT_TRYLOCK_PASSES < SWAPOUT_PASSES
assert TASK_SIZE_BYTES <= 1 << (PAGE_SHIFT_MIN + TABLE_LEVELS * TABLE_SHIFT)
assert (MAX_VMAS + MAX_SHARED_POLICIES + MAX_TASKS + MAX_MMS) * JOURNAL_ROW_BYTES_MAX <= JOURNAL_HALF_BYTES * 3 // 4
assert JOURNAL_WIDE_ROW_BYTES_MAX <= JOURNAL_ROW_BYTES_MAX * JOURNAL_WIDE_FACTOR
assert JOURNAL_WIDE_ROW_BYTES_MAX >= JOURNAL_ROW_BYTES_MAX + 3 * MAX_NUMNODES // 8
assert SILENCE_S < PROCESS_STOPPED_BOUND_S < WINDOW_BOUND_RUNNING_S
assert REMOTE_BYTES_MAX <= MESSAGE_BYTES_MAX // 2
assert JOURNALLED_WRITES_BYTES <= JOURNAL_HALF_BYTES // 8
