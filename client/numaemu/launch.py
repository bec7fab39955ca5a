"""Starting a machine: the daemon is executed, and says on a pipe when it serves or why it does not.

By exec, so that it works in scripts without a main guard, in a REPL and in notebooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu import control, places
from numaemu_core.errors import PeerError
from numaemu_host.keyfile import read_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numaemu_core.admission import Admission
    from numaemu_core.topology import Topology

#: A machine of 128 nodes on a busy host takes some seconds.
READY_S: Final = 120.0
_LOG_LINES: Final = 5
_LOG_TAIL_BYTES: Final = 16384
_READY_BYTES_MAX: Final = 65536
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Started:
    """A machine that serves: its directory, its endpoint, its init, and that process as our child."""

    place: Path
    endpoint: str
    init_pid: int
    process: subprocess.Popen[bytes]
    #: Where it listens on TCP, with its public key; None if it does not.
    tcp: tuple[str, str] | None = None


def start(
    name: str,
    topology: Topology,
    *,
    admission: Admission | None = None,
    owner_pid: int | None = None,
    foreground: bool = False,
) -> Started:
    """Start a machine and wait until it serves; `admission` says whom it admits beside this user.

    It ends with the process `owner_pid`, if one is given. `foreground`: its log goes to our stderr, not to a file.

    Raises:
        FileExistsError: a machine of that name is running. PeerError: it did not come up; the message says why.
        ValueError: that is no name. OSError: the host refuses.
    """
    place = places.machine_dir(name)
    if control.is_running(place):
        raise FileExistsError(f"a machine named {name!r} is running already; `numaemu down -m {name}` ends it")
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        try:
            tcp, options = _admission_options(place, admission)
            command = _command(place, topology, writer, owner_pid) + options
            process = _execute(command, place, writer, foreground=foreground)
        finally:
            os.close(writer)
        answer = _ready_line(pipe.fileno(), process, place)
    return Started(place, str(answer["endpoint"]), int(answer["pid"]), process, tcp)


def _command(place: Path, topology: Topology, ready_fd: int, owner_pid: int | None) -> list[str]:
    # -P: what lies in the current directory is not taken for a module of ours, and not executed.
    command = [sys.executable, "-P", "-m", "numaemu_daemon", "--dir", str(place), "--name", place.name]
    command += ["--topology", json.dumps(topology.as_dict()), "--ready-fd", str(ready_fd)]
    if owner_pid is not None:
        command += ["--owner-pid", str(owner_pid)]
    return command


def _admission_options(place: Path, admission: Admission | None) -> tuple[tuple[str, str] | None, list[str]]:
    """The endpoint on TCP and its public key, and what the daemon is told."""
    tcp = None
    if admission is None:
        return tcp, []
    if admission.listen:
        admission = replace(admission, listen=_with_port(admission.listen), server_key=_server_key(place, admission))
        tcp = admission.listen, read_keys(admission.server_key)[0]
    options = ["--admission", json.dumps(admission.as_dict())]
    visitors = ["--visitors", str(places.visitors_dir(place))] if admission.uids else []
    return tcp, options + visitors


def _with_port(endpoint: str) -> str:
    """The same; port 0 becomes one that is free just now, and that the machine keeps when its daemon is a new one."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if port != "0":
        return endpoint
    with socket.create_server((host.strip("[]"), 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        return f"tcp://{host}:{sock.getsockname()[1]}"


def _server_key(place: Path, admission: Admission) -> str:
    """The path of the machine's keys; made in its directory, to go with it, unless a file was named."""
    from numaemu.tcp import check_curve, make_keys  # noqa: PLC0415 - ZeroMQ, which most machines are started without

    check_curve()
    if admission.server_key:
        path = Path(admission.server_key).absolute()
    else:
        places.make_machine_dir(place)
        path = place / places.SERVER_KEY
    with contextlib.suppress(FileExistsError):
        make_keys(str(path))
    return str(path)


def _execute(command: list[str], place: Path, ready_fd: int, *, foreground: bool) -> subprocess.Popen[bytes]:
    with contextlib.ExitStack() as stack:
        log = None if foreground else stack.enter_context(_opened_log(place))
        if foreground:
            places.make_machine_dir(place)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(ready_fd,),
            start_new_session=True,  # a Ctrl-C in our terminal is ours; whether the machine ends with us, we say
        )


@contextlib.contextmanager
def _opened_log(place: Path) -> Iterator[int]:
    """The machine's log in its directory, to be appended to."""
    fd = -1
    for attempt in range(_ATTEMPTS):
        try:
            places.make_machine_dir(place)
            fd = os.open(place / places.LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            break
        except FileNotFoundError:  # a machine that is just ending has removed the directory, or the one of all machines
            if attempt == _ATTEMPTS - 1:
                raise
    try:
        yield fd
    finally:
        os.close(fd)


def _ready_line(fd: int, process: subprocess.Popen[bytes], place: Path) -> dict[str, Any]:
    """What the daemon says once it serves. PeerError if it does not come up; it is ended then."""
    try:
        answer = _first_line(fd)
    except BaseException:
        _give_up(process, place)
        raise
    if "ready" in answer:
        return answer
    reason = _reason(answer, place)
    _give_up(process, place)
    raise PeerError(reason)


def _first_line(fd: int) -> dict[str, Any]:
    """The JSON object of the first line; empty if there is none, or it took too long."""
    deadline = time.monotonic() + READY_S
    line = b""
    while not line.endswith(b"\n") and len(line) < _READY_BYTES_MAX:
        readable, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        part = os.read(fd, _READY_BYTES_MAX) if readable else b""
        if not part:
            return {}
        line += part
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _reason(answer: dict[str, Any], place: Path) -> str:
    if "error" in answer:
        return f"the machine {place.name!r} did not start: {answer['error']}"
    last = "\n".join(_last_lines(place / places.LOG))
    return f"the machine {place.name!r} did not start" + (
        f"; the end of its log:\n{last}" if last else ", and said nothing"
    )


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES, 0))
            return log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
    except OSError:
        return []


def _give_up(process: subprocess.Popen[bytes], place: Path) -> None:
    """Leave nothing of a machine that did not come up; what belongs to a running one of that name stays."""
    process.terminate()
    try:
        process.wait(control.DOWN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if not control.is_running(place):
        shutil.rmtree(place, ignore_errors=True)
