"""Every call there is, made by clients to whom the task does not belong: what is refused, and how."""

import errno
from typing import Any

import pytest
from tests.core.test_wire import VALID

from numaemu_core import files, fork
from numaemu_core.admission import ROOT, make_admission
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.performer import machine_in_memory
from numaemu_core.topology import uniform
from numaemu_core.wire import CALLS, Request
from numaemu_daemon.clients import Client
from numaemu_daemon.permissions import RULES, Permissions

ALLOWED, EPERM, EACCES = 0, errno.EPERM, errno.EACCES
OWNER, KIN, OTHER, THIRD = "owner", "another client of the owner", "another user", "a third user"
USERS = {OWNER: ROOT, KIN: ROOT, OTHER: 1001, THIRD: 1002}

#: What comes of a call about a task: for another client of the same user, for a client of another user, and for the
#: owner's about a task of another user.
TASK_CALLS = (EPERM, EPERM, EPERM)
EXCEPTIONS: dict[str, tuple[int, int, int]] = {
    "adopt": (ALLOWED, EPERM, EPERM),
    "attach": (ALLOWED, EPERM, EPERM),  # share_mm names the task
    "maps": (ALLOWED, EACCES, ALLOWED),
    "numa_maps": (ALLOWED, EACCES, ALLOWED),
    "pagemap": (ALLOWED, EACCES, ALLOWED),
    # Not about a task.
    "create_file": (ALLOWED, ALLOWED, ALLOWED),
    "hello": (ALLOWED, ALLOWED, ALLOWED),
    "join": (ALLOWED, ALLOWED, ALLOWED),
    "alive": (ALLOWED, ALLOWED, ALLOWED),
    "leave": (ALLOWED, ALLOWED, ALLOWED),
    "hardware": (ALLOWED, ALLOWED, ALLOWED),
    "numastat": (ALLOWED, ALLOWED, ALLOWED),
    "meminfo": (ALLOWED, ALLOWED, ALLOWED),
    "vmstat": (ALLOWED, ALLOWED, ALLOWED),
    "status": (ALLOWED, ALLOWED, ALLOWED),
    "sysctl": (ALLOWED, EPERM, ALLOWED),
    "fsck": (ALLOWED, EPERM, ALLOWED),
}


class House:
    """A machine in memory with a client of each kind, each with one task."""

    def __init__(self) -> None:
        self.k: Kernel = machine_in_memory(uniform(1, "1M", "1M", "swap-v3", 4096))
        admission = make_admission([1001, 1002], ["CAP_SYS_NICE", "1002:CAP_IPC_LOCK"])
        self.permissions = Permissions(self.k, admission, self.owner_of)
        self.clients = {
            name: Client(None, 10, user, -1, b"", user, user != ROOT, number=number)
            for number, (name, user) in enumerate(USERS.items(), start=1)
        }
        self.pids = {}
        for name, client in self.clients.items():
            self.pids[name] = fork.attach(self.k, 0, [], None, client.number, client.user).pid
            client.tasks.add(self.pids[name])

    def owner_of(self, pid: int) -> Client | None:
        return next((client for client in self.clients.values() if pid in client.tasks), None)

    def ask(self, who: str, name: str, args: list[Any]) -> int:
        """0, or the errno with which the call is refused."""
        try:
            self.permissions.check(self.clients[who], Request(1, name, args, None))
        except MmError as refusal:
            return refusal.errno
        return ALLOWED


def arguments(name: str, pid: int) -> list[Any]:
    """A valid call about that task."""
    given, seen = VALID[name]
    args = list(seen or given)
    if name == "attach":
        return [0, [], pid, None]
    if CALLS[name] and name not in {"hello", "create_file", "sysctl", "meminfo"}:
        args[0] = pid
    return args


@pytest.fixture
def house() -> House:
    """A machine with clients of three users."""
    return House()


def test_every_call_has_a_rule() -> None:
    """The table of rules names the calls that there are, and so does this file."""
    assert RULES.keys() == CALLS.keys()
    assert EXCEPTIONS.keys() < CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_calls_about_tasks_of_others(name: str, house: House) -> None:
    """Another client of the same user, a client of another user, the owner's about a task of another user."""
    expected = EXCEPTIONS.get(name, TASK_CALLS)
    asked = (
        house.ask(KIN, name, arguments(name, house.pids[OWNER])),
        house.ask(OTHER, name, arguments(name, house.pids[OWNER])),
        house.ask(OWNER, name, arguments(name, house.pids[OTHER])),
    )
    assert asked == expected
    assert house.ask(THIRD, name, arguments(name, house.pids[OTHER])) == expected[1]


@pytest.mark.parametrize("name", CALLS)
def test_calls_about_own_tasks(name: str, house: House) -> None:
    """All are allowed, but for access slots, which are for clients that map the memory, and what is the owner's."""
    assert house.ask(OWNER, name, arguments(name, house.pids[OWNER])) == ALLOWED
    refused = {"fsck", "let_go_shared", "mirror", "sysctl", "truncate_shared", "window", "window_close"}
    assert house.ask(OTHER, name, arguments(name, house.pids[OTHER])) == (EPERM if name in refused else ALLOWED)


@pytest.mark.parametrize("name", [name for name in CALLS if EXCEPTIONS.get(name, TASK_CALLS)[1]])
def test_tasks_that_are_not_there(name: str, house: House) -> None:
    """ESRCH; another user is not told which tasks there are."""
    if name in {"fsck", "sysctl"}:
        return
    for who in (OWNER, OTHER):
        with pytest.raises(MmError) as caught:
            house.permissions.check(house.clients[who], Request(1, name, arguments(name, 99), None))
        assert caught.value.errno == errno.ESRCH
        assert ("tasks: 1" in caught.value.detail) == (who == OWNER)


@pytest.mark.parametrize(
    ("who", "capability", "result"),
    [
        (OWNER, "CAP_SYS_ADMIN", ALLOWED),
        (OTHER, "CAP_SYS_NICE", ALLOWED),
        (OTHER, "CAP_IPC_LOCK", EPERM),
        (THIRD, "CAP_IPC_LOCK", ALLOWED),
        (THIRD, "CAP_SYS_ADMIN", EPERM),
        (OTHER, "CAP_OF_NO_KERNEL", EPERM),
    ],
)
def test_capabilities(who: str, capability: str, result: int, house: House) -> None:
    """The owner's clients get what they name; others what was granted to all of them or to them."""
    assert house.ask(who, "attach", [0, [capability], None, None]) == result


@pytest.mark.parametrize(
    ("who", "user", "result"),
    [(OWNER, 1001, ALLOWED), (OTHER, USERS[OTHER], ALLOWED), (OTHER, USERS[THIRD], EPERM), (OTHER, 0, EPERM)],
)
def test_whose_task_it_is(who: str, user: int, result: int, house: House) -> None:
    """The owner's clients have tasks of any user, others their own."""
    assert house.ask(who, "attach", [0, [], None, user]) == result


def test_a_task_that_became_another_user_is_still_its_clients(house: House) -> None:
    """A setuid in the emulated kernel gives the task to nobody of the host."""
    house.k.tasks[house.pids[OWNER]].uid = USERS[OTHER]
    assert house.ask(OTHER, "adopt", [house.pids[OWNER]]) == EPERM
    assert house.ask(OTHER, "numa_maps", [house.pids[OWNER]]) == EACCES


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("mmap", [0, 0, 4096, 3, 1, "f", 0, "r+"]),
        ("file_read", [0, "f", 0, 1]),
        ("file_write", [0, "f", 0, b"x"]),
    ],
)
def test_files(name: str, args: list[Any], house: House) -> None:
    """A file is open to the user who made it, and to the owner of the machine."""
    files.create_file(house.k, "f", "tmpfs", 4096, USERS[OTHER])
    for who, result in ((OTHER, ALLOWED), (OWNER, ALLOWED), (THIRD, EACCES)):
        args[0] = house.pids[who]
        assert house.ask(who, name, args) == result
