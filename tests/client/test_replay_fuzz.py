"""Random programs over the whole language of the recordings, on odd machines: nothing breaks, machines stay sound."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from numaemu.replay import runner, words
from numaemu.replay.records import Record

SEEDS = range(40)
PROFILES = ["linux-6.1"] * 3 + ["linux-6.12"] * 3 + ["swap-v3"]
MODES = [
    "default",
    "prefer",
    "bind",
    "bind",
    "interleave",
    "interleave",
    "local",
    "prefer_many",
    "winterleave",
    "7",
    "-1",
]
NUMBERS = ["0", "1", "2", "5", "64", "64", "64", "64", "64", "64", "65", "1024", "1025", "1026", "32769", "32770", "-1"]
ADVICE = [*words.ADVICE, "77"]

#: Operations with the places to fill in: each name in braces is a method of Words.
TEMPLATES = (
    *["mmap {page} {length} {what} {kind} {rights}"] * 9,
    *["mmap {page} {length} {file} {kind} {rights} {small}"] * 3,
    *["tw {address} {count} {tag}"] * 9,
    *["tr {address} {count}"] * 5,
    *["mbind {address} {length} {mode} {mask} {maxnode} {moving}"] * 10,
    *["set_mempolicy {mode} {mask} {maxnode}"] * 3,
    *["move_pages {who} {pages} {nodes} {moving}{odd}"] * 6,
    *["migrate_pages {who} {maxnode} {mask} {mask}"] * 4,
    *["madvise {address} {length} {advice}"] * 6,
    *["mremap {address} {count} {count} {remap} {page}"] * 4,
    *["mprotect {address} {length} {rights}"] * 3,
    *["get_mempolicy {to} {mask_to} {maxnode} {address} {asking}"] * 4,
    *["pageout {address} {length}", "cpu {cpu}", "cpuset {cpuset}", "fork {process}", "snap 64"] * 3,
    *["munmap {address} {length}", "home_node {address} {length} {node} 0", "where {address} {count}"] * 2,
    *("mlock {address} {length}", "mlock_onfault {address} {length}", "munlock {address} {length}", "mlockall {small}"),
    *(
        "munlockall",
        "drain",
        "nm",
        "pm {address} {count}",
        "fill {page} {count}",
        "exit",
        "uid {user}",
        "dumpable {bit}",
    ),
    *("dropcap {capability}", "rlimit memlock {bytes}", "rlimit as {bytes}", "new"),
    *("fread {file} {small} {count}", "fwrite {file} {small} {count} {tag}"),
)


class Words:
    """What stands at each place of a template, drawn anew each time."""

    def __init__(self, rng: random.Random, nodes: int, cpus: int) -> None:
        """A machine of so many nodes and CPUs."""
        self.rng, self.nodes_count, self.cpus_count = rng, nodes, cpus
        choices: dict[str, list[str]] = {
            "length": ["1", "2", "4", "4", "8", "16", "40", "600", "0", "#1", "2-1", "#0xffffffffffffffff"],
            "count": ["1", "2", "4", "8", "16", "20"],
            "what": ["anon", "anon", "anon", "F0", "F1:ro", "R0", "F9"],
            "file": ["F0", "F1", "R0"],
            "kind": ["priv", "priv", "shared", "shared,populate", "priv,locked", "priv,noreplace", "priv,nofixed"],
            "rights": ["rw", "rw", "rw", "r", "n"],
            "small": list("01234567"),
            "tag": ["1", "7", "42"],
            "moving": ["0", "0", "move", "move", "moveall", "strict", "strict|move", "strict|moveall", "lazy"],
            "odd": [""] * 9 + [" count=-1", " count=20", " status=null", " pages=bad", " nodes=bad"],
            "who": ["self", "self", "P0", "P1", "pid:1", "pid:99999"],
            "remap": ["none", "maymove", "maymove|fixed", "maymove|fixed", "maymove|dontunmap", "fixed"],
            "to": ["m", "m", "null", "bad"],
            "mask_to": ["k", "k", "null", "bad", "edge"],
            "asking": ["0", "addr", "addr", "node|addr", "node|addr", "node", "mems", "-1"],
            "user": ["65534", "0"],
            "bit": ["0", "1"],
            "capability": ["sys_nice", "ipc_lock", "sys_resource,sys_ptrace"],
            "bytes": ["0", "4096", "65536", "1099511627776", "inf"],
            "process": ["P1", "P2"],
            "advice": ADVICE,
            "maxnode": NUMBERS,
        }
        self.choices = choices

    def fill(self, template: str) -> str:
        """The operation with all its words."""
        return re.sub(r"\{(\w+)\}", lambda found: self._word(found[1]), template)

    def _word(self, name: str) -> str:
        if name in self.choices:
            return self.rng.choice(self.choices[name])
        draw: Callable[[], str] = getattr(self, name)
        return draw()

    def page(self) -> str:
        return str(self.rng.choice([0, 2, 4, 4, 8, 12, 16, 30, 505, 510]))

    def address(self) -> str:
        return self.rng.choice([self.page(), self.page(), self.page(), f"{self.page()}+8", "null", "@fffffffffffff000"])

    def pages(self) -> str:
        first = int(self.page())
        return self.rng.choice([f"{first}:{first + 7}", f"{first}:{first + 17},{first}", self.address()])

    def node(self) -> str:
        return str(self.rng.choice([*range(self.nodes_count), *range(self.nodes_count), -1, 64]))

    def nodes(self) -> str:
        return self.rng.choice(["null", self.node(), self.node(), f"{self.node()},{self.node()}"])

    def mode(self) -> str:
        return self.rng.choice(MODES) + self.rng.choice(["", "", "", "|static", "|relative", "|balancing"])

    def mask(self) -> str:
        some = f"{self.rng.randrange(1 << self.nodes_count):x}"
        return self.rng.choice([some] * 6 + ["null", "bad", "edge:3", "1" + "0" * 16, "1" + "0" * 256])

    def cpu(self) -> str:
        return str(self.rng.randrange(self.cpus_count))

    def cpuset(self) -> str:
        low = self.rng.randrange(self.nodes_count)
        return f"{low}-{self.rng.randrange(low, self.nodes_count + (low == 0))}"


def odd_machine(rng: random.Random) -> dict[str, Any]:
    """One to eight nodes: several CPUs, none, memory of any size, none; any distances."""
    count = rng.choice([1, 2, 3, 4, 6, 8])
    memory = [rng.choice([0, 8, 8, 16, 33]) * 1024 for _ in range(count)]
    cpus: list[list[int]] = []
    for _ in range(count):
        first = sum(map(len, cpus))
        cpus.append(list(range(first, first + rng.choice([0, 1, 1, 2]))))
    memory[-1], cpus[0] = memory[-1] or 8192, cpus[0] or [60]
    distances = [[10 if i == j else rng.choice([11, 12, 20, 20, 21, 30]) for j in range(count)] for i in range(count)]
    return {"cpus": cpus, "memory_kb": memory, "distances": distances}


def random_program(seed: int) -> Record:
    rng = random.Random(seed)
    machine = odd_machine(rng)
    numbers = [cpu for cpus in machine["cpus"] for cpu in cpus]
    drawn = Words(rng, len(machine["cpus"]), 1)
    drawn.choices["cpu"] = [str(cpu) for cpu in numbers]
    ops = ["- file F0 8", "- file F1 20", "- rfile R0 8"]
    ops += [f"- sysctl /sys/kernel/mm/mempolicy/weighted_interleave/node0 {rng.choice(['3', '0', '256', 'x'])}"]
    alive = ["P0"]
    for _ in range(rng.choice([15, 30])):
        who, op = rng.choice(alive), drawn.fill(rng.choice(TEMPLATES))
        if op == "new":
            who = "P3"
        other = op.removeprefix("fork ") if op.startswith("fork ") else who
        if op.startswith(("fork", "new")):
            if other in alive:
                continue
            alive.append(other)
        if op == "exit":
            if len(alive) == 1:
                continue
            alive.remove(who)
        ops.append(f"{who} {op}")
    ops += [f"{who} snap 64" for who in alive]
    swap, cluster, around = rng.choice(["ram", "disk"]), rng.choice([0, 3]), rng.choice([4096, 65536])
    kernel = rng.choice(PROFILES)
    return Record("fuzz", str(seed), kernel, machine, tuple(ops), (), frozenset(), swap, cluster, around)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs_run_to_their_end(seed: int) -> None:
    """Every line gets an answer, whatever it asks for, and fsck finds the machine sound."""
    record = random_program(seed)
    outcome = runner.run_one(record, runner.Options(fsck=True))
    failed = outcome.failed
    assert failed is None, (record.machine, record.ops[: failed + 1], outcome.answers[failed])
    assert outcome.violations == []
