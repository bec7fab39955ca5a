"""From what a program or a person asks for to a checked topology: a file, a dict, a preset, or plain numbers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu.hwloc_xml import is_xml, parse_hwloc_xml
from numaemu.numactl_text import is_numactl_text, parse_numactl_text
from numaemu.presets import preset_named
from numaemu_core.errors import TopologyError
from numaemu_core.sizes import parse_size
from numaemu_core.topology import from_dict, uniform

if TYPE_CHECKING:
    import os

    from numaemu_core.topology import Topology

#: A description with 128 nodes and all distances is far below it. XML tells of each core, cache and device.
_FILE_BYTES_MAX: Final = 1 << 20
_XML_BYTES_MAX: Final = 16 << 20
_PAGE_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is said of a machine; None: nothing. Sizes are bytes, or text such as 64M.

    `nodes` is a number of equal nodes with `memory` each. `topology`, a file or a dict, and `preset`, a name, say
    which nodes there are instead; `memory` is then that of the largest node, and the others' stays in proportion.
    """

    nodes: int | None = None
    memory: str | int | None = None
    swap: str | int | None = None
    profile: str | None = None
    page_size: str | int | None = None
    topology: str | os.PathLike[str] | Mapping[str, object] | None = None
    preset: str | None = None
    #: What goes wrong on demand, beside what the topology says, and what decides about chance in it.
    faults: Sequence[str] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Usual:
    """What a machine has of which nothing is said."""

    nodes: int
    memory: str
    swap: str
    profile: str
    page_size: str | int = _PAGE_SIZE

    def as_dict(self) -> dict[str, object]:
        """What does not depend on the nodes, in the shape of a topology file."""
        return {"swap": self.swap, "profile": self.profile, "page_size": self.page_size}


def describe(wanted: Wanted, usual: Usual) -> Topology:
    """The topology that is wanted; files of our own form and dicts say everything, or have `from_dict`'s defaults.

    Files that lstopo or numactl wrote speak of nodes, CPUs, memory and distances only; memory is cut to whole pages.

    Raises:
        TopologyError: that is no machine, or more than one of nodes, topology and preset is said, or a fault is none
            that this machine can have. OSError: the file cannot be read.
    """
    topology = _without_faults(wanted, usual)
    if not wanted.faults and wanted.seed is None:
        return topology
    faults = [*map(str, topology.faults), *wanted.faults]
    seed = topology.seed if wanted.seed is None else wanted.seed
    return from_dict({**topology.as_dict(), "faults": faults, "seed": seed})


def _without_faults(wanted: Wanted, usual: Usual) -> Topology:
    """With those of the topology only."""
    shapes = [name for name in ("nodes", "topology", "preset") if getattr(wanted, name) is not None]
    if len(shapes) > 1:
        raise TopologyError(f"{shapes[0]} and {shapes[1]}: both say which nodes there are, leave out one")
    if wanted.preset is not None:
        described = usual.as_dict() | preset_named(wanted.preset).as_dict()
        return from_dict(_changed(described, wanted, usual.memory if wanted.memory is None else wanted.memory))
    if isinstance(wanted.topology, Mapping):
        return from_dict(_changed(wanted.topology, wanted, wanted.memory))
    if wanted.topology is not None:
        path = Path(wanted.topology)
        try:
            described, foreign = _read(path)
            if foreign:
                described = usual.as_dict() | described
            return from_dict(_changed(described, wanted, wanted.memory, rounded=foreign))
        except TopologyError as error:
            raise TopologyError(f"{path}: {error}") from None
    return uniform(
        usual.nodes if wanted.nodes is None else wanted.nodes,
        usual.memory if wanted.memory is None else wanted.memory,
        usual.swap if wanted.swap is None else wanted.swap,
        usual.profile if wanted.profile is None else wanted.profile,
        usual.page_size if wanted.page_size is None else wanted.page_size,
    )


def _read(path: Path) -> tuple[dict[str, Any], bool]:
    """What a file says, and whether others wrote it. TopologyError, which does not name it; OSError."""
    with path.open("rb") as file:
        data = file.read(_XML_BYTES_MAX + 1)
    _check_length(data, _XML_BYTES_MAX)
    try:
        text = data.decode()
        if is_xml(text):
            return parse_hwloc_xml(text), True
        _check_length(data, _FILE_BYTES_MAX)
        if is_numactl_text(text):
            return parse_numactl_text(text), True
        return tomllib.loads(text), False
    except (ValueError, RecursionError) as error:  # tomllib goes as deep as the text
        raise TopologyError(f"no TOML, nor XML of lstopo, nor what numactl --hardware prints: {error}") from None


def _check_length(data: bytes, most_bytes: int) -> None:
    if len(data) > most_bytes:
        raise TopologyError(f"a topology file of this form has at most {most_bytes} bytes")


def _changed(
    described: Mapping[str, object], wanted: Wanted, memory: str | int | None, *, rounded: bool = False
) -> dict[str, object]:
    """With what is wanted otherwise; `memory` is that of the largest node, None: as described, or whole pages of it."""
    said = {name: value for name in ("swap", "profile", "page_size") if (value := getattr(wanted, name)) is not None}
    changed = {**described, **said}
    if memory is not None:
        return _resized(changed, memory)
    return _rounded(changed) if rounded else changed


def _rounded(described: dict[str, Any]) -> dict[str, object]:
    """Machines do not give all of their memory to their kernels, and these may have smaller pages."""
    page_bytes = max(parse_size(_size(described["page_size"]), "page_size"), 1)
    nodes = [{**node, "memory": node["memory"] // page_bytes * page_bytes} for node in described["node"]]
    return {**described, "node": nodes}


def _resized(described: dict[str, object], memory: str | int) -> dict[str, object]:
    """The largest node has `memory`, the others' stays in proportion, by whole pages, of which each keeps one."""
    nodes = described.get("node")
    if not isinstance(nodes, Sequence) or not all(isinstance(node, Mapping) for node in nodes):
        return described  # which `from_dict` refuses
    page_bytes = max(parse_size(_size(described.get("page_size", _PAGE_SIZE)), "page_size"), 1)
    wanted_bytes = parse_size(memory, "memory")
    if wanted_bytes % page_bytes or not wanted_bytes:
        raise TopologyError(f"memory: expected a multiple of the page size {page_bytes}, got {wanted_bytes}")
    sizes = [parse_size(_size(node.get("memory", 0)), f"node {i}: memory") for i, node in enumerate(nodes)]
    largest = max(sizes, default=0)
    pages = [max(size * wanted_bytes // largest // page_bytes, 1) if size else 0 for size in sizes]
    resized = [{**node, "memory": count * page_bytes} for node, count in zip(nodes, pages, strict=True)]
    return {**described, "node": resized}


def _size(value: object) -> str | int:
    return value if isinstance(value, (str, int)) else repr(value)
