"""Turns: whoever has sent much waits behind whoever has sent little."""

from hypothesis import given
from hypothesis import strategies as st

from numaemu_daemon.turns import Turns

#: An owner and what it does.
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "take", "pause", "go_on", "forget"]), st.integers(0, 3)),
    max_size=80,
)


class NaiveTurns:
    """The same by counting: the next is the one that has waited longest for a turn of its own."""

    def __init__(self) -> None:
        self.items: dict[int, list[int]] = {}
        self.since: dict[int, int] = {}
        self.paused: set[int] = set()
        self.clock = 0

    def waits(self, owner: int) -> None:
        self.clock += 1
        if self.items.get(owner) and owner not in self.paused:
            self.since[owner] = self.clock

    def next_owner(self) -> int | None:
        return min(self.since, key=self.since.__getitem__, default=None)


@given(STEPS)
def test_each_owner_has_one_turn_before_any_has_a_second(steps: list[tuple[str, int]]) -> None:
    """Whatever is added, paused and forgotten, the one who has waited longest is next, with the first that it added."""
    turns: Turns[int, int] = Turns()
    naive = NaiveTurns()
    for number, (verb, owner) in enumerate(steps):
        match verb:
            case "add":
                turns.add(owner, number)
                naive.items.setdefault(owner, []).append(number)
                if owner not in naive.since:
                    naive.waits(owner)
            case "take":
                expected = naive.next_owner()
                assert bool(turns) == (expected is not None)
                if expected is not None:
                    assert turns.take() == (expected, naive.items[expected].pop(0))
                    del naive.since[expected]
                    naive.waits(expected)
            case "pause":
                turns.pause(owner)
                naive.paused.add(owner)
                naive.since.pop(owner, None)
            case "go_on":
                turns.go_on(owner)
                if owner in naive.paused:
                    naive.paused.discard(owner)
                    naive.waits(owner)
            case _:
                turns.forget(owner)
                for kept in (naive.items, naive.since):
                    kept.pop(owner, None)
                naive.paused.discard(owner)
        assert len(turns) == len(naive.since)


def test_one_request_waits_for_one_of_a_hundred() -> None:
    """Who comes last with one request is served second."""
    turns: Turns[str, int] = Turns()
    for number in range(100):
        turns.add("crowd", number)
    turns.add("lonely", 0)
    assert [turns.take()[0] for _ in range(3)] == ["crowd", "lonely", "crowd"]
