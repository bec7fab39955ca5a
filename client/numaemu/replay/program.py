"""Runs a recorded program on a machine: one line after the other, an answer each."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from numaemu.replay import operations
from numaemu.replay.host import Host, Killed, Refused
from numaemu_core import uapi

if TYPE_CHECKING:
    from numaemu.replay.records import Answer, Record

#: Where the interpreter of the recordings has its own memory, and about how much.
_IMAGE: Final = 0x200000
_IMAGE_BYTES: Final = 2 << 20


class Program:
    """A program under way: its processes by their names, its files."""

    def __init__(self, record: Record, host: Host) -> None:
        """Nothing has run yet; the first process is there, and the runner, who may see everything."""
        self.host = host
        self.ops = record.ops
        self.node_of_cpu = {cpu: nid for nid, cpus in enumerate(record.machine["cpus"]) for cpu in cpus}
        self.runner = host.attach()
        #: Processes that are alive.
        self.pids: dict[str, int] = {"P0": self._new_process()}
        #: All that there ever were: a call may name one that is gone.
        self.known_pids = dict(self.pids)
        #: Name and inode number in the machine by the program's names.
        self.files: dict[str, tuple[str, int]] = {}

    def run(self) -> list[Answer]:
        """Every line; gives an answer each.

        Where a line is none of the language, or the machine breaks down, the program comes to a halt: that answer has
        an `error`, and so have those that are left.
        """
        answers: list[Answer] = []
        for line in self.ops:
            try:
                answers.append(self._answer(line))
            except Exception as error:  # noqa: BLE001 - whatever broke is told of this program, and the others run
                answers.append({"error": _told(error)})
                answers += [{"error": "not run"}] * (len(self.ops) - len(answers))
                break
        return answers

    def _answer(self, line: str) -> Answer:
        who, word, *args = line.split()
        try:
            answer = self._perform(who, word, args)
        except Refused as refusal:
            return {"r": -1, "e": refusal.errno}
        except Killed as death:
            self.pids.pop(who, None)
            return {"died": death.signal}
        return answer if "dead" in answer else {"r": 0, "e": 0, **answer}

    def _perform(self, who: str, word: str, args: list[str]) -> Answer:
        if who == "-":
            return self._of_the_runner(word, args)
        if word == "new":
            self._add(who, self._new_process())
            return {}
        pid = self.pids.get(who)
        if pid is None:
            return {"dead": 1}
        if word == "fork":
            self._add(args[0], self.host.fork(pid))
            return {}
        if word == "exit":
            del self.pids[who]
            self.host.call(pid, "exit")
            return {}
        if word not in operations.OPERATIONS:
            raise ValueError(f"no operation {word!r}")
        return operations.OPERATIONS[word](self, pid, *args)

    def _new_process(self) -> int:
        """A process with what an interpreter takes of its address space: RLIMIT_AS and mlockall count that, too."""
        pid = self.host.attach()
        bits = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS | uapi.MAP_FIXED
        self.host.call(pid, "mmap", _IMAGE, _IMAGE_BYTES, uapi.PROT_NONE, bits, None, 0, "r+")
        return pid

    def _add(self, who: str, pid: int) -> None:
        self.pids[who] = self.known_pids[who] = pid

    def _of_the_runner(self, word: str, args: list[str]) -> Answer:
        match word:
            case "file":
                return operations.make_file(self, "tmpfs", "/t", *args)
            case "rfile":
                return operations.make_file(self, "ramfs", "/r", *args)
            case "sysctl":
                return operations.sysctl(self, *args)
            case _:
                raise ValueError(f"the runner has no operation {word!r}")


def _told(error: Exception) -> str:
    """What went wrong, and where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
