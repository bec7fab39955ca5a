"""The peer of a fault: a bare ZeroMQ ROUTER that sends back what it gets; `python -m numaemu.bench.echo ENDPOINT`."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import zmq

from numaemu_core.wire import pack_request

#: A request of the size of a fault's.
MESSAGE = pack_request("0" * 16, 1000, "fault", [1, 1 << 46, 4096, True])


def main() -> None:
    """Echo until a message is empty; says ready on stdout when bound."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(sys.argv[1])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        frames = router.recv_multipart()
        if not frames[-1]:
            break
        router.send_multipart(frames)
    context.destroy(linger=0)


@contextlib.contextmanager
def echoing() -> Iterator[str]:
    """The endpoint of an echo in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="numaemu-echo-") as folder:
        endpoint = f"ipc://{folder}/echo.ipc"
        command = [sys.executable, "-P", "-m", "numaemu.bench.echo", endpoint]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield endpoint
        finally:
            with dealer_to(endpoint) as dealer:
                dealer.send(b"")
                server.wait()
            server.stdout.close()


@contextlib.contextmanager
def dealer_to(endpoint: str) -> Iterator["zmq.Socket[bytes]"]:
    """A socket to an endpoint."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 1000
    dealer.connect(endpoint)
    try:
        yield dealer
    finally:
        dealer.close()
        context.term()


if __name__ == "__main__":
    main()
