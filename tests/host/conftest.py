"""Real child processes for the tests: started with descriptors, spoken to by lines, ended by pid."""

import os
import selectors
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import numaemu_host
from numaemu_host import memfd

TIMEOUT_S = 20.0
_PACKAGE_ROOT = str(Path(numaemu_host.__file__).parent.parent)
_PRELUDE = """
import os, sys
def say(*words):
    print(*words, flush=True)
def wait_for_parent():
    if not sys.stdin.readline():
        sys.exit("the test is gone")
"""


class Child:
    """A Python process that runs `code`, with `say` and `wait_for_parent` defined, and `sys.argv[1:]` as given."""

    def __init__(self, code: str, arguments: Sequence[object], pass_fds: Sequence[int]) -> None:
        search = os.pathsep.join(filter(None, (_PACKAGE_ROOT, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(code), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
            env={**os.environ, "PYTHONPATH": search},
            bufsize=0,
        )
        self.pid = self.process.pid

    def hear(self) -> str:
        """The next line that the child says; fails the test if none comes in time."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(TIMEOUT_S), "the child said nothing in time"
        return self.process.stdout.readline().decode().strip()

    def go_on(self) -> None:
        """Let the child return from `wait_for_parent`."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def kill(self) -> None:
        """SIGKILL the child and reap it."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def end(self) -> int:
        """Wait for the child to end by itself; its exit code."""
        return self.process.wait(TIMEOUT_S)

    def clean_up(self) -> None:
        """Kill what still runs and close the pipes."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def spawn() -> Iterator[Callable[..., Child]]:
    """Starts children: `spawn(code, *arguments, pass_fds=())`; all are ended with the test."""
    children: list[Child] = []

    def start(code: str, *arguments: object, pass_fds: Sequence[int] = ()) -> Child:
        children.append(Child(code, arguments, pass_fds))
        return children[-1]

    yield start
    for child in children:
        child.clean_up()


@pytest.fixture
def shared_fd() -> Iterator[int]:
    """The descriptor of a memfd of one host page."""
    fd = memfd.create("shared", os.sysconf("SC_PAGE_SIZE"), preallocate=True)
    yield fd
    os.close(fd)


def open_descriptors() -> set[int]:
    """The numbers of all open descriptors of this process."""
    listed = list(Path("/proc/self/fd").iterdir())
    # The listing's own descriptor is closed by now.
    return {int(entry.name) for entry in listed if entry.is_symlink()}


@pytest.fixture
def descriptors() -> Callable[[], set[int]]:
    """Tells the numbers of all open descriptors of this process."""
    return open_descriptors


@pytest.fixture
def no_descriptor_leaks() -> Iterator[None]:
    """Fails the test if it ends with other descriptors than it began with."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before
