"""A client of another user: `visitor.py UID MACHINE`. It writes, and verifies whenever it is told to go on."""

import os
import sys

import numaemu.mapping  # noqa: F401 - the folder of the code may be closed to that user
from numaemu.machine import connect


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def main() -> None:
    uid, name = int(sys.argv[1]), sys.argv[2]
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    with connect(name) as machine, machine.attach() as task:
        buf = task.mmap(1 << 20)
        buf.write(0, b"v" * (1 << 20))
        say("written")
        for number, _ in enumerate(sys.stdin.buffer):
            right = buf.read(0, 1 << 20) == bytes([(118, number)[number > 0]]) * (1 << 20)
            buf.write(0, bytes([number + 1]) * (1 << 20))
            say("right" if right else "wrong")


main()
