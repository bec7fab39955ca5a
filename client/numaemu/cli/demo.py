"""numaemu demo: the bytes of a real file leave node 0 through swap and come back on node 1, because mbind says so."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu.cli.options import examples

if TYPE_CHECKING:
    import numaemu as nm

#: More of a file than this is not taken: the strip should still show something.
_BYTES_MAX: Final = 16 << 20
_STRIP_WIDTH_MAX: Final = 96
#: Terminal colours of nodes 0 and 1, and of a page that is in no node.
_COLOURS: Final = {"0": "\x1b[44m", "1": "\x1b[42m", ".": "\x1b[2m"}
_PLAIN: Final = "\x1b[0m"


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser = subparsers.add_parser(
        "demo",
        help="move the bytes of a file from node 0 to node 1 through swap, and check them",
        description="Boots a machine of its own with two nodes, reads a file into memory on node 0, calls "
        "mbind(MPOL_BIND, {1}, MPOL_MF_MOVE | MPOL_MF_STRICT), shows where the pages are before, after the eviction "
        "and after the next touch, and compares the SHA-256 of what it reads back. Exit status 0 only if all held.",
        **examples("numaemu demo\nnumaemu demo /etc/services"),
    )
    parser.add_argument("file", nargs="?", type=Path, default=_default_file(), help="default: %(default)s")
    parser.set_defaults(run=run)


def _default_file() -> Path:
    """A file that every Python has: the help texts of the language, or the interpreter where they were left out."""
    topics = Path(os.__file__).with_name("pydoc_data") / "topics.py"
    return topics if topics.exists() else Path(sys.executable).resolve()


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; 0 if everything that it shows is as it must be."""
    import numaemu as nm  # noqa: PLC0415 - --help answers without the library

    with args.file.open("rb") as file:
        data = file.read(_BYTES_MAX)
    if not data:
        raise ValueError(f"{args.file} is empty: give a file with some bytes")
    print(f"{len(data):,} bytes of {args.file}, on a machine of two nodes with 64 MiB each and 128 MiB of swap\n")
    with nm.boot(nodes=2, memory="64M", swap="128M") as machine, machine.attach(cpu=0) as task:
        return _demonstrate(task, machine, data)


def _demonstrate(task: nm.Task, machine: nm.Machine, data: bytes) -> int:
    import numaemu as nm  # noqa: PLC0415 - --help answers without the library

    buf = task.mmap(len(data))
    buf.write(0, data)
    pages = -(-len(data) // machine.topology.page_size)
    before = _show(task, buf, "written by a task on node 0")
    task.mbind(buf.start, buf.length, nm.MPOL_BIND, {1}, nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT)
    evicted = _show(task, buf, "after mbind(MPOL_BIND, {1}, MPOL_MF_MOVE | MPOL_MF_STRICT): evicted")
    back = buf.read(0, len(data))
    after = _show(task, buf, "after the next touch: faulted in where the policy says")
    expected, found = hashlib.sha256(data).hexdigest(), hashlib.sha256(back).hexdigest()
    violations = machine.fsck()
    checks = {
        "every page began on node 0": before == {0: pages},
        "no page was left in memory by mbind": set(evicted) <= {"none"},
        "every page came back on node 1": after == {1: pages},
        f"sha256 of the file  {expected}\n     sha256 of memory    {found}": expected == found,
        "fsck finds nothing": not violations,
    }
    for what, held in checks.items():
        print(f"{'ok  ' if held else 'FAIL'} {what}")
    return 0 if all(checks.values()) else 1


def _show(task: nm.Task, buf: nm.Mapping, title: str) -> dict[int | str, int]:
    """Print numa_maps, pages by node and the strip; gives the pages by node, or "none"."""
    nodes = task.where(buf.start, buf.length).tolist()
    counts: Counter[int | str] = Counter(node if node >= 0 else "none" for node in nodes)
    print(f"-- {title}")
    line = next(row for row in task.numa_maps().splitlines() if row.startswith(f"{buf.start:08x}"))
    print(f"   numa_maps: {line}")
    told = ", ".join(f"{count} {'in swap' if key == 'none' else f'on node {key}'}" for key, count in counts.items())
    print(f"   pages:     {told}")
    print(f"   {strip(nodes, shutil.get_terminal_size().columns - 4, colour=sys.stdout.isatty())}\n")
    return dict(counts)


def strip(nodes: list[int], width: int, *, colour: bool) -> str:
    """One character for each stretch of pages: the node that has most of them, a dot where none has."""
    width = max(1, min(len(nodes), width, _STRIP_WIDTH_MAX))
    cells = []
    for i in range(width):
        stretch = nodes[len(nodes) * i // width : len(nodes) * (i + 1) // width]
        node, _ = Counter(stretch).most_common(1)[0]
        cells.append(str(node) if node >= 0 else ".")
    text = "".join(cells)
    if not colour:
        return text
    return "".join(_COLOURS.get(cell, "") + cell + _PLAIN for cell in text)
