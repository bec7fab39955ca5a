"""Direct migration: pages are copied to their new node at once, and everybody who maps them finds them there."""

import errno
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from numaemu_core import (
    check_range,
    cpuset,
    cred,
    files,
    fork,
    madvise,
    migrate_pages,
    mlock,
    mmap,
    move_pages,
    mprotect,
)
from numaemu_core.effects import KernelTask
from numaemu_core.errors import MmError
from numaemu_core.mm_types import Task
from numaemu_core.nodemask import mask_of
from numaemu_core.page_flags import PG_SWAPCACHE
from numaemu_core.page_table import PTE_MIGRATION, PTE_PRESENT, PTE_READABLE, PTE_WRITABLE
from numaemu_core.uapi import (
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_PREFERRED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from numaemu_core.wire import STATUS_UNWRITTEN

from .conftest import PAGE, Machine

Make = Callable[..., Machine]
RW = PROT_READ | PROT_WRITE
STRICT_MOVE = MPOL_MF_STRICT | MPOL_MF_MOVE
TODAY = ["linux-6.1", "linux-6.12"]
NICE = "CAP_SYS_NICE"


def nodes(*memory: str) -> list[dict[str, object]]:
    return [{"id": nid, "memory": size, "cpus": [nid]} for nid, size in enumerate(memory)]


def today(machine: Make, profile: str = "linux-6.12", *memory: str, **more: object) -> Machine:
    return machine(profile=profile, node=nodes(*(memory or ("1M", "1M", "1M"))), **more)


def filled(m: Machine, task: Task, pages: int) -> int:
    """Private memory on the task's node, each page holding its number."""
    base = m.mmap(task, pages)
    m.touch(task, base, pages)
    for page in range(pages):
        m.poke(task, base + page * PAGE, page + 1)
    return base


def bytes_of(m: Machine, task: Task, base: int, pages: int) -> list[int]:
    m.touch(task, base, pages, write=False)
    return [m.peek(task, base + page * PAGE) for page in range(pages)]


def move(
    m: Machine, task: Task, addresses: list[int], targets: list[int] | None, flags: int = MPOL_MF_MOVE, pid: int = 0
) -> tuple[int, list[int]]:
    """move_pages: its result and the statuses."""
    given = None if targets is None else np.array(targets, np.int32)
    where = np.array(addresses, np.uint64)
    body = move_pages.sys_move_pages(m.k, task, pid, len(addresses), where, given, flags, writable=True)
    result, status = m.call(body)
    return result, memoryview(status).cast("i").tolist()


def migrate(m: Machine, task: Task, old: set[int], new: set[int], pid: int = 0) -> int:
    return int(m.call(migrate_pages.sys_migrate_pages(m.k, task, pid, 65, [mask_of(old)], [mask_of(new)])))


@pytest.mark.parametrize("profile", TODAY)
def test_mbind_copies_misplaced_pages_at_once(machine: Make, profile: str) -> None:
    """After mbind with MOVE the pages are on their node with their bytes; nothing went to swap, old frames are free."""
    m = today(machine, profile)
    task = m.attach()
    base = filled(m, task, 20)
    free = m.k.zones[0].nr_free
    m.mbind(task, base, 20, MPOL_BIND, {2}, STRICT_MOVE)
    assert m.where(task, base, 20) == [2] * 20
    assert bytes_of(m, task, base, 20) == list(range(1, 21))
    assert m.k.zones[0].nr_free == free + 20
    assert (m.k.vmstat["pgmigrate_success"], m.k.vmstat["pswpout"]) == (20, 0)


def test_the_page_stays_writable_dirty_and_in_its_place_on_the_lists(machine: Make) -> None:
    """A moved page needs no fault to be written, stays dirty, and stays active."""
    m = today(machine)
    task = m.attach()
    base = filled(m, task, 1)
    m.mbind(task, base, 1, MPOL_BIND, {1}, MPOL_MF_MOVE)
    m.poke(task, base, 9)
    flat = m.k.tables.pte_offset(task.mm.pgd, base // PAGE)
    assert m.k.c.dirty[flat] == 1
    assert m.k.c.lru_state[m.entry(task, base) // PAGE] == 3


@pytest.mark.parametrize("profile", TODAY)
@pytest.mark.parametrize(("flags", "left"), [(STRICT_MOVE, [0, 0]), (STRICT_MOVE | MPOL_MF_MOVE_ALL, [1, 1])])
def test_shared_pages_move_with_move_all_only(machine: Make, profile: str, flags: int, left: list[int]) -> None:
    """What a fork shares stays under MOVE, without an error; MOVE_ALL moves it for both, with the bytes of both."""
    m = today(machine, profile)
    task = m.attach(0, NICE)
    base = filled(m, task, 2)
    child = m.call(fork.sys_fork(m.k, task))
    m.mbind(task, base, 2, MPOL_BIND, {1}, flags)
    assert m.where(task, base, 2) == m.where(child, base, 2) == left
    assert bytes_of(m, task, base, 2) == bytes_of(m, child, base, 2) == [1, 2]
    m.touch(child, base)
    m.poke(child, base, 7)
    assert bytes_of(m, task, base, 1) == [1]


@pytest.mark.parametrize(("flags", "error"), [(MPOL_MF_MOVE, 0), (STRICT_MOVE, errno.EIO)])
def test_a_pinned_page_stays(machine: Make, flags: int, error: int) -> None:
    """Who holds a page pinned keeps it where it is; its neighbours move, and STRICT tells."""
    m = today(machine)
    task = m.attach()
    base = filled(m, task, 3)
    m.k.c.pins[5, 0] = m.entry(task, base + PAGE) // PAGE + 1
    m.k.c.pin_count[5] = 1
    got = 0
    try:
        m.mbind(task, base, 3, MPOL_BIND, {1}, flags)
    except MmError as refusal:
        got = refusal.errno
    assert (got, m.where(task, base, 3)) == (error, [1, 0, 1])
    assert bytes_of(m, task, base, 3) == [1, 2, 3]
    m.k.c.pin_count[5] = 0


@pytest.mark.parametrize("profile", TODAY)
@pytest.mark.parametrize(("write", "left"), [(True, [0, 0]), (False, [1, 1])])
def test_pages_of_ramfs_move_while_they_are_clean(
    machine: Make,
    profile: str,
    write: bool,  # noqa: FBT001 - a column of the table
    left: list[int],
) -> None:
    """Ramfs has no way to write a page out: what was written stays, and STRICT gets EIO."""
    m = today(machine, profile)
    task = m.attach()
    files.create_file(m.k, "/r", "ramfs", 2 * PAGE)
    base = m.call(mmap.sys_mmap(m.k, task, 0, 2 * PAGE, RW, MAP_SHARED, "/r", 0, "r+"))
    m.touch(task, base, 2, write=write)
    if write:
        with pytest.raises(MmError) as refusal:
            m.mbind(task, base, 2, MPOL_BIND, {1}, STRICT_MOVE)
        assert refusal.value.errno == errno.EIO
    else:
        m.mbind(task, base, 2, MPOL_BIND, {1}, STRICT_MOVE)
    assert m.where(task, base, 2) == left


@pytest.mark.parametrize("profile", TODAY)
def test_a_page_of_ramfs_that_only_its_entry_knows_to_be_written_stays(machine: Make, profile: str) -> None:
    """A page that was mapped by a read is written without a fault; the page beside it moves."""
    m = today(machine, profile)
    task = m.attach()
    files.create_file(m.k, "/r", "ramfs", 2 * PAGE)
    base = m.call(mmap.sys_mmap(m.k, task, 0, 2 * PAGE, RW, MAP_SHARED, "/r", 0, "r+"))
    m.touch(task, base, 2, write=False)
    m.poke(task, base + PAGE, 7)
    m.k.c.dirty[m.k.tables.pte_offset(task.mm.pgd, base // PAGE + 1)] = 1
    with pytest.raises(MmError) as refusal:
        m.mbind(task, base, 2, MPOL_BIND, {1}, STRICT_MOVE)
    assert refusal.value.errno == errno.EIO
    assert m.where(task, base, 2) == [1, 0]
    assert bytes_of(m, task, base, 2) == [0, 7]


def test_a_page_of_a_file_moves_with_its_cache(machine: Make) -> None:
    """Tmpfs finds the page in its new frame: who maps the file later sees the same bytes on the new node."""
    m = today(machine)
    task, late = m.attach(0), m.attach(1)
    files.create_file(m.k, "/t", "tmpfs", PAGE)
    base = m.call(mmap.sys_mmap(m.k, task, 0, PAGE, RW, MAP_SHARED, "/t", 0, "r+"))
    m.touch(task, base)
    m.poke(task, base, 5)
    m.mbind(task, base, 1, MPOL_BIND, {2}, STRICT_MOVE)
    there = m.call(mmap.sys_mmap(m.k, late, 0, PAGE, RW, MAP_SHARED, "/t", 0, "r+"))
    assert bytes_of(m, late, there, 1) == [5]
    assert m.where(late, there, 1) == [2]


def test_a_page_in_the_swap_cache_moves_with_its_slot(machine: Make) -> None:
    """A page that has a slot keeps it on the new node: the swap cache knows the new frame."""
    m = today(machine, swap_device="disk")
    task = m.attach()
    base = filled(m, task, 1)
    m.call(madvise.sys_madvise(m.k, task, base, PAGE, MADV_PAGEOUT))
    m.performer.run()
    m.touch(task, base, write=False)
    old = m.entry(task, base) // PAGE
    assert m.k.c.pg_flags[old] & PG_SWAPCACHE
    m.mbind(task, base, 1, MPOL_BIND, {1}, STRICT_MOVE)
    new = m.entry(task, base) // PAGE
    assert m.k.nid_of_pfn[new] == 1
    assert m.k.slot_frame[m.k.c.private[new]] == new
    assert bytes_of(m, task, base, 1) == [1]


def test_what_finds_no_room_stays(machine: Make) -> None:
    """A node that is full takes what it can; move_pages then fails as a whole, mbind only with STRICT."""
    m = today(machine, "linux-6.12", "1M", "64K", swap="0")
    task = m.attach()
    base = filled(m, task, 40)
    m.mbind(task, base, 40, MPOL_BIND, {1}, MPOL_MF_MOVE)
    assert sorted(set(m.where(task, base, 40))) == [0, 1]
    assert move(m, task, [base + 39 * PAGE], [1]) == (-errno.ENOMEM, [STATUS_UNWRITTEN])
    assert bytes_of(m, task, base, 40) == list(range(1, 41))


@pytest.mark.parametrize("profile", TODAY)
def test_default_moves_everything_to_where_the_task_would_allocate(machine: Make, profile: str) -> None:
    """MOVE with DEFAULT takes the task's policy, or its CPU's node."""
    m = today(machine, profile)
    task = m.attach()
    base = filled(m, task, 4)
    m.call(fork.sys_set_cpu(m.k, task, 2))
    m.mbind(task, base, 4, MPOL_DEFAULT, set(), MPOL_MF_MOVE)
    assert m.where(task, base, 4) == [2] * 4


@pytest.mark.parametrize("profile", TODAY)
def test_interleave_moves_to_where_a_fault_would_go(machine: Make, profile: str) -> None:
    """Pages outside of the mask go to the node of their address, and those inside of it stay."""
    m = today(machine, profile)
    task = m.attach()
    base = filled(m, task, 6)
    m.mbind(task, base, 6, MPOL_INTERLEAVE, {1, 2}, MPOL_MF_MOVE)
    assert m.where(task, base, 6) == [1 + (base // PAGE + page) % 2 for page in range(6)]


def test_a_locked_page_moves(machine: Make) -> None:
    """Mlock keeps a page in memory, not on its node."""
    m = today(machine)
    task = m.attach()
    base = filled(m, task, 2)
    m.call(mlock.sys_mlock(m.k, task, base, 2 * PAGE))
    m.mbind(task, base, 2, MPOL_BIND, {1}, STRICT_MOVE)
    assert m.where(task, base, 2) == [1, 1]


# -- move_pages --------------------------------------------------------------------------------------------------------

#: (profile, page, status): pages that are not there, by kind.
ABSENT = [
    ("linux-6.1", "untouched", -errno.EFAULT),
    ("linux-6.12", "untouched", -errno.ENOENT),
    ("linux-6.1", "zero", -errno.EFAULT),
    ("linux-6.12", "zero", -errno.EFAULT),
    ("linux-6.1", "unmapped", -errno.EFAULT),
    ("linux-6.12", "unmapped", -errno.EFAULT),
    ("linux-6.1", "swapped", -errno.ENOENT),
    ("linux-6.12", "swapped", -errno.ENOENT),
    ("linux-6.1", "hole", -errno.ENOENT),
    ("linux-6.12", "hole", -errno.ENOENT),
    ("linux-6.1", "protected", -errno.ENOENT),
    ("linux-6.12", "protected", 1),
]


def prepare(m: Machine, task: Task, kind: str) -> int:
    """The address of a page of that kind."""
    if kind == "hole":
        return int(m.call(mmap.sys_mmap(m.k, task, 0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS)))
    base = m.mmap(task, 1)
    match kind:
        case "zero":
            m.touch(task, base, write=False)
        case "unmapped":
            return base + PAGE
        case "swapped":
            m.touch(task, base)
            m.call(madvise.sys_madvise(m.k, task, base, PAGE, MADV_PAGEOUT))
            m.performer.run()
        case "protected":
            m.touch(task, base)
            m.call(mprotect.sys_mprotect(m.k, task, base, PAGE, PROT_NONE))
    return base


@pytest.mark.parametrize(("profile", "kind", "status"), ABSENT)
def test_statuses_of_pages_that_are_not_there(machine: Make, profile: str, kind: str, status: int) -> None:
    """Each kind of absent page has the status that its kernel gives, moved or asked about."""
    m = today(machine, profile)
    task = m.attach()
    address = prepare(m, task, kind)
    assert move(m, task, [address], [1]) == (0, [status])
    assert move(m, task, [address], None) == (0, [status])


def test_every_page_goes_to_the_node_beside_it(machine: Make) -> None:
    """Targets may alternate; a page that is there already says so."""
    m = today(machine)
    task = m.attach()
    base = filled(m, task, 6)
    targets = [1, 2, 0, 1, 1, 2]
    assert move(m, task, [base + i * PAGE for i in range(6)], targets) == (0, targets)
    assert m.where(task, base, 6) == targets
    assert bytes_of(m, task, base, 6) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", ["all different", "one twice", "one pinned", "one not there"])
def test_targets_that_change_all_the_time(machine: Make, kind: str) -> None:
    """A long list with another target beside each page comes to what page after page would come to."""
    m = today(machine)
    task = m.attach()
    base = filled(m, task, 60)
    pages = list(range(60))
    targets = [1 + page % 2 for page in pages]
    result, statuses, left = 0, list(targets), list(targets)
    match kind:
        case "one twice":
            pages[41] = 40  # 40 has moved to node 1 by then, and moves on
            left[40], left[41] = 2, 0
        case "one pinned":
            m.k.c.pins[5, 0] = m.entry(task, base + 30 * PAGE) // PAGE + 1
            m.k.c.pin_count[5] = 1
            result = 30
            statuses[30:] = [STATUS_UNWRITTEN] * 30
            left[30:] = [0] * 30
        case "one not there":
            pages[20] = 99
            statuses[20], left[20] = -errno.EFAULT, 0
    assert move(m, task, [base + page * PAGE for page in pages], targets) == (result, statuses)
    assert m.where(task, base, 60) == left
    assert bytes_of(m, task, base, 60) == list(range(1, 61))
    m.k.c.pin_count[5] = 0


#: (pages, targets, result, statuses, where): what a list with something odd in it comes to.
LISTS = [
    ([0, 1, 1], [1, 1, 1], 0, [1, 1, -errno.EBUSY], [1, 1, 0]),
    ([0, 0], [1, 2], 0, [1, 2], [2, 0, 0]),
    ([0, 0, 1, 0], [1, 1, 1, 1], 0, [1, -errno.EBUSY, 1, 1], [1, 1, 0]),
    ([0, 1, 2], [1, 9, 1], -errno.ENODEV, [1, STATUS_UNWRITTEN, STATUS_UNWRITTEN], [1, 0, 0]),
    ([0, 1, 2], [1, -1, 1], -errno.ENODEV, [1, STATUS_UNWRITTEN, STATUS_UNWRITTEN], [1, 0, 0]),
    ([0, 50, 1], [1, 1, 1], 0, [1, -errno.EFAULT, 1], [1, 1, 0]),
    ([50, 51, 52], [1, 1, 1], 0, [-errno.EFAULT] * 3, [0, 0, 0]),
]


@pytest.mark.parametrize(("pages", "targets", "result", "statuses", "left"), LISTS)
def test_odd_lists(
    machine: Make, pages: list[int], targets: list[int], result: int, statuses: list[int], left: list[int]
) -> None:
    """A page that stands twice is busy while it is queued; a bad node ends the call, and what came before is done."""
    m = today(machine)
    task = m.attach()
    base = filled(m, task, 3)
    assert move(m, task, [base + page * PAGE for page in pages], targets) == (result, statuses)
    assert m.where(task, base, 3) == left


def test_pages_that_fail_count_and_have_no_status(machine: Make) -> None:
    """A page that cannot move ends the call: it and all that was not tried are counted, its batch has no status."""
    m = today(machine)
    task = m.attach()
    base = filled(m, task, 4)
    m.k.c.pins[5, 0] = m.entry(task, base + PAGE) // PAGE + 1
    m.k.c.pin_count[5] = 1
    result, status = move(m, task, [base + i * PAGE for i in range(4)], [1, 1, 1, 2])
    assert (result, status) == (2, [STATUS_UNWRITTEN] * 4)
    assert m.where(task, base, 4) == [1, 0, 1, 0]
    m.k.c.pin_count[5] = 0


def test_shared_pages_are_refused_without_move_all(machine: Make) -> None:
    """A page that a fork shares is EACCES; with MOVE_ALL and its capability it moves; without the capability: EPERM."""
    m = today(machine)
    task = m.attach(0, NICE)
    base = filled(m, task, 1)
    child = m.call(fork.sys_fork(m.k, task))
    assert move(m, task, [base], [1]) == (0, [-errno.EACCES])
    assert move(m, task, [base], [1], MPOL_MF_MOVE_ALL) == (0, [1])
    assert m.where(child, base, 1) == [1]
    m.call(cred.sys_drop_capabilities(m.k, child, [NICE]))
    assert move(m, child, [base], [2], MPOL_MF_MOVE_ALL)[0] == -errno.EPERM


def test_capabilities_are_those_of_a_task_whoever_it_is(machine: Make) -> None:
    """A task of any user may have some; becoming another user gives them up; what is no user id is EINVAL."""
    m = today(machine)
    task = m.attach(0, NICE)
    base = filled(m, task, 1)
    user = fork.attach(m.k, 0, [NICE], task.pid, uid=1001)
    assert move(m, user, [base], [1], MPOL_MF_MOVE_ALL) == (0, [1])
    m.call(cred.sys_setuid(m.k, task, 1001))
    assert move(m, task, [base], [2], MPOL_MF_MOVE_ALL)[0] == -errno.EPERM
    for uid in (-1, 1 << 32):
        with pytest.raises(MmError) as caught:
            fork.attach(m.k, 0, [], None, uid=uid)
        assert caught.value.errno == errno.EINVAL


#: (argument that is wrong, errno)
REFUSED = [("flags", errno.EINVAL), ("pid", errno.ESRCH), ("other", errno.EPERM), ("cpuset", errno.EACCES)]


@pytest.mark.parametrize(("wrong", "error"), REFUSED)
def test_refused_calls(machine: Make, wrong: str, error: int) -> None:
    """Unknown flags, unknown tasks, tasks that one may not trace, nodes outside of the cpuset."""
    m = today(machine)
    task, other = m.attach(), m.attach(0, NICE)
    base = filled(m, task, 1)
    if wrong == "cpuset":
        m.call(cpuset.sys_set_cpuset(m.k, task, [0b11]))
    pid = {"pid": 99, "other": other.pid}.get(wrong, 0)
    flags = 8 if wrong == "flags" else MPOL_MF_MOVE
    assert move(m, task, [base], [2], flags, pid) == (-error, [STATUS_UNWRITTEN])


def test_there_is_no_move_pages_in_2005(machine: Make) -> None:
    """It came with 2.6.18."""
    m = machine()
    with pytest.raises(MmError) as refusal:
        move(m, m.attach(), [0], [0])
    assert refusal.value.errno == errno.ENOSYS


# -- migrate_pages -----------------------------------------------------------------------------------------------------

#: (old nodes, new nodes, where pages that began on 0, 1, 2 are then).
PAIRS = [
    ({0}, {1}, [1, 1, 2]),
    ({0, 1}, {1, 2}, [1, 2, 2]),
    ({0, 1, 2}, {1, 2, 0}, [0, 1, 2]),
    ({0, 1, 2}, {0, 2}, [0, 2, 2]),
    ({0, 1, 2}, {2}, [2, 2, 2]),
    ({1}, {0, 1, 2}, [0, 1, 2]),
    ({0, 1}, {1, 0}, [0, 1, 2]),
    (set(), {1}, [0, 1, 2]),
    ({*range(64)}, {1}, [1, 1, 1]),  # nodes that are not there count for the positions only
]


@pytest.mark.parametrize("profile", TODAY)
@pytest.mark.parametrize(("old", "new", "left"), PAIRS)
def test_nodes_are_paired_by_position(
    machine: Make, profile: str, old: set[int], new: set[int], left: list[int]
) -> None:
    """The first old node's pages go to the first new one; sets that differ in size leave a node in both alone."""
    m = today(machine, profile)
    task = m.attach(0, NICE)
    base = filled(m, task, 3)
    move(m, task, [base + PAGE, base + 2 * PAGE], [1, 2])
    assert migrate(m, task, old, new) == 0
    assert m.where(task, base, 3) == left
    assert bytes_of(m, task, base, 3) == [1, 2, 3]


def test_only_nodes_that_are_there_are_left(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of a thousand nodes costs a scan of the address space for each node of the machine, and no more."""
    m = today(machine)
    task = m.attach(0, NICE)
    base = filled(m, task, 1)
    scans: list[int] = []
    scan = check_range.check_range

    def counted(*args: Any) -> KernelTask[None]:  # noqa: ANN401 - handed on as they are
        scans.append(1)
        yield from scan(*args)

    monkeypatch.setattr(migrate_pages, "check_range", counted)
    assert migrate(m, task, set(range(1000)), {1}) == 0
    assert (len(scans), m.where(task, base, 1)) == (2, [1])


def test_shared_pages_migrate_with_the_capability_only(machine: Make) -> None:
    """Without CAP_SYS_NICE shared pages are skipped without a word."""
    m = today(machine)
    task = m.attach(0, NICE)
    base = filled(m, task, 1)
    child = m.call(fork.sys_fork(m.k, task))
    m.call(cred.sys_drop_capabilities(m.k, child, [NICE]))
    assert (migrate(m, child, {0}, {1}), m.where(task, base, 1)) == (0, [0])
    assert (migrate(m, task, {0}, {1}), m.where(child, base, 1)) == (0, [1])


def test_a_pinned_page_counts_as_left(machine: Make) -> None:
    """The result is how many pages could not be moved."""
    m = today(machine)
    task = m.attach()
    base = filled(m, task, 3)
    m.k.c.pins[5, 0] = m.entry(task, base) // PAGE + 1
    m.k.c.pin_count[5] = 1
    assert migrate(m, task, {0}, {1}) == 1
    assert m.where(task, base, 3) == [0, 1, 1]
    m.k.c.pin_count[5] = 0


def test_a_new_cpuset_takes_the_pages_along(machine: Make) -> None:
    """Pages on nodes that a cpuset loses go to those that it gets, by position."""
    m = today(machine)
    task = m.attach()
    m.call(cpuset.sys_set_cpuset(m.k, task, [0b001]))
    base = filled(m, task, 3)
    m.call(cpuset.sys_set_cpuset(m.k, task, [0b100]))
    assert m.where(task, base, 3) == [2, 2, 2]
    assert bytes_of(m, task, base, 3) == [1, 2, 3]


def test_in_2005_pages_leave_for_swap_and_come_back_anywhere(machine: Make) -> None:
    """V3 evicts what is on an old node that is not a new one, and counts what stayed; a touch brings pages back."""
    m = machine(nodes=3)
    task, other = m.attach(0), m.attach(1)
    base = filled(m, task, 3)
    m.k.c.pins[5, 0] = m.entry(task, base) // PAGE + 1
    m.k.c.pin_count[5] = 1
    assert migrate(m, other, {0, 1}, {1}, task.pid) == 1
    assert m.where(task, base, 3) == [-errno.ENOENT] * 3
    m.k.c.pin_count[5] = 0
    m.call(fork.sys_set_cpu(m.k, task, 2))
    assert bytes_of(m, task, base, 3) == [1, 2, 3]
    assert m.where(task, base, 3) == [0, 2, 2]


def test_nobody_gets_at_a_page_that_is_being_copied(machine: Make) -> None:
    """While a page moves, its entry has no bit that lets a client read or write, and afterwards those that it had."""
    m = today(machine)
    task = m.attach(0, NICE)
    base = filled(m, task, 2)
    m.call(mprotect.sys_mprotect(m.k, task, base + PAGE, PAGE, PROT_READ))
    rights = PTE_PRESENT | PTE_READABLE | PTE_WRITABLE
    before = [m.entry(task, base + page * PAGE) & rights for page in range(2)]
    moving = m.performer.start("migrate", migrate_pages.sys_migrate_pages(m.k, task, 0, 65, [1], [2]))
    m.performer.run(until=lambda: bool(m.entry(task, base) & PTE_MIGRATION))
    assert [m.entry(task, base + page * PAGE) & rights for page in range(2)] == [0, 0]
    m.performer.run()
    assert moving.error is None
    assert [m.entry(task, base + page * PAGE) & rights for page in range(2)] == before
    assert before == [rights, PTE_PRESENT | PTE_READABLE]


@pytest.mark.parametrize("kind", ["tmpfs", "disk"])
@pytest.mark.parametrize("first", range(0, 160, 40))
def test_a_write_that_waited_for_a_page_finds_where_it_went(machine: Make, kind: str, first: int) -> None:
    """Calls that write to a file while its pages migrate write to the pages that it has then, and readers find that."""
    pages = 6
    for seed in range(first, first + 40):
        m = today(machine, seed=seed)
        files.create_file(m.k, "/data", kind, pages * PAGE)
        task, other = m.attach(0, NICE), m.attach(1)
        base = m.call(mmap.sys_mmap(m.k, task, 0, pages * PAGE, RW, MAP_SHARED, "/data", 0, "r+"))
        m.touch(task, base, pages)
        data = bytes([7]) * (pages * PAGE)
        m.performer.start("migrate", migrate_pages.sys_migrate_pages(m.k, task, 0, 65, [1], [2]))
        m.performer.start("write", files.sys_file_write(m.k, other, "/data", 0, data))
        m.performer.run()
        assert m.call(files.sys_file_read(m.k, other, "/data", 0, pages * PAGE)) == data, f"seed {seed}"
        assert bytes_of(m, task, base, pages) == [7] * pages, f"seed {seed}"


def test_a_batch_is_prepared_while_the_one_before_is_copied(machine: Make) -> None:
    """Where memory is plenty, pages of two batches are on their way together, and all of them arrive."""
    m = today(machine)
    m.k.batch_pages = 4
    task = m.attach(0, NICE)
    base = filled(m, task, 16)
    m.performer.start("migrate", migrate_pages.sys_migrate_pages(m.k, task, 0, 65, [1], [2]))

    def marked() -> int:
        return sum(bool(m.entry(task, base + page * PAGE) & PTE_MIGRATION) for page in range(16))

    m.performer.run(until=lambda: marked() > 4)
    assert marked() == 8
    m.performer.run()
    assert m.where(task, base, 16) == [1] * 16
    assert bytes_of(m, task, base, 16) == list(range(1, 17))


@pytest.mark.parametrize("batch_pages", [4, 4096])
def test_pages_find_the_frames_that_those_before_them_have_left(machine: Make, batch_pages: int) -> None:
    """Where memory is short, pages that fall back to where they come from need no more frames than page by page."""
    m = today(machine, "linux-6.12", "1M", "1M")
    m.k.batch_pages = batch_pages
    task, hog = m.attach(0, NICE), m.attach(1)
    base = filled(m, task, 16)
    pages = sum(zone.nr_free for zone in m.k.zones.values())
    full = m.mmap(hog, pages)
    m.touch(hog, full, pages)
    m.call(mmap.sys_munmap(m.k, hog, full, 6 * PAGE))
    assert [zone.nr_free for zone in m.k.zones.values()] == [0, 6]
    assert m.mbind(task, base, 16, MPOL_PREFERRED, {1}, STRICT_MOVE) == 0
    assert m.where(task, base, 16) == [1] * 6 + [0] * 10
    assert bytes_of(m, task, base, 16) == list(range(1, 17))
