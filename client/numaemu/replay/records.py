"""Files of recorded programs: JSON, a program a line, plain or compressed."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from numaemu_core.errors import TopologyError
from numaemu_core.profiles import PROFILES
from numaemu_core.topology import Topology, from_dict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Answer = dict[str, Any]

_SWAP_BYTES: Final = 64 << 20
_PAGE_BYTES: Final = 4096
_GZIP_MAGIC: Final = b"\x1f\x8b"
#: What has to be in a line, and of which type.
_NEEDED: Final = {"id": str, "kernel": str, "machine": dict, "ops": list}
_KINDS: Final = {str: "text", dict: "an object", list: "a list"}


@dataclass(frozen=True, slots=True)
class Record:
    """One program and what was answered; `results` is empty where nobody has asked a kernel."""

    file: str
    id: str
    kernel: str
    machine: dict[str, Any]
    ops: tuple[str, ...]
    results: tuple[Answer, ...]
    #: Calls whose answers differed between two runs on the same kernel: not compared.
    volatile: frozenset[int] = frozenset()
    #: "ram": a device as fast as memory; "disk": one with queues.
    swap: str = "ram"
    page_cluster: int = 0
    fault_around_bytes: int = 65536
    #: The line as it was read: what is written with our answers.
    source: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def profile(self) -> str:
        """The profile that speaks for its kernel."""
        return self.kernel if self.kernel.startswith(("linux-", "swap-")) else f"linux-{self.kernel}"

    def topology(self, profile: str | None = None) -> Topology:
        """The machine that it ran on.

        Raises:
            TopologyError: there can be no such machine, or nobody knows the kernel.
        """
        nodes = [
            {"id": nid, "memory": kb * 1024 // _PAGE_BYTES * _PAGE_BYTES, "cpus": cpus}
            for nid, (cpus, kb) in enumerate(zip(self.machine["cpus"], self.machine["memory_kb"], strict=True))
        ]
        return from_dict(
            {
                "profile": profile or self.profile,
                "page_size": _PAGE_BYTES,
                "swap": _SWAP_BYTES,
                "distances": self.machine["distances"],
                "page_cluster": self.page_cluster,
                "fault_around": max(self.fault_around_bytes // _PAGE_BYTES, 1),
                "swap_device": self.swap,
                "node": nodes,
            }
        )


def read_records(path: str) -> Iterator[Record]:
    """The programs of a file, in its order; it is compressed if it begins as gzip does, whatever its name.

    Raises:
        OSError: it cannot be opened. ValueError: it is damaged, or a line is no program; the message says which.
    """
    with Path(path).open("rb") as file:
        compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        lines: Iterable[bytes] = gzip.GzipFile(fileobj=file) if compressed else file
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _record(path, number, line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged: {error}") from None


def _record(path: str, number: int, line: bytes) -> Record:
    where = f"{path}: line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # json goes as deep as the text
        raise ValueError(f"{where}: no JSON: {error}") from None
    try:
        return _record_of(Path(path).name, row)
    except ValueError as error:
        raise ValueError(f"{where}: no recorded program: {error}") from None


def _record_of(file: str, row: Any) -> Record:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(row, dict):
        _refuse(f"expected an object, got a {type(row).__name__}")
    for name, kind in _NEEDED.items():
        if not isinstance(row.get(name), kind):
            _refuse(f"{name}: expected {_KINDS[kind]}, got {row.get(name)!r}")
    machine = row["machine"]
    shape = [machine.get(name) for name in ("cpus", "memory_kb", "distances")]
    if not all(isinstance(part, list) and len(part) == len(shape[0]) for part in shape):
        _refuse(f"machine: expected cpus, memory_kb and distances, a row a node, got {machine!r}")
    if not all(isinstance(kb, int) and kb >= 0 for kb in machine["memory_kb"]):
        _refuse(f"machine: memory_kb: expected numbers, got {machine['memory_kb']!r}")
    ops, results = row["ops"], row.get("results") or []
    if not all(isinstance(op, str) and len(op.split()) > 1 for op in ops):
        _refuse("ops: expected lines of text, who and what")
    if results and not (isinstance(results, list) and len(results) == len(ops)):
        _refuse(f"results: expected as many as ops, {len(ops)}")
    swap = row.get("swap", "ram")
    if not isinstance(swap, str):
        _refuse(f"swap: expected text, got {swap!r}")
    nondet = row.get("nondet") or []
    if not isinstance(nondet, list) or not all(isinstance(call, int) for call in nondet):
        _refuse(f"nondet: expected numbers of calls, got {nondet!r}")
    if not all(isinstance(result, dict) for result in results):
        _refuse("results: expected objects")
    return Record(
        file,
        row["id"],
        row["kernel"],
        machine,
        tuple(ops),
        tuple(results),
        frozenset(nondet) if not row.get("det", True) else frozenset(),
        swap,
        _number(row, "page_cluster", 0),
        _number(row, "fault_around", 65536),
        row,
    )


def _number(row: dict[str, Any], name: str, default: int) -> int:
    value = row.get(name, default)
    if not isinstance(value, int):
        _refuse(f"{name}: expected a number, got {value!r}")
    return value


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def check_machines(records: Iterable[Record], profile: str | None) -> None:
    """Can the machine of each program be built?

    Raises:
        TopologyError: one cannot; the message names the program.
    """
    known = set()
    for record in records:
        kind = (record.kernel, repr(record.machine), record.swap, record.page_cluster, record.fault_around_bytes)
        if kind in known:
            continue
        try:
            record.topology(profile)
        except TopologyError as error:
            hint = "; --profile names another" if profile is None and record.profile not in PROFILES else ""
            raise TopologyError(f"{record.file}: {record.id}: {error}{hint}") from None
        known.add(kind)


def row_with(record: Record, answers: list[Answer]) -> str:
    """The line of a program with other answers."""
    row = {key: value for key, value in record.source.items() if key not in ("results", "results2", "nondet")}
    return json.dumps({**row, "results": answers, "det": True})
