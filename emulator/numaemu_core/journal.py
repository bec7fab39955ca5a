"""The journal: what VMAs, policies, mms and tasks are, in shared memory, so that a new daemon finds them.

Two halves; one is written, and when it is full a snapshot of everything opens the other. A record is a length word, a
sequence word and a msgpack body; the sequence word is stored last, so that a record that was being written when the
daemon died is not there. Records are states, not changes: applying one twice does no harm.

    ["intent", connection, request, name, args]   a mutating call begins
    ["note", connection, request, value]          what it has chosen or done, for whoever runs it again
    ["vmas", mm, start, end, rows]                the VMAs that overlap [start, end) are now these, whole
    ["mm", mm, fields] / ["mm_gone", mm]          an address space
    ["task", pid, fields] / ["task_gone", pid]    a task
    ["file", id, fields] / ["file_gone", id]      an object that pages belong to
    ["policy", id, start, end, policy]            pages [start, end) of an object have this policy, or none
    ["done", connection, request, reply]          a mutating call is over; its answer may be sent
    ["fatal", connection, request, deaths]        the daemon dies of this call, as others before it may have
    ["hung_up", connection]                       its client is gone
    ["client", number, fields] / ["client_gone", number]    a process that uses the machine
    ["connection", number, client]                one of its threads
    ["weights", weights]                          of weighted interleaving, by node
    ["marks", numbers]                            numbers that were given before and are given no more
    ["together", records]                         all of these, or none

Faults, aging and eviction are not in it: their truth is the identity of the frame and the entry of the page table.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import numpy as np

from numaemu_core.columns import U1
from numaemu_core.errors import BugError, MmError
from numaemu_core.mm_types import AddressSpace, FileKind, Mm, Task, VmArea
from numaemu_core.page_flags import PAGE_MAPPING_FILE
from numaemu_core.shared_policy import Mempolicy, set_range

_WORD: Final = 8
_HEADER: Final = 2 * _WORD
#: Where a VMA's row says of which copy of its anon_vma it is.
_CLONE: Final = 7
#: And of which opening of its file.
_OPENING: Final = 8
#: Head of the journal: number of the half in use.
_PREFIX: Final = 64
#: What the daemon keeps of its clients and their calls; the rest is told by the live objects.
_OF_CALLS: Final = frozenset({"intent", "note", "done", "fatal", "hung_up", "client", "client_gone", "connection"})
_OF_THE_MACHINE: Final = frozenset({"file", "file_gone", "policy", "weights", "marks"})

#: msgpack's type of a number that does not fit one word: a set of nodes with ids from 64 on.
_WIDE: Final = 1

Row = list[Any]


@dataclass(slots=True)
class Truth:
    """What the journal says: enough to rebuild every task, mm, VMA and policy."""

    tasks: dict[int, Row] = field(default_factory=dict)
    mms: dict[int, Row] = field(default_factory=dict)
    vmas: dict[int, list[Row]] = field(default_factory=dict)
    files: dict[int, Row] = field(default_factory=dict)
    #: Shared policies by object: (first page, end, policy).
    policies: dict[int, list[tuple[int, int, Row]]] = field(default_factory=dict)
    #: Last request of each connection: [request, name and args, or None once done, reply].
    calls: dict[int, Row] = field(default_factory=dict)
    #: What the call on its way on a connection has noted, if it is not done.
    notes: dict[int, Any] = field(default_factory=dict)
    #: The last call of each connection of which a daemon has died, and how many have: [request, deaths].
    fatal: dict[int, Row] = field(default_factory=dict)
    clients: dict[int, Row] = field(default_factory=dict)
    #: The client of each connection.
    connections: dict[int, int] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    #: The next number of each kind ("pid", "object", …), as far as it is known.
    marks: dict[str, int] = field(default_factory=dict, compare=False)

    def apply(self, record: Row) -> None:
        """One record on top of the state so far."""
        match record:
            case ["together", records]:
                for one in records:
                    self.apply(one)
            case [str(verb), *_] if verb in _OF_CALLS:
                self._apply_of_calls(record)
            case ["vmas", mm, start, end, rows]:
                kept = [row for row in self.vmas.get(mm, []) if row[1] <= start or row[0] >= end]
                self.vmas[mm] = sorted([*kept, *rows], key=lambda row: row[0])
                self._mark("anon_vma", max((row[5] + 1 for row in rows if row[5] is not None), default=0))
                self._mark("clone", max((row[_CLONE] for row in rows if len(row) > _CLONE), default=0))
                self._mark("opening", max((row[_OPENING] for row in rows if len(row) > _OPENING), default=0))
            case ["mm", mm, fields]:
                self.mms[mm] = fields
                self.vmas.setdefault(mm, [])
            case ["mm_gone", mm]:
                self.mms.pop(mm, None)
                self.vmas.pop(mm, None)
            case ["task", pid, fields]:
                self.tasks[pid] = fields
                self._mark("pid", pid + 1)
            case ["task_gone", pid]:
                self.tasks.pop(pid, None)
            case [str(verb), *_] if verb in _OF_THE_MACHINE:
                self._apply_of_the_machine(record)
            case _:
                message = f"a journal record that nobody knows: {record!r}"
                raise BugError(message)

    def _apply_of_the_machine(self, record: Row) -> None:
        match record:
            case ["file", number, fields]:
                self.files[number] = fields
                self._mark("object", (number & ~PAGE_MAPPING_FILE) + 1)
                if fields[0] == FileKind.ANON_SHARED:
                    self._mark("anon_ino", fields[2])
            case ["file_gone", number]:
                self.files.pop(number, None)
                self.policies.pop(number, None)
            case ["policy", number, start, end, policy]:
                self._set_policy(number, start, end, policy)
            case ["weights", weights]:
                self.weights = weights
            case ["marks", numbers]:
                for name, number in numbers.items():
                    self._mark(name, number)
            case _:
                raise BugError(f"a journal record of another shape: {record!r}")

    def _apply_of_calls(self, record: Row) -> None:
        match record:
            case ["intent", connection, request, name, args]:
                self.calls.pop(connection, None)  # in the order in which they began
                self.calls[connection] = [request, [name, args], None]
                self.notes.pop(connection, None)
            case ["note", connection, _, value]:
                self.notes[connection] = value
            case ["done", connection, request, reply]:
                self.calls[connection] = [request, None, reply]
                self.notes.pop(connection, None)
                self.fatal.pop(connection, None)
            case ["fatal", connection, request, deaths]:
                self.fatal[connection] = [request, deaths]
            case ["hung_up", connection]:
                for of_connections in (self.calls, self.notes, self.fatal, self.connections):
                    of_connections.pop(connection, None)
            case ["client", number, fields]:
                self.clients[number] = fields
                self._mark("client", number + 1)
            case ["client_gone", number]:
                self.clients.pop(number, None)
            case ["connection", number, client]:
                self.connections[number] = client
                self._mark("connection", number + 1)
            case _:
                raise BugError(f"a journal record of another shape: {record!r}")

    def _mark(self, name: str, number: int) -> None:
        self.marks[name] = max(self.marks.get(name, 0), number)

    def _set_policy(self, number: int, start: int, end: int, policy: Row | None) -> None:
        """Another policy for some pages of an object; an object without any is not listed."""
        ranges = set_range(self.policies.pop(number, []), start, end, policy)
        if ranges:
            self.policies[number] = ranges

    def records(self) -> Iterable[Row]:
        """Records that make this state from nothing: a snapshot."""
        for number, fields in self.files.items():
            yield ["file", number, fields]
            for start, end, policy in self.policies.get(number, []):
                yield ["policy", number, start, end, policy]
        for mm, fields in self.mms.items():
            yield ["mm", mm, fields]
            yield ["vmas", mm, 0, 1 << 63, self.vmas.get(mm, [])]
        for pid, fields in self.tasks.items():
            yield ["task", pid, fields]
        if self.weights:
            yield ["weights", self.weights]
        yield from self._records_of_calls()
        if self.marks:
            yield ["marks", self.marks]

    def _records_of_calls(self) -> Iterable[Row]:
        for number, fields in self.clients.items():
            yield ["client", number, fields]
        for number, client in self.connections.items():
            yield ["connection", number, client]
        for connection, (request, call, reply) in self.calls.items():
            if call is None:
                yield ["done", connection, request, reply]
            else:
                yield ["intent", connection, request, *call]
                if connection in self.notes:
                    yield ["note", connection, request, self.notes[connection]]
        for connection, (request, deaths) in self.fatal.items():
            yield ["fatal", connection, request, deaths]


class Journal:
    """Appends records to shared memory; `buffer` is two halves behind a prefix."""

    def __init__(self, buffer: U1) -> None:
        """Over a buffer of zeros: an empty journal."""
        self._bytes = buffer
        self._half_bytes = (len(buffer) - _PREFIX) // 2
        assert self._half_bytes % _WORD == 0
        self._half = 0
        self._at = _PREFIX
        self._sequence = 1
        #: Where a snapshot of tasks and mms comes from; calls on their way are kept here.
        self._truth: Callable[[], Truth] = Truth
        self._calls = Truth()
        #: Records of a `together` that is not over yet.
        self._held: list[Row] | None = None

    def snapshot_from(self, truth: Callable[[], Truth]) -> None:
        """Where a snapshot of the live state comes from when a half is full."""
        self._truth = truth

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is appended within is one record: after a crash all of it is there, or nothing. No yield within.

        A call that is refused within keeps what it had written; a failure of this process itself keeps nothing.
        """
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        except MmError:
            self._append_held()
            raise
        except BaseException:
            self._held = None
            raise
        self._append_held()

    def _append_held(self) -> None:
        records, self._held = self._held, None
        if records:
            self.append(records[0] if len(records) == 1 else ["together", records])

    def append(self, record: Row) -> None:
        """Write a record; open the other half with a snapshot when this one is full."""
        if self._held is not None:
            self._held.append(record)
            return
        body = packed_record(record)
        for one in record[1] if record[0] == "together" else [record]:
            if one[0] in _OF_CALLS:
                self._calls.apply(one)
        if self._at + _HEADER + len(body) + _HEADER > _PREFIX + (self._half + 1) * self._half_bytes:
            self._turn()
        self._write(body)

    def _turn(self) -> None:
        """Go over to the other half: the snapshot first, the prefix last."""
        truth = self._truth()
        of_calls = self._calls
        truth.calls, truth.notes, truth.fatal = of_calls.calls, of_calls.notes, of_calls.fatal
        truth.clients, truth.connections = of_calls.clients, of_calls.connections
        truth.marks = {**of_calls.marks, **truth.marks}
        self._half = 1 - self._half
        self._at = _PREFIX + self._half * self._half_bytes
        self._sequence += 1 << 32
        # What the half held two turns ago must not be taken for what comes now.
        self._bytes[self._at : self._at + _HEADER] = 0
        for record in truth.records():
            self._write(packed_record(record))
        self._bytes[:_WORD].view(np.uint64)[0] = self._half

    def _write(self, body: bytes) -> None:
        size = _HEADER + -(-len(body) // _WORD) * _WORD
        if self._at + size + _HEADER > _PREFIX + (self._half + 1) * self._half_bytes:
            message = "the state of the machine does not fit into half a journal"
            raise BugError(message)
        head = self._bytes[self._at : self._at + size + _HEADER].view(np.uint64)
        head[size // _WORD + 1] = 0  # the next record is not there yet
        self._bytes[self._at + _HEADER : self._at + _HEADER + len(body)] = np.frombuffer(body, np.uint8)
        head[0] = len(body)
        head[1] = self._sequence
        self._sequence += 1
        self._at += size

    def reopen(self) -> Truth:
        """Go on behind what a daemon that died has written; gives the state that its records tell."""
        truth = self.replay(go_on=True)
        self._calls = Truth(
            calls=truth.calls,
            notes=truth.notes,
            fatal=truth.fatal,
            clients=truth.clients,
            connections=truth.connections,
            marks=truth.marks,
        )
        return truth

    def compact(self) -> None:
        """Open the other half with a snapshot of the live state."""
        self._turn()

    def replay(self, *, go_on: bool = False) -> Truth:
        """The state that the records in shared memory give: what a new daemon would begin with.

        `go_on`: later records follow these.
        """
        half = int(self._bytes[:_WORD].view(np.uint64)[0])
        at = _PREFIX + half * self._half_bytes
        truth = Truth()
        expected = 0
        while True:
            length, sequence = self._bytes[at : at + _HEADER].view(np.uint64).tolist()
            if not sequence or (expected and sequence != expected):
                if go_on:
                    self._half, self._at, self._sequence = half, at, expected or 1
                return truth
            body = self._bytes[at + _HEADER : at + _HEADER + length].tobytes()
            truth.apply(msgpack.unpackb(body, strict_map_key=False, ext_hook=_wide_number))
            at += _HEADER + -(-length // _WORD) * _WORD
            expected = sequence + 1

    # -- records of live objects ---------------------------------------------------------------------------------------

    def vmas(self, mm: Mm, start: int, end: int) -> None:
        """The VMAs of an mm over [start, end) have changed.

        The neighbours are told, too: what a split leaves outside of the range is one.
        """
        rows = [vma_row(vma) for vma in mm.vmas.overlapping(max(start - 1, 0), end + 1)]
        low = min([start, *(row[0] for row in rows)])
        high = max([end, *(row[1] for row in rows)])
        self.append(["vmas", mm.id, low, high, rows])

    def mm(self, mm: Mm) -> None:
        """An mm was made or its fields changed."""
        self.append(["mm", mm.id, mm_row(mm)])

    def file(self, mapping: AddressSpace) -> None:
        """An object was made or its fields changed."""
        self.append(["file", mapping.id, file_row(mapping)])

    def policy(self, mapping: AddressSpace, start: int, end: int, policy: Mempolicy | None) -> None:
        """Pages [start, end) of an object have another policy."""
        self.append(["policy", mapping.id, start, end, policy_row(policy)])

    def fatal(self, connection: int, request: int) -> None:
        """The daemon is about to die of that call."""
        last, deaths = self._calls.fatal.get(connection, (request, 0))
        self.append(["fatal", connection, request, deaths + 1 if last == request else 1])

    def task(self, task: Task) -> None:
        """A task was made or its fields changed."""
        self.append(["task", task.pid, task_row(task)])


def vma_row(vma: VmArea) -> Row:
    """A VMA as plain data: [start, end, flags, pgoff, policy, anon_vma, file, anon_clone, opening]."""
    file = None if vma.vm_file is None else vma.vm_file.id
    policy = policy_row(vma.vm_policy)
    which = [vma.anon_vma, file, vma.anon_clone, vma.opening]
    return [vma.vm_start, vma.vm_end, vma.vm_flags, vma.vm_pgoff, policy, *which]


def file_row(mapping: AddressSpace) -> Row:
    """An object as plain data: [kind, name, i_ino, i_size, disk_start, uid, kept_as, mirrored].

    Frames tell of its pages.
    """
    whose = [mapping.uid, mapping.kept_as, mapping.mirrored]
    return [mapping.kind.value, mapping.name, mapping.i_ino, mapping.i_size, mapping.disk_start, *whose]


def packed_record(record: Row) -> bytes:
    """A record as bytes; sets of nodes may be wider than a word."""
    body: bytes = msgpack.packb(record, default=_as_wide)
    return body


def _as_wide(value: object) -> msgpack.ExtType:
    """What msgpack does not know: numbers of more than one word."""
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} in a record of the journal")
    return msgpack.ExtType(_WIDE, value.to_bytes((value.bit_length() + 7) // 8, "little"))


def _wide_number(kind: int, data: bytes) -> int:
    """And back."""
    assert kind == _WIDE
    return int.from_bytes(data, "little")


def policy_row(policy: Mempolicy | None) -> Row | None:
    """A policy as plain data: [mode, nodes, preferred, flags, user_nodes, home_node, cpuset_nodes].

    Masks are bytes, because they may be wider than a word.
    """
    if policy is None:
        return None
    masks = (policy.nodes, policy.user_nodes, policy.cpuset_nodes)
    nodes, user, cpuset = (mask.to_bytes((mask.bit_length() + 7) // 8, "little") for mask in masks)
    return [policy.mode, nodes, policy.preferred, policy.flags, user, policy.home_node, cpuset]


def policy_of_row(row: Row | None) -> Mempolicy | None:
    """The policy that `policy_row` made plain."""
    if row is None:
        return None
    mode, nodes, preferred, flags, user, home_node, cpuset = row
    masks = [int.from_bytes(mask, "little") for mask in (nodes, user, cpuset)]
    return Mempolicy(mode, masks[0], preferred, flags, masks[1], home_node, masks[2])


def mm_row(mm: Mm) -> Row:
    """An mm as plain data: [pgd, start_brk, brk, def_flags, mirrored]."""
    return [mm.pgd, mm.start_brk, mm.brk, mm.def_flags, mm.mirrored]


def task_row(task: Task) -> Row:
    """A task as plain data.

    [mm, cpu, capabilities, policy, il_next, mems_allowed, cpuset, il_prev, il_weight, uid, dumpable, rlimit_memlock,
    rlimit_as, parent, killed, owner]
    """
    capabilities = sorted(task.capabilities)
    interleave = [task.il_next, task.mems_allowed, task.cpuset, task.il_prev, task.il_weight]
    limits = [task.rlimit_memlock, task.rlimit_as]
    rest = [task.uid, task.dumpable, *limits, task.parent, task.killed, task.owner]
    return [task.mm.id, task.cpu, capabilities, policy_row(task.policy), *interleave, *rest]


def truth_of(tasks: Iterable[Task], mms: Iterable[Mm], objects: Iterable[AddressSpace]) -> Truth:
    """The live state in the form that a replay gives."""
    truth = Truth(tasks={task.pid: task_row(task) for task in tasks})
    for mapping in objects:
        truth.files[mapping.id] = file_row(mapping)
        for start, end, policy in mapping.policy.ranges:
            truth.policies.setdefault(mapping.id, []).append((start, end, policy_row(policy) or []))
    for mm in mms:
        truth.mms[mm.id] = mm_row(mm)
        truth.vmas[mm.id] = [vma_row(vma) for vma in mm.vmas]
    return truth
