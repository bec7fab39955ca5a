"""What `import numaemu` offers."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import numaemu
from numaemu.syscalls import RAW_CALLS
from numaemu_core import uapi
from numaemu_core.wire import CALLS

#: Names of the contract with programs.
PROMISED = "boot connect Machine Task Mapping SegmentationFault OutOfMemory MachineGone"


def test_every_constant_is_there() -> None:
    """Each number that programs name stands under its kernel name, with its value."""
    numbers = {name: value for name, value in vars(uapi).items() if name.isupper() and isinstance(value, int)}
    assert {name: getattr(numaemu, name) for name in numbers} == numbers


def test_all_is_true() -> None:
    """Everything in __all__ is there and documented, and dir() shows it."""
    assert set(PROMISED.split()) <= set(numaemu.__all__)
    for name in numaemu.__all__:
        assert isinstance(getattr(numaemu, name), int) or inspect.getdoc(getattr(numaemu, name)), name
    assert set(numaemu.__all__) <= set(dir(numaemu))
    assert not hasattr(numaemu, "nothing_of_that_name")


def test_import_is_light() -> None:
    """Importing the package alone takes neither numpy nor ZeroMQ with it."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import numaemu; print('numpy' in sys.modules, 'zmq' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_version() -> None:
    """The version is that of the distribution."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert numaemu.__version__ == project["project"]["version"]


def test_raw_calls_exist() -> None:
    """What `Task.syscall` lets through are calls of the protocol."""
    assert CALLS.keys() > RAW_CALLS
