"""From what a program or a person gives to a checked topology: a file, a dict of the same shape, or plain numbers."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from numaemu_core.errors import TopologyError
from numaemu_core.topology import from_dict

if TYPE_CHECKING:
    import os

    from numaemu_core.topology import Topology

#: A description with 64 nodes and all distances is far below it.
_FILE_BYTES_MAX: Final = 1 << 20


def topology_from(source: str | os.PathLike[str] | Mapping[str, object], **other: object) -> Topology:
    """The topology of a TOML file, or of a dict of the same shape; `other` values that are not None take precedence.

    Raises:
        TopologyError: it describes no machine, or the file is no TOML. OSError: the file cannot be read.
    """
    if isinstance(source, Mapping):
        return from_dict(_changed(source, other))
    path = Path(source)
    with path.open("rb") as file:
        text = file.read(_FILE_BYTES_MAX + 1)
    if len(text) > _FILE_BYTES_MAX:
        raise TopologyError(f"{path}: a topology file has at most {_FILE_BYTES_MAX} bytes")
    try:
        described = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # tomllib goes as deep as the text
        raise TopologyError(f"{path}: no TOML: {error}") from None
    try:
        return from_dict(_changed(described, other))
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None


def with_faults(topology: Topology, faults: Iterable[str], seed: int | None) -> Topology:
    """The same machine with these faults on demand beside its own, and with that seed unless it is None.

    Raises:
        TopologyError: one of them is no fault, or none that this machine can have.
    """
    more = [*map(str, topology.faults), *faults]
    return from_dict({**topology.as_dict(), "faults": more, "seed": topology.seed if seed is None else seed})


def _changed(described: Mapping[str, object], other: Mapping[str, object]) -> dict[str, object]:
    return {**described, **{key: value for key, value in other.items() if value is not None}}
