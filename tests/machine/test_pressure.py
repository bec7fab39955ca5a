"""More memory wanted than there is, by real processes: what swap is for, and what happens without."""

import multiprocessing
from collections.abc import Callable
from multiprocessing import synchronize
from typing import TypeAlias

import numpy as np
import pytest

import numaemu as nm

Boot = Callable[..., nm.Machine]

PAGE = 4096
CLIENTS = 4
PATIENCE_S = 60.0

Reports: TypeAlias = "multiprocessing.Queue[str]"
Flag: TypeAlias = "synchronize.Event"


def _tagged(seed: int, pages: int) -> bytes:
    """Bytes that only this client writes."""
    return np.random.default_rng(seed).integers(0, 255, pages * PAGE, np.uint8).tobytes()


def _use_memory(name: str, number: int, pages: int, turns: int, reports: "Reports", all_wrote: "Flag") -> None:
    """Write an area, again and again; once all have written, read it; say how it ended."""
    ending, said = "right", False
    try:
        with nm.connect(name) as machine, machine.attach(cpu=number % 2) as task:
            buf = task.mmap(pages * PAGE)
            for turn in range(turns):
                data = _tagged(number * 100 + turn, pages)
                buf.write(0, data)
                if buf.read(0, len(data)) != data:
                    ending = "wrong bytes"
            reports.put("written")
            said = True
            all_wrote.wait(PATIENCE_S)
            if buf.read(0, len(data)) != data:
                ending = "wrong bytes"
    except nm.OutOfMemory:
        ending = "killed"
    except Exception as error:  # noqa: BLE001 - the test tells which one it was
        ending = repr(error)
    if not said:
        reports.put("written")
    reports.put(ending)


def _run_clients(machine: nm.Machine, pages: int, turns: int) -> list[str]:
    """Several processes use memory at once; how each ended, sorted."""
    context = multiprocessing.get_context("spawn")
    reports: Reports = context.Queue()
    all_wrote = context.Event()
    args = [(machine.name, number, pages, turns, reports, all_wrote) for number in range(CLIENTS)]
    clients = [context.Process(target=_use_memory, args=arg) for arg in args]
    for client in clients:
        client.start()
    heard: list[str] = []
    while heard.count("written") < CLIENTS:
        heard.append(reports.get(timeout=PATIENCE_S))
    all_wrote.set()
    while len(heard) < 2 * CLIENTS:
        heard.append(reports.get(timeout=PATIENCE_S))
    for client in clients:
        client.join(PATIENCE_S)
    return sorted(word for word in heard if word != "written")


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
