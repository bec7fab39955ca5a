"""The process of one node: it owns the frame pool, cleans its free frames, and copies pages into it for the daemon."""

from typing import Any, Final

from numaemu_core.layout import pool_name
from numaemu_daemon.bus_client import BusClient, BusMessageError
from numaemu_daemon.child import Child
from numaemu_daemon.cleaning import Cleaner, Progress
from numaemu_daemon.frame_copy import FrameCopier
from numaemu_daemon.kswapd import Kswapd
from numaemu_daemon.logs import Event
from numaemu_daemon.segments import MappedMachine

#: Pauses while the zone lock is not to be had: each is twice as long as the one before.
_PAUSE_FIRST_S: Final = 0.001
_PAUSE_MAX_S: Final = 0.25


def main(child: Child) -> None:
    """Serve one node until SIGTERM or the end of init."""
    assert child.nid is not None
    own = [pool_name(child.nid)] if child.topology.preallocate else []
    machine = MappedMachine(child.layout, child.fds, populate=own)
    cleaner = Cleaner(machine.columns, machine.mutexes, child.nid, child.log, child.reach)
    # A predecessor may have died with work to do, and nobody says it twice.
    cleaner.begin()
    with BusClient(child) as bus:
        kswapd = Kswapd(machine.columns, child.nid, bus.send, child.reach)
        copier = FrameCopier(machine.columns, child.nid, child.reach)
        child.ready()
        _serve(child, bus, cleaner, kswapd, copier)


def _serve(child: Child, bus: BusClient, cleaner: Cleaner, kswapd: Kswapd, copier: FrameCopier) -> None:
    timeout_s: float | None = 0.0
    pause_s = _PAUSE_FIRST_S
    logged = 0
    while bus.wait(timeout_s):
        _take_messages(bus, cleaner, kswapd, copier)
        progress = cleaner.step()
        timeout_s = child.report(
            {
                "pages_cleaned": cleaner.pages,
                "batches": cleaner.batches,
                "kswapd_wakeups": kswapd.wakeups,
                "kswapd_pages": kswapd.pages,
                "pages_copied": copier.pages,
            }
        )
        if progress is Progress.BLOCKED:
            timeout_s = pause_s
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            continue
        pause_s = _PAUSE_FIRST_S
        if progress is Progress.MORE:
            timeout_s = 0.0
        elif logged != cleaner.pages:
            child.log.debug(Event.FRAMES_CLEANED, pages=cleaner.pages - logged)
            logged = cleaner.pages


def _take_messages(bus: BusClient, cleaner: Cleaner, kswapd: Kswapd, copier: FrameCopier) -> None:
    while (message := bus.receive()) is not None:
        try:
            _take(message, bus, cleaner, kswapd, copier)
        except BusMessageError as error:
            bus.refuse(error)


def _take(message: list[Any], bus: BusClient, cleaner: Cleaner, kswapd: Kswapd, copier: FrameCopier) -> None:
    match message:
        case ["clean"]:
            cleaner.begin()
        case ["kswapd"]:
            kswapd.wake()
        case ["balanced", int(pages)]:
            kswapd.balanced(pages)
        case ["copy", ticket, source, target]:
            bus.send(copier.perform(ticket, source, target))
        case _:
            raise BusMessageError(f"a node knows no {message[0]!r}")
