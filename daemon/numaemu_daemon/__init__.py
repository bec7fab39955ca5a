"""The processes of a numaemu machine: init, the kernel daemon, a process a node, the swap node.

`python -m numaemu_daemon` starts one machine. Read it from the outside in:

* `__main__`, `options`, `ready_line`, `rundir`, `init`: the command, and how a machine comes up and goes.
* `supervisor`, `doorman`, `process_table`, `process_status`, `forkserver`: init's one loop over its children.
* `handshake`, `segments`, `child`: how a child gets its memory, and what its role is handed.
* `node_main` with `cleaning`, `swap_main` with `swap_copy`, `bus_client`: the processes that own memory.
* `kernel_main` and what it imports: the kernel daemon.
* `logs`, `stop_request`: what all of them use.
"""
