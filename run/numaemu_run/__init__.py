"""`numaemu run`: unmodified programs on an emulated machine.

A program is started under a seccomp filter that hands a few of its system calls to a supervisor in this process. Calls
about memory policy become calls of an emulated task; opening a file that tells of nodes gives what the machine says.
Everything else goes to the host's kernel, and the program's bytes stay in its own memory.

    abi, bpf, seccomp     the filter and its notifications
    namespace, node_tree  the tree of nodes under /sys
    child                 starting the program
    target, procfs, pagemap   what is read of a process from outside
    mirror, family        emulated address spaces and tasks that follow real ones
    policy, affinity, vdso    the calls that are answered
    files, views          the files that are answered
    supervisor, session   the loop, and a whole run
    report, doctor        what it did, and what this host allows
"""
