"""The state and the rules of a NUMA machine: deterministic, without I/O, clock or randomness.

Read it bottom to top: `uapi`, `limits`, `errors`, `profiles`, `topology`; `layout`, `columns` (what there is, and where); `locks`, `effects`, `task_locks`, `kernel`, `journal` (how a kernel task runs); `page_flags`, `page_table`,
`mm_types`, `mmzone`, `lru`, `page_lock`, `swapfile`, `swap_state`, `rmap`, `quarantine` (pages); `memory`, `mmap`,
`mempolicy`, `mbind`, `vmscan`, `fork`, `protect`, `proc` (what calls do); `syscalls`, `wire` (how they are asked for);
`fsck` (what must hold), `performer` (all of it in one process).
"""
