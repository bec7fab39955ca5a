"""Becomes another user, and tries what it is told: `other_user.py UID GID JSON`, a step a list; prints a JSON list.

Everything is imported first: the folder of the code may be closed to that user.
"""

import errno
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

import numaemu as nm
import numaemu.mapping
import numaemu.private
from numaemu import control, places
from numaemu.connection import Connection, Init, Peer
from numaemu.machine import connect
from numaemu_host import fdsock


def opened(path: str) -> str:
    """Open a file or a descriptor of a process for reading."""
    os.close(os.open(path, os.O_RDONLY))
    return "opened"


def listed(path: str) -> str:
    os.listdir(path)  # noqa: PTH208 - the error of the system call is what counts
    return "listed"


def said_hello(path: str) -> Any:  # noqa: ANN401 - whatever comes
    """Say hello on a descriptor socket, by hand."""
    sock = fdsock.connect(path, 10)
    try:
        fdsock.send(sock, {"hello": "client", "version": 1})
        answer, fds = fdsock.recv(sock)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return "hung up"
    assert isinstance(answer, dict)
    return [sorted(answer), len(fds)]


def called(endpoint: str, boot_id: str, token: str, init_pid: int) -> str:
    """Say hello on an endpoint of the calls with somebody's token; "silence" if nothing comes for a second."""
    peer = Peer(endpoint, boot_id, bytes.fromhex(token), Init("m", init_pid))

    class Impatient(Connection):
        def _receive(self, *rest: object) -> bytes:
            del rest
            if self._socket.poll(1000) & zmq.POLLIN:
                return self._socket.recv()
            raise TimeoutError

    try:
        Impatient(peer).close()
    except TimeoutError:
        return "silence"
    except nm.NumaemuFailure as refused:
        return f"refused {errno.errorcode[getattr(refused, 'errno', 0)]}"
    return "served"


def worked(name: str) -> list[Any]:
    """Connect, and use the machine as a program does."""
    with connect(name) as machine, machine.attach() as task:
        buf = task.mmap(1 << 20)
        buf[0:5] = b"hello"
        with task.fork() as child:
            child.write(buf.start, b"J")
            seen = child.read(buf.start, 5)
        return [task.remote, buf[0:5].decode(), seen.decode(), task.where(buf.start, 4096).tolist()]


def attached(name: str, capabilities: list[str]) -> list[str]:
    """Attach with capabilities."""
    with connect(name) as machine, machine.attach(capabilities=capabilities):
        return capabilities


def asked(name: str, call: str, *args: Any) -> Any:  # noqa: ANN401 - as the call has it
    """A call of a client with one task, by its name; "own" stands for the pid of that."""
    with connect(name) as machine, machine.attach() as task:
        result = machine._calls.call(call, *(task.pid if one == "own" else one for one in args))  # noqa: SLF001 - whatever the wire takes
        return repr(result)[:80]


def ended(path: str) -> str:
    control.down(Path(path))
    return "down"


def found(name: str) -> str:
    return str(places.find(name))


def knocked(path: str) -> str:
    """Connect to a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)
    return "connected"


def put(path: str) -> str:
    Path(path).write_text("mine")
    return "written"


STEPS: dict[str, Callable[..., Any]] = {
    step.__name__: step
    for step in (opened, listed, said_hello, called, worked, attached, asked, ended, found, knocked, put)
}


def outcome(name: str, args: list[Any]) -> Any:  # noqa: ANN401 - as the step has it
    try:
        return STEPS[name](*args)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    except nm.NumaemuFailure as error:
        return type(error).__name__


def main() -> None:
    uid, gid, steps = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.chdir("/")
    sys.stdout.write(json.dumps([outcome(name, args) for name, *args in steps]))


main()
