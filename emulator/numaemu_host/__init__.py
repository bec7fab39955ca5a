"""The Linux primitives under the machine: shared memory, locks that survive their holder, and news of processes.

Nothing here knows what a node, a page or a policy is. Both the processes of the machine and the client library stand on
these files, and each file holds one primitive of the host:

* `memfd`: nameless shared memory, mapped singly, several back to back, or piece by piece into a reservation.
* `membarrier`: a memory barrier on every CPU that runs a registered process; the heavy half of an asymmetric fence.
* `robust`: tables of process-shared mutexes in shared memory, which tell the next taker that their holder died.
* `ofdlock`: reader/writer locks on bytes of a file, which go free when their holder dies.
* `pidfd`: whether a process is alive or stopped, without mistaking a reused number for it.
* `fdsock`: messages that carry descriptors over a Unix socket, and the kernel's word on who the peer is.
* `fault_board`: how a test lets a process die or stop at a step of its choice.
* `sigmask`: signals that a thread holds for a while.
* `timerfd`: a descriptor that is readable when a time has come.
* `libc`: calls that the standard library does not offer; `_mman`: those for memory, which `memfd` needs.

Rules that hold in all of them: errors of the host are `OSError` with its errno; times are seconds, sizes and offsets
bytes; every descriptor is close-on-exec; nothing is inherited by a forked child in a state that could harm its parent.
"""
