"""Runs a recorded program on a machine: one line after the other, an answer each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numaemu.replay import operations
from numaemu.replay.host import Host, Killed, Refused

if TYPE_CHECKING:
    from numaemu.replay.records import Answer, Record


class Program:
    """A program under way: its processes by their names, its files."""

    def __init__(self, record: Record, host: Host) -> None:
        """Nothing has run yet; the first process is there, and the runner, who may see everything."""
        self.host = host
        self.ops = record.ops
        self.node_of_cpu = {cpu: nid for nid, cpus in enumerate(record.machine["cpus"]) for cpu in cpus}
        self.pids: dict[str, int] = {"P0": host.attach()}
        self.runner = host.attach()
        #: Name and inode number in the machine by the program's names.
        self.files: dict[str, tuple[str, int]] = {}

    def run(self) -> list[Answer]:
        """Every line; gives the answers.

        Raises:
            ValueError: a line is none of the language.
        """
        return [self._answer(line) for line in self.ops]

    def _answer(self, line: str) -> Answer:
        who, word, *args = line.split()
        try:
            answer = self._perform(who, word, args)
        except Refused as refusal:
            return {"r": -1, "e": refusal.errno}
        except Killed as death:
            self.pids.pop(who, None)
            return {"died": death.signal}
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{line!r} cannot be run: {error!r}") from error
        return answer if "dead" in answer else {"r": 0, "e": 0, **answer}

    def _perform(self, who: str, word: str, args: list[str]) -> Answer:
        if who == "-":
            return self._of_the_runner(word, args)
        if word == "new":
            self.pids[who] = self.host.attach()
            return {}
        pid = self.pids.get(who)
        if pid is None:
            return {"dead": 1}
        if word == "fork":
            self.pids[args[0]] = self.host.fork(pid)
            return {}
        if word == "exit":
            del self.pids[who]
            self.host.call(pid, "exit")
            return {}
        if word not in operations.OPERATIONS:
            raise ValueError(f"no operation {word!r}")
        return operations.OPERATIONS[word](self, pid, *args)

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
