"""A run in a terminal, under a shell with job control."""

import os
import pty
import re
import select
import sys
import time
from collections.abc import Iterator

import pytest

PATIENCE_S = 60.0


class Terminal:
    """An interactive shell on a pseudo-terminal."""

    def __init__(self) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.environ["PS1"] = "PROMPT> "
            os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])  # noqa: S606, S607 - as a terminal does
        self._heard = b""

    def type(self, text: str) -> None:
        """Keys, as they are."""
        os.write(self.fd, text.encode())

    def until(self, pattern: str) -> str:
        """What the screen shows up to the end of a pattern."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern.encode(), self._heard)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self._heard!r}"
            if select.select([self.fd], [], [], left)[0]:
                self._heard += os.read(self.fd, 4096)
        shown, self._heard = self._heard[: found.end()], self._heard[found.end() :]
        return shown.decode(errors="replace")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A shell with its first prompt."""
    made = Terminal()
    made.until("PROMPT> ")
    yield made
    os.close(made.fd)  # hangs up, which ends the shell and what a test that failed has left running in it
    os.waitpid(made.pid, 0)


def begin(terminal: Terminal, program: str) -> None:
    """A shell script without double quotes, which says that it has begun."""
    script = program.replace("$", r"\$")
    terminal.type(f'{sys.executable} -m numaemu run --memory 4M --swap 4M -- sh -c "{script}"\n')
    terminal.until("begun\r\n")


def test_a_run_is_stopped_continued_and_interrupted_from_its_terminal(terminal: Terminal) -> None:
    """Ctrl-Z stops it, fg goes on with it and with its input, Ctrl-C is the program's to handle, once each."""
    program = (
        r"trap 'n=$((n+1)); echo interrupted $n' INT; trap 'echo total $n; exit 9' QUIT; "
        r"echo be''gun; read x; echo got $x; while :; do sleep 1; done"
    )
    begin(terminal, program)
    terminal.type("\x1a")
    terminal.until("Stopped")
    terminal.until("PROMPT> ")
    terminal.type("jobs\n")
    terminal.until(r"\[1\]\+  Stopped")
    terminal.until("PROMPT> ")
    terminal.type("fg\n")
    terminal.until("numaemu run")
    terminal.type("hello\n")
    terminal.until("got hello\r\n")
    terminal.type("\x03")
    terminal.until("interrupted 1\r\n")
    terminal.type("\x03")
    terminal.until("interrupted 2\r\n")
    terminal.type("\x1c")
    terminal.until("total 2\r\n")
    terminal.until("PROMPT> ")
    terminal.type("echo code $?\n")
    terminal.until("code 9\r\n")
    terminal.until("PROMPT> ")


def test_a_program_that_does_not_stop_is_answered(terminal: Terminal) -> None:
    """It ignores Ctrl-Z: nothing has happened, and its next call has an answer."""
    begin(terminal, "trap '' TSTP; echo be''gun; read x; cat /sys/devices/system/node/online; echo got $x")
    terminal.type("\x1a")
    terminal.type("hello\n")
    terminal.until("0-1\r\ngot hello\r\n")
    terminal.until("PROMPT> ")


@pytest.mark.parametrize("by", ["TSTP", "STOP"])
def test_a_program_tidies_up_before_it_stops(terminal: Terminal, by: str) -> None:
    """Its calls are answered meanwhile; it stops when it is ready to, and as it likes."""
    handler = f"cat /sys/devices/system/node/online; echo ti''dy; trap - TSTP; kill -{by} $$; echo on again"
    # No other process that Ctrl-Z stops: the shell would wait for that one.
    begin(terminal, f"trap '{handler}' TSTP; echo be''gun; while :; do read x; done")
    terminal.type("\x1a")
    terminal.until("0-1\r\ntidy\r\n")
    terminal.until("PROMPT> ")
    terminal.type("jobs\n")
    terminal.until(r"\[1\]\+  Stopped")
    terminal.until("PROMPT> ")
    terminal.type("fg\n")
    terminal.until("on again\r\n")
    terminal.type("\x03")
    terminal.until("PROMPT> ")
