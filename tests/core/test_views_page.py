"""The examples of docs/views.md are what a machine shows.

Run as a script, as `make docs` does, this file writes them anew.
"""

import re
from pathlib import Path

import pytest

from numaemu_core import files, fork, mbind, memory, mmap, node_views, numa_maps, views
from numaemu_core.mm_types import Task
from numaemu_core.performer import Performer
from numaemu_core.topology import from_dict
from numaemu_core.uapi import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_INTERLEAVE,
    PROT_READ,
    PROT_WRITE,
)

PAGE = 4096
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "views.md"
EXAMPLE = re.compile(r"<!-- (\S+) (\S+) -->\n```\n(.*?)```\n", re.DOTALL)


class Example:
    """The machine that the page describes."""

    def __init__(self, profile: str) -> None:
        self.performer = Performer(
            from_dict(
                {
                    "profile": profile,
                    "page_size": PAGE,
                    "swap": "1M",
                    "distances": [[10, 20], [20, 10]],
                    "node": [{"id": n, "memory": "1M", "cpus": [n]} for n in (0, 1)],
                }
            )
        )
        self.k = self.performer.k
        self.task = fork.attach(self.k, 0, [], None)
        other = fork.attach(self.k, 1, [], None)
        files.create_file(self.k, "a file", "tmpfs", 4 * PAGE)
        self.performer.call(files.sys_file_write(self.k, other, "a file", 0, bytes(4 * PAGE)))
        interleaved = self.mmap(8, MAP_PRIVATE | MAP_ANONYMOUS)
        call = mbind.sys_mbind(self.k, self.task, interleaved, 8 * PAGE, MPOL_INTERLEAVE, [3], 65, 0)
        self.performer.call(call)
        self.touch(self.task, interleaved, 8, write=True)
        self.touch(self.task, self.mmap(4, MAP_SHARED | MAP_ANONYMOUS), 3, write=True)
        private = self.mmap(4, MAP_PRIVATE, "a file")
        self.touch(self.task, private, 4, write=False)
        self.touch(self.task, private, 1, write=True)
        heap = self.performer.call(mmap.sys_brk(self.k, self.task, 0))
        self.performer.call(mmap.sys_brk(self.k, self.task, heap + 2 * PAGE))
        self.touch(self.task, self.mmap(2, MAP_PRIVATE | MAP_ANONYMOUS, prot=PROT_READ), 2, write=False)
        self.performer.run()

    def mmap(self, pages: int, flags: int, file: str | None = None, prot: int = PROT_READ | PROT_WRITE) -> int:
        call = mmap.sys_mmap(self.k, self.task, 0, pages * PAGE, prot, flags, file, 0, "r")
        return int(self.performer.call(call))

    def touch(self, task: Task, addr: int, pages: int, *, write: bool) -> None:
        for page in range(pages):
            self.performer.call(memory.sys_fault(self.k, task, addr + page * PAGE, PAGE, write=write))

    def show(self, view: str) -> str:
        """The text of a view."""
        match view:
            case "numa_maps":
                text: str = self.performer.call(numa_maps.sys_numa_maps(self.k, self.task))
                return text
            case "meminfo":
                of_2005 = self.k.profile.views_of_2005
                return views.meminfo(node_views.meminfo(self.k)[0], of_2005=of_2005)
            case "vmstat":
                return views.vmstat(node_views.vmstat(self.k))
            case "numastat":
                return views.numastat([(nid, row) for nid, row in node_views.numastat(self.k)])
            case _:
                return views.hardware(node_views.hardware(self.k))


def filled(text: str) -> str:
    """The page with every example as it is now."""
    machines = {profile: Example(profile) for profile, _, _ in EXAMPLE.findall(text)}
    return EXAMPLE.sub(
        lambda found: f"<!-- {found[1]} {found[2]} -->\n```\n{machines[found[1]].show(found[2])}```\n", text
    )


@pytest.mark.parametrize(("profile", "view", "text"), EXAMPLE.findall(DOCUMENT.read_text(encoding="utf-8")))
def test_the_examples_of_the_page_are_so(profile: str, view: str, text: str) -> None:
    """Each example of docs/views.md is what a machine shows; this file, run as a script, writes them anew."""
    assert Example(profile).show(view) == text


def test_the_page_has_examples() -> None:
    """Views that differ between kernels have an example of both."""
    found = {(profile, view) for profile, view, _ in EXAMPLE.findall(DOCUMENT.read_text(encoding="utf-8"))}
    assert {(profile, view) for profile in ("swap-v3", "linux-6.12") for view in ("numa_maps", "meminfo", "vmstat")} < (
        found
    )


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
