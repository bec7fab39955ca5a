"""Programs that no recording shows: what 6.1 and 6.12 answer, worked out from their code.

A line is `op` or `op => answer`, the answer as JSON with the fields that count. Lines that begin with a version are for
that kernel only. Page 0 of the arena has a number that leaves 1 when it is divided by 3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from numaemu.replay import runner
from numaemu.replay.excuses import read_excuses
from numaemu.replay.records import Answer, Record

ROOT = Path(__file__).resolve().parents[2]
#: Four nodes of 8 MiB with a CPU each; equal distances but for one.
QUAD = {
    "cpus": [[0], [1], [2], [3]],
    "memory_kb": [8192] * 4,
    "distances": [[10, 20, 20, 20], [20, 10, 20, 20], [20, 20, 10, 12], [20, 20, 12, 10]],
}
#: CPUs on nodes 0 and 2 only, and the same distance everywhere.
SOME_CPUS = {
    "cpus": [[0], [], [1, 2], []],
    "memory_kb": [8192] * 4,
    "distances": [[10 if i == j else 20 for j in range(4)] for i in range(4)],
}
KERNELS = ("6.1", "6.12")

#: What a program shows → its lines.
PROGRAMS: dict[str, str] = {
    "a child has the user, the limits and the dumpable bit of its parent": """
        P0 mmap 0 4 anon priv rw
        P0 rlimit memlock 8192
        P0 uid 65534
        P0 fork P1
        P1 mlock 0 4 => {"e": 12}
        P1 mlock 0 2 => {"e": 0}
        P1 migrate_pages P0 64 1 2 => {"e": 1}
        P0 migrate_pages P1 64 1 2 => {"e": 1}
        P1 dumpable 1
        P0 migrate_pages P1 64 1 2 => {"r": 0}
    """,
    "BALANCING keeps the mask of the user, until a cpuset takes its place": """
        P0 set_mempolicy bind|balancing 13 64
        P0 get_mempolicy m k 64 null 0 => {"mode": 8194, "mask": ["13"]}
        P0 set_mempolicy bind 13 64
        P0 get_mempolicy m k 64 null 0 => {"mask": ["3"]}
        P0 set_mempolicy bind|balancing 3 64
        P0 cpuset 2-3
        P0 get_mempolicy m k 64 null 0 => {"mode": 8194, "mask": ["c"]}
    """,
    "memory that could be written to stays accounted for, and does not merge with what could not": """
        P0 mmap 0 2 anon priv rw
        P0 tw 0 2 1
        P0 mprotect 0 2 r
        P0 mmap 2 2 anon priv r
        P0 nm => {"nm": [[0, 2, "r--p", "default", "anon=2 dirty=2 N0=2"], [2, 2, "r--p", "default", ""]]}
        P0 munmap 0 4
        P0 mmap 0 2 anon priv r
        P0 mmap 2 2 anon priv rw
        P0 mprotect 2 2 r
        6.1 P0 nm => {"nm": [[0, 2, "r--p", "default", ""], [2, 2, "r--p", "default", ""]]}
        6.12 P0 nm => {"nm": [[0, 4, "r--p", "default", ""]]}
    """,
    "MAP_NORESERVE keeps mappings apart": """
        P0 mmap 0 2 anon priv,noreserve rw
        P0 mmap 2 2 anon priv rw
        P0 mmap 4 2 anon priv rw
        P0 nm => {"nm": [[0, 2, "rw-p", "default", ""], [2, 4, "rw-p", "default", ""]]}
    """,
    "a file that was opened twice is two mappings; split ones merge again": """
        - file F0 8
        P0 mmap 0 2 F0 shared rw
        P0 mmap 2 2 F0 shared rw 2
        P0 mprotect 0 1 r
        P0 mprotect 0 1 rw
        P0 nm => {"nm": [[0, 2, "rw-s", "default", "file=/t/F0"], [2, 2, "rw-s", "default", "file=/t/F0"]]}
    """,
    "DONTUNMAP does not split the old mapping, which loses its lock as a whole": """
        P0 mmap 0 8 anon priv rw
        P0 mlock 0 8
        P0 mremap 2 2 2 maymove|dontunmap 20 => {"at": 20}
        P0 madvise 20 2 dontneed => {"e": 22}
        P0 munlock 20 2
        P0 madvise 20 2 dontneed
        P0 madvise 0 8 dontneed => {"e": 0}
        P0 nm => {"nm": [[0, 8, "rw-p", "default", ""], [20, 2, "rw-p", "default", ""]]}
    """,
    "mremap to the same size does not split": """
        P0 mmap 0 8 anon priv rw
        P0 mremap 2 2 2 maymove => {"at": 2}
        P0 mremap 2 2 2 none => {"at": 2}
        P0 nm => {"nm": [[0, 8, "rw-p", "default", ""]]}
    """,
    "mremap of nothing maps shared memory once more": """
        P0 mmap 0 8 anon shared rw
        P0 tw 0 8 1
        P0 mremap 2 0 2 maymove|fixed 20 => {"at": 20}
        P0 tr 20 2 => {"v": [1002, 1003]}
        P0 munmap 20 2
        P0 nm => {"nm": [[0, 8, "rw-s", "default", "file=/dev/zero dirty=8 N0=8"]]}
        P0 mmap 8 8 anon priv rw
        P0 mremap 10 0 2 maymove|fixed 20 => {"e": 22}
        P0 nm => {"nm": [[0, 8, "rw-s", "default", "file=/dev/zero dirty=8 N0=8"], [8, 8, "rw-p", "default", ""]]}
    """,
    "mprotect beyond the address space changes what is there": """
        P0 mmap 0 2 anon priv rw
        P0 mprotect 0 #0x7fffffffffffffff r => {"e": 12}
        P0 nm => {"nm": [[0, 2, "r--p", "default", ""]]}
        P0 mprotect 0 #0xffffffffffffffff rw => {"e": 12}
        P0 nm => {"nm": [[0, 2, "r--p", "default", ""]]}
    """,
    "RLIMIT_AS counts what a fixed mapping covers only once, and the program itself": """
        P0 mmap 0 4 anon priv rw
        P0 rlimit as 16384
        P0 mmap 8 1 anon priv rw => {"e": 12}
        P0 mmap 0 4 anon priv r => {"e": 12}
        P0 rlimit as 2121728
        P0 mmap 0 4 anon priv r => {"e": 0}
        P0 mmap 2 4 anon priv rw => {"e": 0}
        P0 mmap 8 4 anon priv rw => {"e": 12}
        P0 mremap 2 2 8 maymove|fixed 20 => {"e": 12}
        P0 mremap 2 4 4 maymove|dontunmap 20 => {"e": 12}
        P0 nm => {"nm": [[0, 2, "r--p", "default", ""], [2, 4, "rw-p", "default", ""]]}
    """,
    "mmap looks for room first, then at locks, then at the file": """
        - file F0 4
        P0 mmap 0 4 anon priv rw
        P0 mmap 2 4 F0:ro shared,noreplace rw => {"e": 17}
        P0 mmap @fffffffffffff001 1 F0:ro shared rw => {"e": 12}
        P0 mmap 8+1 1 F0:ro shared rw => {"e": 22}
        P0 dropcap ipc_lock
        P0 rlimit memlock 0
        P0 mmap 2 4 F0:ro shared,locked,noreplace rw => {"e": 17}
        P0 mmap 8 4 F0:ro shared,locked rw => {"e": 1}
        P0 rlimit memlock 4096
        P0 mmap 8 4 F0:ro shared,locked rw => {"e": 11}
        P0 mmap 8 4 F0:ro shared rw => {"e": 13}
        P0 mmap 8 4 F9 shared rw => {"e": 2, "open": 1}
    """,
    "mlock over the limit is ENOMEM even where the range wraps": """
        P0 mmap 0 4 anon priv rw
        P0 mlock 0 #0xffffffffffffe000 => {"e": 22}
        P0 dropcap ipc_lock
        P0 rlimit memlock 4096
        P0 mlock 0 #0xffffffffffffe000 => {"e": 12}
        P0 mlock 0 2 => {"e": 12}
        P0 mlockall 1 => {"e": 12}
        P0 rlimit memlock 0
        P0 mlock 0 1 => {"e": 1}
        P0 mlock_onfault 0 1 => {"e": 1}
        P0 mlockall 1 => {"e": 1}
    """,
    "MADV_FREE: what is in swap is gone, what is in memory goes at the next PAGEOUT unless it was written to": """
        P0 mmap 0 6 anon priv rw
        P0 tw 0 6 1
        P0 pageout 0 2
        P0 madvise 0 4 free
        P0 pm 0 6 => {"pm": "..PPPP"}
        P0 tr 0 6 => {"v": [0, 0, 1002, 1003, 1004, 1005]}
        P0 tw 3 1 2
        P0 pageout 2 4
        P0 pm 0 6 => {"pm": "PP.PSS"}
        P0 tr 2 2 => {"v": [0, 2003]}
        P0 pageout 3 1
        P0 pm 3 1 => {"pm": "S"}
        P0 tr 3 1 => {"v": [2003]}
        P0 mlock 0 1
        P0 madvise 0 1 free => {"e": 22}
    """,
    "MADV_FREE of a shared page: who sees it last": """
        P0 mmap 0 2 anon priv rw
        P0 tw 0 2 1
        P0 fork P1
        P0 madvise 0 2 free => {"e": 0}
        P0 pageout 0 2
        P0 tr 0 2 => {"v": [1000, 1001]}
        P1 exit
        P0 pageout 0 2
        P0 tr 0 2 => {"v": [0, 0]}
    """,
    "MADV_WILLNEED reads swap where the policy of the moment says": """
        P0 mmap 0 4 anon priv rw
        P0 tw 0 4 1
        P0 pageout 0 4
        P0 mbind 0 4 bind 4 64 0
        P0 madvise 0 2 willneed => {"e": 0}
        P0 pm 0 4 => {"pm": "SSSS"}
        P0 mbind 0 4 bind 8 64 0
        P0 tr 0 4 => {"v": [1000, 1001, 1002, 1003]}
        P0 where 0 4 => {"w": "2233"}
    """,
    "MADV_WILLNEED on shared memory asks the task on 6.1 and the mapping on 6.12": """
        P0 mmap 0 4 anon shared rw
        P0 tw 0 4 1
        P0 pageout 0 4
        P0 mbind 0 4 bind 4 64 0
        P0 set_mempolicy bind 2 64
        P0 madvise 0 2 willneed
        P0 tr 0 4 => {"v": [1000, 1001, 1002, 1003]}
        6.1 P0 where 0 4 => {"w": "1122"}
        6.12 P0 where 0 4 => {"w": "2222"}
    """,
    "MADV_REMOVE of what could be written to: refused on 6.1": """
        P0 mmap 0 4 anon shared rw
        P0 tw 0 4 1
        P0 mprotect 0 4 r
        6.1 P0 madvise 0 2 remove => {"e": 13}
        6.12 P0 madvise 0 2 remove => {"e": 0}
        6.1 P0 tr 0 4 => {"v": [1000, 1001, 1002, 1003]}
        6.12 P0 tr 0 4 => {"v": [0, 0, 1002, 1003]}
    """,
    "MADV_POPULATE goes on behind a hole on 6.1": """
        P0 mmap 0 2 anon priv rw
        P0 mmap 4 2 anon priv rw
        P0 madvise 0 6 populate_write => {"e": 12}
        6.1 P0 pm 0 6 => {"pm": "PP..PP"}
        6.12 P0 pm 0 6 => {"pm": "PP...."}
        P0 mprotect 0 2 r
        P0 madvise 0 2 populate_write => {"e": 22}
    """,
    "MADV_POPULATE_WRITE makes pages dirty that were only read": """
        - file F0 4
        P0 mmap 0 4 F0 shared rw
        P0 tr 1 1
        P0 madvise 0 4 populate_write
        P0 nm => {"nm": [[0, 4, "rw-s", "default", "file=/t/F0 dirty=4 N0=4"]]}
    """,
    "with STRICT, mbind ends its walk at a page that it met before on 6.1": """
        - file F0 2
        P0 mmap 0 2 F0 shared rw
        P0 mmap 2 2 F0 shared rw
        P0 mmap 4 2 anon priv rw
        P0 tw 0 6 1
        P0 mbind 0 6 bind 4 64 strict|moveall => {"e": 5}
        6.1 P0 where 0 6 => {"w": "222200"}
        6.12 P0 where 0 6 => {"w": "222222"}
    """,
    "move_pages reads on behind its addresses, and tells of every page that was asked for": """
        P0 mmap 0 4 anon priv rw
        P0 tw 0 2 1
        P0 move_pages self 0:1 null 0 count=5 => {"r": 0, "st": [0, 0]}
        P0 move_pages self 0:1 null 0 count=-1 => {"e": 14, "st": [0, 0]}
        P0 move_pages self 0:1 1 move count=-1 => {"e": 19, "st": [1, 1]}
        P0 move_pages self 0:1 1 move count=1 => {"r": 0, "st": [1, null]}
        P0 move_pages self 0:1 1 move pages=null => {"e": 14, "st": [null, null]}
        P0 move_pages self 0:1 1 move nodes=bad => {"e": 14, "st": [null, null]}
        P0 move_pages self 0:1 null 0 status=null => {"e": 14}
        P0 move_pages self 0:1 2 move status=bad => {"e": 14}
        P0 where 0 2 => {"w": "22"}
    """,
    "masks of no bytes are not written": """
        P0 get_mempolicy m bad -1 null 0 => {"r": 0, "mode": 0}
        P0 get_mempolicy m bad 65 null 0 => {"e": 14}
        P0 get_mempolicy m edge 65 null 0 => {"r": 0, "mask": ["0"]}
        P0 get_mempolicy m edge 66 null 0 => {"e": 14}
    """,
    "a page that begins in the middle of one has its ends in two": """
        P0 mmap 0 2 anon priv rw
        P0 tw 0+8 2 1 => {"r": 1, "f": ".S"}
        P0 tr 0+8 1 => {"v": [1000]}
        P0 tr 2-4 1 => {"r": 0, "f": "S"}
        P0 pm 0 2 => {"pm": "PP"}
    """,
    "a file is read up to its end": """
        - file F0 4
        P0 fread F0 2 4 => {"r": 2, "v": [0, 0]}
        P0 fread F0 4 1 => {"r": 0, "v": []}
    """,
}


def expected(lines: str, kernel: str) -> tuple[list[str], list[Answer]]:
    """The operations of a program and what is asked of their answers."""
    ops, answers = [], []
    for line in filter(None, map(str.strip, lines.splitlines())):
        version, _, rest = line.partition(" ")
        if version in KERNELS and version != kernel:
            continue
        op, _, answer = (rest if version in KERNELS else line).partition(" => ")
        ops.append(op)
        answers.append(json.loads(answer or "{}"))
    return ops, answers


def run(machine: dict[str, Any], kernel: str, ops: list[str]) -> list[Answer]:
    outcome = runner.run_one(Record("table", "", kernel, machine, tuple(ops), ()), runner.Options(fsck=True))
    assert outcome.violations == []
    return outcome.answers


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lines", PROGRAMS.values(), ids=PROGRAMS)
def test_programs(lines: str, kernel: str) -> None:
    """Every line of a program is answered as the kernel of that version does."""
    ops, wanted = expected(lines, kernel)
    answers = run(QUAD, kernel, ops)
    told = [{name: answer.get(name) for name in fields} for fields, answer in zip(wanted, answers, strict=True)]
    assert list(zip(ops, told, strict=True)) == list(zip(ops, wanted, strict=True))


@pytest.mark.parametrize(
    ("machine", "cpu", "mask", "node"),
    [(QUAD, 0, "e", "1"), (QUAD, 3, "7", "2"), (SOME_CPUS, 0, "c", "2"), (SOME_CPUS, 1, "b", "3")],
    ids=["the first above", "the nearest", "one with CPUs is as near", "above before below"],
)
def test_ties_of_distance(machine: dict[str, Any], cpu: int, mask: str, node: str) -> None:
    """Of nodes at one distance today's kernels take the next above the local one, be there CPUs or not."""
    ops = [f"P0 cpu {cpu}", "P0 mmap 0 1 anon priv rw", f"P0 mbind 0 1 bind {mask} 64 0", "P0 tw 0 1 1", "P0 where 0 1"]
    for kernel in KERNELS:
        assert run(machine, kernel, ops)[-1]["w"] == node


def test_no_program_is_excused() -> None:
    """The list of programs that may differ can be read, and is empty."""
    assert read_excuses(str(ROOT / "docs/conformance-expected.toml")) == {}
