"""From the arguments of the marker to a topology."""

from __future__ import annotations

import difflib
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu.description import Usual, Wanted, describe
from numaemu_core.topology import from_dict

if TYPE_CHECKING:
    import pytest

    from numaemu_core.topology import Topology

#: What a machine has of which nothing is said. Programs of a test find room, and of the host's memory only what is
#: touched is taken; programs of today expect a kernel of today.
_USUAL: Final = Usual(nodes=2, memory="256M", swap="128M", profile="linux-6.12", page_size=mmap.PAGESIZE)
#: Arguments that describe nodes, and so take the place of a file.
_OF_NODES: Final = ("nodes", "distances", "preset")
_KNOWN: Final = (*_OF_NODES, "memory", "swap", "profile", "topology", "faults", "seed", "fresh")


def shape_of(marker: pytest.Mark | None, told: Path | None, folder: Path) -> tuple[Topology, bool]:
    """The machine of a test, and whether it is to be of that test alone.

    `told`: the file of the machine that tests get if they describe no nodes; `folder`: where paths in a marker begin.

    Raises:
        TypeError: no such argument. ValueError, TopologyError: it describes no machine. OSError: no such file.
    """
    arguments = {} if marker is None else _checked(marker)
    fresh = arguments.pop("fresh", False)
    if not isinstance(fresh, bool):
        raise TypeError(f"fresh: expected True or False, got {fresh!r}")
    topology = _topology(arguments, told, folder)
    # Faults count what has been on the machine: after another test they would strike at other places.
    # The host's memory is taken when it is touched: most tests touch little.
    return replace(topology, preallocate=False), fresh or bool(topology.faults)


def _checked(marker: pytest.Mark) -> dict[str, Any]:
    """Its arguments by name; those that are None are left out."""
    if marker.args:
        raise TypeError(f"arguments have names, as in numa(nodes=4), got {marker.args[0]!r} without one")
    for name in marker.kwargs:
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"unknown argument {name!r}; known: {', '.join(_KNOWN)}{meant}")
    return {name: value for name, value in marker.kwargs.items() if value is not None}


def _topology(arguments: dict[str, Any], told: Path | None, folder: Path) -> Topology:
    of_nodes = [name for name in _OF_NODES if name in arguments]
    source = arguments.get("topology")
    if source is not None and of_nodes:
        raise TypeError(f"topology says what nodes there are: leave out {of_nodes[0]}")
    if source is not None and not isinstance(source, Mapping):
        arguments["topology"] = _path(source, folder)
    elif source is None and told is not None and not of_nodes:
        arguments["topology"] = told
    distances = arguments.pop("distances", None)
    if isinstance(distances, Sequence) and not isinstance(distances, str):
        arguments.setdefault("nodes", len(distances))
    if isinstance(arguments.get("faults"), str):
        arguments["faults"] = [arguments["faults"]]
    topology = describe(Wanted(**arguments), _USUAL)
    return topology if distances is None else from_dict({**topology.as_dict(), "distances": distances})


def _path(source: object, folder: Path) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"topology: expected a path or a dict, got {source!r}")
    return folder / os.fspath(source)
