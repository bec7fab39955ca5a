"""The texts of the files that are answered."""

from types import SimpleNamespace
from typing import Any

from numaemu_core.topology import uniform
from numaemu_run import views
from numaemu_run.node_tree import NodeTree
from numaemu_run.procfs import Area, areas_of

STATUS = """Name:\tcat
Cpus_allowed:\t3
Cpus_allowed_list:\t0-1
Mems_allowed:\t00000000,00000001
Mems_allowed_list:\t0
voluntary_ctxt_switches:\t1
"""
MAPS = b"""\
560b301b6000-560b301b8000 r--p 00000000 fd:00 131 /usr/bin/a file
560b3e9ae000-560b3e9cf000 rw-p 00000000 00:00 0   [heap]
7f2a4d16f000-7f2a4d170000 rw-s 00003000 00:01 77  /memfd:x (deleted)
7f2a4d170000-7f2a4d171000 rw-s 00000000 00:01 0   /SYSV00000000 (deleted)
7f2a4d180000-7f2a4d190000 r--s 00000000 fd:00 9   /usr/lib/cache
7ffeddfe5000-7ffede006000 rw-p 00000000 00:00 0   [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
"""


def test_status_tells_the_cpus_and_nodes_of_the_machine() -> None:
    """The four lines about CPUs and nodes are the machine's, as many bits wide as on its kernel; the others stay."""
    tree = NodeTree(uniform(4, "1M", 0, "linux-6.12", 4096))
    thread: Any = SimpleNamespace(cpus=0b1010)
    lines = views.status(STATUS, thread, tree, 0b1101).splitlines()
    assert lines[1:3] == ["Cpus_allowed:\ta", "Cpus_allowed_list:\t1,3"]
    assert lines[3] == "Mems_allowed:\t" + "00000000," * 31 + "0000000d"
    assert lines[4] == "Mems_allowed_list:\t0,2-3"
    assert (lines[0], lines[5]) == ("Name:\tcat", "voluntary_ctxt_switches:\t1")


def test_mappings_are_read_with_what_they_are() -> None:
    """Shared objects by device and inode, private memory by nothing; labels as in numa_maps; no kernel addresses."""
    found = areas_of(MAPS)
    assert [area.label for area in found] == [
        "file=/usr/bin/a\\040file",
        "heap",
        "file=/memfd:x\\040(deleted)",
        "file=/SYSV00000000\\040(deleted)",
        "file=/usr/lib/cache",
        "stack",
    ]
    assert [(area.name, area.offset) for area in found] == [
        ("", 0),
        ("", 0),
        ("00:01 77", 0x3000),
        ("segment 0", 0),
        ("fd:00 9", 0),
        ("", 0),
    ]


def test_numa_maps_has_the_places_of_the_host() -> None:
    """Heap, stack and files stand behind the policy; parts of a mapping have its place; the machine's words go."""
    areas = [
        Area(0x1000, 0x4000, 0, "", "[heap]"),
        Area(0x8000, 0x9000, 0, "", ""),
        Area(0xA000, 0xB000, 0, "", "/x"),
    ]
    text = (
        "00001000 default anon=1 N0=1 kernelpagesize_kB=4\n"
        "00002000 prefer (many):0-1 anon=1 N1=1 kernelpagesize_kB=4\n"
        "00008000 bind:0\n"
        "0000a000 weighted interleave:0,2 file=/dev/zero (deleted) N2=3 kernelpagesize_kB=4\n"
    )
    assert views.numa_maps(text, areas, of_2005=False) == (
        "00001000 default heap anon=1 N0=1 kernelpagesize_kB=4\n"
        "00002000 prefer (many):0-1 heap anon=1 N1=1 kernelpagesize_kB=4\n"
        "00008000 bind:0\n"
        "0000a000 weighted interleave:0,2 file=/x N2=3 kernelpagesize_kB=4\n"
    )
    assert views.numa_maps(text, areas, of_2005=True) == text


def test_meminfo_sums_the_nodes_up() -> None:
    """What nodes have is their sum, in the columns of the host; what they have not is the host's."""
    rest = "VmallocTotal:   34359738367 kB\nHugePages_Total:       0\n"
    text = "MemTotal:       24684096 kB\nMemFree:        22000000 kB\n" + rest
    nodes = [{"node": 0, "MemTotal": 1024, "MemFree": 1000}, {"node": 1, "MemTotal": 2048, "MemFree": 7}]
    assert views.meminfo(text, nodes) == "MemTotal:           3072 kB\nMemFree:            1007 kB\n" + rest
