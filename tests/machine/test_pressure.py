"""More memory wanted than there is, by real processes: what swap is for, and what happens without."""

from collections.abc import Callable

import pytest
from tests.machine.conftest import StartClient, hear_all

import numaemu as nm

Boot = Callable[..., nm.Machine]

CLIENTS = 4


def run_clients(start_client: StartClient, machine: nm.Machine, pages: int, turns: int) -> list[str]:
    """Several processes use memory at once; how each ended, sorted."""
    clients = [start_client("memory_user.py", machine.name, number, pages, turns) for number in range(CLIENTS)]
    first = hear_all(clients)
    writers = [client for client, word in zip(clients, first, strict=True) if word == "written"]
    for client in writers:
        client.go_on()
    return sorted([word for word in first if word != "written"] + hear_all(writers))


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.1"])
def test_processes_that_want_more_than_there_is_swap(boot: Boot, start_client: StartClient, profile: str) -> None:
    """Four processes with twice the memory of the machine keep every byte, and kswapd has worked."""
    machine = boot(memory="2M", swap="16M", profile=profile)
    assert run_clients(start_client, machine, 512, 2) == ["right"] * CLIENTS
    numbers = dict(line.split() for line in machine.vmstat().splitlines())
    assert int(numbers["pageoutrun"]) > 0
    assert int(numbers["pswpout"]) > 0


@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
def test_without_swap_one_is_killed_and_the_others_survive(boot: Boot, start_client: StartClient, profile: str) -> None:
    """Four processes that together need a little too much, without swap: one is killed, three have all their bytes."""
    machine = boot(memory="4M", swap="0", profile=profile)
    assert run_clients(start_client, machine, 560, 1) == ["killed", *["right"] * (CLIENTS - 1)]
