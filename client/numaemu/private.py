"""A machine of one program: made with it, gone with it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Final

from numaemu import control
from numaemu.attachment import attach_process
from numaemu.description import Usual, Wanted, describe
from numaemu.launch import start
from numaemu.machine import Machine
from numaemu_core.admission import make_admission
from numaemu_host import pidfd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numaemu.launch import Started

_USUAL: Final = Usual(nodes=2, memory="64M", swap="128M", profile="swap-v3")


def boot(  # noqa: PLR0913 - each has a default, and a call says two or three of them by name
    nodes: int | None = None,
    memory: str | int | None = None,
    swap: str | int | None = None,
    profile: str | None = None,
    page_size: str | int | None = None,
    topology: str | os.PathLike[str] | Mapping[str, object] | None = None,
    allow_uids: Iterable[int] = (),
    grants: Iterable[str] = (),
    *,
    preset: str | None = None,
    faults: Iterable[str] = (),
    seed: int | None = None,
) -> Machine:
    """Start a private machine, which ends when the handle is closed or this process ends, however it ends.

    `nodes` (2) equal nodes with `memory` bytes each (a number, or a size such as 64M, the default) and one CPU each,
    CPU i on node i, at distances 10 and 20; `swap` bytes in all (128M), the kernel `profile` (swap-v3). Or a
    `topology`: the path of a TOML file, or a dict of the same shape, which says all of it; the path of what lstopo
    wrote as XML, or numactl --hardware printed; or the name of a `preset`, as `numaemu topologies` lists them. What is
    given beside these two takes precedence, and `memory` is then that of the largest node, with the others' in
    proportion. Users of the host in `allow_uids` may connect, too, by the path of the directory that has the machine's
    with +visitors behind it; `grants` are capabilities that they may name, each text as `numaemu up --grant` takes it.
    `faults` go wrong on demand, beside those of the topology, each text as `numaemu up --fault` takes it (docs/run.md);
    `seed` decides about chance in them.

    Raises:
        TopologyError: that is no machine. PeerError: it did not come up. OSError: the host refuses.
    """
    described = describe(Wanted(nodes, memory, swap, profile, page_size, topology, preset, tuple(faults), seed), _USUAL)
    name = f"boot-{os.getpid()}-{secrets.token_hex(4)}"
    owner = os.getpid()
    admission = make_admission(allow_uids, grants)
    started = start(name, described, admission=admission, owner_pid=owner)
    try:
        attachment = attach_process(started.place)
    except BaseException:
        _end(started, owner, ask=True)
        raise
    init = attachment.peer.init
    return Machine(attachment, lambda: _end(started, owner, ask=not init.given_up))


def _end(started: Started, owner: int, *, ask: bool) -> None:
    """End the machine and leave nothing behind, even if it does not answer; `ask` it first."""
    if os.getpid() != owner:
        return
    if ask:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            control.down(started.place)
            started.process.wait(control.DOWN_S)
            return
    _kill(started.process)
    shutil.rmtree(started.place, ignore_errors=True)


def _kill(init: subprocess.Popen[bytes]) -> None:
    """The other processes end with init, and the memory with them: those that are stopped once they are continued."""
    with contextlib.ExitStack() as stack:
        fds = []
        for pid in pidfd.children_of(init.pid):
            with contextlib.suppress(ProcessLookupError):
                fds.append(pidfd.open_pidfd(pid))
                stack.callback(os.close, fds[-1])
        init.kill()
        init.wait()
        for fd in fds:
            with contextlib.suppress(ProcessLookupError):
                pidfd.send_signal(fd, signal.SIGCONT)
