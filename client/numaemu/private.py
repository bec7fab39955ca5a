"""A machine of one program: made with it, gone with it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from typing import TYPE_CHECKING

from numaemu import control
from numaemu.attachment import attach_process
from numaemu.description import topology_from, with_faults
from numaemu.launch import start
from numaemu.machine import Machine
from numaemu_core.admission import make_admission
from numaemu_core.topology import uniform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numaemu.launch import Started


def boot(  # noqa: PLR0913 - what a machine has
    nodes: int = 2,
    memory: str | int = "64M",
    swap: str | int = "128M",
    profile: str = "swap-v3",
    page_size: str | int = 4096,
    topology: str | os.PathLike[str] | Mapping[str, object] | None = None,
    allow_uids: Iterable[int] = (),
    grants: Iterable[str] = (),
    *,
    faults: Iterable[str] = (),
    seed: int | None = None,
) -> Machine:
    """Start a private machine, which ends when the handle is closed or this process ends, however it ends.

    `nodes` equal nodes with `memory` bytes each (a number, or a size such as 64M) and one CPU each, CPU i on node i, at
    distances 10 and 20; `swap` bytes in all. Or a `topology`: the path of a TOML file, or a dict of the same shape; the
    other arguments are not looked at then. Users of the host in `allow_uids` may connect, too, by the path of the
    directory that has the machine's with +visitors behind it; `grants` are capabilities that they may name, each text
    as `numaemu up --grant` takes it. `faults` go wrong on demand, beside those of the topology, each text as `numaemu
    up --fault` takes it (docs/run.md); `seed` decides about chance in them.

    Raises:
        TopologyError: that is no machine. PeerError: it did not come up. OSError: the host refuses.
    """
    described = uniform(nodes, memory, swap, profile, page_size) if topology is None else topology_from(topology)
    described = with_faults(described, faults, seed)
    name = f"boot-{os.getpid()}-{secrets.token_hex(4)}"
    owner = os.getpid()
    admission = make_admission(allow_uids, grants)
    started = start(name, described, admission=admission, owner_pid=owner)
    try:
        attachment = attach_process(started.place)
    except BaseException:
        _end(started, owner)
        raise
    return Machine(attachment, lambda: _end(started, owner))


def _end(started: Started, owner: int) -> None:
    """End the machine and leave nothing behind, even if it does not answer."""
    if os.getpid() != owner:
        return
    try:
        control.down(started.place)
        started.process.wait(control.DOWN_S)
    except (OSError, subprocess.TimeoutExpired):
        # Its other processes end with init, and the memory with them.
        started.process.kill()
        started.process.wait()
        shutil.rmtree(started.place, ignore_errors=True)
