"""The command that tests start: the same as `python -m numaemu_daemon`, with a module of their own as the kernel.

start_machine.py KERNEL_MODULE ARGUMENTS...
"""

import sys

from numaemu_daemon import init
from numaemu_daemon.__main__ import read_options
from numaemu_daemon.ready_line import ReadyLine

if __name__ == "__main__":
    options = read_options(sys.argv[2:])
    sys.exit(init.run(options, ReadyLine(options.ready_fd), {**init.MAINS, "kernel": sys.argv[1]}))
