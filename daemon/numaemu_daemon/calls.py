"""From a request to an answer: finds the handler of a call, runs it, journals it, and gives its result.

Calls of the machine itself (attach, adopt, windows, numbers) are here; those of a task are kernel tasks of the core.
"""

import errno
import functools
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numaemu_core import files, fork, limits, node_views
from numaemu_core.errors import MmError, OutOfMemory
from numaemu_core.intents import Caller, begin_call, blamed, end_call, on_behalf, too_many, unfinished
from numaemu_core.journal import Truth
from numaemu_core.kernel import Kernel
from numaemu_core.mm_types import Task
from numaemu_core.swap_state import release_unpinned
from numaemu_core.syscalls import NOT_JOURNALLED, SYSCALLS
from numaemu_core.sysctl import write_sysctl
from numaemu_core.wire import Request, pack_refusal, pack_reply
from numaemu_daemon.clients import AccessSlots, Client, Connection
from numaemu_daemon.comeback import connection_of
from numaemu_daemon.permissions import Permissions
from numaemu_daemon.scheduler import Scheduler

#: Calls of the machine that change something; what they do and their answer are one record.
MUTATING = frozenset({"adopt", "attach", "create_file", "sysctl", "window", "window_close"})
#: Calls that only look at a task, which need not be the client's.
OF_ANY_TASK = frozenset({"maps", "numa_maps", "pagemap"})

Send = Callable[[Connection, bytes], None]


class Server(Protocol):
    """What calls need of the server."""

    def status(self) -> dict[str, Any]:
        """Numbers about the daemon itself."""

    def owner_of(self, pid: int) -> Client | None:
        """The client whose task it is."""

    def leave(self, client: Client) -> None:
        """A client lets the machine go."""


class Calls:
    """Serves requests of connections that have said hello."""

    def __init__(
        self,
        k: Kernel,
        scheduler: Scheduler,
        slots: AccessSlots,
        boot_id: str,
        server: Server,
        permissions: Permissions,
    ) -> None:
        """`server` knows the clients, `permissions` what they may."""
        self._permissions = permissions
        self._k = k
        self._scheduler = scheduler
        self._slots = slots
        self._boot_id = boot_id
        self._owner_of = server.owner_of
        self._let_go = server.leave
        self._immediate: dict[str, Callable[..., Any]] = {
            "alive": lambda _client: 0,
            "attach": self._attach,
            "create_file": self._create_file,
            "adopt": self._adopt,
            "window": self._window,
            "window_close": self._window_close,
            "join": self._join,
            "leave": self._leave,
            "unpinned": self._unpinned,
            "sysctl": lambda _client, path, value: write_sysctl(k, path, value),
            "hardware": lambda _client: node_views.hardware(k),
            "numastat": lambda _client: node_views.numastat(k),
            "meminfo": lambda _client, node: node_views.meminfo(k, node),
            "vmstat": lambda _client: node_views.vmstat(k),
            "status": lambda _client: server.status(),
        }
        #: Bytes for files that stand in the journal with calls on their way, and calls that wait for room there.
        self._writing = 0
        self._later: deque[tuple[Connection, Request, Send, Task]] = deque()
        #: Calls served since boot, by name.
        self.served = 0

    def serve(self, connection: Connection, request: Request, send: Send) -> None:
        """Begin a call; its answer goes out through `send` when it is there.

        A repeated request is answered again and not done again; while the first is on its way it is ignored.
        """
        if request.request_id <= connection.last_request:
            if request.request_id == connection.last_request and connection.last_reply is not None:
                send(connection, connection.last_reply)
            return
        connection.last_request, connection.last_reply = request.request_id, None
        self.served += 1
        caller = Caller(connection.number, request.request_id)
        try:
            self._permissions.check(connection.client, request)
            if (refusal := too_many(connection.deaths_of(request.request_id))) is not None:
                raise refusal
            handler = self._immediate.get(request.name)
            if handler is not None:
                with blamed(self._k, caller), self._k.journal.together():  # its effects and its answer
                    result = handler(connection.client, *request.args)
                    reply = self._note_answer(connection, request, result, None)
                send(connection, reply)
                return
            pid = request.args[0]
            task = fork.task_of(self._k, pid)
            if task.killed and request.name not in OF_ANY_TASK | {"exit"}:
                raise _killed(task)
        except MmError as refusal:
            self._answer(connection, request, send, None, refusal)
            return
        self._begin(connection, request, send, task)

    def _begin(self, connection: Connection, request: Request, send: Send, task: Task) -> None:
        size = _journalled_bytes(request)
        if self._writing and self._writing + size > limits.JOURNALLED_WRITES_BYTES:
            self._later.append((connection, request, send, task))
            return
        caller = Caller(connection.number, request.request_id)
        if request.name not in NOT_JOURNALLED:
            begin_call(self._k, caller, request.name, request.args)
            self._k.reach("call.intent_written")
        self._run(connection, request, send, task, caller)

    def _begin_later(self) -> None:
        """There is room for a write: the first of those that wait begins, if its task is still there."""
        while self._later:
            connection, request, send, task = self._later.popleft()
            if not task.exiting:
                self._begin(connection, request, send, task)
                return
            gone = MmError(errno.ESRCH, f"no task {task.pid}")
            self._answer(connection, request, send, None, gone)

    def redo(self, connections: Mapping[int, Connection], truth: Truth, send: Send) -> None:
        """Run the calls that were on their way when the last daemon died; answers are kept, and sent when asked for."""
        for caller, name, args in list(unfinished(truth)):
            request = Request(caller.request, name, args, None)
            stranger = Client(None, 0, 0, -1, b"", gone=True)  # it died, too; who shares its memory has not
            connection = connections.get(caller.connection) or connection_of(truth, caller.connection, stranger)
            connection.last_request = connection.waiting = caller.request
            task = self._k.tasks.get(args[0])
            refusal = too_many(connection.deaths_of(caller.request))
            if refusal is None and task is None and name != "exit":
                refusal = MmError(errno.ESRCH, f"no task {args[0]}")
            if refusal is not None or task is None:
                self._answer(connection, request, send, 0, refusal)
            else:
                self._run(connection, request, send, task, caller)

    def _run(self, connection: Connection, request: Request, send: Send, task: Task, caller: Caller) -> None:
        if request.name == "exit":
            task.exiting = True  # from now on it is nobody's any more

        size = _journalled_bytes(request)
        self._writing += size

        def done(result: Any, refusal: MmError | None) -> None:  # noqa: ANN401 - any call's result
            if task.killed and request.name not in OF_ANY_TASK | {"exit"}:  # the call of a killed task never returns
                refusal = _killed(task)
            self._answer(connection, request, send, result, refusal)
            self._writing -= size
            if size:
                self._begin_later()

        self._scheduler.share()
        body = on_behalf(self._k, caller, SYSCALLS[request.name](self._k, task, *request.args[1:]))
        self._scheduler.start(body, done, _own_window(connection.client, request))

    def _answer(
        self,
        connection: Connection,
        request: Request,
        send: Send,
        result: Any,  # noqa: ANN401 - any call's result
        refusal: MmError | None,
    ) -> None:
        send(connection, self._note_answer(connection, request, result, refusal))
        self._k.reach("call.answer_sent")

    def _note_answer(
        self,
        connection: Connection,
        request: Request,
        result: Any,  # noqa: ANN401 - any call's result
        refusal: MmError | None,
    ) -> bytes:
        """A call is over: keep its answer, in the journal if it has changed something."""
        if isinstance(result, Task):  # a fork: the child is the client's, too
            connection.client.tasks.add(result.pid)
            if connection.client.gone:
                self.end_tasks(connection.client)
            result = _identity(result)
        if request.name == "exit" and refusal is None:
            self._forget(connection.client, request.args[0])
        if refusal is not None:
            reply = pack_refusal(self._boot_id, request.request_id, refusal)
        else:
            reply = pack_reply(self._boot_id, request.request_id, result)
        if request.name not in NOT_JOURNALLED and (request.name in SYSCALLS or request.name in MUTATING):
            self._k.reach("call.effects_done")
            end_call(self._k, Caller(connection.number, request.request_id), reply)
            self._k.reach("call.answer_written")
        connection.last_reply = reply
        return reply

    # -- tasks and slots -----------------------------------------------------------------------------------------------

    def _forget(self, client: Client, pid: int) -> None:
        """A task is no more, or no longer this client's: nor are its access slots."""
        client.tasks.discard(pid)
        for slot in [slot for slot, owner_pid in client.slots.items() if owner_pid == pid]:
            self._slots.give_back(slot)
        self.release_pins()

    def end_tasks(self, client: Client) -> None:
        """The client is no more: so are its tasks."""
        for pid in list(client.tasks):
            task = self._k.tasks.get(pid)
            if task is not None and not task.exiting:
                task.exiting = True
                self._scheduler.start(fork.sys_exit(self._k, task), functools.partial(self._ended, client, pid))

    def _ended(self, client: Client, pid: int, _result: object, _refusal: MmError | None) -> None:
        self._forget(client, pid)

    def _attach(
        self, client: Client, cpu: int, capabilities: list[str], share_mm: int | None, uid: int | None
    ) -> list[int]:
        user = client.user if uid is None else uid
        task = fork.attach(self._k, cpu, capabilities, share_mm, client.number, user)
        client.tasks.add(task.pid)
        return _identity(task)

    def _join(self, _client: Client) -> int:
        raise MmError(errno.EINVAL, "join is the first word over TCP, and of nobody who is known already")

    def _leave(self, client: Client) -> int:
        self._let_go(client)
        return 0

    def _create_file(self, client: Client, name: str, kind: str, length: int) -> int:
        return files.create_file(self._k, name, kind, length, client.user).i_ino

    def _adopt(self, client: Client, pid: int) -> list[int]:
        task = fork.task_of(self._k, pid)
        previous = self._owner_of(pid)
        if previous is not None:
            if previous is not client and pid in previous.slots.values():
                raise MmError(errno.EBUSY, f"a thread of its owner is using task {pid}")
            self._forget(previous, pid)
        client.tasks.add(pid)
        task.owner = client.number
        self._k.journal.task(task)
        return _identity(task)

    def _window(self, client: Client, pid: int) -> int:
        task = fork.task_of(self._k, pid)
        if task.killed:
            raise _killed(task)
        if task.mm.mirrored:  # frames that count as zeros would be written to
            raise MmError(errno.EACCES, f"the memory of task {pid} is that of a process of the host")
        return self._slots.take(client, pid, task.mm.id)

    def _window_close(self, client: Client, pid: int, slot: int) -> int:
        if client.slots.get(slot) != pid:
            raise MmError(errno.EINVAL, f"access slot {slot} is not one of task {pid}")
        self._slots.give_back(slot)
        return 0

    def _unpinned(self, _client: Client, _pid: int) -> int:
        self.release_pins()
        return 0

    def release_pins(self) -> None:
        """Pins were cleared: free what they alone had kept, when there is time for it."""
        if self._k.left_to_pins:
            self._scheduler.start(release_unpinned(self._k), lambda _result, _refusal: None)


def _journalled_bytes(request: Request) -> int:
    """Bytes of a file or of memory that a call carries into the journal."""
    return len(request.args[-1]) if request.name in {"file_write", "write"} else 0


def _own_window(client: Client, request: Request) -> int | None:
    """The access slot that the caller has open, if it is one of its own."""
    return request.window if request.window in client.slots else None


def _killed(task: Task) -> OutOfMemory:
    return OutOfMemory(f"task {task.pid} was killed: out of memory")


def _identity(task: Task) -> list[int]:
    """What a client needs to know of a task: pid, mm, pgd."""
    return [task.pid, task.mm.id, task.mm.pgd]
