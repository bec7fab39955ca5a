"""A client on TCP: `tcp_client.py ENDPOINT KEY SERVER_KEY`. It writes, and verifies whenever it is told to go on."""

import sys

import numaemu as nm


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def main() -> None:
    endpoint, key, server_key = sys.argv[1:4]
    with nm.connect(endpoint, key=key, server_key=server_key) as machine, machine.attach() as task:
        buf = task.mmap(1 << 20)
        buf.write(0, b"t" * (1 << 20))
        say("written")
        for line in sys.stdin.buffer:
            try:
                say("right" if buf.read(0, 1 << 20) == b"t" * (1 << 20) else "wrong")
            except (OSError, nm.NumaemuFailure) as error:
                say(type(error).__name__)
            del line


main()
