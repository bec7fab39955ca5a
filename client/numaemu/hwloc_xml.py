"""What lstopo wrote about some machine as XML, as a description of that machine.

Formats: hwloc.dtd of hwloc 1.x, where a node contains its CPUs, and hwloc2.dtd of 2.x, where it is beside them and has
their set.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Final

from numaemu_core import limits
from numaemu_core.errors import TopologyError
from numaemu_core.nodemask import mask_of, node_list, nodes_of

#: What lstopo itself declares. Any other declaration could define entities, and nothing good has any.
_DOCTYPE: Final = re.compile(r'<!DOCTYPE topology SYSTEM "hwloc2?\.dtd">')
_ANY_DOCTYPE: Final = "<!DOCTYPE"
_NUMBER: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
#: A set of CPUs: words of 32 bits, the highest first; words of zeros may be empty.
_WORD: Final = re.compile(r"(?:0x[0-9a-f]{1,8})?", re.ASCII | re.IGNORECASE)
_WORD_BITS: Final = 32
#: A kernel has at most so many CPUs (CONFIG_NR_CPUS of x86_64).
_WORDS_MAX: Final = 8192 // _WORD_BITS
#: Bit of the kind of a matrix: HWLOC_DISTANCES_KIND_MEANS_LATENCY.
_LATENCY: Final = 4
_SHOWN: Final = 60


def is_xml(text: str) -> bool:
    """Does it begin like XML?"""
    return text.lstrip("\ufeff \t\r\n").startswith("<")


def parse_hwloc_xml(text: str) -> dict[str, object]:
    """The machine in the shape of a topology file; memory in bytes.

    Where sets of CPUs overlap, as those of memory without CPUs and of the node beside it do, a CPU belongs to the
    smallest set that has it, and of equal ones to that of the lowest node: kernels number nodes without CPUs last.

    Raises:
        TopologyError: it is not what lstopo writes, or leaves nodes out; the message says where.
    """
    root = _tree(text)
    objects = list(root.iter("object"))
    found = [element for element in objects if element.get("type") == "NUMANode"]
    machine = next((element for element in objects if element.get("type") in ("Machine", "System")), None)
    if machine is None:
        raise TopologyError("there is no object of the type Machine")
    if not found:  # hwloc 1.x on a machine of one node
        node = {"id": 0, "memory": _memory(machine, "Machine"), "cpus": list(nodes_of(_cpuset(machine, "Machine")))}
        return {"node": [node]}
    if len(found) > limits.MAX_NODES:
        raise TopologyError(f"expected at most {limits.MAX_NODES} objects of the type NUMANode, got {len(found)}")
    ids = [_number(element, "os_index", "NUMANode") for element in found]
    names = [f"NUMANode with os_index {nid}" for nid in ids]
    sets = [_cpuset(element, name) for element, name in zip(found, names, strict=True)]
    cpus = _shared_out(sets, ids)
    left = _cpuset(machine, "Machine") & ~mask_of(cpu for owned in cpus for cpu in owned)
    if left:
        raise TopologyError(
            f"CPUs {node_list(list(nodes_of(left)))} belong to no NUMANode: lstopo leaves out nodes that may not be "
            "used, those without memory among them; lstopo --disallowed writes all"
        )
    memory = [_memory(element, name) for element, name in zip(found, names, strict=True)]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    described: dict[str, object] = {"node": [{"id": ids[i], "memory": memory[i], "cpus": cpus[i]} for i in order]}
    matrix = _distances(root, found, ids)
    if matrix is not None:
        described["distances"] = [[matrix[i][j] for j in order] for i in order]
    return described


def _tree(text: str) -> ET.Element:
    """The document, which has no declaration but hwloc's own, and so no entities that grow."""
    plain = _DOCTYPE.sub(lambda found: " " * len(found[0]), text.lstrip("\ufeff"), count=1)
    if _ANY_DOCTYPE in plain:
        line = plain[: plain.index(_ANY_DOCTYPE)].count("\n") + 1
        raise TopologyError(f"line {line}: expected no document type but that of hwloc")
    try:
        root = ET.fromstring(plain)  # noqa: S314 - without a document type there are no entities to expand
    except (ET.ParseError, ValueError) as error:
        raise TopologyError(f"no XML: {error}") from None
    if root.tag != "topology":
        raise TopologyError(f"XML, but not of lstopo: expected <topology>, got <{root.tag[:_SHOWN]}>")
    return root


def _shared_out(sets: list[int], ids: list[int]) -> list[list[int]]:
    """The CPUs of each set, each CPU once."""
    cpus: list[list[int]] = [[] for _ in sets]
    taken = 0
    for i in sorted(range(len(sets)), key=lambda i: (sets[i].bit_count(), ids[i])):
        cpus[i] = list(nodes_of(sets[i] & ~taken))
        taken |= sets[i]
    return cpus


def _distances(root: ET.Element, found: list[ET.Element], ids: list[int]) -> list[list[int]] | None:
    """Rows and columns in the order of the objects; None: the file has none."""
    for element in root.iter("distances2"):
        if element.get("type") == "NUMANode" and _number(element, "kind", "distances2") & _LATENCY:
            return _distances_of_2(element, found, ids)
    for element in root.iter("distances"):
        if element.get("nbobjs") == str(len(ids)):
            return _distances_of_1(element, len(ids))
    return None


def _distances_of_2(element: ET.Element, found: list[ET.Element], ids: list[int]) -> list[list[int]]:
    """Hwloc 2.x: which objects by their os_index or gp_index, and values, in any number of elements each."""
    named = _numbers(element, "indexes")
    own = [_number(node, "gp_index", "NUMANode") for node in found] if element.get("indexing") == "gp" else ids
    if sorted(named) != sorted(own):
        raise TopologyError(f"distances2: expected the indexes of all {len(ids)} nodes, got others")
    values = _numbers(element, "u64values")
    if len(values) != len(ids) ** 2:
        raise TopologyError(f"distances2: expected {len(ids) ** 2} values, got {len(values)}")
    place = {index: i for i, index in enumerate(named)}
    order = [place[index] for index in own]
    return [[values[i * len(ids) + j] for j in order] for i in order]


def _distances_of_1(element: ET.Element, count: int) -> list[list[int]]:
    """Hwloc 1.x: nodes in the order of the file; values are to be multiplied by the base."""
    try:
        base = float(element.get("latency_base", ""))
        values = [round(float(child.get("value", "")) * base) for child in element.iter("latency")]
    except (ValueError, OverflowError):
        raise TopologyError("distances: expected numbers as latency_base and as values") from None
    if len(values) != count**2:
        raise TopologyError(f"distances: expected {count**2} values, got {len(values)}")
    return [values[i * count : (i + 1) * count] for i in range(count)]


def _numbers(element: ET.Element, tag: str) -> list[int]:
    words = [word for child in element.iter(tag) for word in (child.text or "").split()]
    for word in words:
        if not _NUMBER.fullmatch(word):
            raise TopologyError(f"{element.tag}: {tag}: expected numbers, got {word[:_SHOWN]!r}")
    return [int(word) for word in words]


def _number(element: ET.Element, name: str, where: str) -> int:
    text = element.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise TopologyError(f"{where}: {name}: expected a number, got {text[:_SHOWN]!r}")
    return int(text)


def _memory(element: ET.Element, where: str) -> int:
    """A node without memory says nothing of it."""
    return 0 if element.get("local_memory") is None else _number(element, "local_memory", where)


def _cpuset(element: ET.Element, where: str) -> int:
    text = element.get("cpuset", "")
    words = text.split(",")
    if not text or len(words) > _WORDS_MAX or not all(map(_WORD.fullmatch, words)):
        raise TopologyError(f"{where}: cpuset: expected words such as 0x000000ff, got {text[:_SHOWN]!r}")
    mask = 0
    for word in words:
        mask = mask << _WORD_BITS | int(word or "0", 16)
    return mask
