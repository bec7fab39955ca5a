"""The peer of a fault: a bare ZeroMQ ROUTER that sends back what it gets; `python -m numaemu.bench.echo ENDPOINT`."""

import sys

import zmq


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


if __name__ == "__main__":
    main()
