"""The state and the rules of a NUMA machine: deterministic, without I/O, clock or randomness.

Read it bottom to top:

* what there is, and where it lies: `uapi`, `limits`, `errors`, `profiles`, `topology`, `layout`, `columns`;
* how a kernel task runs: `locks`, `effects`, `task_locks`, `kernel`, `journal`;
* pages: `page_flags`, `page_table`, `mm_types`, `mmzone`, `lru`, `page_lock`, `swapfile`, `rmap`, `swap_state`,
  `quarantine`;
* what calls do: `memory`, `mmap`, `mempolicy`, `mbind`, `vmscan`, `fork`, `mprotect`, `get_mempolicy`, `proc`; when
  memory is short: `page_alloc`, `reclaim`, `oom_kill`;
* how they are asked for: `syscalls`, `wire`; what must hold: `fsck`; all of it in one process: `performer`.
"""
