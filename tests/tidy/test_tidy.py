"""Style as a test: the few rules that no linter states for us, each one shown to bite."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "emulator/numaemu_core",
    "emulator/numaemu_host",
    "daemon/numaemu_daemon",
    "client/numaemu",
    "run/numaemu_run",
)
EXCLUDED: tuple[str, ...] = ()  # and it stays empty: no file is above these rules

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
VAGUE_INT_NAMES = {"page", "size"}  # a page number or a page count? bytes or pages?

NOQA = re.compile(r"#\s*(?:(?:ruff|flake8):\s*)?noqa\b(?P<codes>:\s*[A-Z]+\d+(?:[,\s]+[A-Z]+\d+)*)?", re.IGNORECASE)
TYPE_IGNORE = re.compile(r"#\s*type:\s*ignore\b(?P<codes>\[[\w\s,-]+\])?")
LEFTOVER = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
REASON = re.compile(r"[^\W\d_]{3}")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Finding = tuple[int, str]  # the line and what is wrong with it
Rule = Callable[[str], Iterator[Finding]]


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def module_without_docstring(source: str) -> Iterator[Finding]:
    if not ast.get_docstring(ast.parse(source)):
        yield 1, "the module has no docstring"


def long_file(source: str) -> Iterator[Finding]:
    lines = len(source.splitlines())
    if lines > MAX_FILE_LINES:
        yield lines, f"{lines} lines in one file (at most {MAX_FILE_LINES})"


def long_function(source: str) -> Iterator[Finding]:
    for function in functions(source):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if ast.get_docstring(function, clean=False) is not None:
            docstring = function.body[0]
            lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield function.lineno, f"{function.name} has {lines} lines (at most {MAX_FUNCTION_LINES})"


def leftover(source: str) -> Iterator[Finding]:
    for number, line in enumerate(source.splitlines(), start=1):
        if found := LEFTOVER.search(line):
            yield number, f"{found[0]} left in the code"


def bare_suppression(source: str) -> Iterator[Finding]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        marks = [*NOQA.finditer(token.string), *TYPE_IGNORE.finditer(token.string)]
        if any(not mark["codes"] for mark in marks):
            yield token.start[0], "a suppression without a code"
        text = TYPE_IGNORE.sub("", NOQA.sub("", token.string))
        if marks and not REASON.search(text):
            yield token.start[0], "a suppression without a reason"


def vague_int_parameter(source: str) -> Iterator[Finding]:
    for function in functions(source):
        arguments = function.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            if argument.arg not in VAGUE_INT_NAMES or argument.annotation is None:
                continue
            annotation = ast.unparse(argument.annotation).strip("'\"")
            if "int" in [part.strip() for part in annotation.split("|")]:
                yield argument.lineno, f"{function.name}: say what the int '{argument.arg}' counts"


def undocumented_test(source: str) -> Iterator[Finding]:
    for function in functions(source):
        if function.name.startswith("test_") and not ast.get_docstring(function):
            yield function.lineno, f"{function.name} has no docstring"


# One source per rule that must be found wanting, and one that must pass.
EXAMPLES: dict[Rule, tuple[str, str]] = {
    module_without_docstring: ("x = 1\n", '"""A module."""\nx = 1\n'),
    long_file: ("x = 1\n" * (MAX_FILE_LINES + 1), "x = 1\n" * MAX_FILE_LINES),
    long_function: (
        "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES,
        "def f():\n" + '    """Text\n    of three\n    lines."""\n' + "    x = 1\n" * (MAX_FUNCTION_LINES - 1),
    ),
    leftover: ("x = 1  # FIXME later\n", "fix_me = 1\n"),
    bare_suppression: ("import os  # noqa: F401\n", "import os  # noqa: F401 - loaded for its side effect\n"),
    vague_int_parameter: (
        "def f(*, size: int | None) -> None: ...\n",
        "def f(size_bytes: int, page: Page) -> None: ...\n",
    ),
    undocumented_test: ("class TestA:\n    def test_b(self): ...\n", 'def test_a():\n    """Says a."""\n'),
}
PRODUCT_RULES = [rule for rule in EXAMPLES if rule is not undocumented_test]


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if path.relative_to(ROOT).as_posix() not in EXCLUDED]


def findings(rule: Rule, paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in paths
        for line, text in rule(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("rule", EXAMPLES, ids=lambda rule: rule.__name__)
def test_every_rule_bites(rule: Rule) -> None:
    """A rule reports the bad example and lets the good one pass."""
    bad, good = EXAMPLES[rule]
    assert list(rule(bad))
    assert not list(rule(good))


@pytest.mark.parametrize(
    ("comment", "complaints"),
    [
        ("# noqa", 2),
        ("# noqa the reason without a code", 1),
        ("# noqa: S603, S607", 1),
        ("# noqa: S603, S607 the list is ours", 0),
        ("# ruff: noqa: T201 a script prints", 0),
        ("# type: ignore", 2),
        ("# type: ignore[no-any-return]", 1),
        ("# type: ignore[attr-defined]  # noqa: SLF001", 1),
        ("# type: ignore[attr-defined]  # noqa: SLF001 no public name for it", 0),
        ("# a remark on noqa in prose", 0),
    ],
)
def test_suppressions_carry_code_and_reason(comment: str, complaints: int) -> None:
    """Every form of a suppression is read; the code and the reason are asked for separately."""
    assert len(list(bare_suppression(f"x = 1  {comment}\n"))) == complaints


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_looked_at(package: str) -> None:
    """The rules below would hold of nothing at all: each package is where they look for it."""
    assert (ROOT / package / "__init__.py").is_file()


def test_no_file_is_excluded() -> None:
    """The list of exceptions is empty."""
    assert EXCLUDED == ()


@pytest.mark.parametrize("rule", PRODUCT_RULES, ids=lambda rule: rule.__name__)
def test_product_code(rule: Rule) -> None:
    """No file of the four packages breaks the rule."""
    found = findings(rule, sources(*PACKAGES))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", [bare_suppression, undocumented_test], ids=lambda rule: rule.__name__)
def test_test_code(rule: Rule) -> None:
    """Every test says what it shows, and no file of tests/, tools/ or examples/ silences a tool without a reason."""
    found = findings(rule, sources("tests", "tools", "examples"))
    assert not found, "\n".join(found)
