"""What the library takes and refuses on a real machine: kinds of numbers, weights, pids."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numaemu as nm

Boot = Callable[..., nm.Machine]
PAGE = 4096


def test_numbers_may_be_those_of_numpy(boot: Boot) -> None:
    """Addresses, lengths, nodes and CPUs that come out of an array go into every call."""
    machine = boot(profile="linux-6.12")
    number: Callable[[int], Any] = np.int64
    with machine.attach(cpu=number(1)) as task:
        buf = task.mmap(number(2 * PAGE))
        assert (type(buf.length), buf.length) == (int, 2 * PAGE)
        buf.write(number(1), b"numbers")
        task.touch(number(buf.start), number(PAGE))
        addresses: Any = np.array([buf.start, buf.start + PAGE], np.uint64)
        task.mbind(addresses[0], number(2 * PAGE), nm.MPOL_BIND, np.array([0]), nm.MPOL_MF_MOVE)
        assert task.where(addresses[0], number(PAGE)).tolist() == [0]
        assert task.move_pages(0, addresses, np.array([1, 1])).tolist() == [1, -2]
        assert task.read(addresses[0], number(8)) == b"\0numbers"
        assert buf[number(1) : number(4)] == b"num"


def test_what_is_no_number_is_told_by_its_kind(boot: Boot) -> None:
    """A mapping where an address belongs is refused with the name of what was given."""
    machine = boot()
    with machine.attach() as task:
        buf = task.mmap(PAGE)
        with pytest.raises(OSError, match="expected numbers, text or bytes, got a Mapping"):
            task.mbind(buf, PAGE, nm.MPOL_BIND, {1})  # type: ignore[arg-type]  # that is the point
        with pytest.raises(TypeError, match="addresses: expected a list of whole numbers, got 4096"):
            task.move_pages(0, 4096)  # type: ignore[arg-type]  # that is the point


def test_weights_say_how_many_pages_in_a_row_a_node_gets(boot: Boot) -> None:
    """Weighted interleaving follows the weights that were set last, and 0 is the default."""
    machine = boot(profile="linux-6.12")
    with machine.attach() as task:
        task.set_mempolicy(nm.MPOL_WEIGHTED_INTERLEAVE, {0, 1})
        for weight, on_node_1 in ((3, 9), (1, 6), (5, 10), (0, 6)):
            machine.set_interleave_weight(1, weight)
            buf = task.mmap(12 * PAGE)
            buf.write(0, bytes(12 * PAGE))
            assert task.where(buf.start, buf.length).tolist().count(1) == on_node_1, weight


@pytest.mark.parametrize(
    ("profile", "node", "weight", "error"),
    [
        ("linux-6.12", 2, 1, FileNotFoundError),
        ("linux-6.12", -1, 1, FileNotFoundError),
        ("linux-6.12", 0, 256, OSError),
        ("linux-6.12", 0, -1, OSError),
        ("linux-6.1", 0, 1, FileNotFoundError),
    ],
)
def test_weights_that_cannot_be(profile: str, node: int, weight: int, error: type[OSError], boot: Boot) -> None:
    """Nodes that are not there, weights above 255, and kernels without weights are refused."""
    machine = boot(profile=profile)
    with pytest.raises(error):
        machine.set_interleave_weight(node, weight)


@pytest.mark.parametrize("words", [("maps", "{}"), ("migratepages", "{}", "0", "1")], ids=["maps", "migratepages"])
def test_a_pid_that_is_not_there_is_answered_by_those_that_are(words: tuple[str, ...], boot: Boot) -> None:
    """A command about a task that there is not names the tasks, and is not about the command's own task."""
    machine = boot()
    with machine.attach() as task:
        command = [sys.executable, "-m", "numaemu", "-m", machine.name]
        command += [word.format(task.pid + 1) for word in words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (1, f"numaemu: no task {task.pid + 1}; tasks: {task.pid}\n")
