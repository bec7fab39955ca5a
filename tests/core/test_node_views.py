"""hardware, numastat, meminfo and vmstat: figures that add up, under the names and in the order of each kernel."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jc
import psutil
import pytest
from tests.core.conftest import PAGE, Machine
from tests.core.test_numa_maps import QUAD

from numaemu_core import mlock, node_views, views
from numaemu_core.mm_types import AddressSpace, FileKind
from numaemu_core.page_counts import mlocked_pfns, page_counts
from numaemu_core.page_flags import PAGE_MAPPING_FILE, PG_DIRTY, PG_SWAPCACHE
from numaemu_core.uapi import MPOL_BIND, MPOL_INTERLEAVE, MPOL_MF_MOVE

Make = Callable[..., Machine]

PROFILES = ("swap-v3", "linux-6.1", "linux-6.12")
NAMES_OF_2005 = [
    "MemTotal",
    "MemFree",
    "MemUsed",
    "Active",
    "Inactive",
    "HighTotal",
    "HighFree",
    "LowTotal",
    "LowFree",
    "Dirty",
    "Writeback",
    "Mapped",
    "Slab",
    "HugePages_Total",
    "HugePages_Free",
]
NAMES_OF_TODAY = [
    "MemTotal",
    "MemFree",
    "MemUsed",
    "SwapCached",
    "Active",
    "Inactive",
    "Active(anon)",
    "Inactive(anon)",
    "Active(file)",
    "Inactive(file)",
    "Unevictable",
    "Mlocked",
    "Dirty",
    "Writeback",
    "FilePages",
    "Mapped",
    "AnonPages",
    "Shmem",
    "KernelStack",
    "PageTables",
    "SecPageTables",
    "NFS_Unstable",
    "Bounce",
    "WritebackTmp",
    "KReclaimable",
    "Slab",
    "SReclaimable",
    "SUnreclaim",
    "HugePages_Total",
    "HugePages_Free",
    "HugePages_Surp",
]


def busy(make: Make, profile: str) -> Machine:
    """A machine with 24 anonymous pages on node 1, 8 of them locked, and 8 more that two nodes share."""
    m = make(profile=profile, **QUAD)
    task = m.attach(1, "CAP_IPC_LOCK")
    addr = m.mmap(task, 32)
    m.mbind(task, addr + 24 * PAGE, 8, MPOL_INTERLEAVE, {2, 3})
    m.touch(task, addr, 32)
    m.call(mlock.sys_mlock(m.k, task, addr, 8 * PAGE))
    return m


@pytest.mark.parametrize("profile", PROFILES)
def test_meminfo_names(machine: Make, profile: str) -> None:
    """The names and their order are those of the profile's kernel."""
    wanted = NAMES_OF_2005 if profile == "swap-v3" else NAMES_OF_TODAY
    for figures in node_views.meminfo(busy(machine, profile).k):
        assert list(figures) == ["node", *wanted]


def test_meminfo_of_one_node(machine: Make) -> None:
    """It is the same as among those of all nodes; a node that is not there has none."""
    k = busy(machine, "linux-6.12").k
    assert [node_views.meminfo(k, node.id) for node in k.topology.nodes] == [[one] for one in node_views.meminfo(k)]
    assert node_views.meminfo(k, 77) == []


def test_meminfo_counts_of_2005(machine: Make) -> None:
    """Active holds all pages that were written, locked or not; Mapped counts anonymous pages, too."""
    found = node_views.meminfo(busy(machine, "swap-v3").k)
    assert [(node["Active"], node["Inactive"], node["Mapped"]) for node in found] == [
        (0, 0, 0), (96, 0, 96), (16, 0, 16), (16, 0, 16),
    ]  # fmt: skip
    assert [node["MemFree"] for node in found] == [1020, 928, 1008, 1008]
    assert all(node["MemUsed"] == node["MemTotal"] - node["MemFree"] == 1024 - node["LowFree"] for node in found)


def test_meminfo_counts_of_today(machine: Make) -> None:
    """Locked pages are unevictable and on no list; Mapped counts pages of files alone."""
    node = node_views.meminfo(busy(machine, "linux-6.12").k)[1]
    assert node["Active(anon)"] + node["Inactive(anon)"] == 64
    assert (node["Unevictable"], node["Mlocked"], node["AnonPages"], node["Mapped"]) == (32, 32, 96, 0)


@pytest.mark.parametrize(
    ("kind", "dirty", "kinds"),
    [
        (FileKind.TMPFS, 0, {"file_pages", "shmem", "file_mapped", "active_anon"}),
        (FileKind.ANON_SHARED, 0, {"file_pages", "shmem", "file_mapped", "active_anon"}),
        (FileKind.RAMFS, 0, {"file_pages", "file_mapped", "unevictable"}),
        (FileKind.DISK, 2, {"file_pages", "file_mapped", "active_file"}),
    ],
)
def test_pages_of_files(machine: Make, kind: FileKind, dirty: int, kinds: set[str]) -> None:
    """Pages of files are page cache; tmpfs counts as anonymous on the lists, and only the disk's have to be written."""
    m = busy(machine, "linux-6.12")
    c, free = m.k.c, m.k.zones[1].first + 100
    before = page_counts(m.k, 0, m.k.layout.frame_count, mlocked_pfns(m.k))
    m.k.address_spaces[PAGE_MAPPING_FILE | 5] = AddressSpace(PAGE_MAPPING_FILE | 5, kind)
    c.mapping[free : free + 2] = PAGE_MAPPING_FILE | 5
    c.mapcount[free : free + 2], c.lru_state[free : free + 2], c.pg_flags[free : free + 2] = 1, 3, PG_DIRTY
    after = page_counts(m.k, 0, m.k.layout.frame_count, mlocked_pfns(m.k))
    names = ("file_pages", "shmem", "file_mapped", "anon_mapped", "unevictable", "active_anon", "active_file")
    assert {name for name in names if getattr(after, name) - getattr(before, name) == 2} == kinds
    assert after.dirty - before.dirty == dirty
    c.mapping[free : free + 2] = c.mapcount[free : free + 2] = c.lru_state[free : free + 2] = 0
    c.pg_flags[free : free + 2] = PG_SWAPCACHE
    assert page_counts(m.k, free, free + 2, mlocked_pfns(m.k)).file_pages == 2
    c.pg_flags[free : free + 2] = 0
    del m.k.address_spaces[PAGE_MAPPING_FILE | 5]


@pytest.mark.parametrize("profile", PROFILES)
def test_counters_add_up(machine: Make, profile: str) -> None:
    """Hits and misses are local and other; misses are foreign elsewhere; frames in use are allocated less freed."""
    m = machine(profile=profile, **QUAD)
    task = m.attach(cpu=3)
    addr = m.mmap(task, 300)
    m.mbind(task, addr + 280 * PAGE, 20, MPOL_INTERLEAVE, {0, 1})
    m.touch(task, addr, 300)  # node 3 has 256 frames
    rows = dict(node_views.numastat(m.k))
    hit, miss, foreign, interleave, local, other = (sum(row[i] for row in rows.values()) for i in range(6))
    assert (hit + miss, miss) == (local + other, foreign)
    assert (hit + miss, interleave, rows[3][2]) == (300, 20, foreign)
    assert foreign > 0
    figures = node_views.vmstat(m.k)
    assert figures["pgalloc_normal"] - figures["pgfree"] == 300
    assert figures["nr_free_pages"] == sum(zone.nr_free for zone in m.k.zones.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_vmstat_order(machine: Make, profile: str) -> None:
    """Names that the profile's kernel has come first, in its order; what it does not show follows."""
    names = list(node_views.vmstat(busy(machine, profile).k))
    shown = {
        "swap-v3": ["nr_dirty", "nr_writeback", "nr_mapped", "pswpin", "pswpout", "pgfault", "pgmajfault"],
        "linux-6.1": ["nr_free_pages", "nr_mlock", "numa_hit", "numa_other", "nr_inactive_anon", "nr_shmem", "pgfault"],
    }
    wanted = shown.get(profile, shown["linux-6.1"])
    places = [names.index(name) for name in wanted]
    assert places == sorted(places)
    assert names[-1] == "nr_swap_free"
    assert ("nr_anon_pages" in names) == (profile != "swap-v3")


def test_events_appear_when_they_happen(machine: Make) -> None:
    """An event that the kernel of the profile has no name for still shows, behind the others."""
    m = machine()
    assert "oom_kill" not in node_views.vmstat(m.k)
    m.k.count("oom_kill")
    m.k.count("allocstall", 3)
    names = list(node_views.vmstat(m.k))
    assert node_views.vmstat(m.k)["allocstall"] == 3
    assert names.index("allocstall") < names.index("numa_hit") < names.index("oom_kill")


def host_text(path: str) -> str:
    """What the kernel under the tests shows, if it is as new as our profiles of today."""
    release = os.uname().release
    if tuple(int(number) for number in re.findall(r"\d+", release)[:2]) < (6, 1) or not Path(path).exists():
        pytest.skip(f"Linux {release} of this host is older than 6.1, or has no {path}")
    return Path(path).read_text(encoding="ascii")


def test_meminfo_has_the_columns_of_a_real_kernel() -> None:
    """The meminfo of the host, taken apart and printed by us, is the same text, with the names in the same order."""
    text = host_text("/sys/devices/system/node/node0/meminfo")
    figures = {"node": 0}
    for line in text.splitlines():
        _, _, name, number, *_ = line.split()
        figures[name.removesuffix(":")] = int(number)
    assert views.meminfo(figures, of_2005=False) == text
    assert [name for name in NAMES_OF_TODAY if name in figures] == [name for name in figures if name in NAMES_OF_TODAY]


def test_vmstat_has_the_order_of_a_real_kernel(machine: Make) -> None:
    """Names that the kernel of the host shows, too, follow one another as they do there."""
    theirs = [line.split()[0] for line in host_text("/proc/vmstat").splitlines()]
    m = busy(machine, "linux-6.12")
    for _, parts in m.k.profile.reclaim_events:
        for part in parts:
            m.k.count(part)
    m.k.count("pgpgin")
    m.k.count("pgpgout")
    ours = list(node_views.vmstat(m.k))
    both = [name for name in theirs if name in ours]
    assert both == [name for name in ours if name in theirs]
    assert {"nr_free_pages", "numa_hit", "nr_swapcached", "pgpgin", "pgalloc_normal", "oom_kill"} <= set(both)


@pytest.mark.parametrize("profile", PROFILES)
def test_foreign_parsers_read_vmstat(
    machine: Make, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jc reads every line; psutil finds how much was swapped in and out."""
    m = machine(profile=profile, **QUAD)
    task = m.attach()
    addr = m.mmap(task, 8)
    m.touch(task, addr, 8)
    m.k.count("pswpin", 3)
    m.k.count("pswpout", 5)
    text = views.vmstat(node_views.vmstat(m.k))
    assert jc.parse("proc_vmstat", text) == node_views.vmstat(m.k)
    (tmp_path / "vmstat").write_text(text)
    (tmp_path / "meminfo").write_text("SwapTotal: 1024 kB\nSwapFree: 1024 kB\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    found: Any = psutil.swap_memory()
    assert (found.sin, found.sout) == (3 * PAGE, 5 * PAGE)


def test_what_was_evicted(machine: Make) -> None:
    """After an eviction and a touch, pages are counted on the node that the policy names, and in the swap cache."""
    m = machine()
    task = m.attach()
    addr = m.mmap(task, 6)
    m.touch(task, addr, 6)
    m.mbind(task, addr, 6, MPOL_BIND, {1}, MPOL_MF_MOVE)
    assert [node["Mapped"] for node in node_views.meminfo(m.k)] == [0, 0]
    m.touch(task, addr, 4, write=False)
    assert [node["Mapped"] for node in node_views.meminfo(m.k)] == [0, 16]
    figures = node_views.vmstat(m.k)
    assert (figures["pswpout"], figures["pgpgout"], figures["pswpin"], figures["pgpgin"]) == (6, 24, 4, 16)
    assert page_counts(m.k, 0, m.k.layout.frame_count, mlocked_pfns(m.k)).swapcached == 4


def test_hardware_of_a_machine(machine: Make) -> None:
    """Nodes, their CPUs, sizes and distances come from the topology."""
    figures = node_views.hardware(machine(profile="swap-v3", **QUAD).k)
    assert figures["distances"] == QUAD["distances"]
    assert figures["nodes"][0] == {"id": 0, "cpus": [0], "size_kb": 1024, "free_kb": 1020}
