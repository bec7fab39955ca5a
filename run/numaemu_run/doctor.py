"""What a host allows of a run: each thing that is needed is tried, in a child process where it cannot be undone."""

import contextlib
import ctypes
import errno
import os
import select
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from numaemu_host.libc import libc
from numaemu_run import namespace, pagemap, seccomp, target, vdso
from numaemu_run.abi import ABIS, POLICY_CALLS, Abi, UnknownArchitectureError, abi_of_host
from numaemu_run.bpf import make_filter
from numaemu_run.fault_events import FaultEvents
from numaemu_run.node_tree import CPU_DIR, NODE_DIR

_PATIENCE_MS: Final = 5000
#: What the trial's supervisor answers to each call: no call of the host gives that.
_ANSWER: Final = 0x5A5A
_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried. `state`: "ok", "less" (a run goes another way, which the detail names), or "no"."""

    what: str
    state: str
    detail: str
    advice: str = ""


def examine() -> list[Finding]:
    """Everything, in the order in which a run needs it; what depends on something missing is left out."""
    kernel = os.uname()
    try:
        abi = abi_of_host()
    except UnknownArchitectureError:
        return [Finding("architecture", "no", kernel.machine, f"run on {' or '.join(ABIS)}")]
    detail = f"{kernel.machine}, Linux {kernel.release}"
    found = [Finding("architecture", "ok", detail)]
    if abi.machine != "x86_64":
        found = [Finding("architecture", "less", detail, "this architecture has not been tried yet")]
    calls = _try_calls(abi)
    found.append(calls)
    if calls.state == "no":
        return found
    return [*found, _try_mounts(), _try_pagemap(), _try_fault_events(abi), _try_vdso(abi)]


# -- seccomp -----------------------------------------------------------------------------------------------------------


def _try_calls(abi: Abi) -> Finding:
    """Does every call that is to be answered reach us? An outer filter that refuses one comes first."""
    what = "seccomp notifications"
    try:
        seccomp.check_sizes(abi)
    except OSError as error:
        return Finding(what, "no", str(error.strerror), _advice(error.errno))
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        _call_all(abi, theirs)
    theirs.close()
    with ours:
        try:
            told, fds, _, _ = socket.recv_fds(ours, _BYTES, 1)
            if not fds:
                code = int(told or b"0")
                return Finding(what, "no", os.strerror(code) if code else "the trial died", _advice(code))
            refused = _answer_all(seccomp.Listener(fds[0]), ours, pid)
        finally:
            os.waitpid(pid, 0)
    if refused:
        advice = "let the container have CAP_SYS_NICE, or a seccomp profile that allows them"
        return Finding(what, "no", f"an outer filter refuses {', '.join(refused)}", advice)
    return Finding(what, "ok", f"all {len(POLICY_CALLS)} calls reach the supervisor, and its memory can be read")


def _advice(code: int | None) -> str:
    if code == errno.EBUSY:
        return "another supervisor is there already: `numaemu run` cannot run inside of itself"
    if code in {errno.EPERM, errno.EACCES}:
        return "let the container use seccomp (its profile, or CAP_SYS_ADMIN)"
    return "run on Linux 5.14 or newer, with CONFIG_SECCOMP_FILTER"


def _call_all(abi: Abi, sock: socket.socket) -> NoReturn:
    """In the child: make each call under a filter, and say which were not answered."""
    try:
        seccomp.set_no_new_privs()
        try:
            fd = seccomp.install_filter(abi, make_filter(abi, paths=False))
        except OSError as error:
            sock.sendall(str(error.errno).encode())
            os._exit(0)
        socket.send_fds(sock, [b"0"], [fd])
        os.close(fd)
        zeros = [ctypes.c_ulong(0)] * 6
        missed = [name for name in POLICY_CALLS if libc.syscall(ctypes.c_long(abi.numbers[name]), *zeros) != _ANSWER]
        sock.sendall(",".join(missed).encode() + b"\n")
    finally:
        os._exit(0)


def _answer_all(listener: seccomp.Listener, sock: socket.socket, pid: int) -> list[str]:
    """Answer until the child tells what it missed; the names of that."""
    poll = select.poll()
    poll.register(listener.fd, select.POLLIN)
    poll.register(sock, select.POLLIN)
    try:
        while events := dict(poll.poll(_PATIENCE_MS)):
            if events.get(listener.fd, 0) & select.POLLIN and (asked := listener.receive()) is not None:
                listener.give(asked, _ANSWER)
            if sock.fileno() in events:
                text = sock.recv(_BYTES).decode().strip()
                return [name for name in text.split(",") if name]
    finally:
        listener.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    return ["the trial, which does not answer"]


# -- what can be done without ------------------------------------------------------------------------------------------


def _try_mounts() -> Finding:
    what = "mount namespace"
    with tempfile.TemporaryDirectory(prefix="numaemu-doctor-") as folder:
        for name in (NODE_DIR, CPU_DIR):
            (Path(folder) / name[1:]).mkdir(parents=True)
        refusal = namespace.refusal(Path(folder), (NODE_DIR, CPU_DIR), (NODE_DIR, CPU_DIR))
    if refusal:
        advice = "allow unprivileged user namespaces, or run as root: looking at paths is then as fast as without"
        return Finding(what, "less", f"{refusal}; calls that look at paths are answered one by one", advice)
    return Finding(what, "ok", "the tree of nodes is mounted over the host's")


@contextlib.contextmanager
def _idle_child() -> Iterator[int]:
    """A fork of this process that does nothing until we are done with it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        yield pid
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def _try_pagemap() -> Finding:
    """Read the memory and the page map of a child, as the supervisor does."""
    what = "memory of programs"
    buffer = ctypes.create_string_buffer(b"readable")
    try:
        with _idle_child() as pid:
            if target.read(pid, ctypes.addressof(buffer), 8) != b"readable":
                return Finding(what, "no", "what was read is not what is there", "report this")
            fast = pagemap.has_scan(pid)
    except OSError as error:
        return Finding(what, "no", str(error.strerror), "let processes look into their children (ptrace_scope 0 or 1)")
    if fast:
        return Finding(what, "ok", "readable, and PAGEMAP_SCAN finds what is present")
    return Finding(what, "less", "readable; page maps are read entry by entry", "Linux 6.7 or newer is faster")


def _try_fault_events(abi: Abi) -> Finding:
    what = "page faults"
    try:
        with _idle_child() as pid, contextlib.closing(FaultEvents(abi, pid)) as events:
            events.begin()
    except OSError as error:
        detail = f"not told ({error.strerror}): which of several threads has touched a page is a guess"
        return Finding(what, "less", detail, "kernel.perf_event_paranoid of 2 or less; in a container also its profile")
    return Finding(what, "ok", "the host tells which thread has touched a page")


def _try_vdso(abi: Abi) -> Finding:
    what = "getcpu"
    if not vdso.needs_change(abi):
        return Finding(what, "ok", "libc asks the kernel, and so the machine")
    try:
        with _idle_child() as pid:
            vdso.change(abi, f"/proc/{pid}")
    except OSError as error:
        detail = f"the vDSO cannot be changed ({error}): sched_getcpu tells the host's CPU"
        return Finding(what, "less", detail, "use the system call where a test depends on it")
    return Finding(what, "ok", "the vDSO can be changed: sched_getcpu tells the machine's CPU")
