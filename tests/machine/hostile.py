"""Peers that do not play by the rules: raw bytes on every socket, half handshakes, old versions of ZMTP.

ZMTP 3.1 (rfc.zeromq.org/spec/37): a greeting of 64 bytes each way, then commands and messages in frames; a frame is a
byte of flags (1: more frames follow, 2: the length has 8 bytes, 4: a command), the length, the body.
"""

import contextlib
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numaemu as nm
from numaemu import places

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4
#: How long an answer or the end of a connection may take.
PATIENCE_S = 30.0


def frame(body: bytes, flags: int = 0) -> bytes:
    """A frame of ZMTP 3."""
    if len(body) > 255 or flags & LONG:
        return bytes([flags | LONG]) + struct.pack(">Q", len(body)) + body
    return bytes([flags, len(body)]) + body


def ready(identity: bytes = b"") -> bytes:
    """The command that ends the handshake of a DEALER; an identity of one's own, if it wants one."""
    metadata = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    metadata += b"\x08Identity" + struct.pack(">I", len(identity)) + identity
    return frame(b"\x05READY" + metadata, COMMAND)


def call_socket(machine: nm.Machine) -> Path:
    """The endpoint of the calls."""
    return places.machine_dir(machine.name) / places.CALLS_SOCKET


def stream(path: Path) -> socket.socket:
    """A connection to an endpoint of ZeroMQ, without ZeroMQ."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    sock.connect(str(path))
    return sock


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes; EOFError if the peer hangs up before."""
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError(data)
        data += part
    return data


def read_frame(sock: socket.socket) -> tuple[int, bytes]:
    """Flags and body of the next frame."""
    flags = read_exactly(sock, 1)[0]
    size = struct.unpack(">Q", read_exactly(sock, 8))[0] if flags & LONG else read_exactly(sock, 1)[0]
    return flags, read_exactly(sock, size)


def shaken_hands(path: Path, identity: bytes = b"") -> socket.socket:
    """A connection after a whole handshake of ZMTP 3.1."""
    sock = stream(path)
    sock.sendall(GREETING)
    read_exactly(sock, 64)
    sock.sendall(ready(identity))
    flags, body = read_frame(sock)
    assert flags & COMMAND, (flags, body)
    return sock


def is_closed(sock: socket.socket) -> bool:
    """Whether the peer hangs up, however much it says before, within bounds."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sock.recv(65536):
            pass
    return True


def memory_kb(pid: int, kind: str = "RssAnon") -> int:
    """Memory of a process that is its own, not shared; or another line of its status."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1])
    raise AssertionError(pid)


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def copies(pid: int, descriptor: int) -> int:
    """How many of a process' descriptors are of the pipe or file that a descriptor of this process is of."""
    wanted, found = os.fstat(descriptor), 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += os.path.samestat(entry.stat(), wanted)
    return found


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """This process may open some thousand descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Polite:
    """A client that goes on faulting pages in, as others do their worst; every byte is read back."""

    def __init__(self, machine: nm.Machine) -> None:
        self._machine = machine
        self._over = threading.Event()
        self.error: BaseException | None = None
        self.faults = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with self._machine.attach() as task:
                while not self._over.is_set():
                    buf = task.mmap(16 * 4096)
                    for page in range(16):
                        buf.write(page * 4096, b"%08d" % self.faults)
                        assert buf.read(page * 4096, 8) == b"%08d" % self.faults
                        self.faults += 1
                    task.munmap(buf.start, buf.length)
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait_for_faults(1)
        return self

    def _wait_for_faults(self, more: int) -> None:
        enough, deadline = self.faults + more, time.monotonic() + PATIENCE_S
        while self.faults < enough and self.error is None:
            assert time.monotonic() < deadline, "the polite client was not served"
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        try:
            self._wait_for_faults(100)
        finally:
            self._over.set()
            self._thread.join()
        if self.error is not None:
            raise self.error
