"""The state and the rules of a NUMA machine: deterministic, without I/O, clock or randomness.

Read it bottom to top: `uapi`, `limits`, `errors`; `topology`, `profiles`, `layout`, `columns` (what there is and where
it lies); `locks`, `effects`, `kernel` (how a kernel task runs); `page_table`, `mmzone`, `lru`, `page_lock`, `swapfile`,
`swap_state`, `rmap` (pages); `memory`, `mmap`, `mempolicy`, `mbind`, `vmscan` (what calls do); `fsck` (what must hold).
"""
