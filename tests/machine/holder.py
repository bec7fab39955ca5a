"""A process that takes one lock and keeps it until a line comes on stdin: `holder.py MACHINE LOCK NUMBER`."""

import sys

from numaemu import places
from numaemu.attachment import attach_process
from numaemu_host.ofdlock import OfdLock
from numaemu_host.robust import MutexState


def main() -> None:
    """Hold the lock; say held on stdout."""
    name, lock, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    attachment = attach_process(places.machine_dir(name))
    assert attachment.views is not None
    layout, mutexes = attachment.layout, attachment.views.mutexes
    if lock.startswith("mmap_sem"):
        semaphore = OfdLock(attachment.fds["mmap_sem"])
        taken = (semaphore.try_read if lock == "mmap_sem.read" else semaphore.try_write)(number)
    else:
        first = {"lru": layout.lru_mutex, "zone": layout.zone_mutex, "swap": layout.swap_mutex, "pte": layout.pte_mutex}
        taken = mutexes.lock(first[lock] + number, 5.0) is not MutexState.BUSY
    sys.stdout.write("held\n" if taken else "busy\n")
    sys.stdout.flush()
    sys.stdin.readline()
    if lock.startswith("mmap_sem"):
        semaphore.unlock(number)
    else:
        mutexes.unlock(first[lock] + number)


if __name__ == "__main__":
    main()
