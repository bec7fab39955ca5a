"""The peer of a call under `numaemu run`: a supervisor that answers 0 and knows nothing.

`python -m numaemu.bench.empty_supervisor COMMAND…`: getcpu and get_mempolicy get that answer, the rest goes on.
"""

import os
import select
import sys
from pathlib import Path

from numaemu_run import child
from numaemu_run.abi import abi_of_host

_ANSWERED = ("getcpu", "get_mempolicy")


def main() -> int:
    """Run the command to its end; gives its exit code."""
    abi = abi_of_host()
    answered = {abi.numbers[name] for name in _ANSWERED}
    started = child.start(sys.argv[1:], os.environ, abi, Path("/"), mount=False)
    listener = started.listener
    poll = select.poll()
    poll.register(listener.fd, select.POLLIN)
    while poll.poll()[0][1] & select.POLLIN:  # else nobody is left who could call
        call = listener.receive()
        if call is None:
            continue
        if call.number in answered:
            listener.give(call, 0)
        else:
            listener.let_through(call)
    listener.close()
    return os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
