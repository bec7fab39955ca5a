"""A whole machine in one process: one seed decides who runs, which messages go astray, and who dies when.

The calls, the tables of clients and access slots, and the way back after a death of the daemon are those of the real
daemon. Made up here: processes and their threads (generators), the messages between them (lost, late or twice), what
other processes do with locks, and everybody's end. Threads check every byte that they read.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Any
from unittest.mock import patch

import msgpack
import numpy as np

from numaemu_core import files, limits
from numaemu_core.admission import Admission
from numaemu_core.columns import columns_in_memory
from numaemu_core.effects import Breathe
from numaemu_core.errors import MmError, PeerError
from numaemu_core.fsck import fsck
from numaemu_core.journal import Journal, Truth
from numaemu_core.kernel import Kernel
from numaemu_core.layout import layout_of
from numaemu_core.locks import Key, Mode, NoHost, Rank
from numaemu_core.memory import release_quarantine
from numaemu_core.page_flags import ALLOCATED, PAGE_MAPPING_FILE, PG_SWAPCACHE
from numaemu_core.page_table import PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.performer import JOURNAL_BYTES, Performer, copy_part, open_windows
from numaemu_core.reclaim import try_to_free_pages
from numaemu_core.recovery import recover, resume
from numaemu_core.swapfile import SWAP_LOCK, get_swap_pages, swap_free
from numaemu_core.task_locks import spin_lock
from numaemu_core.topology import Topology, from_dict
from numaemu_core.uapi import MADV_DONTNEED, MADV_PAGEOUT, MPOL_BIND, MPOL_INTERLEAVE, MPOL_MF_MOVE, MPOL_MF_STRICT
from numaemu_core.wire import VERSION, unpack_request
from numaemu_daemon import comeback
from numaemu_daemon.calls import Calls
from numaemu_daemon.clients import AccessSlots, Client, Connection
from numaemu_daemon.comeback import Comeback, client_row, living_clients, void_slots_of_the_dead
from numaemu_daemon.permissions import Permissions
from numaemu_host import pidfd

from .crash_world import AREA, PAGE, PAGES, PRIVATE, RW, Memory, Thread, family, filer, mover

BOOT = "boot"
PROFILES = ("swap-v3", "linux-6.1", "linux-6.12")
#: Steps before something is stuck.
STEPS_MAX = 200_000
#: Within so many steps the faults of a world happen.
PLANNED_STEPS = 2200
#: One message of so many is lost, and one comes twice.
ASTRAY = 14
#: Pages of a step while somebody else calls.
SHORT_STEP_PAGES = 2
#: Tries of the daemon after which it goes on without a lock that a client sits on.
LOCK_BOUND_TRIES = 60

Body = Callable[["Touch"], Thread]


class Process:
    """A client process: threads with tasks, until it dies."""

    def __init__(self, world: "FaultWorld", pid: int) -> None:
        self.world = world
        self.pid = pid
        self.alive = True
        #: SIGSTOP, and SIGCONT at that step.
        self.stopped_until = 0
        self.threads: list[SimThread] = []

    def thread(self, story: Generator[Any, Any, None]) -> None:
        """One thread more."""
        thread = SimThread(self, story, len(self.world.threads))
        self.threads.append(thread)
        self.world.threads.append(thread)
        self.world.live.append(thread)

    def die(self) -> None:
        """SIGKILL: what its threads were at stays as it is."""
        self.alive = False
        self.world.dying.append(self)
        self.world.host.died(self)
        for thread in self.threads:
            thread.end()
            thread.outbox = deque(list(thread.outbox)[: self.world.draw(len(thread.outbox) + 1)])


class SimThread:
    """A thread with a connection of its own; it has at most one call on its way."""

    def __init__(self, process: Process, story: Generator[Any, Any, None], number: int) -> None:
        self.process = process
        self.story = story
        self.number = number
        self.connection = 0
        self.request = 0
        self.asked: bytes | None = None
        self.answer: Any = None
        self.done = False
        self.outbox: deque[bytes] = deque()
        self.inbox: deque[bytes] = deque()

    def step(self) -> None:
        """A moment of its program, or of its waiting."""
        world = self.process.world
        if self.done or self.process.stopped_until > world.steps:
            return
        if self.asked is not None:
            if self.inbox:
                reply = self.inbox[0]
                if world.draw(ASTRAY):  # else it comes twice
                    self.inbox.popleft()
                if world.draw(ASTRAY):
                    self._hear(reply)
                else:
                    world.seen["replies lost"] += 1
            elif not world.draw(40):
                world.seen["requests repeated"] += 1
                self.outbox.append(self.asked)
            return
        answer, self.answer = self.answer, None
        try:
            asked = self.story.send(answer)
        except StopIteration:
            self.end()
            return
        if asked is not None:
            self.request += 1
            self.asked = msgpack.packb([VERSION, BOOT, self.request, asked[0], asked[1:], None])
            self.outbox.append(self.asked)

    def end(self) -> None:
        """It runs no more."""
        if not self.done:
            self.done = True
            self.process.world.live.remove(self)

    def _hear(self, reply: bytes) -> None:
        _, _, request, status, result = msgpack.unpackb(reply)
        if request != self.request:
            return
        self.asked = None
        if status and "was killed" in result[1]:
            self.process.world.seen["killed for want of memory"] += 1
            self.process.die()
            return
        assert not status or "protocol" not in result, result
        self.answer = None if status else result


class Host(NoHost):
    """Other processes' part of the locks, as the daemon meets it."""

    def __init__(self, world: "FaultWorld") -> None:
        self.world = world
        self.daemon: dict[int, Mode] = {}
        self.readers: dict[int, set[SimThread]] = {}
        self.tables: dict[int, SimThread] = {}
        self.tried: Counter[Key] = Counter()
        #: Tables that the daemon changes without the lock.
        self.without: set[int] = set()

    def try_spin(self, keys: Sequence[Key]) -> bool:
        """Busy in one of twelve; a table that a client sits on stays so, within bounds."""
        if not self.world.draw(12):
            return False
        busy = [key for key in keys if key[0] is Rank.PTE and key[1] in self.tables]
        for key in busy:
            self.tried[key] += 1
            if self.tried[key] < LOCK_BOUND_TRIES or not self.world.fenced:
                return False
        if busy:
            self.world.seen["pte locks passed over"] += 1
            self.world.c.mm_epoch += np.uint64(1)
        return True

    def try_sem(self, mm_id: int, mode: Mode) -> bool:
        """A client that pins reads; the daemon waits for it, within bounds."""
        if mode is Mode.WRITE and self.readers.get(mm_id):
            key = (Rank.MMAP_SEM, mm_id)
            self.tried[key] += 1
            if self.tried[key] < LOCK_BOUND_TRIES:
                return False
            del self.tried[key]
            self.world.seen["mmap_sems passed over"] += 1
            self.world.c.mm_epoch[mm_id] += np.uint64(1)
        self.daemon[mm_id] = mode
        return True

    def drop_sem(self, mm_id: int) -> None:
        """The daemon lets go."""
        self.daemon.pop(mm_id, None)

    def died(self, process: Process) -> None:
        """Its locks come free; of a table the next taker hears that its holder has died."""
        for readers in self.readers.values():
            if any(thread.process is process for thread in readers):
                self.world.seen["died reading an address space"] += 1
            readers.difference_update(process.threads)
        for table in [table for table, thread in self.tables.items() if thread.process is process]:
            self.world.seen["died holding a pte lock"] += 1
            self.unlock_table(table)

    def unlock_table(self, table: int) -> None:
        """The lock of a table is free."""
        del self.tables[table]
        self.tried.pop((Rank.PTE, table), None)


class Daemon:
    """The daemon of the moment: the real calls over a performer, with what they need of scheduler and server."""

    def __init__(self, world: "FaultWorld", performer: Performer) -> None:
        self.world = world
        self.p = performer
        self.k = performer.k
        self.k.locks.host = world.host
        self.slots = AccessSlots(self.k.c)
        permissions = Permissions(self.k, Admission(), self.owner_of)
        self.calls = Calls(self.k, self, self.slots, BOOT, self, permissions)  # type: ignore[arg-type]  # the scheduler's part is here
        self.clients: dict[int, Client] = {}
        self.connections: dict[int, Connection] = {}
        self.fresh: deque[Any] = deque()
        self.next_client = self.next_connection = 1
        #: What was on its way when the last daemon died is being finished.
        self.finishing = False

    # what calls need of a scheduler, and of a server

    def share(self) -> None:
        """Every other call finds long tasks in short steps."""
        self.k.batch_pages = SHORT_STEP_PAGES if self.calls.served % 2 else limits.BATCH_PAGES

    def start(self, body: Any, done: Callable[..., None], window: int | None = None) -> None:  # noqa: ANN401 - any task
        """Take up a kernel task."""
        del window

        def task() -> Generator[Any, Any, None]:
            result, refusal = None, None
            try:
                result = yield from body
            except MmError as error:
                refusal = error
            done(result, refusal)

        self.fresh.append(self.p.start("call", task()))

    def status(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def owner_of(self, pid: int) -> Client | None:
        """The client whose task it is."""
        return next((client for client in self.clients.values() if pid in client.tasks), None)

    def leave(self, client: Client) -> None:
        """Nobody here lets a machine go and lives on."""
        raise AssertionError(client)

    # messages and ends

    def receive(self, thread: SimThread, body: bytes) -> None:
        """A message from a thread, which the server knows once it has said hello."""
        process = thread.process
        client = self.clients.get(process.pid)
        if client is None:
            if not process.alive:
                return
            client = Client(None, process.pid, 0, 0, b"", greeted=True, number=self.next_client)
            self.next_client += 1
            self.clients[process.pid] = client
            self.k.journal.append(["client", client.number, client_row(client)])
        connection = self.connections.get(thread.connection)
        if connection is None:
            connection = Connection(self.next_connection, b"", client)
            self.next_connection += 1
            thread.connection = connection.number
            self.connections[connection.number] = connection
            self.world.by_connection[connection.number] = thread
            client.connections.append(connection)
            self.k.journal.append(["connection", connection.number, client.number])
        self.calls.serve(connection, unpack_request(body, BOOT), self.send)

    def send(self, connection: Connection, reply: bytes) -> None:
        """An answer goes out; some get lost on the way."""
        thread = self.world.by_connection[connection.number]
        if not thread.done:
            thread.inbox.append(reply)

    def gone(self, process: Process) -> None:
        """A client has died (server._gone)."""
        client = self.clients.pop(process.pid, None)
        if client is None:
            return
        client.gone = True
        self.k.journal.append(["client_gone", client.number])
        for connection in client.connections:
            self.connections.pop(connection.number, None)
            self.k.journal.append(["hung_up", connection.number])
        for slot in list(client.slots):
            self.slots.give_back(slot)
        self.calls.end_tasks(client)
        self.calls.release_pins()

    def take_over(self, living: Comeback, truth: Truth) -> None:
        """Go on for the clients of the last daemon (server.take_over)."""
        self.next_connection = truth.marks.get("connection", 1)
        self.next_client = truth.marks.get("client", 1)
        self.clients = {client.pid: client for client in living.clients.values()}
        self.connections = dict(living.connections)
        self.slots.recover(living.clients)
        self.calls.redo(living.connections, truth, self.send)
        for number in living.dead:
            self.k.journal.append(["client_gone", number])
        for number, owner in list(truth.connections.items()):
            if owner not in living.clients:
                self.k.journal.append(["hung_up", number])
        orphans = [pid for pid, task in self.k.tasks.items() if task.owner not in living.clients]
        self.calls.end_tasks(Client(None, 0, 0, -1, b"", tasks=set(orphans), gone=True))
        self.finishing = True

    # running

    @property
    def idle(self) -> bool:
        """Nothing is on its way."""
        return not self.p.tasks and not self.p._writes and not self.fresh  # noqa: SLF001 - the performer is ours

    def step(self) -> bool:
        """One step of a kernel task, or of a copy; tasks reach their first locks in the order in which they came.

        False: there is nothing to do.
        """
        if self.fresh:
            self.p._resume(self.fresh.popleft())  # noqa: SLF001 - as above
        elif not self.idle:
            self.p._steps = self.world.steps  # noqa: SLF001 - shootdowns are bounded by steps
            self.p._step()  # noqa: SLF001 - as above
        elif self.finishing:
            self.finishing = False
        else:
            return False
        if self.k.quarantine.entries and not self.world.draw(8):
            self.p.start("quarantine", release_quarantine(self.k))
        return True

    def hog(self) -> Generator[Any, Any, None]:
        """The swap area is full for a while."""
        with (yield from spin_lock(self.k, [SWAP_LOCK])):
            slots = get_swap_pages(self.k, self.k.nr_swap_pages)
        for _ in range(20 + self.world.draw(200)):
            yield Breathe()
        with (yield from spin_lock(self.k, [SWAP_LOCK])):
            swap_free(self.k, slots)


class FaultWorld:
    """Everything that outlives a daemon, the daemon of the moment, and what is going to happen to them."""

    def __init__(self, seed: int, profile: str, *, fenced: bool = True, faults: Sequence[str] = ()) -> None:
        self.seed = seed
        self.fenced = fenced
        #: What was met.
        self.seen: Counter[str] = Counter()
        topology = tiny(profile, seed, faults)
        self.layout = layout_of(topology)
        self.c = columns_in_memory(self.layout)
        self.book = np.zeros(JOURNAL_BYTES, np.uint8)
        self.host = Host(self)
        self.threads: list[SimThread] = []
        #: Those that have not ended.
        self.live: list[SimThread] = []
        self.processes: list[Process] = []
        #: Processes whose end the daemon has not heard of.
        self.dying: list[Process] = []
        self.by_connection: dict[int, SimThread] = {}
        self.steps = 0
        #: Performers of daemons that died: their tasks must not be closed while anybody lives.
        self.graves: list[Performer] = []
        k = Kernel(self.layout, self.c, Journal(self.book), self.host)
        k.journal.snapshot_from(k.truth)
        self.topology = topology
        self.daemon = Daemon(self, Performer(topology, seed, kernel=k, faults=True, fenced=fenced))
        for name, kind in (("/t", "tmpfs"), ("/d", "disk")):
            files.create_file(k, name, kind, 2 * PAGE)
        self.plan = sorted((self.draw(PLANNED_STEPS), self.draw(6)) for _ in range(1 + self.draw(4)))

    def draw(self, below: int) -> int:
        """The next number of the seed's sequence."""
        return self.daemon.p.draw(below)

    # -- processes -----------------------------------------------------------------------------------------------------

    def process(self, bodies: list[Body]) -> None:
        """A process with a task of its own, some memory at the usual place, and so many threads."""
        process = Process(self, 100 + len(self.processes))
        self.processes.append(process)

        def first() -> Generator[Any, Any, None]:
            born = yield ["attach", len(self.processes) % 2, ["CAP_SYS_NICE"], None]
            if born is None or (yield ["mmap", born[0], AREA // 2, PAGES * PAGE, RW, PRIVATE]) is None:
                return
            for body in bodies[1:]:
                process.thread(with_window(process, body, *born))
            yield from with_window(process, bodies[0], *born)

        process.thread(first())

    def thread(self, body: Body, pid: int, mm: int, pgd: int) -> None:
        """A forked child: a process that adopts the task (`crash_world.family` asks for it)."""
        process = Process(self, 100 + len(self.processes))
        self.processes.append(process)

        def first() -> Generator[Any, Any, None]:
            if (yield ["adopt", pid]) is not None:
                yield from with_window(process, body, pid, mm, pgd)
            else:
                self.seen["child of a dead parent"] += 1

        process.thread(first())

    def a_thread(self) -> SimThread:
        return self.live[self.draw(len(self.live))] if self.live else self.threads[0]

    # -- time ----------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """A moment of a thread, of a message, or of the daemon; or what was planned for it."""
        self.steps += 1
        assert self.steps < STEPS_MAX, f"stuck: {self.daemon.p._stuck()}"  # noqa: SLF001 - the performer is ours
        while self.plan and self.plan[0][0] <= self.steps:
            self.happen(self.plan.pop(0)[1])
        what = self.draw(8)
        if what < 4:
            self.a_thread().step()
        elif what == 4 and self.dying:
            self.daemon.gone(self.dying.pop())
        elif what == 5 or not self.daemon.step():
            self.mail()

    def mail(self) -> None:
        """A request is lost, comes, or comes and will come again."""
        senders = [thread for thread in self.threads if thread.outbox]
        if not senders or self.daemon.finishing:
            return
        thread = senders[self.draw(len(senders))]
        if self.draw(ASTRAY):
            body = thread.outbox[0]
            if self.draw(ASTRAY):
                thread.outbox.popleft()
            else:
                self.seen["requests twice"] += 1
            self.daemon.receive(thread, body)
        else:
            self.seen["requests lost"] += 1
            thread.outbox.popleft()

    def happen(self, what: int) -> None:
        """Something bad."""
        living = [process for process in self.processes if process.alive]
        match what:
            case 0 | 1:
                self.seen["daemons died"] += 1
                self.daemon_dies()
            case 2 | 3 if living:
                self.seen["clients died"] += 1
                victim = living[self.draw(len(living))]
                self.seen["died with a window open"] += bool(
                    [t for t in victim.threads if not t.done and self.in_window(t)]
                )
                victim.die()
            case 4 if living:
                self.seen["clients stopped"] += 1
                living[self.draw(len(living))].stopped_until = self.steps + 100 + self.draw(600)
            case _:
                self.seen["swap full"] += 1
                self.daemon.p.start("hog", self.daemon.hog())

    def in_window(self, thread: SimThread) -> bool:
        client = self.daemon.clients.get(thread.process.pid)
        return client is not None and any(int(self.c.window[slot]) & 1 for slot in client.slots)

    # -- a death of the daemon -----------------------------------------------------------------------------------------

    def daemon_dies(self) -> None:
        """Copies on their way end somewhere; clients go on, or die, too; the next daemon recovers."""
        before = self.daemon.p
        for write in before._writes:  # noqa: SLF001 - the performer is ours
            area, rows = self.c.area(write.slots)
            copy_part(area, rows, self.c.frames, write.pfns, self.draw)
        self.host.daemon.clear()
        self.host.tried.clear()
        for _ in range(self.draw(12)):
            self.a_thread().step()
        living_processes = [process for process in self.processes if process.alive]
        if not self.draw(4) and living_processes:
            self.seen["clients died with the daemon"] += 1
            living_processes[self.draw(len(living_processes))].die()
        living = living_clients(Journal(self.book).replay())
        void_slots_of_the_dead(self.c, living)
        k, truth = recover(self.layout, self.c, Journal(self.book), self.host, self._wait)
        self.graves.append(before)
        after = Performer(self.topology, self.seed, kernel=k, faults=True, fenced=self.fenced)
        after._state, after._steps = before._state, self.steps  # noqa: SLF001 - the sequence goes on
        after.copies_cut = before.copies_cut
        self.daemon = Daemon(self, after)
        self.dying.clear()
        self.daemon.take_over(living, truth)
        resume(k)

    def pidfd(self, pid: int, _began: int) -> int | None:
        """Whether a process lives; in place of the host's word."""
        process = self.processes[pid - 100]
        return 0 if process.alive else None

    def _wait(self) -> dict[int, int]:
        """Windows close, or take too long: of the dead, and now and then of one that lives."""
        if not self.fenced:
            while self.host.tables:
                self.steps += 1
                self.a_thread().step()
            return {}
        everybody = frozenset(int(mm) - 1 for mm in self.c.window_mm[self.c.window_mm > 0])
        waiting = open_windows(self.daemon.k, everybody)
        for _ in range(60 + self.draw(400)):
            waiting = {slot: counter for slot, counter in waiting.items() if int(self.c.window[slot]) == counter}
            if not waiting:
                break
            self.steps += 1
            self.a_thread().step()
        self.seen["stragglers of a recovery"] += len(waiting)
        return waiting

    # -- the end -------------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Bring the daemon to rest, threads going on, and look at everything."""
        while not self.daemon.idle:
            self.steps += 1
            assert self.steps < STEPS_MAX, f"stuck: {self.daemon.p._stuck()}"  # noqa: SLF001 - as above
            if self.draw(2):
                self.a_thread().step()
            else:
                self.daemon.step()
        assert fsck(self.daemon.k) == []

    def run(self) -> None:
        """To the end of all threads; then everybody leaves, and nothing is left."""
        checks = sorted(self.draw(PLANNED_STEPS) for _ in range(2))
        while self.live:
            self.step()
            if checks and checks[0] <= self.steps:
                checks.pop(0)
                self.rest()
        self.rest()
        for process in self.processes:
            process.alive = False
            self.daemon.gone(process)
        self.rest()
        k = self.daemon.k
        while k.quarantine.entries:
            self.daemon.p.call(release_quarantine(k))
        # What was being written when its last user left stays cached until reclaim meets it.
        self.daemon.p.call(try_to_free_pages(k, sorted(k.zones), None, self.layout.frame_count))
        self.rest()
        assert fsck(k) == []
        assert not k.tasks
        assert not k.mms
        used = np.flatnonzero((self.c.free_state == ALLOCATED) & (self.c.mapping & PAGE_MAPPING_FILE == 0))
        slots = self.c.private[used]  # pages of a tmpfs file may be in the swap cache
        assert (self.c.slot_mapping[slots] > 0).all()
        assert (self.c.pg_flags[used] & PG_SWAPCACHE != 0).all()
        assert np.array_equal(self.c.swap_count > 0, (self.c.slot_mapping > 0) | (k.slot_frame >= 0))
        self.seen["copies cut"] += self.daemon.p.copies_cut
        self.seen.update(k.strikes.counts())

    def close(self) -> None:
        """Let go of everything."""
        for performer in [*self.graves, self.daemon.p]:
            performer.close()
        for thread in self.threads:
            thread.story.close()


def with_window(process: Process, body: Body, pid: int, mm: int, pgd: int) -> Generator[Any, Any, None]:
    """A thread that touches the memory of a task: it asks for an access slot, and begins."""
    slot = yield ["window", pid]
    if slot is not None:
        touch = Touch(process, slot, pid, mm, pgd)
        yield from body(touch)


class Touch(Memory):
    """What a thread does with the memory of its task; where there are no fences, under pte locks."""

    def __init__(self, process: Process, slot: int, pid: int, mm: int, pgd: int) -> None:
        super().__init__(process.world, slot, pid, pgd)  # type: ignore[arg-type]  # a world of another kind
        self.process = process
        self.mm = mm
        self.host = process.world.host

    def access(self, addr: int, value: int | None) -> Generator[Any, Any, list[int] | None]:
        """Read a page, or write a value all over it; its first and last byte, None if it was refused."""
        if self.process.world.fenced:
            return (yield from super().access(addr, value))
        while True:
            seen = yield from self._locked(addr, value)
            if seen is not None:
                return seen
            if (yield ["fault", self.pid, addr, 1, value is not None]) is None:
                return None

    def _locked(self, addr: int, value: int | None) -> Generator[Any, Any, list[int] | None]:
        c, rights = self.process.world.c, PTE_PRESENT | PTE_READABLE | (0 if value is None else PTE_WRITABLE)
        flat = self._pte(addr // PAGE)
        if flat < 0 or not (yield from self._lock(flat >> 9)):
            return None
        seen = None
        flat_now = self._pte(addr // PAGE)
        entry = int(c.pte[flat_now]) if flat_now == flat else 0
        yield None
        if entry & rights == rights:
            c.accessed[flat] = 1
            frame = c.frames[entry // PAGE]
            if value is not None:
                c.dirty[flat] = 1
                yield None
                frame[: PAGE // 2] = value
                yield None
                frame[PAGE // 2 :] = value
                seen = [value, value]
            else:
                yield None
                seen = [int(frame[0]), int(frame[-1])]
        self.host.unlock_table(flat >> 9)
        return seen

    def _lock(self, table: int) -> Generator[Any, Any, bool]:
        """The pte lock of a table; the calling thread runs when it has it."""
        for _ in range(50):
            if table not in self.host.tables:
                self.host.tables[table] = self._me()
                return True
            yield None
        return False

    def _me(self) -> SimThread:
        return next(thread for thread in self.process.threads if thread.story.gi_running)  # type: ignore[attr-defined]  # a generator's

    def write_pinned(self, addr: int, value: int) -> Generator[Any, Any, bool]:
        """Pin a page as `numaemu.pin` does, write to its frame a while later; True if it was written."""
        c = self.process.world.c
        if (yield ["fault", self.pid, addr, 1, True]) is None:
            return False
        epoch = int(c.mm_epoch[self.mm])
        if self.host.daemon.get(self.mm) is Mode.WRITE:
            return False
        readers = self.host.readers.setdefault(self.mm, set())
        readers.add(self._me())
        yield None
        pfn = yield from self._record(addr)
        readers.discard(self._me())
        yield None
        wrote = pfn is not None and int(c.mm_epoch[self.mm]) == epoch
        if wrote:
            for _ in range(self.draw(40)):
                yield None
            c.frames[pfn] = value
            yield None
        if pfn is not None:
            c.pin_count[self.slot] = 0
            yield ["unpinned", self.pid]
        return wrote

    def _record(self, addr: int) -> Generator[Any, Any, int | None]:
        c = self.process.world.c
        flat = self._pte(addr // PAGE)
        if flat < 0 or not (yield from self._lock(flat >> 9)):
            return None
        entry = int(c.pte[flat])
        for _ in range(self.draw(4) if self.draw(40) else 300):
            yield None
        there = entry & (PTE_PRESENT | PTE_WRITABLE) == PTE_PRESENT | PTE_WRITABLE
        if there:
            c.pins[self.slot, 0] = entry // PAGE + 1
            c.pin_count[self.slot] = 1
            yield None
            c.dirty[flat] = 1
        self.host.unlock_table(flat >> 9)
        return entry // PAGE if there else None

    def leave(self) -> None:
        """Its slot goes with its task."""


def pinner(base: int) -> Body:
    """A page of its own that is written through pins, evicted, and read."""

    def body(m: Touch) -> Thread:
        if (yield ["mmap", m.pid, base, PAGE, RW, PRIVATE]) != base:
            return
        value = 0
        for turn in range(4):
            if (yield from m.write_pinned(base, turn + 1)):
                value = turn + 1
            yield from m.check(base, value)
            if not m.draw(2):
                yield ["madvise", m.pid, base, PAGE, MADV_PAGEOUT]

    return body


def churn(base: int, steps: int) -> Body:
    """Moves, evicts and protects pages under everybody's feet."""

    def body(m: Touch) -> Thread:
        for _ in range(steps):
            start, length = base + m.draw(PAGES) * PAGE, (1 + m.draw(PAGES)) * PAGE
            match m.draw(9):
                case 0 | 1:
                    mode = MPOL_BIND if m.draw(2) else MPOL_INTERLEAVE
                    flags = MPOL_MF_MOVE | (MPOL_MF_STRICT if m.draw(2) else 0)
                    yield ["mbind", m.pid, start, length, mode, [1 + m.draw(3)], 65, flags]
                case 2:
                    yield ["madvise", m.pid, start, length, MADV_PAGEOUT]
                case 3:
                    yield ["mprotect", m.pid, start, length, 1]
                    yield ["mprotect", m.pid, start, length, RW]
                case 4:
                    victim = 1 + m.draw(4)
                    yield ["migrate_pages", m.pid, victim, 65, [1 + m.draw(3)], [1 + m.draw(3)]]
                case 5:
                    pages = list(range(start, start + length, PAGE))
                    targets = [m.draw(2) for _ in pages]
                    yield ["move_pages", m.pid, 0, len(pages), pages, targets, MPOL_MF_MOVE, True]
                case 6:
                    end = yield ["brk", m.pid, 0]
                    if end is None or (yield ["brk", m.pid, end + 2 * PAGE]) != end + 2 * PAGE:
                        return
                    yield ["fault", m.pid, end, 2 * PAGE, True]
                    yield ["mlock", m.pid, end, PAGE]
                    assert (yield ["brk", m.pid, end]) == end
                case 7:
                    yield ["madvise", m.pid, base, PAGES * PAGE, MADV_PAGEOUT]
                    yield ["fault", m.pid, base, PAGES * PAGE, bool(m.draw(2))]
                case _:
                    other = yield ["mmap", m.pid, 0, 2 * PAGE, RW, PRIVATE]
                    if other is not None:
                        yield ["fault", m.pid, other, 2 * PAGE, True]
                        yield ["madvise", m.pid, other, PAGE, MADV_DONTNEED]
                        yield ["munmap", m.pid, other, 2 * PAGE]

    return body


def tiny(profile: str, seed: int, faults: Sequence[str]) -> Topology:
    """Two nodes; with some seeds hardly enough memory. `faults` are those on demand."""
    memory = "80K" if seed % 5 == 0 else "160K"
    nodes = [{"memory": memory, "cpus": [0]}, {"memory": memory, "cpus": [1]}]
    told = {"faults": list(faults), "seed": seed}
    return from_dict({"swap": "128K", "disk": "64K", "profile": profile, "min_free_kbytes": 0, "node": nodes, **told})


def run_faults(seed: int, faults: Sequence[str] = ()) -> Counter[str]:
    """One machine, one seed, and faults on demand beside all others; gives what it met."""
    world = FaultWorld(seed, PROFILES[seed % 3], fenced=seed % 7 != 0, faults=faults)
    base = AREA // 2
    for number in range(2):
        bodies: list[Any] = [family(base), churn(base, 3), mover if number else filer("/t", 0), filer("/d", number)]
        world.process([*bodies, pinner(AREA // 4)])
    try:
        with patch.object(comeback, "_same_process", world.pidfd), patch.object(pidfd, "started_at", lambda _pid: 0):
            world.run()
    except PeerError as error:  # a request that the harness has made wrong
        raise AssertionError from error
    finally:
        world.close()
    return world.seen
