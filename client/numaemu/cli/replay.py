"""numaemu replay: recorded programs of system calls, compared call by call with what a real kernel answered."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from numaemu.cli.options import add_json, examples, print_json
from numaemu.cli.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numaemu.replay.records import Answer, Record
    from numaemu.replay.runner import Outcome
    from numaemu.replay.sums import Sums


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "replay",
        help="run recorded programs of calls and compare with what a real kernel answered",
        description="Runs recorded programs of system calls, each on a fresh machine of the recorded shape, and "
        "compares every answer with the recorded one. Programs without recorded answers are run, too (see --results). "
        "The last line counts programs and calls; those that --expected excuses are named before it and not counted. "
        "Exit status 0 if every program that is not excused agrees and every machine is sound, else 1.",
        **examples(
            "numaemu replay tests/data/*.jsonl.gz\n"
            "numaemu replay --expected docs/conformance-expected.toml tests/data/*.jsonl.gz\n"
            "numaemu replay --show --profile linux-6.12 --id f-mb-order one.jsonl\n"
            "numaemu replay --results ours.jsonl unanswered.jsonl\n"
            "numaemu replay --processes one.jsonl"
        ),
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings: .jsonl or .jsonl.gz, a program a line")
    parser.add_argument("--profile", metavar="P", help="the profile (default: that of each recording's kernel)")
    parser.add_argument("--results", metavar="OUT", help="write each program with our answers to this file")
    parser.add_argument("--expected", metavar="FILE", help="programs that are excused, with reasons (TOML)")
    parser.add_argument(
        "--show", action="store_true", help="print each call that differs, the calls before it, and both answers"
    )
    parser.add_argument("--summary", action="store_true", help="print how many programs first differ in what")
    parser.add_argument("--id", metavar="ID", action="append", help="only programs of this id; may be repeated")
    parser.add_argument(
        "--processes", action="store_true", help="on machines of real processes (default: in memory, the core alone)"
    )
    parser.add_argument("--fsck", action="store_true", help="check every invariant of each machine, too (slow)")
    parser.add_argument("--jobs", type=int, metavar="N", help="programs at a time (default: one a processor)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run, compare, print."""
    from numaemu.replay import runner  # noqa: PLC0415 - --help answers without numpy
    from numaemu.replay.excuses import read_excuses  # noqa: PLC0415 - as above
    from numaemu.replay.records import check_machines, row_with  # noqa: PLC0415 - as above
    from numaemu.replay.sums import Sums  # noqa: PLC0415 - as above

    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs: expected at least 1, got {args.jobs}")
    records = _chosen(args)
    check_machines(records, args.profile)
    sums = Sums(read_excuses(args.expected) if args.expected else {})
    options = runner.Options(args.profile, args.processes, args.fsck, args.jobs or runner.default_jobs())
    outcomes = runner.run_all(records, options)
    with (
        contextlib.closing(outcomes),
        _results(args.results) as results,
        Progress(len(records), "programs") as progress,
    ):
        for outcome in outcomes:
            sums.add(outcome)
            if results is not None:
                results.write(row_with(outcome.record, outcome.answers) + "\n")
            lines = [] if args.json else list(_lines(outcome, show=args.show))
            if lines:
                progress.clear()
                print("\n".join(lines), flush=True)
            progress.step(f"{sums.programs - sums.programs_agreeing} differ")
    if args.json:
        print_json(sums.as_dict())
    else:
        _report(sums, summary=args.summary)
    return 0 if sums.clean else 1


def _chosen(args: argparse.Namespace) -> list[Record]:
    """The programs to run, in the order of the files."""
    from numaemu.replay.records import read_records  # noqa: PLC0415 - as in run

    records = [record for path in args.files for record in read_records(path)]
    missing = set(args.id or ()) - {record.id for record in records}
    if missing:
        raise ValueError(f"--id: no program {min(missing)!r} in these files")
    return [record for record in records if not args.id or record.id in args.id]


@contextlib.contextmanager
def _results(path: str | None) -> Iterator[TextIO | None]:
    """The file for our answers, opened before anything is run."""
    if path is None:
        yield None
        return
    with Path(path).open("w", encoding="utf-8") as file:
        yield file


def _lines(outcome: Outcome, *, show: bool) -> Iterator[str]:
    """What there is to say of one program."""
    record = outcome.record
    for line in outcome.violations:
        yield f"{record.file} {record.id}: fsck: {line}"
    if outcome.failed is not None:
        call = outcome.failed
        yield f"{record.file} {record.id}: call {call}, {record.ops[call]!r}: {outcome.answers[call]['error']}"
    if show and outcome.differing:
        yield from _shown(outcome)


def _shown(outcome: Outcome) -> Iterator[str]:
    """Every call before the first one that differs, with its answer; each one that does, with both."""
    from numaemu.replay.compare import fields  # noqa: PLC0415 - as in run

    record = outcome.record
    description = record.source.get("desc")
    yield f"{record.file} {record.id}{f': {description}' if description else ''}"
    for call in range(outcome.differing[0]):
        yield f"  {call:4} {record.ops[call]}  {_text(outcome.answers[call])}"
    for call in outcome.differing:
        recorded, ours = record.results[call], outcome.answers[call]
        yield f"! {call:4} {record.ops[call]}  differs in {', '.join(fields(recorded, ours))}"
        yield f"       recorded {_text(recorded)}"
        yield f"       ours     {_text(ours)}"


def _text(answer: Answer) -> str:
    return json.dumps(answer, separators=(",", ":"))


def _report(sums: Sums, *, summary: bool) -> None:
    if summary:
        for (word, fields), count in sums.kinds.most_common():
            print(f"{count:6} {word:<14} {fields:<12} {sums.examples[word, fields]}")
    for excuse, first in sums.excused:
        now = "" if first == excuse.call else " (it agrees)" if first is None else f" (the first is call {first})"
        print(f"excused: {excuse.file} {excuse.id} call {excuse.call}: {excuse.reason}{now}")
    print(sums.line())
