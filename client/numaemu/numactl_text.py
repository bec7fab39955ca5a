"""What `numactl --hardware` printed on some machine, as a description of that machine.

Source: hardware() and print_distances() of numactl.c (numactl 2.0).
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from numaemu_core.errors import TopologyError

_MB: Final = 1 << 20
_NUMBER: Final = r"[0-9]{1,9}"
#: How the text begins: how many nodes, and which.
_AVAILABLE: Final = re.compile(rf"available: ({_NUMBER}) nodes?\b.*")
_CPUS: Final = re.compile(rf"node ({_NUMBER}) cpus:((?: +{_NUMBER})*)")
_SIZE: Final = re.compile(rf"node ({_NUMBER}) size: (?:({_NUMBER}) MB|<not available>)")
_FREE: Final = re.compile(rf"node {_NUMBER} free:.*")
_DISTANCES: Final = re.compile(r"node distances:")
_HEADER: Final = re.compile(rf"node((?: +{_NUMBER})+)")
_ROW: Final = re.compile(rf"({_NUMBER}):((?: +{_NUMBER})+)")
#: In place of the distances, where a kernel tells none.
_NO_DISTANCES: Final = re.compile(r"No distance information available\.?")
_SHOWN: Final = 60


def is_numactl_text(text: str) -> bool:
    """Does it begin like one?"""
    return _AVAILABLE.match(text.lstrip().partition("\n")[0]) is not None


def parse_numactl_text(text: str) -> dict[str, object]:
    """The machine in the shape of a topology file; memory in bytes, whole MiB.

    Raises:
        TopologyError: it is no such text; the message has the number of the line.
    """
    return _Reader().read(text)


class _Reader:
    """What was read so far."""

    def __init__(self) -> None:
        self._line = 0
        self._announced = 0
        self._cpus: dict[int, list[int]] = {}
        self._sizes: dict[int, int] = {}
        self._columns: list[int] = []
        self._rows: dict[int, list[int]] = {}

    def read(self, text: str) -> dict[str, object]:
        """All of it."""
        for self._line, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                self._take(line.strip())
        nodes = sorted(self._cpus.keys() | self._sizes.keys())
        if len(nodes) != self._announced:
            raise TopologyError(f"it speaks of {self._announced} available nodes, and then of {len(nodes)}")
        described: dict[str, object] = {
            "node": [{"id": n, "memory": self._sizes.get(n, 0), "cpus": self._cpus.get(n, [])} for n in nodes]
        }
        if self._columns:
            described["distances"] = self._distances(nodes)
        return described

    def _take(self, line: str) -> None:
        if found := _CPUS.fullmatch(line):
            self._once(self._cpus, int(found[1]), [int(cpu) for cpu in found[2].split()])
        elif found := _SIZE.fullmatch(line):
            self._once(self._sizes, int(found[1]), int(found[2] or 0) * _MB)
        elif found := _ROW.fullmatch(line):
            self._once(self._rows, int(found[1]), [int(distance) for distance in found[2].split()])
        elif found := _HEADER.fullmatch(line):
            if self._columns:
                self._refuse("the distances have begun already")
            self._columns = [int(node) for node in found[1].split()]
        elif found := _AVAILABLE.fullmatch(line):
            if self._announced:
                self._refuse("a second machine")
            self._announced = int(found[1])
        elif not any(form.fullmatch(line) for form in (_FREE, _DISTANCES, _NO_DISTANCES)):
            self._refuse(f"no line of numactl --hardware: {line[:_SHOWN]!r}")

    def _once(self, table: dict[int, list[int]] | dict[int, int], node: int, value: list[int] | int) -> None:
        if node in table:
            self._refuse(f"node {node} for the second time")
        table[node] = value  # type: ignore[assignment]  # each table has its own kind of values, and so has each caller

    def _distances(self, nodes: list[int]) -> list[list[int]]:
        if sorted(self._columns) != nodes:
            raise TopologyError(f"node distances: expected a column for each of the {len(nodes)} nodes")
        missing = [node for node in nodes if len(self._rows.get(node, [])) != len(nodes)]
        if missing:
            raise TopologyError(f"node distances: expected {len(nodes)} numbers in the row of node {missing[0]}")
        order = [self._columns.index(node) for node in nodes]
        return [[self._rows[node][column] for column in order] for node in nodes]

    def _refuse(self, what: str) -> NoReturn:
        raise TopologyError(f"line {self._line}: {what}")
