"""The kernel daemon: puts its parts together over the machine's memory, and serves until it is told to stop."""

import gc
import os
import resource
import time
from typing import Any

import numpy as np
import zmq

from numaemu_core import limits
from numaemu_core.fault_points import unarmed
from numaemu_core.journal import Journal
from numaemu_core.layout import Layout, pool_name
from numaemu_core.lock_stats import LockStats
from numaemu_core.recovery import resume
from numaemu_core.swap_state import end_swap_write
from numaemu_core.wire import VERSION
from numaemu_daemon import entrances, zap
from numaemu_daemon.armed_locks import ArmedLocks
from numaemu_daemon.bus import Bus
from numaemu_daemon.child import Child
from numaemu_daemon.clients import AccessSlots, Client
from numaemu_daemon.guests import Guests
from numaemu_daemon.kswapd import KswapdTasks
from numaemu_daemon.logs import Event
from numaemu_daemon.options import BUS_SOCKET
from numaemu_daemon.process_locks import ProcessLocks
from numaemu_daemon.scheduler import Scheduler
from numaemu_daemon.segments import MappedMachine
from numaemu_daemon.server import Server
from numaemu_daemon.stop_request import StopRequest
from numaemu_daemon.take_over import Machine, machine_for
from numaemu_host import membarrier
from numaemu_host.memfd import Segment
from numaemu_host.ofdlock import OfdLock

#: A peer that has not finished its handshake by then is dropped.
_HANDSHAKE_MS = 2000


def main(child: Child) -> None:
    """Serve the machine that `child` describes; returns when it ends."""
    machine = MappedMachine(child.layout, child.fds)
    journal_segment = Segment(child.fds["journal"], os.fstat(child.fds["journal"]).st_size)
    stats = LockStats(time.monotonic)
    locks = _locks(child, machine, stats)
    journal = Journal(np.frombuffer(journal_segment.view, np.uint8))
    fenced = membarrier.register()
    _raise_descriptor_limit()
    _bound_memory(child.layout)
    found = machine_for(child, machine, locks, journal, fenced=fenced)
    found.kernel.locks.stats = stats
    context = zmq.Context()
    try:
        _serve(child, context, found, locks, fenced=fenced)
    finally:
        context.destroy(linger=0)


def _locks(child: Child, machine: MappedMachine, stats: LockStats) -> ProcessLocks:
    semaphores = OfdLock(child.fds["mmap_sem"])
    if child.reach is not unarmed:
        return ArmedLocks(child.layout, machine.columns, machine.mutexes, semaphores, stats, child.reach)
    return ProcessLocks(child.layout, machine.columns, machine.mutexes, semaphores, stats)


def _serve(
    child: Child, context: "zmq.Context[zmq.Socket[bytes]]", machine: Machine, locks: ProcessLocks, *, fenced: bool
) -> None:
    kernel = machine.kernel
    zap_handler = zap.open_handler(context)
    bus = _bus(child, context)
    bus.written = lambda pfns: end_swap_write(kernel, pfns)
    bus.silent = locks.silent = child.waits_for
    slots = AccessSlots(kernel.c)
    locks.users_stopped = slots.any_stopped
    scheduler = Scheduler(kernel, slots, bus, time.monotonic, fenced=fenced)
    KswapdTasks(kernel, scheduler, bus)
    names = client_segments(child)

    def hello(client: Client) -> tuple[dict[str, Any], list[int]]:
        theirs = [] if client.remote else names
        answer = {
            "version": VERSION,
            "boot_id": child.boot_id,
            "machine": child.machine,
            "token": client.token,
            "topology": child.topology.as_dict(),
            "segments": theirs,
            "remote": client.remote,
            "init_pid": child.init_pid,
            "kernel_pid": os.getpid(),
            "generation": child.generation,
            "membarrier": fenced,
        }
        return answer, [child.fds[name] for name in theirs]

    def serves() -> None:
        """Clients of the last daemon see from this word that they have to come back."""
        kernel.c.generation[0] = child.generation
        child.ready()
        child.log.info(Event.KERNEL_SERVES, membarrier=fenced)

    router = _router(context)
    guests = Guests(context, router, time.monotonic, child.log)
    entrances.bind(child, router)
    server = Server(
        kernel,
        sockets=(router, bus, zap_handler),
        guests=guests,
        listeners=entrances.listeners(child),
        scheduler=scheduler,
        slots=slots,
        hello=hello,
        boot_id=child.boot_id,
        generation=child.generation,
        guard=entrances.guard(child),
        admission=child.admission,
        recoveries=lambda: locks.recoveries,
        repair_locks=locks.repair_all,
        serves=serves,
        report=child.report,
        log=child.log,
    )
    server.watch(child.init_pidfd, lambda: setattr(server, "stopping", True))
    server.watch(StopRequest().fd, lambda: setattr(server, "stopping", True))
    if child.restarted:
        resume(kernel)
        server.take_over(machine.living, machine.truth)
        child.reach("recovery.calls_begun")
    gc.freeze()  # what is here stays: collections need not look at it
    try:
        server.serve()
    finally:
        guests.close()
        bus.guests.close()


def _bus(child: Child, context: "zmq.Context[zmq.Socket[bytes]]") -> Bus:
    router = _router(context)
    router.sndhwm = 0  # what is under way is bounded by what was asked for; none of it may be lost
    guests = Guests(context, router, time.monotonic, child.log, stranger_s=None)
    router.bind(f"ipc://{child.directory / BUS_SOCKET}")
    return Bus(router, guests, child.bus_key, child.log)


def client_segments(child: Child) -> list[str]:
    """The segments that a client maps: pools by ascending node, page tables, control, locks."""
    pools = [pool_name(nid) for nid in child.layout.node_pfns]
    return [*pools, "ptes", "pte_bits", "control", "locks", "mmap_sem"]


def _raise_descriptor_limit() -> None:
    """As many as the host allows: ZeroMQ ends its process when it has none left for a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bound_memory(layout: Layout) -> None:
    """No more memory of its own than a machine of this size could ever need.

    ZeroMQ keeps a message until it is whole, however many frames it has. Who sends one without end has the daemon end
    here, and its successor recover the machine, instead of the host run out of memory.
    """
    most = limits.DAEMON_BYTES + limits.DAEMON_BYTES_PER_PAGE * (layout.frame_count + layout.slot_count)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [bound for bound in (soft, hard, most) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))


def _router(context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
    """A ROUTER that only authenticated peers reach, that never waits for a slow one, and keeps little for each.

    Nobody takes over the identity of another (`router_handover` is off): a second peer with the same one is not heard.
    """
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.router_mandatory = True
    router.router_handover = False
    router.maxmsgsize = limits.MESSAGE_BYTES_MAX
    router.sndhwm = router.rcvhwm = limits.QUEUED_MESSAGES
    router.handshake_ivl = _HANDSHAKE_MS
    router.zap_domain = zap.DOMAIN
    return router
