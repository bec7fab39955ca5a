"""Init: brings a machine up, supervises it, takes it down; so small that it has no reason to die.

It keeps a duplicate of every memory descriptor and touches no byte of it. The order matters: the lock before anything
is bound, the forkserver before our own heavy imports (both import numpy at the same time, on two cores), a look at the
host's memory before it is taken.
"""

import os
import resource
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from numaemu_daemon.forkserver import ChildStarter
from numaemu_daemon.options import INIT_SOCKET, Options, StartError
from numaemu_daemon.ready_line import ReadyLine
from numaemu_daemon.rundir import RunDirectory
from numaemu_daemon.stop_request import StopRequest
from numaemu_daemon.visitor_dir import VisitorDirectory
from numaemu_host import fdsock, pidfd

if TYPE_CHECKING:
    from numaemu_core.layout import Layout

#: The module of each role; its `main(child)` is called in the child.
MAINS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "kernel": "numaemu_daemon.kernel_main",
        "node": "numaemu_daemon.node_main",
        "swap": "numaemu_daemon.swap_main",
    }
)

#: The descriptors of 128 nodes may be under way to each of 130 children at one time.
_DESCRIPTORS: Final = 32768
_MIB: Final = 1 << 20


def run(options: Options, ready: ReadyLine, mains: Mapping[str, str] = MAINS) -> int:
    """Run a machine until it is told to go; the exit code of the process."""
    try:
        return _run(options, ready, mains)
    except StartError as error:
        ready.error(str(error))
        return 1


def _run(options: Options, ready: ReadyLine, mains: Mapping[str, str]) -> int:
    stop = StopRequest((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    _leave_folder()
    _raise_descriptor_limit()
    # One thread is all that a process here needs, and a forkserver must not have any other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    owner_pidfd = _open_owner(options.owner_pid)
    directory = RunDirectory(options.directory, options.name)
    visitors = None
    try:
        visitors = None if options.visitors is None else VisitorDirectory(options.visitors)
        starter = ChildStarter(options.directory, ["numaemu_daemon.child", *mains.values()])
        try:
            return _supervise(options, ready, mains, starter, (stop, owner_pidfd))
        finally:
            starter.end()
    except OSError as error:
        if ready.said:
            raise
        raise StartError(f"the host refuses: {error}") from error
    finally:
        if visitors is not None:
            visitors.remove()
        directory.remove(with_log=ready.said)


def _supervise(
    options: Options,
    ready: ReadyLine,
    mains: Mapping[str, str],
    starter: ChildStarter,
    ends: tuple[StopRequest, int | None],
) -> int:
    # Here and not above: the forkserver imports the same at the same time.
    from numaemu_core.layout import layout_of  # noqa: PLC0415 - see above
    from numaemu_daemon import logs  # noqa: PLC0415 - see above
    from numaemu_daemon.supervisor import Machine, Supervisor  # noqa: PLC0415 - see above

    log = logs.configure(options.name, "init", None)
    layout = layout_of(options.topology)
    _check_memory(layout)
    machine = Machine(options, layout, secrets.token_hex(8), dict(mains))
    listener = fdsock.listen(options.directory / INIT_SOCKET)
    log.info(logs.Event.MACHINE_STARTING, boot_id=machine.boot_id, directory=str(options.directory))
    supervisor = Supervisor(machine, starter, listener, log, lambda: ready.ready(options.endpoint))
    verdict = supervisor.run(*ends)
    if not ready.said:
        log.error(logs.Event.MACHINE_FAILED, reason=verdict.reason)
        raise StartError(verdict.reason)
    log.info(logs.Event.MACHINE_GONE)
    return verdict.exit_code


def _leave_folder() -> None:
    """Go where nobody removes or unmounts anything: children are started in init's folder, also much later."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in paths)
    os.chdir("/")


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open_owner(pid: int | None) -> int | None:
    try:
        return None if pid is None else pidfd.open_pidfd(pid)
    except OSError as error:
        raise StartError(f"owner {pid}: {error.strerror}") from None


def _check_memory(layout: "Layout") -> None:
    """Refuse a machine that the host has no memory for, with both figures, before any of it is taken."""
    from numaemu_daemon.segments import allocated_bytes  # noqa: PLC0415 - numpy, as above

    needed = allocated_bytes(layout)
    spare = _spare_bytes()
    if spare is not None and needed > spare:
        raise StartError(
            f"the machine needs {needed // _MIB} MiB of memory, and the host has {spare // _MIB} MiB to spare"
        )
    host_page = os.sysconf("SC_PAGE_SIZE")
    for node in layout.topology.nodes:
        if node.memory_bytes % host_page:
            raise StartError(f"node {node.id}: memory must be a multiple of the host's page size {host_page}")


def _spare_bytes() -> int | None:
    """MemAvailable of the host, None where it is not told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.removesuffix("kB")) << 10
    return None
