"""The journal: a replay gives the live state, whatever was written, and wherever the writer died."""

import contextlib
import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numaemu_core import fork, mbind, memory, mempolicy, mlock, mmap, mprotect
from numaemu_core.columns import U1
from numaemu_core.effects import KernelTask
from numaemu_core.errors import BugError, MmError
from numaemu_core.journal import Journal, Truth, policy_row
from numaemu_core.kernel import Kernel
from numaemu_core.limits import TASK_UNMAPPED_BASE
from numaemu_core.mm_types import Task
from numaemu_core.performer import Performer
from numaemu_core.shared_policy import Mempolicy
from numaemu_core.topology import uniform
from numaemu_core.uapi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MPOL_BIND, MPOL_DEFAULT, MPOL_INTERLEAVE

PAGE = 4096
SMALL = 64 + 2 * 4096
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS

Row = list[Any]


class Book:
    """A journal and a Truth that is told the same records."""

    def __init__(self, total_bytes: int, buffer: U1 | None = None) -> None:
        """Empty; `buffer` instead of memory of its own."""
        self.journal = Journal(np.zeros(total_bytes, np.uint8) if buffer is None else buffer)
        self.truth = Truth()
        self.journal.snapshot_from(lambda: copy.deepcopy(self.truth))

    def write(self, record: Row) -> None:
        self.journal.append(record)
        self.truth.apply(copy.deepcopy(record))


def mm_fields(mm_id: int) -> Row:
    return [mm_id + 1, 0x600000, 0x600000, 0]


def vma(start: int, end: int, *, flags: int = 3) -> Row:
    return [start, end, flags, start >> 12, None, None]


RECORDS: dict[str, tuple[list[Row], Truth]] = {
    "nothing": ([], Truth()),
    "mm": ([["mm", 3, mm_fields(3)]], Truth(mms={3: mm_fields(3)}, vmas={3: []})),
    "mm-gone": ([["mm", 3, mm_fields(3)], ["vmas", 3, 0, 9, [vma(0, 9)]], ["mm_gone", 3]], Truth()),
    "task": ([["task", 1, [3, 0, [], None, 0, 1]]], Truth(tasks={1: [3, 0, [], None, 0, 1]})),
    "task-gone": ([["task", 1, [3, 0, [], None, 0, 1]], ["task_gone", 1]], Truth()),
    "vmas-ascend": (
        [["vmas", 3, 8, 9, [vma(8, 9)]], ["vmas", 3, 2, 4, [vma(2, 4)]]],
        Truth(vmas={3: [vma(2, 4), vma(8, 9)]}),
    ),
    "vmas-replaced": (
        [["vmas", 3, 0, 8, [vma(0, 4), vma(4, 8)]], ["vmas", 3, 0, 8, [vma(0, 8)]]],
        Truth(vmas={3: [vma(0, 8)]}),
    ),
    "vmas-cut-out": (
        [["vmas", 3, 0, 8, [vma(0, 4), vma(4, 8)]], ["vmas", 3, 4, 8, []]],
        Truth(vmas={3: [vma(0, 4)]}),
    ),
    "policy": (
        [["policy", 7, 0, 8, ["a"]], ["policy", 7, 2, 4, ["b"]]],
        Truth(policies={7: [(0, 2, ["a"]), (2, 4, ["b"]), (4, 8, ["a"])]}),
    ),
    "policy-taken": ([["policy", 7, 0, 8, ["a"]], ["policy", 7, 0, 9, None]], Truth()),
    "policy-gone": ([["policy", 7, 0, 8, ["a"]], ["file_gone", 7]], Truth()),
    "intent": ([["intent", 5, 1, "mmap", [0, 1]]], Truth(calls={5: [1, ["mmap", [0, 1]], None]})),
    "done": (
        [["intent", 5, 1, "mmap", [0, 1]], ["done", 5, 1, b"reply"]],
        Truth(calls={5: [1, None, b"reply"]}),
    ),
    "hung-up": ([["intent", 5, 1, "mmap", [0, 1]], ["fatal", 5, 1, 1], ["hung_up", 5]], Truth()),
    "fatal": ([["fatal", 5, 1, 1], ["fatal", 5, 1, 2]], Truth(fatal={5: [1, 2]})),
    "fatal-done": ([["fatal", 5, 1, 3], ["done", 5, 1, b"EIO"]], Truth(calls={5: [1, None, b"EIO"]})),
    "hung-up-before": ([["hung_up", 5], ["mm_gone", 2], ["task_gone", 4]], Truth()),
}


@pytest.mark.parametrize(("records", "truth"), RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("times", [1, 2])
def test_records_give_the_state_they_tell(records: list[Row], truth: Truth, times: int) -> None:
    """A replay applies the records in their order; one that is written twice does no harm."""
    book = Book(1 << 16)
    for record in records:
        for _ in range(times):
            book.write(record)
    assert book.journal.replay() == truth == book.truth


def test_an_unknown_record_is_a_bug() -> None:
    """A record that nobody knows ends the process."""
    with pytest.raises(BugError, match="nobody knows"):
        Truth().apply(["vma", 1])


def test_a_snapshot_makes_the_state_from_nothing() -> None:
    """The records of a state, applied to an empty one, give the same state."""
    truth = Truth(
        tasks={1: [3, 0, ["CAP_SYS_NICE"], [MPOL_BIND, b"\x02", -1], 0, 3]},
        mms={3: mm_fields(3), 4: mm_fields(4)},
        files={7: ["tmpfs", "f", 2, 8, 0]},
        policies={7: [(0, 2, ["a"]), (4, 8, ["b"])]},
        vmas={3: [vma(0, 4), vma(8, 9, flags=1)], 4: []},
        calls={5: [1, None, b"reply"], 6: [2, ["munmap", [1, 0, 4096]], None]},
        fatal={6: [2, 1]},
    )
    again = Truth()
    for record in truth.records():
        again.apply(record)
    assert again == truth


POLICIES = {
    "default": (None, None),
    "bind": (Mempolicy(MPOL_BIND, nodes=5), [MPOL_BIND, b"\x05", -1, 0, b"", -1, b""]),
    "wide": (Mempolicy(MPOL_INTERLEAVE, nodes=1 << 63), [MPOL_INTERLEAVE, b"\0\0\0\0\0\0\0\x80", -1, 0, b"", -1, b""]),
    "prefer": (Mempolicy(1, preferred=3, cpuset_nodes=15), [1, b"", 3, 0, b"", -1, b"\x0f"]),
    "static": (
        Mempolicy(MPOL_BIND, 1, flags=1 << 15, user_nodes=17),
        [MPOL_BIND, b"\1", -1, 1 << 15, b"\x11", -1, b""],
    ),
    "home": (Mempolicy(MPOL_BIND, nodes=3, home_node=2), [MPOL_BIND, b"\3", -1, 0, b"", 2, b""]),
}


@pytest.mark.parametrize(("policy", "row"), POLICIES.values(), ids=POLICIES)
def test_policies_are_plain_data(policy: Mempolicy | None, row: Row | None) -> None:
    """A policy is its fields, masks as bytes."""
    assert policy_row(policy) == row


# -- torn records ------------------------------------------------------------------------------------------------------


def test_a_torn_record_is_not_there() -> None:
    """A record whose sequence word was not stored ends the replay, whatever else of it is there."""
    book = Book(1 << 12)
    book.write(["mm", 1, mm_fields(1)])
    before = copy.deepcopy(book.truth)
    sequence = book.journal._at + 8  # noqa: SLF001 - the bytes are what is torn
    book.write(["mm", 2, mm_fields(2)])
    assert book.journal._bytes[sequence : sequence + 8].any()  # noqa: SLF001 - as above
    book.journal._bytes[sequence : sequence + 8] = 0  # noqa: SLF001 - as above
    assert book.journal.replay() == before


class Died(Exception):
    """The writer is gone."""


class Fragile(np.ndarray[tuple[int, ...], np.dtype[np.uint8]]):
    """Bytes whose writer dies before a store of a given number."""

    stores_left: int = -1

    def __setitem__(self, key: Any, value: Any) -> None:  # noqa: ANN401 - as numpy has it
        """One store, or death."""
        if Fragile.stores_left == 0:
            raise Died
        Fragile.stores_left -= 1
        super().__setitem__(key, value)


def die_at_every_store(history: list[Row], last: Row) -> int:
    """Write `last` with a death before each of its stores: the old or the new state is there; gives the deaths."""
    deaths = 0
    while True:
        Fragile.stores_left = -1
        book = Book(0, np.zeros(SMALL, np.uint8).view(Fragile))
        for record in history:
            book.write(record)
        before = copy.deepcopy(book.truth)
        Fragile.stores_left = deaths
        try:
            book.write(last)
        except Died:
            deaths += 1
        else:
            break
        Fragile.stores_left = -1
        after = copy.deepcopy(before)
        after.apply(last)
        assert book.journal.replay() in (before, after), f"died after {deaths - 1} stores"
    Fragile.stores_left = -1
    assert book.journal.replay() == book.truth
    return deaths


def states(count: int) -> list[Row]:
    """Records that fill a half after 113 of them, with a state that stays small."""
    return [["mm", i % 3, mm_fields(i)] for i in range(count)]


def calls(count: int) -> list[Row]:
    """Records after which nothing is left to tell."""
    return [record for i in range(count) for record in (["intent", 1, i, "brk", [1, i]], ["hung_up", 1])]


def first_turn(make: Callable[[int], list[Row]]) -> int:
    """How many records of a kind fit before the other half is opened."""
    book = Book(SMALL)
    for count, record in enumerate(make(1000)):
        book.write(record)
        if book.journal._bytes[:8].any():  # noqa: SLF001 - the prefix names the half
            return count
    raise AssertionError("it never turned")


@pytest.mark.parametrize("make", [states, calls], ids=["states", "calls"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_death_between_any_two_stores_loses_nothing(make: Callable[[int], list[Row]], turns: int) -> None:
    """Wherever the writer dies, in a record or in the turn to the other half, the replay gives the old or new state."""
    first = first_turn(make)
    records = make(1000)
    if not turns:
        assert die_at_every_store(records[:7], records[7]) == 4
        return
    book = Book(SMALL)
    half, turned, at = 0, 0, 0
    while turned < turns:
        book.write(records[at])
        now = int(book.journal._bytes[0])  # noqa: SLF001 - the prefix names the half
        turned += now != half
        half, at = now, at + 1
    assert at > first
    assert die_at_every_store(records[: at - 1], records[at - 1]) > 4


def test_a_death_in_a_turn_does_not_bring_back_what_is_gone() -> None:
    """A turn with nothing to tell leaves nothing: not what the same half said two turns ago."""
    book = Book(SMALL)
    history: list[Row] = [["mm", 0, mm_fields(0)]]
    book.write(history[0])
    for half in (1, 0):
        while True:
            book.write(record := ["hung_up", 1])
            history.append(record)
            if int(book.journal._bytes[0]) == half:  # noqa: SLF001 - the prefix names the half
                break
        if half:
            book.write(record := ["mm_gone", 0])
            history.append(record)
    assert die_at_every_store(history[:-1], history[-1]) > 4


# -- the halves --------------------------------------------------------------------------------------------------------


def test_a_full_half_is_followed_by_a_snapshot_in_the_other() -> None:
    """The state outlives many turns of the halves, and the record that caused a turn is not lost."""
    book = Book(SMALL)
    halves = []
    for record in states(1500):
        book.write(record)
        assert book.journal.replay() == book.truth
        halves.append(int(book.journal._bytes[0]))  # noqa: SLF001 - the prefix names the half
    assert set(halves) == {0, 1}
    assert sum(left != right for left, right in itertools.pairwise(halves)) > 10


def test_calls_outlive_a_turn() -> None:
    """What a connection asked last, and the answer, is in the snapshot although it is no part of the live state."""
    journal = Journal(np.zeros(SMALL, np.uint8))
    journal.append(["intent", 1, 7, "mmap", [1, 0, 4096]])
    journal.append(["done", 2, 9, b"the answer"])
    for i in range(500):
        journal.append(["task_gone", i])
    assert journal.replay().calls == {1: [7, ["mmap", [1, 0, 4096]], None], 2: [9, None, b"the answer"]}


def test_a_state_too_large_for_a_half_is_a_bug() -> None:
    """A snapshot that does not fit ends the process instead of losing something."""
    book = Book(64 + 2 * 512)

    def fill() -> None:
        for i in range(100):
            book.write(["mm", i, mm_fields(i)])

    with pytest.raises(BugError, match="does not fit into half a journal"):
        fill()


@pytest.mark.parametrize("half_bytes", range(1024, 1024 + 64, 8))
def test_every_length_of_a_record_fits_where_there_is_room(half_bytes: int) -> None:
    """Records of any length go into halves of any length in words: where the rest of a half is too short, it turns."""
    book = Book(64 + 2 * half_bytes)
    for length in range(300):
        book.write(["done", 1, length, b"x" * length])
        assert book.journal.replay() == book.truth


CONNECTIONS = st.integers(0, 3)
RANDOM_RECORDS = st.lists(
    st.one_of(
        st.tuples(st.just("mm"), st.integers(0, 4), st.lists(st.integers(0, 1 << 47), min_size=4, max_size=4)),
        st.tuples(st.just("mm_gone"), st.integers(0, 4)),
        st.tuples(st.just("task"), st.integers(1, 5), st.lists(st.integers(0, 9), max_size=6)),
        st.tuples(st.just("task_gone"), st.integers(1, 5)),
        st.tuples(st.just("intent"), CONNECTIONS, st.integers(0, 1 << 60), st.just("brk"), st.lists(st.integers(0, 9))),
        st.tuples(st.just("done"), CONNECTIONS, st.integers(0, 1 << 60), st.binary(max_size=200)),
        st.tuples(st.just("hung_up"), CONNECTIONS),
    ).map(list),
    max_size=120,
)


@settings(max_examples=50)
@given(RANDOM_RECORDS)
def test_random_records_replay_to_what_they_tell(records: list[Row]) -> None:
    """Any sequence of records, over several halves, gives the state that applying them one by one gives."""
    book = Book(SMALL)
    for record in records:
        book.write(record)
    assert book.journal.replay() == book.truth


# -- the live machine --------------------------------------------------------------------------------------------------

BASE = TASK_UNMAPPED_BASE
PAGES = st.integers(0, 11)
COUNTS = st.integers(1, 6)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("mmap"), PAGES, COUNTS, st.sampled_from([0, 1, 3])),
        st.tuples(st.just("munmap"), PAGES, COUNTS, st.just(0)),
        st.tuples(st.just("mprotect"), PAGES, COUNTS, st.sampled_from([0, 1, 3])),
        st.tuples(st.just("mlock"), PAGES, COUNTS, st.just(0)),
        st.tuples(st.just("munlock"), PAGES, COUNTS, st.just(0)),
        st.tuples(st.just("mbind"), PAGES, COUNTS, st.sampled_from([0, 1, 2, 3])),
        st.tuples(st.just("touch"), PAGES, COUNTS, st.just(0)),
        st.tuples(st.just("brk"), PAGES, st.just(0), st.just(0)),
        st.tuples(st.just("mlockall"), st.just(0), st.just(0), st.integers(1, 3)),
        st.tuples(st.just("policy"), st.just(0), st.just(0), st.sampled_from([0, 1, 2, 3])),
        st.tuples(st.just("cpu"), st.just(0), st.just(0), st.integers(0, 1)),
        st.tuples(st.just("fork"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("exit"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("attach"), st.just(0), st.just(0), st.integers(0, 1)),
    ),
    max_size=30,
)


Operation = tuple[str, int, int, int]
SystemCall = Callable[[Kernel, Task, int, int, int], KernelTask[Any]]


def mask_words(mode: int) -> list[int]:
    return [0] if mode == MPOL_DEFAULT else [2]


#: An operation's kernel task, from an address, a length and a value.
SYSTEM_CALLS: dict[str, SystemCall] = {
    "mmap": lambda k, task, addr, length, value: mmap.sys_mmap(k, task, addr, length, value, PRIVATE | MAP_FIXED),
    "munmap": lambda k, task, addr, length, _: mmap.sys_munmap(k, task, addr, length),
    "mprotect": mprotect.sys_mprotect,
    "mlock": lambda k, task, addr, length, _: mlock.sys_mlock(k, task, addr, length),
    "munlock": lambda k, task, addr, length, _: mlock.sys_munlock(k, task, addr, length),
    "mbind": lambda k, task, addr, length, value: mbind.sys_mbind(
        k, task, addr, length, value, mask_words(value), 65, 0
    ),
    "touch": lambda k, task, addr, length, _: memory.sys_fault(k, task, addr, length, write=True),
    "brk": lambda k, task, addr, _, __: mmap.sys_brk(k, task, task.mm.start_brk + addr - BASE),
    "mlockall": lambda k, task, _, __, value: mlock.sys_mlockall(k, task, value),
    "policy": lambda k, task, _, __, value: mempolicy.sys_set_mempolicy(k, task, value, mask_words(value), 65),
    "cpu": lambda k, task, _, __, value: fork.sys_set_cpu(k, task, value),
    "fork": lambda k, task, _, __, ___: fork.sys_fork(k, task),
    "exit": lambda k, task, _, __, ___: fork.sys_exit(k, task),
}


def system_call(k: Kernel, task: Task, operation: Operation) -> KernelTask[Any]:
    """The kernel task of a random operation."""
    name, first, pages, value = operation
    return SYSTEM_CALLS[name](k, task, BASE + first * PAGE, pages * PAGE, value)


@settings(max_examples=40)
@given(OPERATIONS, st.randoms(use_true_random=False), st.sampled_from([SMALL, 1 << 18]))
def test_random_operations_replay_to_the_live_state(
    operations: list[Operation],
    rng: Any,  # noqa: ANN401 - a random.Random that hypothesis shrinks
    total_bytes: int,
) -> None:
    """After every call, granted or refused, a new daemon would find the tasks, mms, VMAs and policies there are."""
    p = Performer(uniform(2, "256K", 0, "swap-v3", PAGE))
    k = p.k
    k.journal = Journal(np.zeros(total_bytes, np.uint8))
    k.journal.snapshot_from(k.truth)
    fork.attach(k, 0, ["CAP_SYS_NICE"], None)
    for operation in operations:
        tasks = list(k.tasks.values())
        if operation[0] == "attach" or not tasks:
            if len(tasks) < 4:
                fork.attach(k, operation[3] & 1, [], rng.choice([None, *k.tasks]))
        elif operation[0] != "fork" or len(tasks) < 4:
            with contextlib.suppress(MmError):
                p.call(system_call(k, rng.choice(tasks), operation))
        assert k.journal.replay() == k.truth()


@pytest.mark.parametrize(("error", "kept"), [(MmError(12, "refused"), True), (MemoryError(), False)], ids=repr)
def test_what_a_dying_writer_had_begun_is_not_kept(error: Exception, kept: bool) -> None:  # noqa: FBT001 - of the table
    """Records that belong together are written when a call is refused within, and not when the daemon itself fails."""
    book = Book(SMALL)

    def half() -> None:
        with book.journal.together():
            book.journal.append(["mm", 3, mm_fields(3)])
            raise error

    with pytest.raises(type(error)):
        half()
    book.journal.append(["mm", 4, mm_fields(4)])
    assert set(book.journal.replay().mms) == ({3, 4} if kept else {4})
