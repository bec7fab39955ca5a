"""Clients that came over TCP: the host tells nothing of their death, so they live as long as they are heard of.

The library of such a client says a word every few seconds. Who is silent for LEASE_S is gone, and its tasks end. While
the daemon itself was stopped, or busy for long, nobody can have been heard, and nobody's lease is over.
"""

from collections.abc import Callable
from typing import Final

from numaemu_core import limits
from numaemu_daemon.clients import Client

#: How often leases are looked at.
_LOOK_S: Final = limits.LEASE_S / 5


class Leases:
    """When each of them was last heard of."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """None yet."""
        self._clock = clock
        self._heard: dict[Client, float] = {}
        self._looked = clock()

    def heard(self, client: Client) -> None:
        """It lives."""
        self._heard[client] = self._clock()

    def forget(self, client: Client) -> None:
        """It is gone."""
        self._heard.pop(client, None)

    def of_user(self, user: int) -> int:
        """How many clients a user has here."""
        return sum(client.user == user for client in self._heard)

    def over(self) -> list[Client]:
        """Those whose lease is over."""
        now = self._clock()
        absent = now - self._looked > limits.LEASE_S / 2
        self._looked = now
        if absent:
            self._heard = dict.fromkeys(self._heard, now)
        return [client for client, heard in self._heard.items() if now - heard > limits.LEASE_S]

    def next_look_s(self) -> float | None:
        """After how many seconds `over` has to be asked again; None: nobody is here."""
        return _LOOK_S if self._heard else None
