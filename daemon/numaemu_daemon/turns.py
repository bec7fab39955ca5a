"""Whose request is next: every client has one turn before any has a second, however many requests it has sent."""

from collections import deque
from typing import Generic, TypeVar

Owner = TypeVar("Owner")
Item = TypeVar("Item")


class Turns(Generic[Owner, Item]):
    """What waits, by owner; owners take turns."""

    def __init__(self) -> None:
        """Nothing waits."""
        self._waiting: dict[Owner, deque[Item]] = {}
        self._order: deque[Owner] = deque()
        self._paused: set[Owner] = set()

    def __bool__(self) -> bool:
        """Does anybody wait whose turn may come?"""
        return bool(self._order)

    def __len__(self) -> int:
        """How many have something that waits and may have a turn."""
        return len(self._order)

    def add(self, owner: Owner, item: Item) -> None:
        """Wait for a turn, behind what the owner has waiting already."""
        queue = self._waiting.get(owner)
        if queue is None:
            self._waiting[owner] = deque([item])
            if owner not in self._paused:
                self._order.append(owner)
        else:
            queue.append(item)

    def take(self) -> tuple[Owner, Item]:
        """The next one. IndexError: nobody waits."""
        owner = self._order.popleft()
        queue = self._waiting[owner]
        item = queue.popleft()
        if queue:
            self._order.append(owner)
        else:
            del self._waiting[owner]
        return owner, item

    def pause(self, owner: Owner) -> None:
        """No more turns for this one, until it goes on."""
        if owner not in self._paused:
            self._paused.add(owner)
            if owner in self._waiting:
                self._order.remove(owner)

    def go_on(self, owner: Owner) -> None:
        """Turns again."""
        if owner in self._paused:
            self._paused.discard(owner)
            if owner in self._waiting:
                self._order.append(owner)

    def forget(self, owner: Owner) -> None:
        """The owner is gone, and what it had waiting."""
        self._paused.discard(owner)
        if self._waiting.pop(owner, None) is not None and owner in self._order:
            self._order.remove(owner)
