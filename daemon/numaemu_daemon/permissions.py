"""Who may make which call, in one table: the only place that decides about clients and users.

A client acts on its own tasks only. What it may do beyond that depends on its *user*: ROOT for the owner's clients, the
number of another user else. That number is the kernel's word on the peer (or that of CURVE), never the message's.
"""

import enum
import errno
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

from numaemu_core import fork
from numaemu_core.admission import ROOT, Admission
from numaemu_core.errors import MmError
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task
from numaemu_core.wire import CALLS, Request
from numaemu_daemon.clients import Client


class Rule(enum.Enum):
    """What a call asks of who makes it."""

    #: Nothing: numbers about the whole machine, and what a connection begins and ends with.
    ANYBODY = "anybody"
    #: The task is the client's own (EPERM).
    OWN_TASK = "own task"
    #: The same, and the client maps the memory (EPERM).
    OWN_MAPPED_TASK = "own task of a client that maps the memory"
    #: The task is the client's own, and the client is the owner's (EPERM).
    OWN_TASK_OF_OWNER = "own task of the owner"
    #: The task is of the same user, or the client is the owner's (EACCES, as opening /proc/PID/maps).
    LOOK = "same user, or owner"
    #: The task, if one is named, is of the same user (EPERM).
    SAME_USER = "same user"
    #: The client is the owner's (EPERM).
    OWNER = "owner"


_ANYBODY: Final = frozenset(
    {"alive", "create_file", "hardware", "hello", "join", "leave", "meminfo", "numastat", "status", "vmstat"}
)
_SPECIAL: Final = {
    "adopt": Rule.SAME_USER,
    "attach": Rule.SAME_USER,
    "fsck": Rule.OWNER,
    "let_go_shared": Rule.OWN_TASK_OF_OWNER,
    "maps": Rule.LOOK,
    "mirror": Rule.OWN_TASK_OF_OWNER,
    "numa_maps": Rule.LOOK,
    "pagemap": Rule.LOOK,
    "sysctl": Rule.OWNER,
    "truncate_shared": Rule.OWN_TASK_OF_OWNER,
    "window": Rule.OWN_MAPPED_TASK,
    "window_close": Rule.OWN_MAPPED_TASK,
}
#: Every call: what is not named above is about a task, and that one has to be the client's.
RULES: Final = MappingProxyType(
    {name: Rule.ANYBODY if name in _ANYBODY else _SPECIAL.get(name, Rule.OWN_TASK) for name in CALLS}
)
#: Where a call names a file.
_FILE_ARGUMENT: Final = MappingProxyType({"file_read": 1, "file_write": 1, "mmap": 5})


class Permissions:
    """The table, for one machine."""

    def __init__(self, k: Kernel, admission: Admission, owner_of: Callable[[int], Client | None]) -> None:
        """`owner_of` gives the client that has a task."""
        self._k = k
        self._admission = admission
        self._owner_of = owner_of

    def check(self, client: Client, request: Request) -> None:
        """May the client make this call?

        Raises:
            MmError: ESRCH: there is no such task; EPERM, EACCES: no.
        """
        name, args = request.name, request.args
        match RULES[name]:
            case Rule.OWN_TASK:
                self.own_task(client, args[0])
            case Rule.OWN_MAPPED_TASK:
                self.own_task(client, args[0])
                if client.remote:
                    raise MmError(errno.EPERM, "a remote client has no access slots, as it does not map the memory")
            case Rule.OWN_TASK_OF_OWNER:
                self.own_task(client, args[0])
                self._check_owner(client, name)
            case Rule.LOOK:
                self._check_look(client, args[0])
            case Rule.SAME_USER:
                self._check_same_user(client, args[2] if name == "attach" else args[0])
            case Rule.OWNER:
                self._check_owner(client, name)
            case Rule.ANYBODY:
                pass
        if name == "attach":
            self._check_rights(client, args[1], args[3])
        if name in _FILE_ARGUMENT:
            self._check_file(client, args[_FILE_ARGUMENT[name]])

    @staticmethod
    def _check_owner(client: Client, name: str) -> None:
        if client.user != ROOT:
            raise MmError(errno.EPERM, f"{name} is for the owner of the machine")

    def own_task(self, client: Client, pid: int) -> Task:
        """The task of that pid, if it is this client's.

        Raises:
            MmError: ESRCH: there is none; EPERM: it is another's.
        """
        task = self._task(client, pid)
        if pid not in client.tasks:
            raise MmError(errno.EPERM, f"task {pid} belongs to another process; adopt it first")
        return task

    def _task(self, client: Client, pid: int) -> Task:
        try:
            return fork.task_of(self._k, pid)
        except MmError as refusal:
            if client.user == ROOT:
                raise
            raise MmError(refusal.errno, f"no task {pid}") from None  # it does not learn which tasks there are

    def _user_of(self, task: Task) -> int | None:
        """Whose task it is, None for that of a client that has just gone. A setuid of the task changes nothing."""
        owner = self._owner_of(task.pid)
        return None if owner is None else owner.user

    def _check_look(self, client: Client, pid: int) -> None:
        task = self._task(client, pid)
        if client.user not in (ROOT, self._user_of(task)):
            raise MmError(errno.EACCES, f"task {pid} is another user's")

    def _check_same_user(self, client: Client, pid: int | None) -> None:
        if pid is None:
            return
        user = self._user_of(self._task(client, pid))
        if client.user != (ROOT if user is None else user):
            raise MmError(errno.EPERM, f"task {pid} is another user's")

    def _check_rights(self, client: Client, names: list[str], uid: int | None) -> None:
        if client.user == ROOT:
            return
        if uid not in {None, client.user}:
            raise MmError(errno.EPERM, f"a task of user {uid} is for the owner of the machine, or for that user")
        granted = self._admission.capabilities(client.user)
        wanted = sorted(set(names) - granted)
        if wanted:
            what = ", ".join(sorted(granted)) or "nothing"
            raise MmError(errno.EPERM, f"{wanted[0]} was not granted to user {client.user}, who was granted {what}")

    def _check_file(self, client: Client, name: Any) -> None:  # noqa: ANN401 - text, or None for no file
        mapping = self._k.files.get(name)
        if mapping is not None and client.user not in (ROOT, mapping.uid):
            raise MmError(errno.EACCES, f"the file {name!r} is another user's")
