"""A peer that means it badly: `python -m numaemu.bench.flooder MACHINE client|stranger`.

A line on stdin lets it flood, the next one stops it; it says a line when it has understood. As a client it pipelines
requests without waiting for any answer, as a stranger it sends what is no request. Hung up on, it comes again.
"""

import os
import select
import sys
from collections.abc import Callable

import zmq

import numaemu as nm
from numaemu import places
from numaemu_core.wire import pack_request

#: Messages after which it makes a new connection: the old one is closed by then.
_MESSAGES = 2000


def main() -> None:
    """Flood when told to, until stdin ends."""
    name, kind = sys.argv[1:]
    with nm.connect(name) as machine:
        peer = machine._attachment.peer  # noqa: SLF001 - who floods takes what it finds
        endpoint = f"ipc://{places.machine_dir(name) / places.CALLS_SOCKET}"
        first = pack_request(peer.boot_id, 1, "hello", [peer.token]) if kind == "client" else os.urandom(64)

        def message(number: int) -> bytes:
            return pack_request(peer.boot_id, number + 2, "vmstat", []) if kind == "client" else first

        while _told():
            _flood(endpoint, first, message)


def _told() -> bool:
    """Wait for a line, and answer it; False: there will be none."""
    line = sys.stdin.readline()
    sys.stdout.write(line)
    sys.stdout.flush()
    return bool(line)


def _flood(endpoint: str, first: bytes, message: Callable[[int], bytes]) -> None:
    """Until a line has come: as fast as the daemon takes it."""
    with zmq.Context() as context:
        while True:
            with context.socket(zmq.DEALER) as sock:
                sock.linger = 0
                sock.connect(endpoint)
                sock.send(first)
                for number in range(_MESSAGES):
                    if not sock.poll(100, zmq.POLLOUT):
                        break
                    sock.send(message(number))
                    if not number % 100 and select.select([sys.stdin], [], [], 0)[0]:
                        _told()
                        return


if __name__ == "__main__":
    main()
