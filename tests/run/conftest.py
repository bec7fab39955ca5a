"""Programs that are run on a machine: one for each module of tests, checked by fsck after each."""

import collections
import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import numaemu as nm
from numaemu_run.abi import abi_of_host
from numaemu_run.fault_events import FaultEvents
from numaemu_run.session import Session

SECONDS = 60
PROGRAMS = Path(__file__).with_name("programs")
#: Four nodes with a CPU each.
TOPOLOGY: dict[str, Any] = {
    "profile": "linux-6.12",
    "swap": "64M",
    "preallocate": False,
    "node": [{"memory": "64M", "cpus": [nid]} for nid in range(4)],
}

Done: TypeAlias = "subprocess.CompletedProcess[str]"
Run: TypeAlias = Callable[..., Done]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Machines of this module lie in a directory of their own."""
    folder = tmp_path_factory.mktemp("n")
    folder.chmod(0o700)
    before = os.environ.get("NUMAEMU_RUNTIME")
    os.environ["NUMAEMU_RUNTIME"] = str(folder)
    yield folder
    os.environ.pop("NUMAEMU_RUNTIME") if before is None else os.environ.update(NUMAEMU_RUNTIME=before)


@pytest.fixture(scope="module")
def shared_machine(runtime: Path) -> Iterator[nm.Machine]:
    """The machine of this module."""
    del runtime
    with nm.boot(topology=TOPOLOGY) as machine:
        yield machine


@pytest.fixture
def machine(shared_machine: nm.Machine) -> Iterator[nm.Machine]:
    """The same; after each test it is sound, and no task is left on it."""
    yield shared_machine
    assert shared_machine.fsck() == []
    assert shared_machine.status()["tasks"] == 0


def numaemu(*words: object, stdin: str | None = None, check: bool = False) -> Done:
    """The command, run to its end."""
    command = [sys.executable, "-m", "numaemu", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, input=stdin, check=check)


def begun(*words: object) -> "subprocess.Popen[str]":
    """The command, whose program has said that it is ready."""
    command = [sys.executable, "-m", "numaemu", *map(str, words)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def own_descriptors() -> "collections.Counter[str]":
    """What this process has open, without what ZeroMQ opens and closes in its own time."""
    found: collections.Counter[str] = collections.Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = str(link.readlink())
            found[name] += not name.startswith(("socket:", "anon_inode:[event"))
    return found


#: What to install for a compiler.
_COMPILERS = {"gcc": "gcc libc6-dev", "musl-gcc": "musl-tools"}


def compiled(name: str, folder: Path, *options: str, compiler: str = "gcc") -> Path:
    """A program in C, compiled into a folder. Skips where there is no compiler."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed: apt-get install {_COMPILERS[compiler]}")
    program = folder / name.removesuffix(".c")
    command = [compiler, "-O1", *options, "-o", str(program), str(PROGRAMS / name)]
    subprocess.run(command, check=True)
    return program


@functools.cache
def faults_refused() -> str:
    """Why the host does not tell of page faults; empty if it does."""
    try:
        with contextlib.closing(FaultEvents(abi_of_host(), os.getpid())):
            return ""
    except OSError as error:
        return str(error)


@pytest.fixture
def run(machine: nm.Machine) -> Run:
    """`run(command…)` runs a program on the machine of this module; `options` are those of `numaemu run`."""

    def start(*command: object, options: tuple[str, ...] = (), stdin: str | None = None) -> Done:
        return numaemu("run", "-m", machine.name, *options, "--", *command, stdin=stdin)

    return start


@pytest.fixture(params=[True, False], ids=["mounted", "answered"])
def session(request: pytest.FixtureRequest, machine: nm.Machine) -> Iterator[Session]:
    """A run that has not begun, with the tree of nodes mounted, and with calls about paths answered."""
    with Session(None, machine.name, mount=request.param) as made:
        yield made
