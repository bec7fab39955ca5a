"""Starting the program: a fork that takes its namespace and its filter, sends the listener, and executes it."""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from numaemu_run import namespace, seccomp, signals
from numaemu_run.abi import Abi
from numaemu_run.bpf import make_filter
from numaemu_run.node_tree import COVERED, CPU_DIR, NODE_DIR

#: Exit codes of `env` and of a shell: it went wrong before the program; that cannot be executed; it is not there.
CANNOT_RUN: Final = 125
CANNOT_EXECUTE: Final = 126
NOT_FOUND: Final = 127

_ANSWER_BYTES_MAX: Final = 4096
_MOUNTED: Final = b"m"
_LOOKED_AT: Final = b"p"
_SHELL: Final = "/bin/sh"
#: Signals that Python ignores, and a program does not expect to be ignored.
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class StartError(OSError):
    """The program could not be started; `code` is the exit code that a shell would give."""

    def __init__(self, message: str, code: int = CANNOT_RUN) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Started:
    """A program that is about to be executed, and the listener of its calls."""

    pid: int
    listener: seccomp.Listener
    #: The tree of nodes is mounted: calls that look at paths need no answer.
    mounted: bool
    #: Says why it could not be executed, and nothing if it could.
    socket: socket.socket

    def check_executed(self) -> None:
        """To be asked when the program has ended. StartError: it has never begun."""
        with contextlib.suppress(BlockingIOError):
            self.socket.setblocking(False)  # noqa: FBT003 - the method has one argument
            text = self.socket.recv(_ANSWER_BYTES_MAX).decode(errors="replace")
            if text:
                code, _, message = text.partition(" ")
                raise StartError(message, int(code))


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    abi: Abi,
    tree: Path,
    *,
    mount: bool = True,
    mask: AbstractSet[int] = frozenset(),
) -> Started:
    """Fork, and let the child execute `command` under the filter.

    `mount`: with the tree of nodes at `tree` over the host's, if that is allowed; `mask`: its signals that are
    blocked: ours are `signals.held`.

    Raises:
        StartError: the host refuses the filter; why is said.
    """
    mounts = mount and not namespace.refusal(tree, COVERED, (NODE_DIR, CPU_DIR))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if not pid:
        _become(command, environment, abi, tree if mounts else None, theirs, mask)
    theirs.close()
    try:
        how, fds, _, _ = socket.recv_fds(ours, 1, 1)
        if fds:
            return Started(pid, seccomp.Listener(fds[0]), how == _MOUNTED, ours)
        text = (how + ours.recv(_ANSWER_BYTES_MAX)).decode(errors="replace")
    except BaseException:
        ours.close()
        raise
    ours.close()
    os.waitpid(pid, 0)
    code, _, message = text.partition(" ")
    raise StartError(message or "the program's process died before it began", int(code or CANNOT_RUN))


def _become(
    command: Sequence[str],
    environment: Mapping[str, str],
    abi: Abi,
    tree: Path | None,
    sock: socket.socket,
    mask: AbstractSet[int],
) -> NoReturn:
    """In the child: never return. `tree`: what to mount, if that is allowed."""
    try:
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        if tree is not None:
            namespace.enter()
            namespace.cover(tree, COVERED)
        program = make_filter(abi, paths=tree is None)
        seccomp.set_no_new_privs()
        fd = seccomp.install_filter(abi, program)
        socket.send_fds(sock, [_LOOKED_AT if tree is None else _MOUNTED], [fd])
        os.close(fd)
        signals.release(mask)
        _execute(command, environment, sock)
    except BaseException as error:  # noqa: BLE001 - the child must not go on as its parent
        with contextlib.suppress(OSError):
            sock.sendall(f"{CANNOT_RUN} {_reason(error)}".encode())
    finally:
        os._exit(1)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        return "the program would be under two supervisors: `numaemu run` cannot run inside of itself"
    return f"{error}; `numaemu doctor` tells what this host allows"


def _execute(command: Sequence[str], environment: Mapping[str, str], sock: socket.socket) -> None:
    """Nothing is opened between the filter and the program: our parent does not answer yet."""
    try:
        try:
            os.execvpe(command[0], list(command), environment)  # noqa: S606 - what our user asks for, and no shell
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script that does not say whose it is: a shell's, as execvp(3) has it.
            os.execve(_SHELL, [_SHELL, error.filename or command[0], *command[1:]], environment)  # noqa: S606 - as above
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE
        sock.sendall(f"{code} {command[0]}: {error.strerror}".encode())
        os._exit(code)
