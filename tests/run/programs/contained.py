"""Executes a program under the filter of a container: "EPERM", mbind and its kin are refused; "", nothing is."""

import errno
import os
import struct
import sys

from numaemu_run.abi import abi_of_host
from numaemu_run.bpf import RET_ALLOW, RET_ERRNO
from numaemu_run.seccomp import install_filter, set_no_new_privs

REFUSED = ("mbind", "set_mempolicy", "move_pages") if sys.argv[1] else ()

abi = abi_of_host()
instructions = [(0x20, 0, 0, 0)]
for left, name in zip(range(len(REFUSED), 0, -1), REFUSED, strict=True):
    instructions.append((0x15, left, 0, abi.numbers[name]))
instructions += [(0x06, 0, 0, RET_ALLOW), (0x06, 0, 0, RET_ERRNO | errno.__dict__.get(sys.argv[1], 0))]
set_no_new_privs()
# Its listener is closed at once: no call is handed over.
install_filter(abi, b"".join(struct.pack("=HBBI", *one) for one in instructions))
os.execvp(sys.argv[2], sys.argv[2:])
