"""Faults on demand: the grammar, chance that is no chance, and what a machine with faults answers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.conftest import GONE, PAGE, Machine, reborn

from numaemu_core import limits, madvise, memory, migrate_pages, move_pages, node_views, views
from numaemu_core.columns import columns_in_memory
from numaemu_core.errors import MmError, OutOfMemory, TopologyError
from numaemu_core.faults_on_demand import ISOLATION, KNOWN, MIGRATION, NODE, SEED_MAX, SWAP, Fault, parse_fault
from numaemu_core.layout import layout_of
from numaemu_core.nodemask import mask_of
from numaemu_core.strikes import Strikes, struck_at
from numaemu_core.topology import Topology, from_dict, uniform
from numaemu_core.uapi import (
    MADV_PAGEOUT,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_STRICT,
    MPOL_PREFERRED,
)

if TYPE_CHECKING:
    from numaemu_core.mm_types import Task

Make: TypeAlias = "Callable[..., Machine]"
STRICT_MOVE = MPOL_MF_STRICT | MPOL_MF_MOVE
PROFILES = ("swap-v3", "linux-6.1", "linux-6.12")
TODAY = PROFILES[1:]

# -- the grammar -------------------------------------------------------------------------------------------------------

GOOD: dict[str, tuple[Fault, str]] = {
    "node2: full after 100 pages": (Fault(NODE, 2, 100), "node2: full after 100 pages"),
    "node0: full after 1 page": (Fault(NODE, 0, 1), "node0: full after 1 page"),
    "node63:full after 1 pages": (Fault(NODE, 63, 1), "node63: full after 1 page"),
    "  node1 :  full ": (Fault(NODE, 1, 0), "node1: full after 0 pages"),
    "isolation: refused": (Fault(ISOLATION), "isolation: refused"),
    "isolation: refused for 100%": (Fault(ISOLATION), "isolation: refused"),
    "isolation: refused for 10%": (Fault(ISOLATION, percent=10), "isolation: refused for 10%"),
    "isolation: refused on node3": (Fault(ISOLATION, 3), "isolation: refused on node3"),
    "isolation: refused for 1% on node03": (Fault(ISOLATION, 3, percent=1), "isolation: refused for 1% on node3"),
    "swap: full": (Fault(SWAP), "swap: full after 0 pages"),
    "swap: full after 50 pages": (Fault(SWAP, pages=50), "swap: full after 50 pages"),
    "migration: fails": (Fault(MIGRATION), "migration: fails"),
    "migration: fails for 99% to node1": (Fault(MIGRATION, 1, percent=99), "migration: fails for 99% to node1"),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_text_of_the_grammar_is_a_fault(text: str) -> None:
    """Each form with and without its parts; what a fault says of itself gives it again."""
    fault, shown = GOOD[text]
    assert parse_fault(text) == fault
    assert str(fault) == shown
    assert parse_fault(shown) == fault


#: Text: what the message must say was expected.
BAD: dict[Any, str] = {
    "": "expected nodeN, isolation, swap or migration and a colon",
    "node2 full": "expected nodeN, isolation, swap or migration and a colon",
    "node: full": "expected nodeN, isolation, swap or migration and a colon",
    "nodeX: full": "expected nodeN, isolation, swap or migration and a colon",
    "node-1: full": "expected nodeN, isolation, swap or migration and a colon",
    "Node1: full": "expected nodeN, isolation, swap or migration and a colon",
    "node٣: full": "expected nodeN, isolation, swap or migration and a colon",
    "disk: full": "expected nodeN, isolation, swap or migration and a colon",
    "node1024: full": "expected a node from 0 to 1023",
    "isolation: refused on node1024": "expected a node from 0 to 1023",
    "node2: full after 100": 'expected "full [after P pages]" behind the colon',
    "node2: full after -1 pages": 'expected "full [after P pages]" behind the colon',
    "node2: full after 1e3 pages": 'expected "full [after P pages]" behind the colon',
    "node2: full after 9999999999999 pages": 'expected "full [after P pages]" behind the colon',
    "node2: full after 100 pages!": 'expected "full [after P pages]" behind the colon',
    "swap: refused": 'expected "full [after P pages]" behind the colon',
    "isolation: full": 'expected "refused [for X%] [on nodeN]" behind the colon',
    "isolation: refused on node1 for 10%": 'expected "refused [for X%] [on nodeN]" behind the colon',
    "isolation: refused for 10": 'expected "refused [for X%] [on nodeN]" behind the colon',
    "isolation: refused for 0.5%": 'expected "refused [for X%] [on nodeN]" behind the colon',
    "isolation: refused for 0%": "expected 1% to 100%",
    "isolation: refused for 101%": "expected 1% to 100%",
    "migration: fails on node1": 'expected "fails [for X%] [to nodeN]" behind the colon',
    "x" * 500: "expected nodeN, isolation, swap or migration and a colon",
    7: "expected a text",
    None: "expected a text",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text)[:40])
def test_a_wrong_text_is_told_in_one_line(text: object) -> None:
    """The line names the text, what was expected, and every form there is."""
    with pytest.raises(TopologyError) as refusal:
        parse_fault(text)
    line = str(refusal.value)
    assert line.startswith(f"fault {repr(text)[:80]}")
    assert line.endswith(f": {BAD[text]}; known: {KNOWN}")
    assert "\n" not in line
    assert len(line) < 400


SUBJECTS = ("node", "node1", "node99", "isolation", "swap", "migration", ":", "٣")
REST = ("full", "refused", "fails", "after", "for", "on", "to", "page", "pages", "0", "7", "1%", "250%", "\n", " ")
words = st.sampled_from([*SUBJECTS, *REST])


@given(st.one_of(st.text(), st.lists(words, max_size=9).map(" ".join), st.lists(words, max_size=9).map("".join)))
def test_any_text_is_a_fault_or_a_line(text: str) -> None:
    """Whatever it is told: a fault that its own text gives again, or one line."""
    try:
        fault = parse_fault(text)
    except TopologyError as refusal:
        assert len(str(refusal).splitlines()) == 1  # noqa: PT017 - both ends are right
        return
    assert parse_fault(str(fault)) == fault
    assert str(parse_fault(str(fault))) == str(fault)


faults = st.builds(
    lambda kind, node, pages, percent: {
        NODE: Fault(NODE, node, pages),
        SWAP: Fault(SWAP, pages=pages),
    }.get(kind, Fault(kind, node if percent % 2 else None, percent=percent)),
    st.sampled_from([NODE, ISOLATION, SWAP, MIGRATION]),
    st.integers(0, limits.MAX_NUMNODES - 1),
    st.integers(0, 10**12 - 1),
    st.integers(1, 100),
)


@given(faults)
def test_every_fault_has_a_text(fault: Fault) -> None:
    """The grammar can say all that a fault can be."""
    assert parse_fault(str(fault)) == fault


def box(faults: Any, profile: str = "linux-6.12", **more: object) -> Topology:  # noqa: ANN401 - wrong types are tested
    """Three nodes, the last without memory, and 16 slots."""
    nodes = [{"memory": "128K", "cpus": [0]}, {"memory": "64K", "cpus": [1]}, {"cpus": [2]}]
    return from_dict({"profile": profile, "swap": "64K", "node": nodes, "faults": faults, **more})


#: What a machine is told, and what its answer must say.
UNFIT: dict[str, tuple[object, str]] = {
    "no-list": ("swap: full", "faults: expected a list of texts, got 'swap: full'; known: "),
    "no-texts": ([7], "fault 7: expected a text; known: "),
    "no-such-node": (["node7: full"], "expected a node of the machine that has memory, one of node0, node1; known: "),
    "no-memory": (["isolation: refused on node2"], "expected a node of the machine that has memory, one of node0, "),
    "too-many-pages": (["node1: full after 17 pages"], "expected no more pages than there are: 16; known: "),
    "too-many-slots": (["swap: full after 17 pages"], "expected no more pages than there are: 16; known: "),
    "twice": (["node1: full", "node1: full after 3 pages"], "there was 'node1: full after 0 pages'; known: "),
    "chance-twice": (["isolation: refused", "isolation: refused for 3%"], "there was 'isolation: refused'; known: "),
    "very-many": (["swap: full"] * 129, "faults: expected at most 128, got 129"),
}


@pytest.mark.parametrize(("told", "answer"), UNFIT.values(), ids=UNFIT)
def test_a_fault_must_fit_the_machine(told: object, answer: str) -> None:
    """Nodes that are not there or have no memory, more pages than there are, and contradictions are refused."""
    with pytest.raises(TopologyError) as refusal:
        box(told)
    assert answer in str(refusal.value)


def test_migration_cannot_fail_where_there_is_none() -> None:
    """In 2005 pages moved by way of swap."""
    with pytest.raises(TopologyError, match="fault 'migration: fails': expected a profile that has direct migration"):
        box(["migration: fails"], "swap-v3")


@pytest.mark.parametrize("seed", [-1, 1 << 63, "7", 1.5, True])
def test_a_seed_is_a_number(seed: object) -> None:
    """From 0 to what 63 bits hold."""
    with pytest.raises(TopologyError, match="seed: expected a number from 0 to 9223372036854775807"):
        box([], seed=seed)


def test_faults_are_part_of_the_description() -> None:
    """as_dict has them with the seed, so that they reach whoever builds the machine; one without has neither."""
    told = ["node1: full after 3 pages", "isolation: refused for 10%", "swap: full after 2 pages", "migration: fails"]
    topology = box(told, seed=7)
    assert topology.as_dict()["faults"] == told
    assert from_dict(topology.as_dict()) == topology
    assert not {"faults", "seed"} & box([]).as_dict().keys()


# -- chance ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, SEED_MAX), st.integers(1, 100), st.integers(0, 1 << 40))
@settings(max_examples=60)
def test_chance_strikes_as_often_as_it_says(seed: int, percent: int, start: int) -> None:
    """Of many questions in a row so many per cent, whatever the seed; and the same ones when they are asked again."""
    fault = Fault(ISOLATION, percent=percent)
    asked = start + np.arange(20000)
    hits = struck_at(seed, fault, asked)
    assert abs(100 * hits.mean() - percent) < 2
    assert (struck_at(seed, fault, asked[7000:7010]) == hits[7000:7010]).all()


def test_chance_depends_on_the_seed_and_on_the_text_alone() -> None:
    """Another seed or another fault strikes others: about half of them for a half."""
    asked = np.arange(4000)
    one = struck_at(1, Fault(ISOLATION, percent=50), asked)
    for seed, fault in ((2, Fault(ISOLATION, percent=50)), (1, Fault(MIGRATION, percent=50))):
        assert 0.45 < (one != struck_at(seed, fault, asked)).mean() < 0.55


CHANCES = ["isolation: refused for 30%", "isolation: refused for 20% on node1", "isolation: refused for 60% on node0"]


@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=60))
def test_many_pages_at_once_are_struck_as_one_by_one(seed: int, pages: list[tuple[int, bool]]) -> None:
    """One question about many pages, questions about one each, and questions that end with the first that is struck."""
    topology = box(CHANCES, seed=seed)
    nodes = np.array([node for node, _ in pages], np.int16)
    wanted = np.array([want for _, want in pages], np.bool_)

    def chance() -> Any:  # noqa: ANN401 - a Chance and the counts beside it
        strikes = Strikes(topology.faults, seed, columns_in_memory(layout_of(topology)))
        assert strikes.isolation is not None
        return strikes.isolation.strike, strikes.counts

    strike, counts = chance()
    at_once = strike(nodes, wanted).tolist()
    single, single_counts = chance()
    assert [bool(single(nodes[i : i + 1], wanted[i : i + 1])[0]) for i in range(len(pages))] == at_once
    up_to, up_to_counts = chance()
    found: list[int] = []
    start = 0
    while start < len(pages):
        hits = np.flatnonzero(up_to(nodes[start:], wanted[start:], first_only=True))
        assert len(hits) <= 1
        found += (hits + start).tolist()
        start = found[-1] + 1 if len(hits) else len(pages)
    assert found == np.flatnonzero(at_once).tolist()
    assert counts() == single_counts() == up_to_counts()
    assert sum(counts().values()) == sum(at_once)


# -- machines ----------------------------------------------------------------------------------------------------------


def faulty(machine: Make, *faults: str, profile: str = "linux-6.12", swap: str = "1M", **more: object) -> Machine:
    """Three nodes of 256 frames each with these faults."""
    nodes = [{"memory": "1M", "cpus": [nid]} for nid in range(3)]
    return machine(profile=profile, swap=swap, node=nodes, faults=list(faults), **more)


def bound(m: Machine, task: Task, pages: int, mode: int, nodes: set[int]) -> int:
    base = m.mmap(task, pages)
    m.mbind(task, base, pages, mode, nodes)
    return base


def pages_on(m: Machine, task: Task, base: int, pages: int) -> list[int]:
    """How many pages are on each node."""
    where = m.where(task, base, pages)
    return [where.count(nid) for nid in range(3)]


#: Mode and nodes of a mapping of 60 pages, a task on CPU 2; where they end up when node 2 is full after 20.
FALL_OVER: dict[str, tuple[int, set[int], list[int]]] = {
    "local": (MPOL_DEFAULT, set(), [40, 0, 20]),
    "preferred": (MPOL_PREFERRED, {2}, [40, 0, 20]),
    "interleave": (MPOL_INTERLEAVE, {1, 2}, [10, 30, 20]),
    "bind-two": (MPOL_BIND, {1, 2}, [0, 40, 20]),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("mode", "nodes", "there"), FALL_OVER.values(), ids=FALL_OVER)
def test_a_full_node_gives_what_it_may_and_others_the_rest(
    machine: Make, profile: str, mode: int, nodes: set[int], there: list[int]
) -> None:
    """It gives exactly the pages that it may; the rest falls over, and counts as numa_miss there, numa_foreign here."""
    m = faulty(machine, "node2: full after 20 pages", profile=profile)
    task = m.attach(2)
    base = bound(m, task, 60, mode, nodes)
    m.touch(task, base, 60)
    if profile == "swap-v3" and mode == MPOL_BIND:  # which takes the nodes by their ids
        there = [0, 60, 0]
    assert pages_on(m, task, base, 60) == there
    stat = m.k.c.numastat
    if mode in (MPOL_DEFAULT, MPOL_PREFERRED):
        assert (stat[2, 0], stat[2, 2], stat[:, 1].sum()) == (20, 40, 40)
    assert bool(m.k.strikes.counts()["node2: full after 20 pages"]) == (there[2] > 0)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("pages", [0, 1, 5, 100])
def test_a_bind_to_a_full_node_is_killed_where_there_is_no_swap(machine: Make, profile: str, pages: int) -> None:
    """It gets exactly the pages that there are."""
    m = faulty(machine, f"node2: full after {pages} page{'s' if pages != 1 else ''}", profile=profile, swap="0")
    task = m.attach()
    base = bound(m, task, pages + 1, MPOL_BIND, {2})
    if pages:
        m.touch(task, base, pages)
    assert m.where(task, base, pages) == [2] * pages
    with pytest.raises(OutOfMemory):
        m.call(memory.sys_fault(m.k, task, base + pages * PAGE, PAGE, write=True))
    assert m.k.vmstat["oom_kill"] == 1


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("pages", [1, 5, 40])
@pytest.mark.parametrize("seed", [None, 5])
def test_reclaim_on_a_full_node_ends(machine: Make, profile: str, pages: int, seed: int | None) -> None:
    """Three times as many pages as the node gives go round through swap; none is on another node, none is lost."""
    m = faulty(machine, f"node1: full after {pages} pages", profile=profile, seed=seed)
    task = m.attach()
    base = bound(m, task, 3 * pages, MPOL_BIND, {1})
    for page in range(3 * pages):
        m.touch(task, base + page * PAGE)
        m.poke(task, base + page * PAGE, page % 250 + 1)
    assert set(m.where(task, base, 3 * pages)) <= {1, GONE}
    for page in range(3 * pages):
        m.touch(task, base + page * PAGE, write=False)
        assert m.peek(task, base + page * PAGE) == page % 250 + 1
    assert m.k.vmstat["pswpout"]
    assert not m.k.vmstat["oom_kill"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_full_node_has_no_watermarks(machine: Make, profile: str) -> None:
    """On a machine that keeps frames free elsewhere it gives all its pages, and kswapd has no work there."""
    m = faulty(machine, "node1: full after 10 pages", profile=profile, min_free_kbytes=256)
    task = m.attach()
    base = bound(m, task, 10, MPOL_BIND, {1})
    m.touch(task, base, 10)
    m.performer.run()
    assert m.where(task, base, 10) == [1] * 10
    assert m.k.zones[1].nr_free == 0
    assert m.k.zones[0].pages_min > 0
    assert not m.k.vmstat["pswpout"]
    for _ in range(3):
        m.touch(task, bound(m, task, 10, MPOL_BIND, {1}), 10)
        m.performer.run()
    assert not m.k.vmstat["pageoutrun"] or not m.k.vmstat["pgsteal_kswapd"]


@pytest.mark.parametrize("profile", TODAY)
def test_moves_to_a_large_node_that_is_full_make_room_there(machine: Make, profile: str) -> None:
    """However large the node is: the few pages that it gave are scanned at once, and go to swap for those that come."""
    nodes = [{"memory": "8M", "cpus": [nid]} for nid in range(2)]
    m = machine(profile=profile, swap="1M", node=nodes, faults=["node1: full after 5 pages"])
    task = m.attach()
    old = bound(m, task, 5, MPOL_BIND, {1})
    m.touch(task, old, 5)
    m.clear_young()
    base = m.mmap(task, 2)
    m.touch(task, base, 2)
    assert move(m, task, base, 2, 1) == (0, [1, 1])
    assert m.where(task, old, 5).count(1) < 5


@pytest.mark.parametrize("profile", PROFILES)
def test_a_machine_that_is_full_everywhere_ends_its_tasks(machine: Make, profile: str) -> None:
    """No node gives a page, and swap neither: whoever touches memory is killed, and nothing hangs."""
    m = faulty(machine, "node0: full", "node1: full", "node2: full", "swap: full", profile=profile)
    for cpu in range(3):
        task = m.attach(cpu)
        base = m.mmap(task, 4)
        with pytest.raises(OutOfMemory):
            m.touch(task, base, 4)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_full_node_shows(machine: Make, profile: str) -> None:
    """Its size is what it was, and all but what it may give is used; the line of faults stands behind the table."""
    m = faulty(machine, "node2: full after 16 pages", "isolation: refused for 5%", profile=profile)
    figures = node_views.hardware(m.k)
    assert [(node["size_kb"], node["free_kb"]) for node in figures["nodes"]] == [(1024, 1020), (1024, 1024), (1024, 64)]
    last = views.hardware(figures).splitlines()[-1]
    assert last == "faults (seed 0): node2: full after 16 pages; isolation: refused for 5%"
    info = node_views.meminfo(m.k)[2]
    assert (info["MemTotal"], info["MemFree"], info["MemUsed"]) == (1024, 64, 960)
    assert "faults" not in node_views.hardware(faulty(machine).k)


@pytest.mark.parametrize("profile", PROFILES)
def test_full_swap_has_so_many_slots(machine: Make, profile: str) -> None:
    """The slots that it may give and no others; when they are gone the killer comes, as on a machine without more."""
    m = faulty(machine, "swap: full after 30 pages", profile=profile)
    task = m.attach()
    base = bound(m, task, 400, MPOL_BIND, {1})
    with pytest.raises(OutOfMemory):
        m.touch(task, base, 400)
    assert not m.k.c.swap_count[30:].any()
    assert m.k.vmstat["pswpout"] <= 30
    assert m.k.vmstat["oom_kill"] == 1
    assert m.k.strikes.counts()["swap: full after 30 pages"] > 0


@pytest.mark.parametrize("profile", PROFILES)
def test_slots_that_were_given_back_are_given_again(machine: Make, profile: str) -> None:
    """The search goes round where the slots end that may be given, however often."""
    m = faulty(machine, "swap: full after 30 pages", profile=profile)
    task = m.attach()
    base = m.mmap(task, 20)
    for _ in range(4):
        m.touch(task, base, 20)
        m.call(madvise.sys_madvise(m.k, task, base, 20 * PAGE, MADV_PAGEOUT))
        m.performer.run()
        assert not m.k.c.swap_count[30:].any()
        m.fsck()


def move(m: Machine, task: Task, base: int, pages: int, node: int) -> tuple[int, list[int]]:
    """move_pages of a range to one node: its result and the statuses."""
    addresses = base + PAGE * np.arange(pages, dtype=np.uint64)
    targets = np.full(pages, node, np.int32)
    body = move_pages.sys_move_pages(m.k, task, 0, pages, addresses, targets, MPOL_MF_MOVE, writable=True)
    result, status = m.call(body)
    return result, memoryview(status).cast("i").tolist()


def migrate(m: Machine, task: Task, old: set[int], new: set[int]) -> int:
    return int(m.call(migrate_pages.sys_migrate_pages(m.k, task, 0, 65, [mask_of(old)], [mask_of(new)])))


def errno_of_mbind(m: Machine, task: Task, base: int, pages: int, node: int, flags: int) -> int:
    try:
        m.mbind(task, base, pages, MPOL_BIND, {node}, flags)
    except MmError as refusal:
        return refusal.errno
    return 0


@pytest.mark.parametrize("profile", TODAY)
def test_moves_to_a_full_node_fail_as_to_any_that_has_no_room(machine: Make, profile: str) -> None:
    """ENOMEM of move_pages and migrate_pages, EIO of mbind with STRICT; what found room has moved."""
    m = faulty(machine, "node1: full after 3 pages", profile=profile, swap="0")
    task = m.attach()
    base = m.mmap(task, 8)
    m.touch(task, base, 8)
    assert errno_of_mbind(m, task, base, 8, 1, MPOL_MF_MOVE) == 0
    assert pages_on(m, task, base, 8) == [5, 3, 0]
    assert errno_of_mbind(m, task, base, 8, 1, STRICT_MOVE) == errno.EIO
    assert move(m, task, base, 8, 1)[0] == -errno.ENOMEM
    with pytest.raises(MmError) as refusal:
        migrate(m, task, {0}, {1})
    assert refusal.value.errno == errno.ENOMEM
    assert pages_on(m, task, base, 8) == [5, 3, 0]


def test_with_full_swap_nothing_leaves_in_2005(machine: Make) -> None:
    """Pages move by way of swap there: those without a slot stay, and STRICT says so."""
    m = faulty(machine, "swap: full after 3 pages", profile="swap-v3")
    task = m.attach()
    base = m.mmap(task, 8)
    m.touch(task, base, 8)
    assert errno_of_mbind(m, task, base, 8, 1, STRICT_MOVE) == errno.EIO
    assert m.where(task, base, 8).count(0) == 5


#: Profile, flags → errno of mbind of a page whose isolation is refused, as of one that another task has isolated.
REFUSED = [
    ("swap-v3", MPOL_MF_MOVE, 0),
    ("swap-v3", STRICT_MOVE, 0),
    *((profile, MPOL_MF_MOVE, 0) for profile in TODAY),
    *((profile, STRICT_MOVE, errno.EIO) for profile in TODAY),
]


@pytest.mark.parametrize(("profile", "flags", "error"), REFUSED)
def test_mbind_leaves_what_it_cannot_isolate(machine: Make, profile: str, flags: int, error: int) -> None:
    """As with pages that another task has isolated: they stay, and STRICT says EIO where the kernel counts them."""
    m = faulty(machine, "isolation: refused", profile=profile)
    task = m.attach()
    base = m.mmap(task, 8)
    m.touch(task, base, 8)
    assert errno_of_mbind(m, task, base, 8, 1, flags) == error
    assert m.where(task, base, 8) == [0] * 8
    assert m.k.strikes.counts() == {"isolation: refused": 8}


@pytest.mark.parametrize(("profile", "stayed"), [("swap-v3", 0), ("linux-6.1", 0), ("linux-6.12", 8)])
def test_migrate_pages_counts_them_as_the_kernel_does(machine: Make, profile: str, stayed: int) -> None:
    """6.12 counts pages that could not be isolated, others do not."""
    m = faulty(machine, "isolation: refused", profile=profile)
    task = m.attach()
    base = m.mmap(task, 8)
    m.touch(task, base, 8)
    assert migrate(m, task, {0}, {1}) == stayed
    assert m.where(task, base, 8) == [0] * 8


@pytest.mark.parametrize("profile", TODAY)
def test_move_pages_says_busy_of_each(machine: Make, profile: str) -> None:
    """-EBUSY, and 0 as the result, as of pages that others have isolated; a page that is there already is asked for."""
    m = faulty(machine, "isolation: refused on node0", profile=profile)
    task = m.attach()
    base = m.mmap(task, 6)
    m.touch(task, base, 3)
    m.mbind(task, base + 3 * PAGE, 3, MPOL_BIND, {1})
    m.touch(task, base + 3 * PAGE, 3)
    assert move(m, task, base, 6, 2) == (0, [-errno.EBUSY] * 3 + [2] * 3)
    assert m.where(task, base, 6) == [0, 0, 0, 2, 2, 2]
    assert m.k.strikes.counts() == {"isolation: refused on node0": 3}


@pytest.mark.parametrize("profile", TODAY)
def test_move_pages_to_many_nodes_asks_about_each_page_once(machine: Make, profile: str) -> None:
    """However the call goes about it: 40 pages whose targets alternate, each asked about once."""
    m = faulty(machine, "isolation: refused for 25%", profile=profile, seed=None)
    task = m.attach()
    base = m.mmap(task, 40)
    m.touch(task, base, 40)
    addresses = base + PAGE * np.arange(40, dtype=np.uint64)
    targets = np.arange(40, dtype=np.int32) % 2 + 1
    body = move_pages.sys_move_pages(m.k, task, 0, 40, addresses, targets, MPOL_MF_MOVE, writable=True)
    status = memoryview(m.call(body)[1]).cast("i").tolist()
    busy = struck_at(0, Fault(ISOLATION, percent=25), np.arange(40))
    assert status == [-errno.EBUSY if hit else page % 2 + 1 for page, hit in enumerate(busy)]
    assert m.k.strikes.counts() == {"isolation: refused for 25%": status.count(-errno.EBUSY)}


@pytest.mark.parametrize("profile", PROFILES)
def test_madvise_evicts_nothing_that_it_cannot_isolate_and_reclaim_does(machine: Make, profile: str) -> None:
    """MADV_PAGEOUT leaves the pages; reclaim, which takes what is on its lists, is not refused."""
    m = faulty(machine, "isolation: refused", profile=profile)
    task = m.attach()
    base = bound(m, task, 8, MPOL_BIND, {1})
    m.touch(task, base, 8)
    m.call(madvise.sys_madvise(m.k, task, base, 8 * PAGE, MADV_PAGEOUT))
    assert m.where(task, base, 8) == [1] * 8
    other = bound(m, task, 300, MPOL_BIND, {1})
    m.touch(task, other, 300)
    assert m.k.vmstat["pswpout"]
    assert not m.k.vmstat["oom_kill"]


@pytest.mark.parametrize("profile", TODAY)
def test_a_migration_that_fails_leaves_the_page(machine: Make, profile: str) -> None:
    """Mbind: EIO under STRICT only; migrate_pages and move_pages: how many; bytes are there, no frame is lost."""
    m = faulty(machine, "migration: fails to node1", profile=profile)
    task = m.attach()
    base = m.mmap(task, 5)
    m.touch(task, base, 5)
    m.poke(task, base, 77)
    assert errno_of_mbind(m, task, base, 5, 1, MPOL_MF_MOVE) == 0
    assert errno_of_mbind(m, task, base, 5, 1, STRICT_MOVE) == errno.EIO
    assert migrate(m, task, {0}, {1}) == 5
    assert move(m, task, base, 5, 1)[0] == 5
    assert (m.where(task, base, 5), m.peek(task, base)) == ([0] * 5, 77)
    assert m.k.zones[1].nr_free == 256
    assert m.k.vmstat["pgmigrate_fail"] == m.k.strikes.counts()["migration: fails to node1"] == 20
    assert move(m, task, base, 5, 2) == (0, [2] * 5)
    assert m.peek(task, base) == 77


@pytest.mark.parametrize("profile", TODAY)
@pytest.mark.parametrize("fault", ["migration: fails for 40%", "isolation: refused for 40%"])
def test_a_part_fails_and_another_try_may_go_through(machine: Make, profile: str, fault: str) -> None:
    """Pages that stayed are asked about anew; who tries again and again has all of them moved in the end."""
    m = faulty(machine, fault, profile=profile)
    task = m.attach()
    base = m.mmap(task, 50)
    m.touch(task, base, 50)
    tries = 0
    while errno_of_mbind(m, task, base, 50, 1, STRICT_MOVE):
        tries += 1
        assert tries < 100
    assert tries > 0
    assert m.where(task, base, 50) == [1] * 50


@pytest.mark.parametrize("profile", PROFILES)
def test_the_same_calls_have_the_same_faults(profile: str) -> None:
    """With the same seed call by call; with another one something else."""
    chance = ["isolation: refused for 30%", *(["migration: fails for 20%"] if profile in TODAY else [])]

    def answers(seed: int) -> list[Any]:
        nodes = [{"memory": "1M", "cpus": [nid]} for nid in range(3)]
        m = Machine(from_dict({"profile": profile, "swap": "1M", "node": nodes, "faults": chance, "seed": seed}))
        task = m.attach()
        base = m.mmap(task, 40)
        m.touch(task, base, 40)
        told: list[Any] = []
        for node in (1, 2, 0):
            told += [errno_of_mbind(m, task, base, 40, node, STRICT_MOVE), migrate(m, task, {0, 1}, {2, 0})]
            told.append(m.where(task, base, 40))
        return [*told, m.k.strikes.counts(), m.fsck()]

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_a_recovered_machine_goes_on_where_it_was(machine: Make) -> None:
    """What was set apart stays so, and the pages of a fault are counted on: chance does not begin anew."""
    faults = ["node2: full after 20 pages", "isolation: refused for 50%", "swap: full after 30 pages"]
    m = faulty(machine, *faults)
    task = m.attach()
    base = m.mmap(task, 32)
    m.touch(task, base, 32)
    move(m, task, base, 32, 1)
    before = m.k.strikes.counts()
    k = reborn(m.k)
    assert k.strikes.counts() == before
    assert before["isolation: refused for 50%"] > 0
    assert (k.zones[2].nr_free, k.usable_slots, k.nr_swap_pages) == (20, 30, 30)
    assert k.strikes.isolation is not None
    one = np.ones(1, np.bool_)
    again = [bool(k.strikes.isolation.strike(np.zeros(1, np.int16), one)[0]) for _ in range(64)]
    asked = struck_at(0, Fault(ISOLATION, percent=50), np.arange(32, 96))
    assert again == asked.tolist()


def test_a_machine_without_faults_has_nothing_to_ask() -> None:
    """No limit and no chance: what takes pages looks at None."""
    m = Machine(uniform(2, "1M", "1M", "linux-6.12", PAGE))
    assert (m.k.strikes.isolation, m.k.strikes.migration, m.k.strikes.counts()) == (None, None, {})
    assert m.k.usable_slots == m.k.layout.slot_count
    assert [zone.set_apart for zone in m.k.zones.values()] == [0, 0]
