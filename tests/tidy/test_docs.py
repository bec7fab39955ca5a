"""The documents name what there is: every file, every call, and links that lead somewhere."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tidy.test_tidy import PACKAGES, ROOT

from numaemu_core.profile import Profile
from numaemu_core.wire import CALLS

PAGES = (
    "docs/architecture.md",
    "docs/ci.md",
    "docs/conformance.md",
    "docs/protocol.md",
    "docs/reliability.md",
    "docs/run.md",
    "docs/semantics.md",
    "docs/views.md",
    "CHANGELOG.md",
)
LINE_MAX = 120

FOLDER = re.compile(r"^### `([^`]+)`")
FILE = re.compile(r"^\* `([^`]+\.py)`: \S")
CALL = re.compile(r"^\| `(\w+)` \|([^|]*)\|")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.split(maxsplit=1)[0]
    _, found, rest = text_of(page).partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def tour() -> list[str]:
    """The files of the tour in docs/architecture.md, in its order."""
    folder, files = "", []
    for line in section("docs/architecture.md", "## The files").splitlines():
        if found := FOLDER.match(line):
            folder = found[1]
        elif found := FILE.match(line):
            files.append(f"{folder}/{found[1]}")
    return files


def documented_calls() -> dict[str, int]:
    """The calls in the table of docs/protocol.md, each with the number of its arguments."""
    rows = [CALL.match(line) for line in section("docs/protocol.md", "### Table of calls").splitlines()]
    return {row[1]: argument_count(row[2]) for row in rows if row}


def argument_count(cell: str) -> int:
    """Arguments of a cell: separated by commas, with remarks in parentheses."""
    return len([word for word in re.sub(r"\([^)]*\)", "", cell).split(",") if word.strip()])


def anchors(page: str) -> set[str]:
    """What a link may name behind # in a page."""
    headings = HEADING.findall(text_of(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_of_the_tour_exists() -> None:
    """The tour names no file that is not there, and none twice."""
    files = tour()
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert len(files) == len(set(files))


def test_every_module_is_in_the_tour() -> None:
    """No module of the product is left out of the tour."""
    modules = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules
    assert sorted(modules - set(tour())) == []


def test_the_protocol_names_exactly_the_calls() -> None:
    """The table of calls and the wire agree on the names, and on how many arguments each takes."""
    assert documented_calls() == {name: len(checks) for name, checks in CALLS.items()}


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_relative_links_lead_somewhere(page: str) -> None:
    """Each link to a file of the project names one that exists, and each anchor a heading in it."""
    broken = []
    for target in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.relative_to(ROOT).as_posix())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_the_documents_are_wrapped(page: str) -> None:
    """No line is longer than those of the code, but for rows of tables, which cannot be wrapped."""
    lines = enumerate(text_of(page).splitlines(), start=1)
    assert [number for number, line in lines if len(line) > LINE_MAX and not line.startswith("|")] == []


def test_every_choice_of_a_profile_is_made_somewhere() -> None:
    """Each field of a profile is read by the engine: a table of choices that choose nothing would be a lie."""
    sources = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name not in ("profile.py", "profiles.py")
    ]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    fields = [field.name for field in dataclasses.fields(Profile)]
    assert [name for name in fields if not re.search(rf"\bprofile\.{name}\b", code)] == []


def profile_table(*arguments: str | Path) -> int:
    """The exit status of the writer of the tables of profiles."""
    command = [sys.executable, ROOT / "tools" / "profile_table.py", *arguments]
    return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode


def test_the_profiles_are_in_the_semantics() -> None:
    """The tables of profiles hold what `make docs` would write: each field, what it selects, each profile's value."""
    assert profile_table("--check") == 0


def test_an_outdated_table_of_profiles_is_noticed(tmp_path: Path) -> None:
    """A value that is not that of the record is found, and what is written then is the page as it was."""
    page = tmp_path / "semantics.md"
    wrong = text_of("docs/semantics.md").replace("| 64 | 1024 | 1024 |", "| 64 | 1024 | 512 |")
    page.write_text(wrong, encoding="utf-8")
    assert profile_table("--check", page) == 1
    assert profile_table(page) == 0
    assert page.read_text(encoding="utf-8") == text_of("docs/semantics.md")


def test_the_checks_of_this_file_bite() -> None:
    """The patterns find what they are meant to find, and no more."""
    assert FILE.match("* `runs.py`: copying many pages.")
    assert not FILE.match("* `runs.py`")
    assert argument_count("") == 0
    assert argument_count("pid, maxnode (or nil: no mask, wanted), address") == 3
    assert LINK.findall("see [here](docs/a.md#b) and [there](https://example.org)") == [
        "docs/a.md#b",
        "https://example.org",
    ]
