"""The language of the .facts files: what the kernel does, fact by fact, with programs that show it.

A file is read line by line; `#` begins a comment.

    let world: a map 0+4; a touch 0+4                    statements that get a name, for `use world`
    == 3.1 row 5: start is not page aligned: EINVAL      a fact, with its place in the list of facts
    use world                                            given for every case of the fact
    -- a byte off                                        a case: one sentence
    a mbind 0+4 BIND{1} off=1 -> refused EINVAL          its program, one statement a line or separated by `;`
    see tests/core/test_x.py::test_y                     the fact is shown by another test
    differs: a page is on its LRU list at once           the machine is different, as docs/semantics.md says

`words.py` has the nouns, `calls.py` and `views.py` the verbs.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SIGN: Final = re.compile(r"(.*?)\s*(->|!=|(?<= )=(?= |$))\s*(.*)")
#: Statements that hold others: they are cut later.
_HOLDERS: Final = ("together ", "at pass ", "meanwhile ")


class Misspelt(Exception):
    """A line that means nothing."""


@dataclass(frozen=True, slots=True)
class Statement:
    """`left -> right`, `left = right`, `left != right` or `left` alone, and where it stands."""

    place: str
    left: str
    sign: str = ""
    right: str = ""

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.place}: {self.left} {self.sign} {self.right}".rstrip()


@dataclass(slots=True)
class Case:
    """A program that shows a fact."""

    section: str
    says: str
    place: str
    program: list[Statement] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For the list of tests."""
        return f"{self.section}: {self.says}"


@dataclass(slots=True)
class Fact:
    """What a kernel does: its place in the list ("3.1 row 5"), one sentence, and what shows it."""

    section: str
    says: str
    place: str
    given: list[Statement] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    #: Tests elsewhere that show it, as file::function.
    see: list[str] = field(default_factory=list)
    #: Rows of the table of deliberate differences, by their first words.
    differs: list[str] = field(default_factory=list)


def statements(line: str, place: str) -> list[Statement]:
    """The statements of one line."""
    found = []
    for text in (part.strip() for part in line.split(";")):
        cut = None if text.startswith(_HOLDERS) else _SIGN.fullmatch(text)
        found.append(Statement(place, *((cut[1], cut[2], " ".join(cut[3].split())) if cut else (text,))))
    return found


def read_facts(path: Path) -> list[Fact]:
    """The facts of a file, in its order.

    Raises:
        Misspelt: a line that belongs to no fact.
    """
    facts: list[Fact] = []
    named: dict[str, list[Statement]] = {}
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line, place = raw.partition("#")[0].strip(), f"{path.name}:{number}"
        if not line:
            continue
        if line.startswith("let "):
            name, _, text = line[4:].partition(": ")
            named[name] = statements(text, place)
        elif line.startswith("== "):
            section, _, says = line[3:].partition(": ")
            facts.append(Fact(section, says, place))
        elif not facts:
            raise Misspelt(f"{place}: {line!r} belongs to no fact")
        else:
            _add(facts[-1], line, place, named)
    return facts


def _add(fact: Fact, line: str, place: str, named: dict[str, list[Statement]]) -> None:
    if line.startswith("-- "):
        fact.cases.append(Case(fact.section, line[3:], place, list(fact.given)))
    elif line.startswith("see "):
        fact.see.append(line[4:])
    elif line.startswith("differs: "):
        fact.differs.append(line.removeprefix("differs: "))
    else:
        program = fact.cases[-1].program if fact.cases else fact.given
        program += named[line[4:]] if line.startswith("use ") else statements(line, place)
