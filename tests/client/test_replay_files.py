"""Recorded programs: what their words mean, how files are read, which machines they ask for."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from numaemu.replay import words
from numaemu.replay.records import Record, check_machines, read_records, row_with
from numaemu.replay.runner import Options, run_one
from numaemu_core import uapi
from numaemu_core.errors import TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Row = Callable[..., dict[str, Any]]
    Recording = Callable[..., str]
    Records = Callable[..., list[Record]]

PAGE = 4096
TOP = 1 << 64
TWO_NODES = {"cpus": [[0], [1]], "memory_kb": [8192, 8192], "distances": [[10, 20], [20, 10]]}
# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("0", words.ARENA),
        ("3", words.ARENA + 3 * PAGE),
        ("3+8", words.ARENA + 3 * PAGE + 8),
        ("3-1", words.ARENA + 3 * PAGE - 1),
        ("-1", words.ARENA - PAGE),
        ("@20000000000", 0x20000000000),
        ("null", 0),
    ],
)
def test_addresses(word: str, value: int) -> None:
    """Addresses are pages of the arena with bytes more or less, hexadecimal numbers, or null."""
    assert words.address(word) == value


@pytest.mark.parametrize(
    ("word", "value"),
    [("2", 2 * PAGE), ("2+5", 2 * PAGE + 5), ("1-1", PAGE - 1), ("-1", TOP - PAGE), ("#10", 10), ("#-1", TOP - 1)],
)
def test_lengths(word: str, value: int) -> None:
    """Lengths are pages with bytes more or less, or bytes; negative ones wrap."""
    assert words.length(word) == value


@pytest.mark.parametrize("word", ["", "x", "1+", "1*2", "+1"])
def test_words_that_are_no_pages(word: str) -> None:
    """What is no number of pages is refused."""
    with pytest.raises(ValueError, match="is no number of pages"):
        words.address(word)


def test_modes_and_flags() -> None:
    """Modes and flags are names or numbers, joined by |."""
    assert words.mode("bind|static") == uapi.MPOL_BIND | uapi.MPOL_F_STATIC_NODES
    assert words.mode("prefer_many|relative|0x1000") == uapi.MPOL_PREFERRED_MANY | uapi.MPOL_F_RELATIVE_NODES | 0x1000
    assert words.flags("strict|moveall") == uapi.MPOL_MF_STRICT | uapi.MPOL_MF_MOVE_ALL
    assert words.flags("0") == 0
    assert words.flags("-1") == TOP - 1
    assert words.mremap_flags("maymove|fixed") == uapi.MREMAP_MAYMOVE | uapi.MREMAP_FIXED


@pytest.mark.parametrize(
    ("word", "maxnode", "found"),
    [
        ("null", 64, None),
        ("bad", 64, []),
        ("6", 64, [6, 0]),
        ("6", 65, [6, 0, 0]),
        ("1" + "0" * 16, 128, [0, 1, 0]),
        ("edge:6", 64, [6]),
        ("edge:6", 4096, [6]),
        ("6", 1 << 40, [6] + [0] * 511),
    ],
)
def test_masks(word: str, maxnode: int, found: list[int] | None) -> None:
    """A mask has as many words as the kernel may read; behind the end of a mapped page there are none."""
    assert words.mask_for(word, maxnode) == found


def test_masks_that_the_kernel_wrote() -> None:
    """Words are hexadecimal, one at least, without zeros at the end."""
    assert words.hex_mask(bytes([6]) + bytes(15)) == ["6"]
    assert words.hex_mask(bytes(8) + bytes([0, 1]) + bytes(6)) == ["0", "100"]
    assert words.hex_mask(bytes(16)) == ["0"]


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_are_read_plain_or_compressed_whatever_their_name(tmp_path: Path, row: Row) -> None:
    """A file that begins as gzip does is decompressed; empty lines are passed over."""
    text = json.dumps(row("a")) + "\n\n" + json.dumps(row("b"))
    (tmp_path / "plain.jsonl.gz").write_text(text)
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(text.encode()))
    for name in ("plain.jsonl.gz", "packed.jsonl"):
        found = list(read_records(str(tmp_path / name)))
        assert [(record.file, record.id) for record in found] == [(name, "a"), (name, "b")]
        assert found[0].ops == tuple(row()["ops"])
        assert found[0].results == tuple(row()["results"])


def test_the_machine_of_a_record(records: Records, row: Row) -> None:
    """Nodes, CPUs, memory in whole pages, distances, swap device, readahead and fault-around are the record's."""
    machine = {
        "cpus": [[3, 1], [], [0], [2]],
        "memory_kb": [8195, 4096, 0, 1024],
        "distances": [[10 if i == j else 12 + i + j for j in range(4)] for i in range(4)],
    }
    (record,) = records(row(machine=machine, swap="disk", page_cluster=3, fault_around=4096, kernel="6.1"))
    topology = record.topology()
    assert [(node.cpus, node.memory_bytes) for node in topology.nodes] == [
        ((1, 3), 8192 << 10),
        ((), 4096 << 10),
        ((0,), 0),
        ((2,), 1024 << 10),
    ]
    assert topology.distances[1] == (13, 10, 15, 16)
    assert (topology.swap_bytes, topology.page_size, topology.profile) == (64 << 20, PAGE, "linux-6.1")
    assert (topology.swap_device, topology.page_cluster, topology.fault_around) == ("disk", 3, 1)
    assert record.topology("linux-6.12").profile == "linux-6.12"


def test_fields_that_may_be_missing(records: Records, row: Row) -> None:
    """Without a word on it swap is a RAM disk without readahead, and a read fault maps 16 pages."""
    (record,) = records({key: value for key, value in row().items() if key not in ("results", "det")})
    assert record.results == ()
    topology = record.topology()
    assert (topology.swap_device, topology.page_cluster, topology.fault_around) == ("ram", 0, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage\n", "line 1: no JSON"),
        (b"\n[1]\n", "line 2: no recorded program: expected an object, got a list"),
        (b"\xff\xfe\xff\n", "line 1: no JSON"),
        (b"\x1f\x8bgarbage", "damaged"),
        (gzip.compress(b"{}" * 99, mtime=0)[:-9], "damaged"),
        ({"name": 7}, "id: expected text, got 7"),
        ({"kernel": None}, "kernel: expected text"),
        ({"machine": []}, "machine: expected an object"),
        ({"ops": "P0 nm"}, "ops: expected a list"),
        ({"ops": ["P0"]}, "ops: expected lines of text, who and what"),
        ({"results": [{}]}, "results: expected as many as ops, 4"),
        ({"results": [1, 2, 3, 4]}, "results: expected objects"),
        (
            {"machine": {"cpus": [[0]], "memory_kb": [8192], "distances": []}},
            "machine: expected cpus, memory_kb and distances",
        ),
        ({"machine": {"cpus": [[0]], "memory_kb": ["8M"], "distances": [[10]]}}, "memory_kb: expected numbers"),
        ({"page_cluster": "3"}, "page_cluster: expected a number, got '3'"),
    ],
)
def test_files_that_are_damaged(tmp_path: Path, row: Row, content: bytes | dict[str, Any], message: str) -> None:
    """What is wrong with a file is told in one line that names the file, and the line of it."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(row(**content)).encode())
    with pytest.raises(ValueError, match=message) as caught:
        list(read_records(str(path)))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "2.4"}, "profile: 'linux-2.4' is not known.*; --profile names another"),
        ({"swap": "tape"}, "swap_device: expected one of ram, disk, got 'tape'"),
        ({"machine": {**TWO_NODES, "cpus": [[0], [0]]}}, "each CPU belongs to one node"),
        ({"machine": {**TWO_NODES, "memory_kb": [0, 0]}}, "at least one node needs memory"),
    ],
)
def test_machines_that_cannot_be(records: Records, fields: dict[str, Any], message: str, row: Row) -> None:
    """A machine that cannot be built is refused before anything runs, by the name of its program."""
    with pytest.raises(TopologyError, match=f"some.jsonl: odd: .*{message}"):
        check_machines(records(row(), row("odd", **fields)), None)


def test_an_unknown_kernel_runs_under_another_profile(records: Records, row: Row) -> None:
    """With a profile, the kernel of the record does not matter."""
    (record,) = records(row(kernel="2.4"))
    check_machines([record], "linux-6.1")
    assert run_one(record, Options(profile="linux-6.1")).differing == []


def test_a_row_with_other_answers(records: Records, row: Row) -> None:
    """A line that is written keeps all that was read but the answers, and what was said of those."""
    source = row(desc="a case", seed=3, det=False, nondet=[1], results2=[{"r": 0}] * 4)
    written = json.loads(row_with(records(source)[0], [{"r": 7}] * 4))
    assert written == {**row(desc="a case", seed=3), "results": [{"r": 7}] * 4}
