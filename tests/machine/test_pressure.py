"""More memory wanted than there is, by real processes: what swap is for, and what happens without."""

import hashlib
import multiprocessing
from collections.abc import Callable

import numpy as np
import pytest

import numaemu as nm

Boot = Callable[..., nm.Machine]

PAGE = 4096
CLIENTS = 4


def _tagged(seed: int, pages: int) -> bytes:
    """Bytes that only this client writes."""
    return np.random.default_rng(seed).integers(0, 255, pages * PAGE, np.uint8).tobytes()


def _use_memory(name: str, cpu: int, pages: int, turns: int, results: "multiprocessing.Queue[tuple[int, str]]") -> None:
    """Write an area, then read and change it in turns; say how it ended."""
    try:
        with nm.connect(name) as machine, machine.attach(cpu=cpu) as task:
            buf = task.mmap(pages * PAGE)
            for turn in range(turns):
                data = _tagged(cpu * 100 + turn, pages)
                buf.write(0, data)
                if hashlib.sha256(buf.read(0, len(data))).digest() != hashlib.sha256(data).digest():
                    results.put((cpu, "wrong bytes"))
                    return
        results.put((cpu, "right"))
    except nm.OutOfMemory:
        results.put((cpu, "killed"))
    except Exception as error:  # noqa: BLE001 - the test tells which one it was
        results.put((cpu, repr(error)))


def _run_clients(machine: nm.Machine, pages: int, turns: int) -> list[str]:
    """Several processes use memory at once; how each ended, sorted."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, str]] = context.Queue()
    args = [(machine.name, cpu % 2, pages, turns, results) for cpu in range(CLIENTS)]
    clients = [context.Process(target=_use_memory, args=arg) for arg in args]
    for client in clients:
        client.start()
    endings = [results.get(timeout=100)[1] for _ in clients]
    for client in clients:
        client.join(20)
    return sorted(endings)


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.1"])
def test_processes_that_want_more_than_there_is_swap(boot: Boot, profile: str) -> None:
    """Four processes with twice the memory of the machine keep every byte, and kswapd has worked."""
    machine = boot(memory="2M", swap="16M", profile=profile)
    assert _run_clients(machine, 512, 2) == ["right"] * CLIENTS
    numbers = dict(line.split() for line in machine.vmstat().splitlines())
    assert int(numbers["pageoutrun"]) > 0
    assert int(numbers["pswpout"]) > 0


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
def test_without_swap_one_is_killed_and_the_others_survive(boot: Boot, profile: str) -> None:
    """Four processes that together need a little too much, without swap: one is killed, three have all their bytes."""
    machine = boot(memory="4M", swap="0", profile=profile)
    assert _run_clients(machine, 560, 1) == ["killed", *["right"] * (CLIENTS - 1)]
