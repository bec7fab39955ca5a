"""Programs under `numaemu run`, on the machine of a test.

By the command, in a process of its own: a run takes signals over, and waits for every child that there is.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numaemu_core.errors import NumaemuFailure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The command, as this Python has it; -P: what lies in the current directory is not taken for one of its modules.
_NUMAEMU: Final = (sys.executable, "-P", "-m", "numaemu")
#: What a program that is told to end is given, and `numaemu run` after it.
_GRACE_S: Final = 5.0
_DOCTOR_S: Final = 60.0
#: Characters of a command in a message.
_SHORT: Final = 60
#: Exit status of `numaemu run` when there was no run.
_NOT_RUN: Final = 125


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that has ended."""

    command: tuple[str, ...]
    #: Its exit code, or minus the signal that has ended it.
    returncode: int
    stdout: str
    stderr: str
    #: What `numaemu run --report json` tells; empty if it was not asked for.
    report: dict[str, Any]

    def __str__(self) -> str:
        text = " ".join(" ".join(self.command).split())
        return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"

    def pages_by_node(self, pid: int | None = None) -> Counter[int]:
        """Pages on each node when a process of it exited: the one with that pid, or the one of the command itself.

        Raises:
            LookupError: it is not known: no report was asked for, a signal has ended it, or there was no such process.
        """
        __tracebackhide__ = True
        if not self.report:
            raise LookupError(f"there is no report of {self}, and without one nobody has counted its pages")
        wanted = self.report["pid"] if pid is None else pid
        for process in self.report["exited"]:
            if process["pid"] == wanted:
                return Counter({int(node): count for node, count in process["pages_by_node"].items()})
        seen = ", ".join(f"{process['pid']} ({process['name']})" for process in self.report["exited"]) or "none"
        raise LookupError(
            f"the pages of process {wanted} are not known: it was not of this run, a signal has ended it before they "
            f"could be counted, or neither it nor an ancestor has made a call of memory policy; known: {seen}"
        )


def run(
    place: str,
    command: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    report: bool,
    stdin: str | None,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
) -> Ran:
    """Run it on the machine in that directory, to its end.

    Raises:
        TimeoutExpired: it took too long, and was ended. NumaemuFailure: `numaemu run` could not run it.
    """
    __tracebackhide__ = True
    words = tuple(os.fspath(word) for word in command)
    with tempfile.TemporaryDirectory(prefix="numaemu-pytest-") as folder:
        path = Path(folder) / "report.json"
        options = ("--report", "json", "--report-file", str(path)) if report else ()
        process = subprocess.Popen(
            [*_NUMAEMU, "run", "-m", place, *options, "--", *words],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,  # all of it can be ended, and a Ctrl-C is pytest's
        )
        with process:
            try:
                out, err = process.communicate(stdin, timeout_s)
            except subprocess.TimeoutExpired:
                out, err = _end(process)
                raise _with_output(subprocess.TimeoutExpired(list(words), timeout_s, out, err), out, err) from None
            except BaseException:
                _end(process)
                raise
        told = path.read_text(encoding="utf-8") if path.exists() else ""
        if report and process.returncode == _NOT_RUN and not told:
            raise NumaemuFailure(err.strip())
    return Ran(words, process.returncode, out, err, json.loads(told or "{}"))


def check(ran: Ran) -> None:
    """CalledProcessError, with what it has printed, unless its exit code is 0."""
    __tracebackhide__ = True
    if ran.returncode:
        error = subprocess.CalledProcessError(ran.returncode, list(ran.command), ran.stdout, ran.stderr)
        raise _with_output(error, ran.stdout, ran.stderr)


def _with_output(error: subprocess.SubprocessError, out: str, err: str) -> subprocess.SubprocessError:
    for name, text in (("stdout", out), ("stderr", err)):
        if text:
            error.add_note(f"{name}:\n{text.rstrip()}")
    return error


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End the program, and all that it has started; gives what it has printed."""
    process.terminate()  # `numaemu run` passes it on, and then ends what is left
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # somebody has left the group, and holds the pipes
        return process.communicate(timeout=_GRACE_S)
    return "", ""


@functools.cache
def cannot_run() -> str:
    """Why this host runs no programs on machines, as `numaemu doctor` says; empty if it does."""
    done = subprocess.run(
        [*_NUMAEMU, "doctor", "--json"], capture_output=True, text=True, timeout=_DOCTOR_S, check=False
    )
    try:
        findings = json.loads(done.stdout)
    except ValueError:
        return f"numaemu doctor: {done.stderr.strip() or done.returncode}"
    missing = [finding for finding in findings if finding["state"] == "no"]
    return "; ".join(f"{one['what']}: {one['detail']} ({one['advice']})" for one in missing)
