"""The list of facts has no holes: each has a case, a test elsewhere, or its place among the deliberate differences."""

import re
from pathlib import Path

import pytest
from tests.core.facts.language import Case, Fact, Misspelt, read_facts
from tests.core.facts.story import Story

ROOT = Path(__file__).resolve().parents[2]
FACTS = [fact for path in sorted((ROOT / "tests/core/facts").glob("*.facts")) for fact in read_facts(path)]

#: Rows of the tables of errors: mbind, set_mempolicy, get_mempolicy, migrate_pages.
ROWS = {"3.1": 18, "3.2": 4, "3.3": 8, "3.4": 10}
SECTIONS = {
    *("1.1", "1.2", "1.3", "1.4"),
    *(f"2.{number}" for number in range(1, 14)),
    *ROWS,
    *("4.4", "4.5", "4.6", "4.7"),
    *(f"5.{number}" for number in range(1, 9)),
}


def differences() -> list[str]:
    """The left cells of the table of deliberate differences."""
    text = (ROOT / "docs/semantics.md").read_text(encoding="utf-8")
    table = text.partition("\n## Deliberate differences")[2].partition("\n## ")[0]
    return [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("|")]


def exists(name: str) -> bool:
    """Is there such a test or fact?"""
    file, _, rest = name.partition("::")
    path = ROOT / file
    if not path.is_file():
        return False
    if path.suffix == ".facts":
        return any(fact.section == rest for fact in read_facts(path))
    return re.search(rf"^def {rest}\(", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


@pytest.mark.parametrize("table", ROWS)
def test_every_row_of_the_tables_of_errors_is_there(table: str) -> None:
    """Rows are numbered without a gap, and none is left out."""
    rows = [fact.section for fact in FACTS if fact.section.startswith(f"{table} ")]
    assert rows == [f"{table} row {number}" for number in range(1, ROWS[table] + 1)]


def test_every_section_has_facts() -> None:
    """No section is left out, and no fact belongs to another one."""
    assert {fact.section.split()[0] for fact in FACTS} == SECTIONS


def test_every_fact_is_shown_or_differs() -> None:
    """A fact has a case, a test elsewhere, or its place among the deliberate differences."""
    assert [fact.place for fact in FACTS if not (fact.cases or fact.see or fact.differs)] == []


def test_facts_and_cases_have_names_of_their_own() -> None:
    """No two facts and no two cases are called the same."""
    for names in ([fact.section for fact in FACTS], [case.name for fact in FACTS for case in fact.cases]):
        assert sorted(name for name in names if names.count(name) > 1) == []


def test_tests_elsewhere_exist() -> None:
    """What a fact points to is there, and shows something."""
    assert [(fact.place, name) for fact in FACTS for name in fact.see if not exists(name)] == []


def test_differences_are_in_the_docs() -> None:
    """docs/semantics.md names each difference in the words of the fact, as the beginning of a row."""
    known = differences()
    missing = [(fact.place, words) for fact in FACTS for words in fact.differs if not _among(words, known)]
    assert missing == []


def _among(words: str, known: list[str]) -> bool:
    return any(row.startswith(words) for row in known)


#: Programs that must not pass, and a word of the complaint.
WRONG = {
    "an outcome": ("a mbind 0 BIND{1} off=1", "success"),
    "a success": ("a mbind 0 BIND{1} -> EFAULT", "EFAULT"),
    "an errno": ("a mbind 9 BIND{1} -> EINVAL", "EINVAL"),
    "a refused call that changes something": ("a pin 0; a mbind 0 BIND{1} STRICT|MOVE -> refused EIO", "changed"),
    "a place": ("a where 0+2 = 0 1", "expected"),
    "a word of a page": ("a page 0 = present swapcache", "swapcache"),
    "a count": ("a mbind 0 BIND{1} MOVE; passes = 2", "passes"),
    "what is not so": ("a where 0+2 != 0 0", "equal"),
    "bytes": ("a intact 0", "bytes"),
    "a hook that is never reached": ("at pass 3: a read 0", "hooks"),
    "a machine that is not sound": ("a isolate 0 as X", "isolated"),
}


@pytest.mark.parametrize(("program", "complaint"), WRONG.values(), ids=WRONG)
def test_a_wrong_program_fails(program: str, complaint: str, tmp_path: Path) -> None:
    """A program that does not come out as it says is a failure that says where."""
    (case,) = facts_of(tmp_path, f"== 0.0 x: y\na map 0+2; a touch 0+2\n-- z\n{program}\n")[0].cases
    with pytest.raises(pytest.fail.Exception, match=complaint):
        Story(case).run()


@pytest.mark.parametrize(
    "program",
    ["a jump 0", "jump", "b map 0", "a map 0 colour=red", "a map x", "a mbind 0 BIND{1} FAST", "a shape 0 = 1"],
)
def test_a_misspelt_program_is_refused(program: str, tmp_path: Path) -> None:
    """No word is passed over in silence."""
    (case,) = facts_of(tmp_path, f"== 0.0 x: y\n-- z\n{program}\n")[0].cases
    with pytest.raises((Misspelt, ValueError)):
        Story(case).run()


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Facts with what is given, their cases, and what they point to."""
    text = """
let pair: machine nodes=2; a map 0+4
# a remark
== 3.1 row 5: unaligned
use pair
-- one
a mbind 0 BIND{1} off=1 -> refused EINVAL  # why
-- two
a where 0+4 = .*4
see tests/x.py::test_y
differs: no huge pages
"""
    (fact,) = facts_of(tmp_path, text)
    assert (fact.section, fact.says, fact.see, fact.differs) == (
        "3.1 row 5",
        "unaligned",
        ["tests/x.py::test_y"],
        ["no huge pages"],
    )
    assert [case.name for case in fact.cases] == ["3.1 row 5: one", "3.1 row 5: two"]
    assert lines(fact.cases[0]) == ["machine nodes=2", "a map 0+4", "a mbind 0 BIND{1} off=1 -> refused EINVAL"]
    assert lines(fact.cases[1]) == ["machine nodes=2", "a map 0+4", "a where 0+4 = .*4"]
    with pytest.raises(Misspelt):
        facts_of(tmp_path, "a map 0\n")


def facts_of(folder: Path, text: str) -> list[Fact]:
    path = folder / "x.facts"
    path.write_text(text, encoding="utf-8")
    return read_facts(path)


def lines(case: Case) -> list[str]:
    return [f"{s.left} {s.sign} {s.right}".rstrip() for s in case.program]


def test_the_checks_of_this_file_bite() -> None:
    """A name that is not there is noticed, and the table of differences is found."""
    assert exists("tests/tidy/test_facts.py::exists")
    assert not exists("tests/tidy/test_facts.py::absent")
    assert not exists("tests/tidy/absent.py::exists")
    assert exists("tests/core/facts/3.1-mbind.facts::3.1 row 5")
    assert not exists("tests/core/facts/3.1-mbind.facts::3.1 row 99")
    assert len(differences()) > 10
    assert not _among("no such difference", differences())
