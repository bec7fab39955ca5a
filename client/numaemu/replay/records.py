"""Files of recorded programs: JSON, a program a line, plain or compressed."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu_core.topology import Topology, from_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

Answer = dict[str, Any]

_SWAP_BYTES: Final = 64 << 20
_PAGE_BYTES: Final = 4096


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
        """The machine that it ran on."""
        nodes = [
            {"id": nid, "memory": kb // 4 * _PAGE_BYTES, "cpus": cpus}
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
    """The programs of a file, in its order.

    Raises:
        ValueError: a line is no program; the message names the file and the line.
    """
    opening = gzip.open if path.endswith(".gz") else open
    with opening(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _record(path, json.loads(line))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: line {number} is no recorded program: {error!r}") from None


def _record(path: str, row: dict[str, Any]) -> Record:
    volatile = frozenset(row.get("nondet", ())) if not row.get("det", True) else frozenset()
    return Record(
        Path(path).name,
        row["id"],
        row["kernel"],
        row["machine"],
        tuple(row["ops"]),
        tuple(row.get("results") or ()),
        volatile,
        row.get("swap", "ram"),
        row.get("page_cluster", 0),
        row.get("fault_around", 65536),
        row,
    )


def row_with(record: Record, answers: list[Answer]) -> str:
    """The line of a program with other answers."""
    row = {key: value for key, value in record.source.items() if key not in ("results", "results2", "nondet")}
    return json.dumps({**row, "results": answers, "det": True})
