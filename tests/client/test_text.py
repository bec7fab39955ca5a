"""The formats that existing parsers read, byte by byte."""

import re

from numaemu_core import views

HARDWARE = """\
available: 3 nodes (0-1,3)
node 0 cpus: 0 1 2
node 0 size: 1023 MB
node 0 free: 560 MB
node 1 cpus:
node 1 size: 1024 MB
node 1 free: 800 MB
node 3 cpus: 11
node 3 size: 0 MB
node 3 free: 0 MB
node distances:
node   0   1   3 \n\
  0:  10  20  30 \n\
  1:  20  10  255 \n\
  3:  30  255  10 \n\
"""

NUMASTAT = """\
                           node0           node1
numa_hit                  123456     12345678901
numa_miss                      0               1
numa_foreign                   1               0
interleave_hit                17               3
local_node                     5               6
other_node                     7               8
"""

MEMINFO = """\

Node 0 MemTotal:      1048576 kB
Node 0 MemFree:        524288 kB
Node 0 MemUsed:        524288 kB
Node 0 Active:            100 kB
Node 0 Inactive:           50 kB
Node 0 HighTotal:           0 kB
Node 0 HighFree:            0 kB
Node 0 LowTotal:      1048576 kB
Node 0 LowFree:        524288 kB
Node 0 Dirty:               1 kB
Node 0 Writeback:           2 kB
Node 0 Mapped:              3 kB
Node 0 Slab:                4 kB
Node 0 HugePages_Total:     0
Node 0 HugePages_Free:      0
"""

MEMINFO_OF_TODAY = """\
Node 12 MemTotal:        1048576 kB
Node 12 Active(anon):        100 kB
Node 12 Inactive(anon):       50 kB
Node 12 SecPageTables:         0 kB
Node 12 HugePages_Total:     0
Node 12 HugePages_Free:      0
Node 12 HugePages_Surp:      0
"""


def test_hardware() -> None:
    """The text is that of numactl --hardware: sparse ids, no CPUs, no memory, three-digit distances, blanks at ends."""
    figures = {
        "nodes": [
            {"id": 0, "cpus": [0, 1, 2], "size_kb": 1048000, "free_kb": 574000},
            {"id": 1, "cpus": [], "size_kb": 1048576, "free_kb": 819200},
            {"id": 3, "cpus": [11], "size_kb": 0, "free_kb": 0},
        ],
        "distances": [[10, 20, 30], [20, 10, 255], [30, 255, 10]],
    }
    assert views.hardware(figures) == HARDWARE


def test_numastat() -> None:
    """The text is that of numastat: cells of 16 characters, a row a counter."""
    figures = [(0, [123456, 0, 1, 17, 5, 7]), (1, [12345678901, 1, 0, 3, 6, 8])]
    assert views.numastat(figures) == NUMASTAT


def test_meminfo() -> None:
    """The text is that of 2.6.15: an empty line first, and every name in its column."""
    names = re.findall(r"Node 0 (\w+): +(\d+)", MEMINFO)
    assert views.meminfo({"node": 0, **{name: int(value) for name, value in names}}, of_2005=True) == MEMINFO


def test_meminfo_of_today() -> None:
    """The text is that of 6.12: no empty line, names in a column that is two wider, a third line on huge pages."""
    names = re.findall(r"Node 12 ([\w()]+): +(\d+)", MEMINFO_OF_TODAY)
    assert views.meminfo({"node": 12, **{name: int(value) for name, value in names}}, of_2005=False) == MEMINFO_OF_TODAY


def test_node_numastat() -> None:
    """The text is that of the file in sysfs: six names with a number each."""
    assert views.node_numastat([1, 2, 3, 4, 5, 60000000000]) == (
        "numa_hit 1\nnuma_miss 2\nnuma_foreign 3\ninterleave_hit 4\nlocal_node 5\nother_node 60000000000\n"
    )


def test_vmstat() -> None:
    """A name and a number a line, in the order that they come in."""
    assert views.vmstat({"pgfault": 12, "numa_hit": 3}) == "pgfault 12\nnuma_hit 3\n"
    assert views.vmstat({}) == ""


def test_pages_by_node() -> None:
    """The pages of all lines add up by node; words that only look like it do not count."""
    text = "2000 bind:1-2 anon=3 dirty=3 N1=2 N2=1\n3000 default file=/N0=9 mapped=4 N2=4\n4000 default\n"
    assert views.pages_by_node(text) == {1: 2, 2: 5}
