"""A kernel daemon that knows nothing of memory: it lets a test speak to the bus through `ipc://DIR/test.ipc`.

Requests: `["heard"]` gives every message of the bus so far, `["send", role, node, message]` sends one.
"""

from typing import Any

import msgpack
import zmq

from numaemu_daemon.child import Child
from numaemu_daemon.stop_request import StopRequest


def main(child: Child) -> None:
    stop = StopRequest()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    bus, test = context.socket(zmq.ROUTER), context.socket(zmq.REP)
    bus.bind(f"ipc://{child.directory}/bus.ipc")
    test.bind(f"ipc://{child.directory}/test.ipc")
    poller = zmq.Poller()
    for watched in (bus, test, child.init_pidfd, stop.fd):
        poller.register(watched, zmq.POLLIN)
    peers: dict[tuple[str, int], bytes] = {}
    heard: list[Any] = []
    child.ready()
    while True:
        events = dict(poller.poll())
        if stop.asked or child.init_pidfd in events:
            break
        if bus in events:
            identity, body = bus.recv_multipart()
            heard.append(msgpack.unpackb(body))
            if heard[-1][0] == "hello":
                assert heard[-1].pop() == child.bus_key
                peers[heard[-1][1], heard[-1][2]] = identity
        if test in events:
            match msgpack.unpackb(test.recv()):
                case ["send", role, node, message]:
                    bus.send_multipart([peers[role, node], msgpack.packb(message)])
            test.send(msgpack.packb(heard))
    context.destroy(linger=0)
