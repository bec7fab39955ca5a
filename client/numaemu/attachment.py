"""What the descriptor socket gives a process: the shared memory of a machine, mapped, and the right to call it."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from numaemu import places
from numaemu.comeback import RemoteWayBack, WayBack, recv_patiently
from numaemu.connection import Init, Peer
from numaemu.control import is_running, no_machine
from numaemu.views import COLUMNS, Views, make_views
from numaemu_core.columns import column_views
from numaemu_core.errors import PeerError
from numaemu_core.layout import Layout, layout_of, pool_name
from numaemu_core.topology import from_dict
from numaemu_core.wire import VERSION
from numaemu_host import fdsock, membarrier
from numaemu_host.memfd import FlatMapping, Segment
from numaemu_host.robust import MutexTable

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from numaemu.tcp import Lease

MMAP_SEM: Final = "mmap_sem"
_MAPPED: Final = ("ptes", "pte_bits", "control", "locks")
_ANSWER_S: Final = 30.0
_PAUSE_S: Final = 0.01
#: How long a daemon may take to come back, where init cannot be asked whether the machine runs.
_RESTART_S: Final = 3.0
#: Times that a daemon may hang up on us: it may die in the middle of a hello more than once, but not for ever.
_HUNG_UP_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Attachment:
    """A machine as this process has it.

    `fds` are descriptors by segment name, those that pins need: the pools and `mmap_sem`. While `sock` is open, or the
    one that the peer's way back has put in its place, the daemon knows that this process uses the machine. `fenced`:
    membarrier orders us, so that windows need no locks.
    """

    peer: Peer
    layout: Layout
    #: None: this process does not map the memory.
    views: Views | None
    fds: dict[str, int]
    sock: socket.socket | Lease
    fenced: bool
    #: The machine's directory, None if it is another user's.
    place: Path | None = None

    def close(self) -> None:
        """Close the socket and the descriptors; what is mapped stays as long as somebody holds the views."""
        self.sock.close()
        if self.peer.way_back is not None:
            self.peer.way_back.close()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


def attach_process(place: Path, *, remote: bool = False) -> Attachment:
    """Become a client of the machine in that directory; `remote`: without its memory, as other users are in any case.

    Raises:
        ConnectionRefusedError: no machine runs there. PeerError: it speaks another version, or nonsense.
        MachineGone: it has just ended. OSError: the host refuses.
    """
    sock, answer, fds = _admitted(place, remote=remote)
    if answer.get("remote") is True:
        return _attach_remotely(place, sock, answer)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        for fd in fds.values():
            undo.callback(os.close, fd)
        layout = layout_of(from_dict(answer["topology"]))
        init = Init(place.name, answer["init_pid"])
        views = map_views(layout, fds)
        way_back = WayBack(place / places.DESCRIPTOR_SOCKET, views.generation, sock, answer["generation"])
        peer = Peer(f"ipc://{place / places.CALLS_SOCKET}", answer["boot_id"], answer["token"], init, way_back)
        fenced = membarrier.register() and bool(answer["membarrier"])
        undo.pop_all()
    for name in _MAPPED:
        os.close(fds.pop(name))
    return Attachment(peer, layout, views, fds, sock, fenced, place)


def _attach_remotely(place: Path, sock: socket.socket, answer: dict[str, Any]) -> Attachment:
    try:
        layout = layout_of(from_dict(answer["topology"]))
        init = Init(str(answer["machine"]), answer["init_pid"])
    except BaseException:
        sock.close()
        raise
    way_back = RemoteWayBack(place / places.DESCRIPTOR_SOCKET, sock, answer["generation"])
    peer = Peer(f"ipc://{place / places.CALLS_SOCKET}", answer["boot_id"], answer["token"], init, way_back)
    own = None if places.is_for_visitors(place) else place
    return Attachment(peer, layout, None, {}, sock, fenced=False, place=own)


def _admitted(place: Path, *, remote: bool) -> tuple[socket.socket, dict[str, Any], dict[str, int]]:
    """A socket to the daemon, its answer to our hello, and the descriptors by name.

    While the machine runs and its daemon does not, another one is about to come.
    """
    for_visitors = places.is_for_visitors(place)
    deadline = time.monotonic() + (_RESTART_S if for_visitors else _ANSWER_S)
    hung_up = 0
    while True:
        try:
            sock = fdsock.connect(place / places.DESCRIPTOR_SOCKET, _ANSWER_S)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            if not _may_come(place, deadline):
                raise no_machine(place.name) from None
            time.sleep(_PAUSE_S)
            continue
        try:
            return sock, *_greeted(sock, place, remote=remote)
        except PeerHungUpError:
            sock.close()
            hung_up += 1
            if hung_up > _HUNG_UP_MAX or for_visitors or not is_running(place):
                raise
        except BaseException:
            sock.close()
            raise


def _may_come(place: Path, deadline: float) -> bool:
    """May a daemon that is not there be about to come?"""
    if places.is_for_visitors(place):  # init does not talk to other users
        return (place / places.DESCRIPTOR_SOCKET).exists() and time.monotonic() < deadline
    return is_running(place) and time.monotonic() < deadline


class PeerHungUpError(PeerError):
    """The daemon hung up without a word: it died, or does not admit this user."""


def _greeted(sock: socket.socket, place: Path, *, remote: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """The answer to our hello, and the descriptors by name."""
    name = place.name
    try:
        fdsock.send(sock, {"hello": "client", "version": VERSION, "remote": remote})
        answer, received = recv_patiently(sock, place)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise PeerHungUpError(f"the machine {name!r} hung up: it is ending, or does not admit this user") from None
    fault = _fault_of(answer, len(received))
    if fault:
        for fd in received:
            os.close(fd)
        raise PeerError(f"the machine {name!r} {fault}")
    assert isinstance(answer, dict)
    return answer, dict(zip(answer["segments"], received, strict=True))


def _fault_of(answer: object, fd_count: int) -> str:
    """What is wrong with the answer to our hello; empty if nothing is."""
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return f"refuses: {answer['error']}"
    if not isinstance(answer, dict) or answer.get("version") != VERSION:
        return f"speaks another version than {VERSION}: {answer!r}"
    missing = {"boot_id", "token", "topology", "segments", "init_pid", "membarrier", "generation"} - answer.keys()
    if missing:
        return f"did not say its {min(missing)}"
    names = answer["segments"]
    if answer.get("remote") is True and not names and not fd_count:
        return ""
    if len(names) != fd_count or not {*_MAPPED, MMAP_SEM} <= set(names):
        return f"sent {fd_count} descriptors for {names!r}"
    return ""


def map_views(layout: Layout, fds: Mapping[str, int]) -> Views:
    """Map all that a client needs; it is unmapped when nobody holds the views any more."""
    maps: list[FlatMapping | Segment] = []
    try:
        pools = [(fds[pool_name(node)], layout.segments[pool_name(node)].size) for node in layout.node_pfns]
        frames = FlatMapping(pools, populate=[fd for fd, _ in pools] if layout.topology.preallocate else ())
        maps.append(frames)
        columns: dict[str, Any] = {}
        for name in _MAPPED:
            segment = Segment(fds[name], layout.segments[name].size)
            maps.append(segment)
            columns |= column_views(layout.segments[name], segment.view)
            if name == "locks":
                mutexes = MutexTable(segment.address + layout.segments[name].columns[0].offset, layout.mutex_count)
        chosen = {name: columns[name] for name in COLUMNS}
        views = make_views(layout, chosen, frames.memory, mutexes)
    except BaseException:
        _unmap(maps)
        raise
    weakref.finalize(views, _unmap, maps).atexit = False
    return views


def _unmap(maps: list[FlatMapping | Segment]) -> None:
    for mapped in maps:
        mapped.close()
