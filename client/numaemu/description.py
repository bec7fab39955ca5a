"""From what a program or a person gives to a checked topology: a file, a dict of the same shape, or plain numbers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
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


def _changed(described: Mapping[str, object], other: Mapping[str, object]) -> dict[str, object]:
    return {**described, **{key: value for key, value in other.items() if value is not None}}
