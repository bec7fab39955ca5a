"""Every parser of what people or peers have written: whatever comes, it is read, or refused in the way it documents.

`PARSER_EXAMPLES=20000 pytest tests/core/test_parsers.py` tries as many inputs of each; without it some hundred.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numaemu import description, masks
from numaemu.cli import main as cli
from numaemu.cli import migratepages
from numaemu.replay import excuses, records, words
from numaemu_core import sizes, topology
from numaemu_core.errors import MmError, TopologyError
from numaemu_core.wire import CALLS, WireError, unpack_reply, unpack_request
from numaemu_daemon import __main__ as daemon
from numaemu_daemon import copy_request, handshake
from numaemu_daemon.bus_client import BusMessageError
from numaemu_daemon.handshake import HandshakeError
from numaemu_daemon.options import StartError

EXAMPLES: Final = os.environ.get("PARSER_EXAMPLES")
SETTINGS: Final = settings(
    max_examples=int(EXAMPLES or 150),
    derandomize=EXAMPLES is None,  # the same examples each time, unless more are asked for
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

pytestmark = pytest.mark.timeout(0 if EXAMPLES else 120)  # as long as PARSER_EXAMPLES asks for

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 70), st.floats(), st.text(max_size=12), st.just("64M")
)
#: Words that the parsers know, so that some inputs get far.
WORDS = st.sampled_from(
    [
        "node",
        "memory",
        "cpus",
        "swap",
        "profile",
        "distances",
        "page_size",
        "64M",
        "4K",
        "1T",
        "all",
        "0-3",
        "+0",
        "!1",
        "0,2",
        "7-0",
        "linux-6.1",
        "swap-v3",
        "program",
        "file",
        "id",
        "call",
        "reason",
        "ops",
        "kernel",
        "machine",
        "cpus",
        "memory_kb",
        "results",
        "bind",
        "interleave=0-1",
        "0x10",
        "-1",
        "rw",
        "10+5",
        "mbind",
        "mmap",
        "up",
        "stress",
        "bench",
        "--nodes",
        "--memory",
        "--seed",
        "--clients",
        "99999999999999999999",
        "[",
        "{",
        "}",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(WORDS, st.text(max_size=5)), inner, max_size=5)
    ),
    max_leaves=12,
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=6).map(" ".join))
TOPOLOGIES = st.fixed_dictionaries(
    {"node": st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("memory", "cpus", "id"), VALUES)), max_size=4)},
    optional=dict.fromkeys(("swap", "profile", "distances", "page_size", "page_cluster", "fault_around", "x"), VALUES),
)


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "input"


def refused(parse: Callable[[], object], *allowed: type[Exception]) -> None:
    """Run a parser: it may give anything, and raise what it says that it raises."""
    try:
        parse()
    except allowed as error:
        assert len(str(error)) < 1 << 16  # noqa: PT017 - that it raises nothing else is what is tested


@SETTINGS
@given(st.one_of(TEXTS, st.integers(), VALUES))
def test_sizes(value: Any) -> None:  # noqa: ANN401 - whatever somebody passes
    """What is no size is a TopologyError."""
    refused(lambda: sizes.parse_size(value), TopologyError)


def test_a_size_of_ten_thousand_digits_is_refused() -> None:
    """A number that Python does not like to print is no size either."""
    for value in (10**10_000, -(10**10_000), "9" * 10_000):
        with pytest.raises(TopologyError):
            sizes.parse_size(value)


def _describe(source: Any, **other: Any) -> topology.Topology:  # noqa: ANN401 - whatever somebody passes
    usual = description.Usual(nodes=2, memory="1M", swap="1M", profile="swap-v3")
    return description.describe(description.Wanted(topology=source, **other), usual)


@SETTINGS
@given(st.one_of(VALUES.filter(lambda value: isinstance(value, dict)), TOPOLOGIES))
def test_descriptions_of_machines(value: dict[str, Any]) -> None:
    """A dict that describes no machine is a TopologyError."""
    refused(lambda: topology.from_dict(value), TopologyError)
    refused(lambda: _describe(value, swap="1M", memory="1M"), TopologyError)


@SETTINGS
@given(st.one_of(st.binary(max_size=60), TEXTS.map(str.encode), TOPOLOGIES.map(lambda t: _as_toml(t).encode())))
def test_topology_files(path: Path, text: bytes) -> None:
    """A file that is no topology is a TopologyError, however it is damaged."""
    path.write_bytes(text)
    refused(lambda: _describe(path), TopologyError)


def _as_toml(described: dict[str, Any]) -> str:
    tables = described.get("node", [])
    lines = [f"{key} = {json.dumps(value)}" for key, value in described.items() if key != "node"]
    for table in tables:
        lines += ["[[node]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines)


@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "a" + ".a" * 2000 + " = 1", "[" + "a." * 2000 + "a]"])
def test_a_deep_toml_file_is_refused(path: Path, text: str) -> None:
    """Nesting without end is no reason for another error, in either kind of file."""
    path.write_text(text)
    with pytest.raises(TopologyError):
        _describe(path)
    with pytest.raises(ValueError, match="input"):
        excuses.read_excuses(str(path))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no JSON"):
        list(records.read_records(str(path)))


@SETTINGS
@given(st.one_of(st.binary(max_size=60), TEXTS.map(str.encode)))
def test_excuses(path: Path, text: bytes) -> None:
    """A list of known differences is read, or a ValueError."""
    path.write_bytes(text)
    refused(lambda: excuses.read_excuses(str(path)), ValueError)


PROGRAM = {
    "id": "p",
    "kernel": "6.1",
    "machine": {"cpus": [[0]], "memory_kb": [4096], "distances": [[10]]},
    "ops": ["t0 mmap a 1"],
    "results": [{}],
}
ROWS = st.dictionaries(
    st.sampled_from([*PROGRAM, "nondet", "det", "swap", "page_cluster", "fault_around"]), VALUES, max_size=4
).map(lambda changes: PROGRAM | changes)


@SETTINGS
@given(
    st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=20).map(lambda tail: b"\x1f\x8b" + tail),
        TEXTS.map(str.encode),
        ROWS.map(lambda row: json.dumps(row).encode()),
    )
)
def test_recorded_programs(path: Path, text: bytes) -> None:
    """A file of recorded programs is read, or a ValueError; a machine that cannot be is a TopologyError."""
    path.write_bytes(text)

    def read() -> None:
        records.check_machines(list(records.read_records(str(path))), None)

    refused(read, ValueError, TopologyError)


@pytest.mark.parametrize(
    "changes", [{"swap": []}, {"swap": {}}, {"nondet": [[0]], "det": False}, {"nondet": 5}], ids=str
)
def test_a_recording_with_a_list_where_a_word_belongs_is_refused(path: Path, changes: dict[str, Any]) -> None:
    """What cannot be a key of anything is a ValueError like other values of a wrong type."""
    path.write_text(json.dumps(PROGRAM | changes))
    with pytest.raises(ValueError, match="no recorded program"):
        records.check_machines(list(records.read_records(str(path))), None)


WORD_PARSERS = {
    parser.__name__: parser
    for parser in (
        words.integer,
        words.address,
        words.length,
        words.mode,
        words.flags,
        words.mremap_flags,
        words.mask,
    )
}


@pytest.mark.parametrize("name", WORD_PARSERS)
@SETTINGS
@given(text=st.one_of(st.text(max_size=20), WORDS))
def test_words_of_programs(name: str, text: str) -> None:
    """A word of a recorded program is read, or a ValueError (a KeyError for a name that nobody knows)."""
    refused(lambda: WORD_PARSERS[name](text), ValueError, KeyError)


@SETTINGS
@given(st.one_of(st.text(max_size=20), WORDS, st.text("0123456789,-+!al ", max_size=12)))
def test_node_lists(text: str) -> None:
    """A list of nodes as numactl writes it is a set of the machine's nodes, or a ValueError."""

    def read() -> None:
        assert migratepages.node_set(text, [0, 1, 5]) <= {0, 1, 5}

    refused(read, ValueError)


@SETTINGS
@given(st.one_of(VALUES, st.sets(st.integers(-5, 1 << 70), max_size=4)))
def test_node_sets(value: Any) -> None:  # noqa: ANN401 - whatever somebody passes
    """A set of nodes becomes words, or an OSError or a TypeError."""
    refused(lambda: masks.mask_words(value), OSError, TypeError)


@SETTINGS
@given(st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=6))
def test_command_lines(words_of_line: list[str]) -> None:
    """A command line is parsed, or the parser says how it is used; init's is parsed, or refused in one line."""
    try:
        parsed = cli.make_parser().parse_args(words_of_line)
        assert isinstance(parsed, argparse.Namespace)
    except SystemExit as left:
        assert left.code in (0, 2)  # noqa: PT017 - that it raises nothing else is what is tested
    try:
        daemon.read_options(words_of_line)
    except (StartError, TopologyError):
        pass
    except SystemExit as left:
        assert left.code in (0, 1, 2)  # noqa: PT017 - as above


# -- peers -------------------------------------------------------------------------------------------------------------

BOOT: Final = "0123456789abcdef"
PACKABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=24),
        st.sampled_from(["hello", "swap", "node", "done", "balance", "fence", BOOT, *CALLS]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=7), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=12,
)
BODIES = st.one_of(
    st.binary(max_size=80),
    PACKABLE.map(msgpack.packb),
    st.tuples(st.sampled_from(sorted(CALLS)), st.lists(PACKABLE, max_size=8), st.integers(0, 9)).map(
        lambda call: msgpack.packb([1, BOOT, call[2], call[0], call[1], None])
    ),
    st.integers(1, 3000).map(lambda depth: b"\x91" * depth + b"\xc0"),
    st.tuples(st.integers(0, 127), st.binary(max_size=9)).map(lambda ext: msgpack.packb(msgpack.ExtType(*ext))),
)


@SETTINGS
@given(BODIES)
def test_messages_of_clients_and_of_the_daemon(body: bytes) -> None:
    """Bytes are a request, or a WireError or MmError; and so for replies."""
    refused(lambda: unpack_request(body, BOOT), WireError, MmError)
    refused(lambda: unpack_reply(body), WireError, MmError)


@SETTINGS
@given(PACKABLE)
def test_messages_of_init_and_its_children(message: object) -> None:
    """Maps, counters, lines and generations are what they must be, or a HandshakeError."""
    for parse in (handshake.message_of, handshake.counters_of, handshake.line_of, handshake.generation_of):
        refused(lambda parse=parse: parse(message), HandshakeError)  # type: ignore[misc]  # a lambda with a default


@SETTINGS
@given(PACKABLE, st.integers(0, 100), st.integers(0, 100))
def test_requests_to_copy(value: object, first: int, end: int) -> None:
    """Tickets and page numbers are within bounds, or a BusMessageError."""
    refused(lambda: copy_request.check_ticket(value), BusMessageError)
    refused(lambda: copy_request.page_numbers(value, "frames", first, end), BusMessageError)
