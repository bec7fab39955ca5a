"""Runs the program of one case on a machine in memory, statement by statement."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from tests.core.conftest import Machine

from numaemu_core import fork, limits, vmscan
from numaemu_core.effects import KernelTask, Nap
from numaemu_core.errors import BusError, MmError, SegmentationFault
from numaemu_core.mm_types import Task
from numaemu_core.page_table import PTE_PRESENT, PTE_SWAPPED
from numaemu_core.topology import from_dict

from .calls import ACTS, CALLS
from .language import Case, Misspelt, Statement, statements
from .views import VIEWS
from .words import PAGE, Words, expand, nodes, number, pages

if TYPE_CHECKING:
    from numaemu_core.performer import Running

#: Page 0 of every program: a page number that 2, 3, 4, 6, 8 and 12 divide.
BASE: Final = 0x18000
#: Seeds that a program with `together` is run with.
SEEDS: Final = 25
#: The steps of a pass that `watch` looks behind, and the functions that make them.
STEPS: Final = {"C": "_with_slots", "D": "_unmapped", "E": "pageout", "G": "remove_mapping"}


class Story:
    """One run of a program: the machine, its tasks by letter, and what was noted on the way."""

    def __init__(self, case: Case, seed: int | None = None) -> None:
        """Nothing has happened; the machine is made by `machine`, or by the first other statement."""
        self.case = case
        self.seed = seed
        self.base = BASE
        self.patch = pytest.MonkeyPatch()
        self.tasks: dict[str, Task] = {}
        #: Frames and pages noted by name.
        self.noted: dict[str, list[int]] = {}
        #: Counters when `count` was said.
        self.counted: Any = np.zeros(6, np.int64)
        self.events: Counter[str] = Counter()
        #: Numbers of the passes that the last call has made.
        self.passes: list[int] = []
        self.hooks: list[tuple[int, Statement]] = []
        #: Flags that were set by hand: they go before fsck.
        self.flagged: list[tuple[Task, int]] = []
        self.watched: tuple[Task, int, int] | None = None
        self.seen: dict[str, set[str]] = {}
        #: A call that goes on in the background has done what the next statement waits for.
        self.settled = self.released = False
        self.m: Machine

    # -- the machine ---------------------------------------------------------------------------------------------------

    @property
    def k(self) -> Any:  # noqa: ANN401 - the kernel, whose parts the verbs know
        """Its kernel."""
        return self.machine.k

    @property
    def machine(self) -> Machine:
        """The machine, made when it is first needed."""
        if not hasattr(self, "m"):
            self.switch_on(Words([]))
        return self.m

    def switch_on(self, words: Words) -> None:
        """`machine nodes=2 memory=256 swap=256 distances=… nocpus={} nomemory={} cluster= minfree= ids=`, in pages."""
        count, memory = words.number("nodes", 2), words.number("memory", 256)
        bare, empty = nodes(words.take("nocpus")), nodes(words.take("nomemory"))
        ids = [int(word) for word in words.take("ids").split(",") if word] or list(range(count))
        description: dict[str, Any] = {
            "swap": words.number("swap", 256) * PAGE,
            "disk": words.number("disk", 64) * PAGE,
            "min_free_kbytes": words.number("minfree"),
            "node": [
                {"id": nid, "memory": 0 if nid in empty else memory * PAGE, "cpus": [] if nid in bare else [nid]}
                for nid in ids
            ],
        }
        if distances := words.take("distances"):
            rows = [[int(cell) for cell in row.split(",")] for row in distances.split("/")]
            if len(rows) == 1:
                rows = [rows[0][-i:] + rows[0][:-i] for i in range(len(ids))]
            description["distances"] = rows
        if cluster := words.take("cluster"):
            description["page_cluster"] = int(cluster)
        description["profile"] = words.take("profile", "swap-v3")
        words.end()
        self.m = Machine(from_dict(description), self.seed)
        self.tasks["a"] = self.m.attach(min(self.k.cpu_node))
        self._hear_of_passes()

    def _hear_of_passes(self) -> None:
        """Count the passes of swapout_pages, let hooks in between them, and look behind their steps."""
        one_pass = vars(vmscan)["_one_pass"]

        def counted(k: Any, pfns: Any, swap_pass: int) -> Generator[Any, Any, Any]:  # noqa: ANN401 - handed through
            yield from self._run_hooks(swap_pass)
            self.passes.append(swap_pass)
            return (yield from one_pass(k, pfns, swap_pass))

        self.patch.setattr(vmscan, "_one_pass", counted)
        for step, name in STEPS.items():
            self.patch.setattr(vmscan, name, self._looked_behind(step, vars(vmscan)[name]))

    def _looked_behind(self, step: str, function: Callable[..., KernelTask[Any]]) -> Callable[..., KernelTask[Any]]:
        def looked(*args: Any, **named: Any) -> Generator[Any, Any, Any]:  # noqa: ANN401 - handed through
            result = yield from function(*args, **named)
            if self.watched is not None:
                self.seen[f"pass {self.passes[-1]} step {step}"] = set(VIEWS["state"](self, self.tasks["a"], Words([])))
            return result

        return looked

    def _run_hooks(self, swap_pass: int) -> Generator[Any, Any, None]:
        for at, statement in list(self.hooks):
            if at == swap_pass:
                self.hooks.remove((at, statement))
                if statement.sign in ("=", "!="):
                    self._view(statement)
                    continue
                running = self.start(statement)
                while running is not None and not running.done:
                    yield Nap()
                if running is not None:
                    self.judge(statement, running)

    # -- statements ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The whole program, and what must hold behind it."""
        try:
            for statement in self.case.program:
                self.do(statement)
            for task, flags in self.flagged:
                for vma in task.mm.vmas:
                    vma.vm_flags &= ~flags
                    self.k.journal.vmas(task.mm, vma.vm_start, vma.vm_end)
            self.expect(self.case.place, "fsck", [], self.machine.fsck())
            self.expect(self.case.place, "hooks that did not run", [], self.hooks)
        finally:
            self.patch.undo()

    def do(self, statement: Statement) -> None:
        """One statement."""
        head, _, rest = statement.left.partition(" ")
        if head == "machine":
            self.switch_on(Words(rest.split()))
        elif head == "base":
            self.base = number(rest)
        elif head == "together":
            self._together(statement, rest)
        elif head == "meanwhile":
            self.settled = False
            self.start(statements(rest, statement.place)[0])
            self.machine.performer.run(until=lambda: self.settled)
        elif head == "at":
            at, _, text = rest.removeprefix("pass ").partition(": ")
            self.hooks.extend((int(at), each) for each in statements(text, statement.place))
        elif head == "seen":
            self._compare_words(statement, self.seen[rest])
        elif statement.sign in ("=", "!="):
            self._view(statement)
        else:
            self._call(statement)

    def _call(self, statement: Statement) -> None:
        before = self.picture() if statement.right.startswith("refused") else None
        self.passes.clear()
        running = self.start(statement)
        if running is None:
            return
        self.machine.performer.run(until=lambda: running.done)
        self.judge(statement, running)
        if before is not None:
            self.expect(str(statement), "what a refused call changed", [], differences(before, self.picture()))

    def _together(self, statement: Statement, text: str) -> None:
        """Several calls at the same time."""
        parts = [statements(part, statement.place)[0] for part in text.split(" | ")]
        started = [(part, self.start(part)) for part in parts]
        self.machine.performer.run()
        for part, running in started:
            if running is not None:
                self.judge(part, running)

    def start(self, statement: Statement) -> Running | None:
        """Begin a call; None where the statement is done at once."""
        task, verb, words = self.parse(statement)
        if verb in ACTS:
            ACTS[verb](self, task, words)
            words.end()
            return None
        if verb not in CALLS:
            raise Misspelt(f"{statement}: no verb {verb!r}")

        def body() -> Generator[Any, Any, Any]:
            try:
                return (yield from CALLS[verb](self, task, words))
            finally:
                words.end()

        return self.machine.performer.start(str(statement), body())

    def parse(self, statement: Statement) -> tuple[Task, str, Words]:
        """Who, the verb, and the words behind it; machine-wide verbs have task `a` for company."""
        words = statement.left.split()
        machine = self.machine
        del machine
        if len(words[0]) == 1:
            if words[0] not in self.tasks:
                raise Misspelt(f"{statement}: no task {words[0]!r}")
            return self.tasks[words[0]], words[1], Words(words[2:])
        return self.tasks["a"], words[0], Words(words[1:])

    def judge(self, statement: Statement, running: Running) -> None:
        """Did a call come out as it should?"""
        wanted = statement.right.removeprefix("refused ")
        got = outcome(running)
        if not wanted and running.error is None:
            return
        self.expect(str(statement), "outcome", wanted or "success", got)

    def _view(self, statement: Statement) -> None:
        task, verb, words = self.parse(statement)
        if verb not in VIEWS:
            raise Misspelt(f"{statement}: no view {verb!r}")
        got = VIEWS[verb](self, task, words)
        words.end()
        if isinstance(got, set):
            self._compare_words(statement, got)
            return
        wanted: Any = statement.right
        if isinstance(got, list):
            wanted, got = expand(wanted), [str(item) for item in got]
        else:
            got = " ".join(str(got).split())
        if statement.sign == "!=":
            self.expect(str(statement), "equal", False, got == wanted)  # noqa: FBT003 - the value that is expected
            return
        self.expect(str(statement), "got", wanted, got)

    def _compare_words(self, statement: Statement, got: set[str]) -> None:
        missing = [word for word in statement.right.split() if word not in got]
        self.expect(str(statement), f"not among {sorted(got)}", [], missing)

    def expect(self, place: str, what: str, wanted: object, got: object) -> None:
        """An assertion with its place."""
        if got != wanted:
            at = f", seed {self.seed}" if self.seed is not None else ""
            pytest.fail(f"{place}{at}\n{what}: {got!r}, expected {wanted!r}", pytrace=False)

    # -- what changes nothing ------------------------------------------------------------------------------------------

    def picture(self) -> dict[str, Any]:
        """Everything that a refused call leaves alone."""
        k = self.k
        picture: dict[str, Any] = {
            "slots": k.c.swap_count.tolist(),
            "free": [zone.nr_free for zone in k.zones.values()],
            "files": [file.policy.ranges for file in k.files.values()],
        }
        for name, task in self.tasks.items():
            picture[f"policy of {name}"] = (task.policy, task.il_next)
            picture[f"mappings of {name}"] = [
                (vma.vm_start, vma.vm_end, vma.vm_flags, vma.vm_policy) for vma in task.mm.vmas
            ]
            if not task.mm.dead:
                flats, vpns, entries = k.tables.used_entries(task.mm.pgd, 0, limits.TASK_SIZE_BYTES // PAGE)
                del flats
                picture[f"entries of {name}"] = list(zip(vpns.tolist(), entries.tolist(), strict=True))
        return picture

    def address(self, page_number: int) -> int:
        """The address of a page of the program."""
        return (self.base + page_number) * PAGE

    def frames(self, task: Task, text: str) -> list[int]:
        """The frames of pages, also of those that only the swap cache has; -1 for none."""
        first, count = pages(text)
        found = []
        for page_number in range(first, first + count):
            entry = self.machine.entry(task, self.address(page_number))
            cached = int(self.k.slot_frame[entry // PAGE]) if entry & PTE_SWAPPED else -1
            found.append(entry // PAGE if entry & PTE_PRESENT else cached)
        return found

    def fork(self, task: Task, name: str) -> KernelTask[None]:
        """A child by that letter."""
        self.tasks[name] = yield from fork.sys_fork(self.k, task)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What has changed."""
    return [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after.get(name)]


def outcome(running: Running) -> str:
    """How a call ended, in the words of these files; an access is killed by a signal."""
    is_access = running.name.split(": ", 1)[1].split()[1] in ("touch", "read", "fill", "intact", "store", "load")
    match running.error:
        case None:
            return "" if running.result is None else str(running.result)
        case BusError() if is_access:
            return "BUS"
        case SegmentationFault() if is_access:
            return "SEGV"
        case MmError():
            return errno.errorcode[running.error.errno]
