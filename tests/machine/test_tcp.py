"""Machines on TCP: who has the right keys works as anybody; who has not gets nothing."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq

import numaemu as nm
from numaemu import control, places
from numaemu.tcp import make_keys
from numaemu_core import limits
from numaemu_core.wire import pack_request

pytestmark = pytest.mark.skipif(not zmq.has("curve"), reason="the ZeroMQ of this Python knows no CURVE")

PAGE = 4096


@dataclass
class OnTcp:
    """A machine that was started with --listen."""

    name: str
    endpoint: str
    server_key: str
    #: A file with keys that are authorized, and one with keys that are not.
    key: str
    wrong_key: str
    tell: Callable[..., subprocess.CompletedProcess[str]]

    def connect(self, **other: str) -> nm.Machine:
        return nm.connect(self.endpoint, **({"key": self.key, "server_key": self.server_key} | other))  # type: ignore[arg-type]  # options of connect


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """`numaemu WORDS`, and what came of it."""
    line = [sys.executable, "-m", "numaemu", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=90, check=False)


@pytest.fixture
def on_tcp(tmp_path: Path, start_client: object) -> Iterator[OnTcp]:
    """A machine that listens on a port of the loopback, and admits one key."""
    del start_client  # its clients end first
    key, wrong = str(tmp_path / "alice.key"), str(tmp_path / "mallory.key")
    done = command("key", key)
    assert (done.returncode, done.stderr) == (0, "")
    public = done.stdout.strip()
    make_keys(wrong)
    up = command(
        *("-m", "net", "up", "--memory", "4M", "--swap", "4M", "--listen", "tcp://127.0.0.1:0"),
        *("--authorize", f"{public}=1234", "--grant", "1234:CAP_SYS_NICE"),
    )
    assert (up.returncode, up.stderr) == (0, "")
    endpoint, server_key = up.stdout.splitlines()[1].split()
    yield OnTcp("net", endpoint, server_key, key, wrong, command)
    with nm.connect("net") as machine:
        assert machine.fsck() == []
    assert command("-m", "net", "down").returncode == 0
    assert not places.machine_dir("net").exists()


def test_a_program_over_tcp(on_tcp: OnTcp, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a machine is there: memory, forks, files, reports; a task has the uid and the capabilities of its key."""
    monkeypatch.setenv("NUMAEMU_KEY", on_tcp.key)
    monkeypatch.setenv("NUMAEMU_SERVER_KEY", on_tcp.server_key)
    with nm.connect(on_tcp.endpoint) as machine, machine.attach(capabilities=["CAP_SYS_NICE"]) as task:
        assert (machine.name, task.remote) == ("net", True)
        machine.create_file("f", b"x" * 8192)
        buf = task.mmap(1 << 20)
        buf.write(0, os.urandom(1 << 19))
        kept = buf[0 : 1 << 19]
        task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, nm.MPOL_MF_MOVE)
        assert buf[0 : 1 << 19] == kept
        assert set(task.where(buf.start, 1 << 19).tolist()) == {1}
        with task.fork() as child:
            child.write(buf.start, b"child")
            assert (child.read(buf.start, 5), buf[0:5]) == (b"child", kept[:5])
        seen: list[bytes] = []
        thread = threading.Thread(target=lambda: seen.append(task.read(buf.start, 5)))
        thread.start()
        thread.join()
        assert seen == [kept[:5]]
        assert (machine.status()["tasks"], machine.status()["processes"]) == (1, [])
        with pytest.raises(PermissionError, match="for the owner"):
            machine.fsck()
        with pytest.raises(PermissionError, match="CAP_SYS_ADMIN was not granted to user 1234"):
            machine.attach(capabilities=["CAP_SYS_ADMIN"])
        with nm.connect("net") as ours, pytest.raises(PermissionError, match="another user's"):
            ours.adopt(task.pid)
    with nm.connect("net") as ours:
        assert ours.status()["tasks"] == 0


def test_wrong_keys_get_nothing(on_tcp: OnTcp) -> None:
    """A key that is not authorized, another server key, and no key at all: one clear error, and no byte is read."""
    with nm.connect("net") as ours:
        before = ours.status()
        with pytest.raises(PermissionError, match="does not admit this key"):
            on_tcp.connect(key=on_tcp.wrong_key)
        other = command("key", "--public", on_tcp.wrong_key).stdout.strip()
        with pytest.raises(PermissionError, match="not the server key"):
            on_tcp.connect(server_key=other)
        with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
            plain.linger = 0
            plain.connect(on_tcp.endpoint)
            plain.send(pack_request("", 1, "join", []))
            assert plain.poll(1500) == 0
        host, _, port = on_tcp.endpoint.removeprefix("tcp://").rpartition(":")
        for words in (
            b"GET / HTTP/1.0\r\n\r\n",
            bytes([1, 0, *pack_request("", 1, "join", [])[:100]]),
            b"\xff" + bytes(200),
        ):
            with socket.create_connection((host, int(port)), 5) as raw:
                raw.sendall(words)
                raw.settimeout(0.3)
                with contextlib.suppress(TimeoutError, ConnectionResetError):
                    assert b"token" not in raw.recv(4096)
        after = ours.status()
        assert [after[name] for name in ("clients", "connections", "refused")] == [
            before[name] for name in ("clients", "connections", "refused")
        ]


def test_nobody_is_there(on_tcp: OnTcp) -> None:
    """A port on which nothing listens is refused in time."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(ConnectionRefusedError, match="no machine is at"):
        nm.connect(f"tcp://127.0.0.1:{port}", key=on_tcp.key, server_key=on_tcp.server_key)


def test_clients_on_tcp_outlive_daemons(on_tcp: OnTcp, start_client: Callable[..., Any]) -> None:
    """The next daemon listens where the last one did, knows the client, and has its bytes."""
    client = start_client("tcp_client.py", on_tcp.endpoint, on_tcp.key, on_tcp.server_key)
    assert client.hear() == "written"
    for _ in range(2):
        rows = control.status(places.machine_dir("net"))["processes"]
        os.kill(next(row["pid"] for row in rows if row["role"] == "kernel"), signal.SIGKILL)
        client.go_on()
        assert client.hear() == "right"


def test_a_stopped_daemon_that_only_guests_wait_for_is_replaced(
    on_tcp: OnTcp, start_client: Callable[..., Any]
) -> None:
    """A client on TCP cannot tell init that it waits: init looks by itself, and the client goes on with the next."""
    client = start_client("tcp_client.py", on_tcp.endpoint, on_tcp.key, on_tcp.server_key)
    assert client.hear() == "written"
    rows = control.status(places.machine_dir("net"))["processes"]
    os.kill(next(row["pid"] for row in rows if row["role"] == "kernel"), signal.SIGSTOP)
    client.go_on()
    assert client.hear() == "right"
    rows = control.status(places.machine_dir("net"))["processes"]
    assert next(row["killed_stopped"] for row in rows if row["role"] == "kernel") == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_client_on_tcp_that_is_silent_is_gone(
    how: signal.Signals, on_tcp: OnTcp, start_client: Callable[..., Any]
) -> None:
    """Killed or stopped for longer than its lease: its tasks end; who comes back is told that it is over."""
    client = start_client("tcp_client.py", on_tcp.endpoint, on_tcp.key, on_tcp.server_key)
    assert client.hear() == "written"
    with nm.connect("net") as ours:
        assert ours.status()["tasks"] == 1
        since = time.monotonic()
        client.process.send_signal(how)
        while ours.status()["tasks"]:
            assert time.monotonic() - since < 3 * limits.LEASE_S
            time.sleep(0.1)
        assert time.monotonic() - since > limits.LEASE_S / 2
    if how is signal.SIGSTOP:
        client.process.send_signal(signal.SIGCONT)
        client.go_on()
        assert client.hear() in {"MachineGone", "PermissionError"}


def test_a_machine_that_ends_is_told_on_tcp(on_tcp: OnTcp) -> None:
    """Calls raise MachineGone within the lease, and closing is no error."""
    machine = on_tcp.connect()
    init = control.status(places.machine_dir("net"))["processes"][0]["pid"]
    os.kill(init, signal.SIGSTOP)
    try:
        machine.vmstat()
    finally:
        os.kill(init, signal.SIGCONT)
    task = machine.attach()
    assert command("-m", "net", "down").returncode == 0
    with pytest.raises(nm.MachineGone):
        task.mmap(PAGE)
    task.close()
    machine.close()
    assert command("-m", "net", "up", "--memory", "4M", "--swap", "4M").returncode == 0


def test_key_files(tmp_path: Path) -> None:
    """They are for their owner's eyes only, are never overwritten, and are refused when others can read them."""
    path = tmp_path / "k"
    public = make_keys(str(path))
    assert (path.stat().st_mode & 0o777, len(public)) == (0o600, 40)
    assert command("key", "--public", str(path)).stdout == public + "\n"
    again = command("key", str(path))
    assert (again.returncode, again.stderr) == (1, f"numaemu: {path}: File exists\n")
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="only uid"):
        nm.connect("tcp://127.0.0.1:1", key=str(path), server_key=public)
    path.chmod(0o600)
    path.write_text("public = 7\n")
    with pytest.raises(ValueError, match="no file of `numaemu key`"):
        nm.connect("tcp://127.0.0.1:1", key=str(path), server_key=public)
    with pytest.raises(ValueError, match="NUMAEMU_KEY"):
        nm.connect("tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--listen", "tcp://127.0.0.1:0"], "TCP is for the holders of keys, and no key is authorized"),
        (["--listen", "127.0.0.1:0", "--authorize", "k" * 40], "expected an endpoint such as tcp://127.0.0.1:5555"),
        (["--authorize", "k" * 40], "keys are authorized, and there is no endpoint on TCP"),
        (["--listen", "tcp://127.0.0.1:0", "--authorize", "/nowhere"], "/nowhere: No such file or directory"),
        (["--listen", "tcp://192.0.2.1:5555", "--authorize", "k" * 40], "Cannot assign requested address"),
        (["--allow-uid", "0"], "root is not admitted as another user"),
        (["--allow-uid", "x"], "expected a user id, got 'x'"),
        (["--grant", "CAP_NET_RAW"], "capability 'CAP_NET_RAW' is not known"),
    ],
)
def test_machines_that_cannot_be(words: list[str], complaint: str) -> None:
    """One line says what is wrong, and nothing is left."""
    done = command("-m", "net", "up", "--memory", "4M", "--swap", "4M", *words)
    assert done.returncode != 0
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not places.machine_dir("net").exists()


def test_without_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ZeroMQ without CURVE is told in a sentence, and nothing is sent in the clear."""
    path = tmp_path / "k"
    public = make_keys(str(path))
    monkeypatch.setattr("zmq.has", lambda _what: False)
    with pytest.raises(OSError, match="built without CURVE"):
        nm.connect("tcp://127.0.0.1:1", key=str(path), server_key=public)
    with pytest.raises(OSError, match="built without CURVE"):
        make_keys(str(tmp_path / "l"))
