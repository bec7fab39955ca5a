"""The journal: what VMAs, policies, mms and tasks are, in shared memory, so that a new daemon finds them.

Two halves; one is written, and when it is full a snapshot of everything opens the other. A record is a length word, a
sequence word and a msgpack body; the sequence word is stored last, so that a record that was being written when the
daemon died is not there. Records are states, not changes: applying one twice does no harm.

    ["intent", connection, request, name, args]   a mutating call begins
    ["vmas", mm, start, end, rows]                the VMAs that overlap [start, end) are now these, whole
    ["mm", mm, fields] / ["mm_gone", mm]          an address space
    ["task", pid, fields] / ["task_gone", pid]    a task
    ["file", id, fields] / ["file_gone", id]      an object that pages belong to
    ["policy", id, start, end, policy]            pages [start, end) of an object have this policy, or none
    ["done", connection, request, reply]          a mutating call is over; its answer may be sent
    ["hung_up", connection]                       its client is gone

Faults, aging and eviction are not in it: their truth is the identity of the frame and the entry of the page table.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import numpy as np

from numaemu_core.columns import U1
from numaemu_core.errors import BugError
from numaemu_core.mm_types import AddressSpace, Mm, Task, VmArea
from numaemu_core.shared_policy import Mempolicy, set_range

_WORD: Final = 8
_HEADER: Final = 2 * _WORD
#: Head of the journal: number of the half in use.
_PREFIX: Final = 64
_OF_CALLS: Final = frozenset({"intent", "done", "hung_up"})

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

    def apply(self, record: Row) -> None:
        """One record on top of the state so far."""
        match record:
            case ["vmas", mm, start, end, rows]:
                kept = [row for row in self.vmas.get(mm, []) if row[1] <= start or row[0] >= end]
                self.vmas[mm] = sorted([*kept, *rows])
            case ["mm", mm, fields]:
                self.mms[mm] = fields
                self.vmas.setdefault(mm, [])
            case ["mm_gone", mm]:
                self.mms.pop(mm, None)
                self.vmas.pop(mm, None)
            case ["task", pid, fields]:
                self.tasks[pid] = fields
            case ["task_gone", pid]:
                self.tasks.pop(pid, None)
            case ["file", number, fields]:
                self.files[number] = fields
            case ["file_gone", number]:
                self.files.pop(number, None)
                self.policies.pop(number, None)
            case ["policy", number, start, end, policy]:
                self._set_policy(number, start, end, policy)
            case ["intent", connection, request, name, args]:
                self.calls[connection] = [request, [name, args], None]
            case ["done", connection, request, reply]:
                self.calls[connection] = [request, None, reply]
            case ["hung_up", connection]:
                self.calls.pop(connection, None)
            case _:
                message = f"a journal record that nobody knows: {record!r}"
                raise BugError(message)

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
        for connection, (request, call, reply) in self.calls.items():
            if call is None:
                yield ["done", connection, request, reply]
            else:
                yield ["intent", connection, request, *call]


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

    def snapshot_from(self, truth: Callable[[], Truth]) -> None:
        """Where a snapshot of the live state comes from when a half is full."""
        self._truth = truth

    def append(self, record: Row) -> None:
        """Write a record; open the other half with a snapshot when this one is full."""
        body = msgpack.packb(record)
        if record[0] in _OF_CALLS:
            self._calls.apply(record)
        if self._at + _HEADER + len(body) + _HEADER > _PREFIX + (self._half + 1) * self._half_bytes:
            self._turn()
        self._write(body)

    def _turn(self) -> None:
        """Go over to the other half: the snapshot first, the prefix last."""
        truth = self._truth()
        truth.calls = self._calls.calls
        self._half = 1 - self._half
        self._at = _PREFIX + self._half * self._half_bytes
        self._sequence += 1 << 32
        # What the half held two turns ago must not be taken for what comes now.
        self._bytes[self._at : self._at + _HEADER] = 0
        for record in truth.records():
            self._write(msgpack.packb(record))
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

    def replay(self) -> Truth:
        """The state that the records in shared memory give: what a new daemon would begin with."""
        half = int(self._bytes[:_WORD].view(np.uint64)[0])
        at = _PREFIX + half * self._half_bytes
        truth = Truth()
        expected = 0
        while True:
            length, sequence = self._bytes[at : at + _HEADER].view(np.uint64).tolist()
            if not sequence or (expected and sequence != expected):
                return truth
            body = self._bytes[at + _HEADER : at + _HEADER + length].tobytes()
            truth.apply(msgpack.unpackb(body, strict_map_key=False))
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
        """An object was made."""
        self.append(["file", mapping.id, file_row(mapping)])

    def policy(self, mapping: AddressSpace, start: int, end: int, policy: Mempolicy | None) -> None:
        """Pages [start, end) of an object have another policy."""
        self.append(["policy", mapping.id, start, end, policy_row(policy)])

    def task(self, task: Task) -> None:
        """A task was made or its fields changed."""
        self.append(["task", task.pid, task_row(task)])


def vma_row(vma: VmArea) -> Row:
    """A VMA as plain data: [start, end, flags, pgoff, policy, anon_vma, file]."""
    file = None if vma.vm_file is None else vma.vm_file.id
    return [vma.vm_start, vma.vm_end, vma.vm_flags, vma.vm_pgoff, policy_row(vma.vm_policy), vma.anon_vma, file]


def file_row(mapping: AddressSpace) -> Row:
    """An object as plain data: [kind, name, i_ino, i_size, disk_start]; its pages are told by their frames."""
    return [mapping.kind.value, mapping.name, mapping.i_ino, mapping.i_size, mapping.disk_start]


def policy_row(policy: Mempolicy | None) -> Row | None:
    """A policy as plain data: [mode, nodes, preferred, flags, user_nodes, home_node, cpuset_nodes].

    Masks are bytes, because they may be wider than a word.
    """
    if policy is None:
        return None
    masks = (policy.nodes, policy.user_nodes, policy.cpuset_nodes)
    nodes, user, cpuset = (mask.to_bytes((mask.bit_length() + 7) // 8, "little") for mask in masks)
    return [policy.mode, nodes, policy.preferred, policy.flags, user, policy.home_node, cpuset]


def mm_row(mm: Mm) -> Row:
    """An mm as plain data: [pgd, start_brk, brk, def_flags]."""
    return [mm.pgd, mm.start_brk, mm.brk, mm.def_flags]


def task_row(task: Task) -> Row:
    """A task as plain data: [mm, cpu, capabilities, policy, il_next, mems_allowed, cpuset, il_prev, il_weight]."""
    capabilities = sorted(task.capabilities)
    interleave = [task.il_next, task.mems_allowed, task.cpuset, task.il_prev, task.il_weight]
    return [task.mm.id, task.cpu, capabilities, policy_row(task.policy), *interleave]


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
