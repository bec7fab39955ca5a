"""The swap node: it owns the swap area and copies pages between it and the frame pools, as the kernel daemon asks."""

from numaemu_core.layout import pool_name
from numaemu_daemon.bus_client import BusClient, BusMessageError
from numaemu_daemon.child import Child
from numaemu_daemon.segments import MappedMachine
from numaemu_daemon.swap_copy import SwapCopier


def main(child: Child) -> None:
    """Serve the swap area until SIGTERM or the end of init."""
    copied = ["swap", *(pool_name(nid) for nid in child.layout.node_pfns)] if child.topology.preallocate else []
    machine = MappedMachine(child.layout, child.fds, populate=copied)
    copier = SwapCopier(machine.columns, child.reach)
    with BusClient(child) as bus:
        child.ready()
        timeout_s: float | None = 0.0
        while bus.wait(timeout_s):
            while (message := bus.receive()) is not None:
                try:
                    bus.send(copier.perform(message))
                except BusMessageError as error:
                    bus.refuse(error)
            timeout_s = child.report(copier.counters())
