"""Faults on demand: what a tester wants to go wrong on a machine, as texts of a small grammar.

    nodeN: full [after P pages]             the node gives P pages and no more; the rest of it counts as used
    isolation: refused [for X%] [on nodeN]  pages cannot be taken off the LRU by a call that wants to move or evict them
    swap: full [after P pages]              the swap area has P free slots; the rest of it counts as used
    migration: fails [for X%] [to nodeN]    direct migration leaves pages where they are

Without `after P pages` nothing is left, without `for X%` all are meant, without a node those of all nodes. What strikes
when is in `strikes`. (Not to be taken for `fault_points`, the steps at which a process can be killed.)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from numaemu_core import limits
from numaemu_core.errors import TopologyError

NODE: Final = "node"
ISOLATION: Final = "isolation"
SWAP: Final = "swap"
MIGRATION: Final = "migration"
#: Highest seed.
SEED_MAX: Final = (1 << 63) - 1
#: Pages that a fault may name: more than any machine has.
_DIGITS: Final = 12
_PERCENT: Final = 100
#: Characters of a wrong text that an error shows.
_SHOWN: Final = 80

#: What stands behind the colon of each kind, as people are told, and as it is read.
_FORMS: Final = {
    NODE: "full [after P pages]",
    ISOLATION: "refused [for X%] [on nodeN]",
    SWAP: "full [after P pages]",
    MIGRATION: "fails [for X%] [to nodeN]",
}
_FULL: Final = rf"full(?: after (?P<pages>[0-9]{{1,{_DIGITS}}}) pages?)?"
_PATTERNS: Final = {
    NODE: re.compile(_FULL),
    ISOLATION: re.compile(r"refused(?: for (?P<percent>[0-9]{1,3})%)?(?: on node(?P<node>[0-9]{1,4}))?"),
    SWAP: re.compile(_FULL),
    MIGRATION: re.compile(r"fails(?: for (?P<percent>[0-9]{1,3})%)?(?: to node(?P<node>[0-9]{1,4}))?"),
}
_NODE_NAME: Final = re.compile(r"node([0-9]{1,4})")
#: Every form, for messages.
KNOWN: Final = " | ".join(f"{'nodeN' if kind == NODE else kind}: {form}" for kind, form in _FORMS.items())


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. `node` is None where it is about all of them, `pages` is for what becomes full."""

    kind: str
    node: int | None = None
    pages: int = 0
    percent: int = _PERCENT

    def __str__(self) -> str:
        """The text that gives it, in one form."""
        if self.kind in (NODE, SWAP):
            subject = self.kind if self.node is None else f"node{self.node}"
            return f"{subject}: full after {self.pages} page{'' if self.pages == 1 else 's'}"
        share = "" if self.percent == _PERCENT else f" for {self.percent}%"
        verb, preposition = ("refused", "on") if self.kind == ISOLATION else ("fails", "to")
        return f"{self.kind}: {verb}{share}" + ("" if self.node is None else f" {preposition} node{self.node}")


def parse_fault(text: object) -> Fault:
    """The fault that a text of the grammar asks for; blanks count as one.

    Raises:
        TopologyError: it is none; the message says what was expected, and which forms there are.
    """
    if not isinstance(text, str):
        _refuse(text, "expected a text")
    subject, colon, said = " ".join(text.split()).partition(":")
    subject = subject.strip()
    named = _NODE_NAME.fullmatch(subject)
    kind = NODE if named else subject
    if not colon or kind not in _FORMS or (kind == NODE and not named):
        _refuse(text, f"expected nodeN, {ISOLATION}, {SWAP} or {MIGRATION} and a colon")
    found = _PATTERNS[kind].fullmatch(said.strip())
    if found is None:
        _refuse(text, f'expected "{_FORMS[kind]}" behind the colon')
    parts = found.groupdict()
    node = named[1] if named else parts.get("node")
    if node is not None and int(node) >= limits.MAX_NUMNODES:
        _refuse(text, f"expected a node from 0 to {limits.MAX_NUMNODES - 1}")
    percent = int(parts.get("percent") or _PERCENT)
    if not 1 <= percent <= _PERCENT:
        _refuse(text, "expected 1% to 100%")
    return Fault(kind, None if node is None else int(node), int(parts.get("pages") or 0), percent)


def faults_of(texts: object, node_pages: Mapping[int, int], slots: int, *, migrates: bool) -> tuple[Fault, ...]:
    """The faults of a machine: of each kind one a node, or one for all of them.

    `node_pages` has the pages of each node, `slots` is the size of the swap area in pages; `migrates`: the machine's
    kernel has direct migration.

    Raises:
        TopologyError: one of the texts is no fault, or none that this machine can have.
    """
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        message = f"faults: expected a list of texts, got {texts!r}; known: {KNOWN}"
        raise TopologyError(message)
    if len(texts) > limits.FAULTS_MAX:
        message = f"faults: expected at most {limits.FAULTS_MAX}, got {len(texts)}"
        raise TopologyError(message)
    faults: dict[tuple[str, int | None], Fault] = {}
    for text in texts:
        fault = parse_fault(text)
        if fault.node is not None and not node_pages.get(fault.node):
            there = ", ".join(f"node{node}" for node, pages in sorted(node_pages.items()) if pages)
            _refuse(text, f"expected a node of the machine that has memory, one of {there}")
        there_are = slots if fault.node is None else node_pages[fault.node]
        if fault.pages > there_are:
            _refuse(text, f"expected no more pages than there are: {there_are}")
        if fault.kind == MIGRATION and not migrates:
            _refuse(text, "expected a profile that has direct migration: this one moves pages by way of swap")
        if (fault.kind, fault.node) in faults:
            _refuse(text, f"expected once what it is about, there was {str(faults[fault.kind, fault.node])!r}")
        faults[fault.kind, fault.node] = fault
    return tuple(faults.values())


def pages_of_full_nodes(faults: Sequence[Fault]) -> dict[int, int]:
    """How many pages nodes that are to be full give before they are, by node."""
    return {fault.node: fault.pages for fault in faults if fault.kind == NODE and fault.node is not None}


def slots_of_full_swap(faults: Sequence[Fault]) -> int | None:
    """How many slots the swap area gives before it is full; None: all that it has."""
    return next((fault.pages for fault in faults if fault.kind == SWAP), None)


def one_line(faults: Sequence[str], seed: int) -> str:
    """Faults as people are shown them."""
    return f"faults (seed {seed}): {'; '.join(faults)}"


def _refuse(text: object, expected: str) -> NoReturn:
    shown = repr(text)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    message = f"fault {shown}: {expected}; known: {KNOWN}"
    raise TopologyError(message)
