"""Recorded programs: what is answered to their lines, what counts, and how many of them are run."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from numaemu.replay import compare, words
from numaemu.replay.in_memory import InMemory
from numaemu.replay.program import Program
from numaemu.replay.records import Record
from numaemu.replay.runner import Options, Outcome, run_all, run_one
from numaemu_core import uapi
from numaemu_core.syscalls import SYSCALLS

if TYPE_CHECKING:
    from collections.abc import Callable

    Row = Callable[..., dict[str, Any]]
    Recording = Callable[..., str]
    Records = Callable[..., list[Record]]

PAGE = 4096
GOOD = {"r": 0, "e": 0}
# -- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "ours", "found"),
    [
        ({"r": 0, "e": 0}, {"e": 0, "r": 0}, []),
        ({"r": 0, "e": 0}, {"r": -1, "e": 22}, ["e", "r"]),
        ({"r": 0}, {"r": 0, "w": "0"}, ["w"]),
        ({"r": 0, "w": None}, {"r": 0}, ["w"]),
        ({"seq": [0, 1], "cnt": [5, 5]}, {"seq": [0, 1], "cnt": [9, 1]}, []),
        ({"st": [None, 1]}, {"st": [0, 1]}, ["st"]),
    ],
)
def test_fields_that_differ(recorded: dict[str, Any], ours: dict[str, Any], found: list[str]) -> None:
    """Every field counts, also one that stands in one answer only; counts of pages do not."""
    assert compare.fields(recorded, ours) == found


def test_calls_that_do_not_count(records: Records, row: Row) -> None:
    """Calls whose answers differed on the kernel itself are left out, and the last one of a program on a full node."""
    wrong = [{"r": 1}] * 4
    unsure, sure, full = records(row(det=False, nondet=[1, 3]), row(det=True, nondet=[1, 3]), row("f-full-move-bind"))
    assert compare.differences(unsure, wrong) == [0, 2]
    assert compare.differences(sure, wrong) == [0, 1, 2, 3]
    assert compare.differences(full, wrong) == [0, 1, 2]
    assert [Outcome(record, wrong).compared for record in (unsure, sure, full)] == [2, 4, 3]


# -- programs ---------------------------------------------------------------------------------------------------------


def answers(record: Record) -> list[dict[str, Any]]:
    """What a program is answered in memory, and that its machine is sound afterwards."""
    outcome = run_one(record, Options(fsck=True))
    assert outcome.violations == []
    return outcome.answers


def test_touching(records: Records, row: Row) -> None:
    """Each page is marked: good, SIGSEGV where nothing is mapped or not so, SIGBUS beyond the end of a file."""
    (record,) = records(
        row(
            ops=[
                "- file F1 2",
                "P0 mmap 1 2 anon priv rw",
                "P0 mmap 4 1 anon priv r",
                "P0 mmap 5 4 F1 shared rw",
                "P0 mmap 10 1 anon priv n",
                "P0 tw 0 12 3",
                "P0 tr 0 12",
            ],
            results=None,
        )
    )
    *_, written, read = answers(record)
    assert written == {"r": 4, "e": 0, "f": "S..SS..BBSSS"}
    assert read["f"] == "S..S...BBSSS"
    assert read["v"] == [-2, 3001, 3002, -2, 0, 3005, 3006, -2, -2, -2, -2, -2]


def test_a_page_that_is_torn(records: Records, row: Row) -> None:
    """A page whose ends do not hold the same value reads as -1."""
    (record,) = records(row())
    host = InMemory(record.topology())
    pid = host.attach()
    host.call(pid, "mmap", words.ARENA, PAGE, 3, uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS | uapi.MAP_FIXED, None, 0, "r+")
    host.touch(pid, words.ARENA, 1, [5])
    k = host._k  # noqa: SLF001 - no call of a program tears a page
    pfn = int(np.flatnonzero(k.c.frames[:, 0] == 5)[0])
    k.c.frames[pfn, -8] = 6
    assert host.touch(pid, words.ARENA, 1, None) == (".", [-1])
    host.close()


def test_processes_come_and_go(records: Records, row: Row) -> None:
    """Forked and new processes have their own memory; one that is gone answers nothing, and others get ESRCH for it."""
    (record,) = records(
        row(
            ops=[
                "P0 mmap 0 1 anon priv rw",
                "P0 tw 0 1 1",
                "P0 fork P1",
                "P1 tw 0 1 2",
                "P2 new",
                "P2 tr 0 1",
                "P0 tr 0 1",
                "P1 exit",
                "P1 tr 0 1",
                "P0 move_pages P1 0:0 null 0",
                "P0 move_pages pid:99999 0:0 null 0",
            ],
            results=None,
        )
    )
    found = answers(record)
    assert found[5]["f"] == "S"
    assert found[6]["v"] == [1000]
    assert found[8] == {"dead": 1}
    assert [answer["e"] for answer in found[9:]] == [errno.ESRCH] * 2


def test_nodes_from_ten_on_are_one_character_too(records: Records, row: Row) -> None:
    """Machines with any number of nodes run; the digits go on behind 9."""
    count = 12
    machine = {
        "cpus": [[node] for node in range(count)],
        "memory_kb": [4096] * count,
        "distances": [[10 if i == j else 20 for j in range(count)] for i in range(count)],
    }
    ops = ["P0 mmap 0 2 anon priv rw", "P0 mbind 0 1 bind 800 64 0", "P0 tw 0 2 1", "P0 where 0 2"]
    (record,) = records(row(machine=machine, ops=ops, results=None))
    assert answers(record)[-1]["w"] == ";0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("P0 frobnicate 1", "ValueError: no operation 'frobnicate'"),
        ("- frobnicate 1", "ValueError: the runner has no operation 'frobnicate'"),
        ("P0 mmap 0", "ValueError: not enough values"),
        ("P0 mbind x 1 bind 1 64 0", "ValueError: 'x' is no number of pages"),
        ("P0 madvise 0 1 sideways", "ValueError"),
    ],
)
def test_a_line_that_is_none_of_the_language(records: Records, line: str, message: str, row: Row) -> None:
    """It brings the program to a halt, with the reason as its answer; the calls behind it are not run."""
    (record,) = records(row(ops=["P0 nm", line, "P0 nm"], results=[{**GOOD, "nm": []}] * 3))
    outcome = run_one(record, Options())
    assert outcome.answers[0] == {**GOOD, "nm": []}
    assert outcome.answers[1]["error"].startswith(message)
    assert outcome.answers[2] == {"error": "not run"}
    assert outcome.failed == 1
    assert outcome.differing == [1, 2]


def test_a_machine_that_breaks_down_is_told_with_its_place(
    records: Records, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """An exception of the core is the answer of the call that met it, with file and line."""
    monkeypatch.setitem(SYSCALLS, "mmap", lambda *_args: min(()))
    outcome = run_one(records(row())[0], Options())
    assert outcome.answers[0]["error"].startswith("ValueError: min() ")


def test_the_memory_of_a_machine_goes_with_it(records: Records, row: Row) -> None:
    """Nothing refers to a machine in a circle: when it is closed it is gone, without the collector."""
    (record,) = records(
        row(ops=[*row()["ops"], "P0 mbind 0 9 bind 0 64 0", "P0 tr 0 9", "P0 fork P1", "P1 pageout 0 4"], results=None)
    )
    host = InMemory(record.topology())
    kernel = weakref.ref(host._k)  # noqa: SLF001 - what takes the memory
    columns = weakref.ref(host._k.c)  # noqa: SLF001 - the same
    gc.disable()
    try:
        Program(record, host).run()
        host.close()
        assert kernel() is None
        assert columns() is None
    finally:
        gc.enable()


# -- many programs ----------------------------------------------------------------------------------------------------


def test_outcomes_come_in_order_whatever_the_jobs(records: Records, row: Row) -> None:
    """Several workers give what one process gives, in the order of the list."""
    found = records(
        *(
            row(f"p{i}", ops=[*row()["ops"][:2], f"P0 tw 0 {i % 4 + 1} {i}", "P0 tr 0 4"], results=row()["results"])
            for i in range(40)
        )
    )
    alone = list(run_all(found, Options()))
    together = list(run_all(found, Options(jobs=2)))
    assert [outcome.record.id for outcome in together] == [f"p{i}" for i in range(40)]
    assert [(outcome.answers, outcome.differing) for outcome in together] == [
        (outcome.answers, outcome.differing) for outcome in alone
    ]
    assert all(outcome.record.source for outcome in together)


def test_a_killed_worker_ends_the_run(records: Records, row: Row, slow_row: Row) -> None:
    """When a worker is killed the run ends with an error that says how far it came."""
    found = records(*(row(f"p{i}") for i in range(8)), *(slow_row(f"q{i}") for i in range(32)))
    outcomes = run_all(found, Options(jobs=2))
    with contextlib.closing(outcomes):
        assert next(outcomes).record.id == "p0"
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(ChildProcessError, match=r"killed after \d+ of 40 programs, at some.jsonl [pq]\d"):
            list(outcomes)
